//! The messages of databases, of their client libraries and of proxies, and what they mean: one table for each
//! database.

use crate::fault::Fault;
use crate::url::dialect::Dialect;

/// Returns the fault that the message of a failed query shows, if it is known.
pub(super) fn fault_of_query(dialect: Dialect, message: &str) -> Option<Fault> {
    look_up(queries(dialect), message)
}

/// Returns the fault that the message of a failed login shows, if it is known.
pub(super) fn fault_of_login(dialect: Dialect, message: &str) -> Option<Fault> {
    look_up(logins(dialect), message)
}

/// A pattern for a message. Patterns cover as much of a message as possible, because servers quote data
/// and names in their messages, which may contain any words.
enum Pattern {
    Is(&'static str),
    Begins(&'static str),
    Ends(&'static str),
    /// A message that quotes a name between these two texts.
    Quotes(&'static str, &'static str),
    /// The name of a setting, or a constant of the client library.
    Contains(&'static str),
    /// The beginning and the end of PostgreSQL's message, which follows libpq's introduction and a severity in
    /// the server's language. (In the error of a query it stands alone.) Another line may follow with a
    /// detail or with the message of another address.
    PostgresQuotes(&'static str, &'static str),
    /// The beginning of such a message.
    Postgres(&'static str),
}

use Pattern::{Begins, Contains, Ends, Is, Postgres, PostgresQuotes, Quotes};

/// The messages of one database, and what they mean. The first pattern that matches decides.
type Table = &'static [(Pattern, Fault)];

/// Returns the tables of failed queries of this dialect: all tables if the database is not known.
fn queries(dialect: Dialect) -> &'static [Table] {
    match dialect {
        Dialect::MySql => &[MYSQL_QUERIES],
        Dialect::Postgres => &[POSTGRES_QUERIES],
        Dialect::Sqlite => &[SQLITE_QUERIES],
        Dialect::Other => &[MYSQL_QUERIES, POSTGRES_QUERIES, SQLITE_QUERIES],
    }
}

/// Returns the tables of failed logins of this dialect: all tables if the database is not known.
fn logins(dialect: Dialect) -> &'static [Table] {
    match dialect {
        Dialect::MySql => &[MYSQL_LOGINS],
        Dialect::Postgres => &[POSTGRES_LOGINS],
        Dialect::Sqlite => &[],
        Dialect::Other => &[MYSQL_LOGINS, POSTGRES_LOGINS],
    }
}

/// The messages of failed queries of MySQL and MariaDB.
const MYSQL_QUERIES: Table = &[
    // From the client libraries of MariaDB and of Oracle.
    (Is("Server has gone away"), Fault::ConnectionLost),
    (Is("MySQL server has gone away"), Fault::ConnectionLost),
    (Begins("Lost connection to "), Fault::ConnectionLost),
    // 2026 of either library. No connection survives an error of its TLS.
    (Begins("TLS/SSL error: "), Fault::ConnectionLost),
    (Begins("SSL connection error: "), Fault::ConnectionLost),
    // 2027 of either library. ProxySQL forwards the loss of the server behind it under the client library's
    // own number, which MariaDB's library does not accept from a server.
    (Is("Received malformed packet"), Fault::ConnectionLost),
    (Is("Malformed packet"), Fault::ConnectionLost),
    // From the server, and never the only sign: 1927 of MariaDB, 3169 and 4031 of MySQL. A session that was
    // idle for longer than its `wait_timeout` gets 4031.
    (Is("Connection was killed"), Fault::ConnectionLost),
    (Is("Session was killed"), Fault::ConnectionLost),
    (Begins("The client was disconnected by the server because of "), Fault::ConnectionLost),
    // 1047 of a Galera node, which accepts logins and answers pings all the same. The text is never
    // translated.
    (Is("WSREP has not yet prepared node for application use"), Fault::PeerNotReady),
    // 1180: the quorum was lost during a COMMIT, whose outcome is unknown.
    (
        Begins("Error while appending streaming replication fragment(provider status: "),
        Fault::PeerNotReady,
    ),
    // 1053.
    (Begins("Server shutdown in progress"), Fault::PeerNotReady),
    // From ProxySQL, when no server behind it answers.
    (Begins("Max connect timeout reached while reaching hostgroup"), Fault::PeerNotReady),
    (Begins("Max connect failure while reaching hostgroup"), Fault::PeerNotReady),
    // 1290, which other options cause as well.
    (Contains("--read-only"), Fault::WrongRole),
    (Contains("--super-read-only"), Fault::WrongRole),
    (Contains("--innodb-read-only"), Fault::WrongRole),
    // 1836 and 1792. Only in a prepared statement has 1792 a kind of its own.
    (Begins("Running in read-only mode"), Fault::WrongRole),
    (Begins("Cannot execute statement in a READ ONLY transaction"), Fault::WrongRole),
    // 1036 and 1874, with `innodb_read_only`. (1036 also has causes in the table itself.)
    (Quotes("Table '", "' is read only"), Fault::WrongRole),
    (Begins("InnoDB is in read only mode"), Fault::WrongRole),
    // 1461, 1041 and 1037, 1038, 1021, 1135.
    (Contains("max_prepared_stmt_count"), Fault::OutOfResources),
    (Begins("Out of memory"), Fault::OutOfResources),
    (Begins("Out of sort memory"), Fault::OutOfResources),
    (Begins("Disk full ("), Fault::OutOfResources),
    (Begins("Can't create a new thread"), Fault::OutOfResources),
    // 1820: a login with an expired password succeeds, and every query after it fails.
    (Begins("You must SET PASSWORD before executing "), Fault::Misconfigured),
    (Begins("You must reset your password using ALTER USER "), Fault::Misconfigured),
    // 9001 to 9005, 9012 and 9013 of TiDB: its servers are all the same, and the stores behind them are at fault.
    (Begins("PD server timeout"), Fault::OutOfResources),
    (Begins("TiKV server timeout"), Fault::OutOfResources),
    (Begins("TiKV server is busy"), Fault::OutOfResources),
    (Begins("Region is unavailable"), Fault::OutOfResources),
    (Begins("TiFlash server timeout"), Fault::OutOfResources),
    (Begins("TiFlash server is busy"), Fault::OutOfResources),
    // 8002, 8022, 8028, 9007 and others of TiDB, which marks the errors that a transaction survives if it is run
    // again.
    (Ends("[try again later]"), Fault::Retryable),
    // 1213 and 1205. Only in a prepared statement has 1213 a kind of its own.
    (Begins("Deadlock found when trying to get lock"), Fault::Retryable),
    (Begins("Lock wait timeout exceeded"), Fault::Retryable),
    // 1020 of MariaDB with `innodb_snapshot_isolation`, the default from 11.8 on: a write conflict. (Also of a lost
    // race in an engine without transactions, where a retry does no harm.)
    (Begins("Record has changed since last read in table"), Fault::Retryable),
    // 3101 of MySQL: a conflict of Group Replication.
    (Begins("Plugin instructed the server to rollback the current transaction"), Fault::Retryable),
];

/// The messages of failed queries of PostgreSQL. Most errors have a kind.
const POSTGRES_QUERIES: Table = &[
    // From libpq during a COPY, where diesel reports no kind.
    (Begins("server closed the connection unexpectedly"), Fault::ConnectionLost),
    (Begins("no connection to the server"), Fault::ConnectionLost),
    (Begins("no COPY in progress"), Fault::ConnectionLost),
    (Begins("could not receive data from server: "), Fault::ConnectionLost),
    (Begins("could not send data to server: "), Fault::ConnectionLost),
    (Begins("SSL SYSCALL error: "), Fault::ConnectionLost),
    (Begins("SSL connection has been closed unexpectedly"), Fault::ConnectionLost),
    (Begins("SSL error: "), Fault::ConnectionLost),
    // From PgBouncer, when the server behind it has ended the session.
    (Is("server conn crashed?"), Fault::ConnectionLost),
    // 53100, 53200 and 53300. (PgBouncer forwards the latter when it opens a session for a query.)
    (Ends(": No space left on device"), Fault::OutOfResources),
    (Is("out of memory"), Fault::OutOfResources),
    (Is("out of shared memory"), Fault::OutOfResources),
    (Begins("sorry, too many clients already"), Fault::OutOfResources),
    (Begins("remaining connection slots are reserved"), Fault::OutOfResources),
    // 58C00 and 58C01 of CockroachDB: its servers are all the same, and a range or another node is at fault.
    (Begins("replica unavailable: "), Fault::OutOfResources),
    (Begins("inbox communication error: "), Fault::OutOfResources),
    // 57P01 of CockroachDB, to a session that it ends. (PostgreSQL's own 57P01 has a kind, as its end has come.)
    (Is("server is shutting down"), Fault::PeerNotReady),
    // 40P01 and 55P03, which have no kind.
    (Is("deadlock detected"), Fault::Retryable),
    (Is("canceling statement due to lock timeout"), Fault::Retryable),
    (Begins("could not obtain lock on "), Fault::Retryable),
];

/// The messages of failed queries of SQLite.
const SQLITE_QUERIES: Table = &[
    (Is("database is locked"), Fault::Retryable),
    (Begins("database table is locked"), Fault::Retryable),
    (Is("database or disk is full"), Fault::OutOfResources),
];

/// The messages of failed logins to MySQL and MariaDB.
const MYSQL_LOGINS: Table = &[
    // 1045, 1044, 4151. These come first, because they quote a name.
    (Begins("Access denied"), Fault::Misconfigured),
    (Begins("ProxySQL Error: Access denied"), Fault::Misconfigured),
    // 1049.
    (Begins("Unknown database"), Fault::Misconfigured),
    // 1130 and 1129.
    (Contains(" is not allowed to connect to "), Fault::Misconfigured),
    (Contains("flush-hosts"), Fault::Misconfigured),
    (Contains("FLUSH HOSTS"), Fault::Misconfigured),
    // 1862.
    (Begins("Your password has expired"), Fault::Misconfigured),
    // 3159.
    (Contains("--require_secure_transport"), Fault::Misconfigured),
    // 1251 and 1524, and 2059 and 2061 of either library: the library lacks the authentication method that
    // the server demands, or uses it with TLS only.
    (Begins("Client does not support authentication protocol"), Fault::Misconfigured),
    (Begins("Plugin "), Fault::Misconfigured),
    (Begins("Authentication plugin '"), Fault::Misconfigured),
    // 2026 of either library. First the cases in which the server went away during the TLS handshake. (With
    // MySQL's library, an error that is not OpenSSL's is the socket's.)
    (Begins("SSL connection error: error:00000000:"), Fault::PeerDown),
    (Begins("TLS/SSL error: Connection reset by peer"), Fault::PeerDown),
    (Begins("TLS/SSL error: Broken pipe"), Fault::PeerDown),
    (Contains("unexpected eof while reading"), Fault::PeerDown),
    (Begins("SSL connection error"), Fault::Misconfigured),
    (Begins("TLS/SSL error"), Fault::Misconfigured),
    // 1040, 1203 and 1226.
    (Is("Too many connections"), Fault::PeerFull),
    (Contains("'max_user_connections'"), Fault::PeerFull),
    (Contains("'max_connections_per_hour'"), Fault::PeerFull),
    (Begins("Out of memory"), Fault::OutOfResources),
    (Begins("Can't create a new thread"), Fault::OutOfResources),
    (Begins("WSREP has not yet prepared node"), Fault::PeerNotReady),
    (Begins("Server shutdown in progress"), Fault::PeerNotReady),
    // 3032 of MySQL.
    (Is("The server is currently in offline mode"), Fault::PeerNotReady),
];

/// The messages of failed logins to PostgreSQL.
const POSTGRES_LOGINS: Table = &[
    // From PgBouncer, when an operator has drained it by DISABLE. This comes first, because it begins as 3D000.
    (PostgresQuotes("database \"", "\" is disabled"), Fault::PeerNotReady),
    // From PgBouncer: the server behind it is gone.
    (Postgres("server login has been failing"), Fault::PeerNotReady),
    (Postgres("pgbouncer cannot connect to server"), Fault::PeerNotReady),
    // From pgpool-II: the same.
    (Postgres("all backend nodes are down"), Fault::PeerNotReady),
    // From PgBouncer and pgpool-II, whose limits of clients are reached, or whose connections to the server
    // are all in use.
    (Postgres("client connections exceeded"), Fault::PeerFull),
    (Postgres("Sorry, too many clients already"), Fault::PeerFull),
    (Postgres("query_wait_timeout"), Fault::PeerFull),
    // From PgBouncer and pgpool-II, of a login that they do not accept.
    (Postgres("SASL authentication failed"), Fault::Misconfigured),
    (Postgres("\"trust\" authentication failed"), Fault::Misconfigured),
    (Postgres("no such database: "), Fault::Misconfigured),
    (Postgres("no such user: "), Fault::Misconfigured),
    (Postgres("login rejected"), Fault::Misconfigured),
    (Postgres("unsupported startup parameter"), Fault::Misconfigured),
    (Postgres("bouncer config error"), Fault::Misconfigured),
    // 53300, and PgBouncer's own message.
    (Postgres("sorry, too many clients already"), Fault::PeerFull),
    (Postgres("remaining connection slots are reserved"), Fault::PeerFull),
    (Postgres("too many connections for "), Fault::PeerFull),
    (Postgres("no more connections allowed"), Fault::PeerFull),
    // 57P03, and 57P01 of CockroachDB.
    (Postgres("the database system is "), Fault::PeerNotReady),
    (Postgres("server is not accepting clients"), Fault::PeerNotReady),
    // 28P01, 28000, 42501 and 3D000.
    (Postgres("password authentication failed"), Fault::Misconfigured),
    (Postgres("authentication failed"), Fault::Misconfigured),
    (Postgres("Peer authentication failed for "), Fault::Misconfigured),
    (Postgres("Ident authentication failed for "), Fault::Misconfigured),
    (Postgres("LDAP authentication failed for "), Fault::Misconfigured),
    (Postgres("PAM authentication failed for "), Fault::Misconfigured),
    (Postgres("GSSAPI authentication failed for "), Fault::Misconfigured),
    (Postgres("certificate authentication failed for "), Fault::Misconfigured),
    (Postgres("connection requires a valid client certificate"), Fault::Misconfigured),
    (Postgres("permission denied for database "), Fault::Misconfigured),
    (Postgres("no pg_hba.conf entry for "), Fault::Misconfigured),
    (Postgres("pg_hba.conf rejects "), Fault::Misconfigured),
    (Postgres("role \""), Fault::Misconfigured),
    (Postgres("database \""), Fault::Misconfigured),
    // From libpq.
    (Contains("no password supplied"), Fault::Misconfigured),
    (Contains("server does not support SSL, but SSL was required"), Fault::Misconfigured),
    (Contains("SSL error: certificate verify failed"), Fault::Misconfigured),
    (Contains("does not match host name"), Fault::Misconfigured),
    (Contains("root certificate file"), Fault::Misconfigured),
];

fn look_up(tables: &[Table], message: &str) -> Option<Fault> {
    let message = message.trim_end();
    let is_from_postgres = |before: &str, after: &str| {
        let parts =
            message.lines().map(|line| line.split_once(":  ").map_or(line, |(_, part)| part));
        parts.into_iter().any(|part| part.starts_with(before) && part.ends_with(after))
    };
    let matches = |pattern: &Pattern| match pattern {
        Is(text) => message == *text,
        Begins(text) => message.starts_with(text),
        Ends(text) => message.ends_with(text),
        Quotes(before, after) => message.starts_with(before) && message.ends_with(after),
        Contains(text) => message.contains(text),
        PostgresQuotes(before, after) => is_from_postgres(before, after),
        Postgres(text) => is_from_postgres(text, ""),
    };
    let mut rows = tables.iter().copied().flatten();
    rows.find(|(pattern, _)| matches(pattern)).map(|(_, fault)| *fault)
}
