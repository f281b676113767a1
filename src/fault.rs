//! The classification of errors: what an error says about its connection, its peer and its transaction.
//!
//! diesel reports MySQL's errors as text without a number, and every failed login as well. The texts of a
//! client library are the same in every language. The texts of a server are in the language of its setting
//! `lc_messages`; the tables here contain the English ones, and a few in other languages that contain the
//! name of a setting. An unknown text is an error of the query itself, or, for a login, a peer that is down.

pub(crate) mod commit;
pub(crate) mod host;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use diesel::result::{ConnectionError, DatabaseErrorInformation, DatabaseErrorKind, Error};

use crate::fault::host::{HostFailure, Lack};
use crate::panics::catch_panic;
use crate::url::dialect::Dialect;

/// The classification of an error: what it says about its connection, its peer or its transaction. The guide
/// has examples and consequences of each fault ([errors](crate::guide::errors)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection is lost. That says nothing about the peer: a `KILL`, an idle timeout, a proxy that
    /// recycles its sessions and a crash cause the same errors.
    ConnectionLost,
    /// The peer cannot be reached, or refuses the login for no known reason.
    PeerDown,
    /// The peer is running but accepts no work at the moment: it starts up or shuts down, is a Galera node
    /// without a quorum, or is a proxy that is disabled or has lost its server.
    PeerNotReady,
    /// The peer has reached its maximum number of connections.
    PeerFull,
    /// The peer lacks something that the query needs: memory, space on a disk or threads, a store behind it,
    /// or the limit of its prepared statements is reached. Other queries may succeed.
    OutOfResources,
    /// The peer is read-only and was asked to write.
    WrongRole,
    /// The peer rejects the login: user, password, database or TLS are wrong on one of the two sides.
    Misconfigured,
    /// The transaction was rolled back, or the statement gave up, because of other transactions. The
    /// transaction may be run again from its beginning.
    Retryable,
    /// An error of the query itself; it says nothing about the connection or the peer.
    Query,
}

impl Fault {
    /// Classifies the error of a query.
    ///
    /// An error does not say which database it comes from, so the texts of all databases are recognized. The
    /// pool is more exact: it applies to a connection only the texts of that connection's database, and
    /// where it knows the connection's socket, it believes that a connection is lost only if the socket
    /// shows it. A user's own text in an error (`RAISE`, `SIGNAL`) can say anything.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        Self::of_query(Dialect::Other, error)
    }

    /// Classifies the error of a login. As with [`of`](Self::of), the texts of all databases are recognized.
    #[must_use]
    pub fn of_login(error: &ConnectionError) -> Self {
        Self::of_login_to(Dialect::Other, error)
    }

    /// Classifies the error of a query on a connection to a database of this dialect.
    pub(crate) fn of_query(dialect: Dialect, error: &Error) -> Self {
        match error {
            Error::DatabaseError(kind, information) => {
                Self::of_kind(dialect, *kind, information.as_ref())
            }
            // The rollback is diesel's own and says less about the cause than the COMMIT.
            Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
                match Self::of_query(dialect, commit_error) {
                    Self::Query => Self::of_query(dialect, rollback_error),
                    fault => fault,
                }
            }
            _ => Self::Query,
        }
    }

    /// Classifies the error of a login to a database of this dialect.
    fn of_login_to(dialect: Dialect, error: &ConnectionError) -> Self {
        match error {
            ConnectionError::BadConnection(text) => {
                look_up(logins(dialect), text).unwrap_or(Self::PeerDown)
            }
            ConnectionError::InvalidConnectionUrl(_) | ConnectionError::InvalidCString(_) => {
                Self::Misconfigured
            }
            // The login succeeded, and the first queries failed.
            ConnectionError::CouldntSetupConfiguration(error) => {
                Self::of_preparation(dialect, error)
            }
            _ => Self::PeerDown,
        }
    }

    /// Classifies the error of the first queries on a new connection. A proxy that accepts the login itself
    /// reports there what the server behind it says of a login.
    fn of_preparation(dialect: Dialect, error: &Error) -> Self {
        let of_login = || match error {
            Error::DatabaseError(_, information) => look_up(logins(dialect), information.message()),
            _ => None,
        };
        match Self::of_query(dialect, error) {
            Self::Query | Self::ConnectionLost => of_login().unwrap_or(Self::PeerDown),
            fault => fault,
        }
    }

    /// Returns a stable `snake_case` name, as used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionLost => "connection_lost",
            Self::PeerDown => "peer_down",
            Self::PeerNotReady => "peer_not_ready",
            Self::PeerFull => "peer_full",
            Self::OutOfResources => "out_of_resources",
            Self::WrongRole => "wrong_role",
            Self::Misconfigured => "misconfigured",
            Self::Retryable => "retryable",
            Self::Query => "query",
        }
    }

    fn of_kind(
        dialect: Dialect,
        kind: DatabaseErrorKind,
        information: &(dyn DatabaseErrorInformation + Send + Sync),
    ) -> Self {
        match kind {
            // PostgreSQL: the first call after the loss and every later call. (Also the class 08 of
            // SQLSTATE, which a function of the application may raise.)
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => {
                Self::ConnectionLost
            }
            DatabaseErrorKind::SerializationFailure => Self::Retryable,
            DatabaseErrorKind::ReadOnlyTransaction => Self::WrongRole,
            // MySQL: all errors but those of six kinds, and every error of BEGIN and COMMIT.
            DatabaseErrorKind::Unknown => {
                look_up(queries(dialect), information.message()).unwrap_or(Self::Query)
            }
            _ => Self::Query,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The cause of a failed login, or of a mark: its classification, and a text without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailureCause {
    pub(crate) fault: Fault,
    pub(crate) reason: Arc<str>,
    /// Whether a session has shown it, so that it concerns the other sessions of the peer as well. A refused
    /// login says nothing about them: a pooler that an operator has disabled goes on with its sessions.
    pub(crate) of_session: bool,
}

impl FailureCause {
    pub(crate) fn new(fault: Fault, reason: impl Into<Arc<str>>) -> Self {
        Self { fault, reason: reason.into(), of_session: false }
    }
}

/// The reason why a login for the pool or a health check failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoginFailure {
    /// The peer, or its host, refused the login.
    Refused(FailureCause),
    /// The peer did not answer before our timeout or the client library's own.
    Unanswered(Arc<str>),
    /// The peer has begun to answer, and the login did not end before our timeout. A pooler that accepts
    /// logins itself holds their queries while it is paused, while its connections to the server are all in
    /// use, and while the server is gone.
    Held(Arc<str>),
    /// The login did not reach the peer: its name is not resolved, or no way leads to its address.
    Unreached(Arc<str>),
    /// This process is the cause: it did not send the login or did not get to read the answer.
    NotAttempted(Arc<str>),
    /// This host is the cause, or may be: [`Lack::concerns_all_peers`]. Whether it is the cause is decided
    /// with the outcomes of other peers.
    OfHost(HostFailure),
}

impl LoginFailure {
    /// Classifies a failure that the client library reports. libpq has a timeout of its own
    /// (`connect_timeout`). `lack` is what this host lacks, according to the text.
    pub(crate) fn from_cause(cause: FailureCause, lack: Option<Lack>) -> Self {
        if cause.reason.trim_end().ends_with("timeout expired") {
            return Self::Unanswered(cause.reason);
        }
        // Any other fault was recognized in the text, or by the application.
        match lack.filter(|_| cause.fault == Fault::PeerDown) {
            Some(lack) => Self::OfHost(HostFailure { lack, reason: cause.reason }),
            None => Self::Refused(cause),
        }
    }

    /// Takes note that the peer has accepted the login and that its session has shown the failure.
    pub(crate) fn of_session(mut self) -> Self {
        if let Self::Refused(cause) = &mut self {
            cause.of_session = true;
        }
        self
    }

    /// The thread of a login cannot be started.
    pub(crate) fn no_thread(error: &io::Error) -> Self {
        Self::OfHost(HostFailure { lack: Lack::Threads, reason: error.to_string().into() })
    }

    pub(crate) fn refused(fault: Fault, reason: impl Into<Arc<str>>) -> Self {
        Self::Refused(FailureCause::new(fault, reason))
    }

    pub(crate) fn timed_out(timeout: Duration) -> Self {
        Self::Unanswered(format!("no answer to a login within {timeout:?}").into())
    }

    pub(crate) fn held(timeout: Duration) -> Self {
        let reason = format!("a login was begun and not completed within {timeout:?}");
        Self::Held(reason.into())
    }

    /// Whether the login had no outcome before a timeout.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Unanswered(_) | Self::Held(_))
    }

    /// Returns the fault of the peer that the failure shows, if any.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Refused(cause) => Some(cause.fault),
            Self::Unanswered(_) | Self::Held(_) | Self::Unreached(_) => Some(Fault::PeerDown),
            Self::OfHost(failure) => {
                (!failure.lack.concerns_all_peers()).then_some(Fault::PeerDown)
            }
            Self::NotAttempted(_) => None,
        }
    }
}

impl fmt::Display for LoginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(FailureCause { reason, .. })
            | Self::Unanswered(reason)
            | Self::Held(reason)
            | Self::Unreached(reason)
            | Self::NotAttempted(reason) => f.write_str(reason),
            Self::OfHost(failure) if failure.lack.concerns_all_peers() => failure.fmt(f),
            // Whether it concerns more than one peer is not known here.
            Self::OfHost(failure) => f.write_str(&failure.reason),
        }
    }
}

/// A failed login or query, as passed to the closure [`classify`](crate::PeerManagerBuilder::classify).
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Failure<'a> {
    /// A failed login, for the pool or for a health check.
    Login(&'a ConnectionError),
    /// A failed query, of the application or of a health check.
    Query(&'a Error),
}

/// The application's own classification, which takes precedence.
pub(crate) type Classify = dyn Fn(Failure<'_>) -> Option<Fault> + Send + Sync;

/// Classifies failures: by the application's closure, then by the tables of the database.
#[derive(Clone, Default)]
pub(crate) struct Classifier {
    closure: Option<Arc<Classify>>,
    /// The database whose texts are recognized.
    pub(crate) dialect: Dialect,
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.closure.is_some() { "closure, then tables" } else { "tables" })
    }
}

/// Whether the error of a query says that its connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The error does not say so.
    No,
    /// The error says so, by a text or a code that could also be the text of a user.
    Claimed,
    /// The application's closure has decided so.
    Decided,
}

impl Classifier {
    pub(crate) fn with_closure(classify: Arc<Classify>) -> Self {
        Self { closure: Some(classify), dialect: Dialect::default() }
    }

    pub(crate) fn classify_login(&self, error: &ConnectionError) -> Fault {
        let decided = self.call_closure(Failure::Login(error));
        decided.unwrap_or_else(|| Fault::of_login_to(self.dialect, error))
    }

    /// Classifies the error of a query of a login.
    pub(crate) fn classify_preparation(&self, error: &Error) -> Fault {
        let decided = self.call_closure(Failure::Query(error));
        decided.unwrap_or_else(|| Fault::of_preparation(self.dialect, error))
    }

    /// Classifies the error of a query, and returns whether it says that its connection is lost.
    pub(crate) fn classify_query(&self, error: &Error) -> (Fault, Loss) {
        match self.call_closure(Failure::Query(error)) {
            Some(Fault::ConnectionLost) => (Fault::ConnectionLost, Loss::Decided),
            Some(fault) => (fault, Loss::No),
            None if claims_loss(self.dialect, error) => {
                (Fault::of_query(self.dialect, error), Loss::Claimed)
            }
            None => (Fault::of_query(self.dialect, error), Loss::No),
        }
    }

    /// Calls the closure. A panic counts as no decision.
    fn call_closure(&self, failed: Failure<'_>) -> Option<Fault> {
        let classify = self.closure.as_ref()?;
        catch_panic(|| classify(failed)).ok().flatten()
    }
}

/// Whether `error` says that its connection is lost. For a failed COMMIT, either of its two errors is
/// sufficient.
fn claims_loss(dialect: Dialect, error: &Error) -> bool {
    match error {
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            claims_loss(dialect, rollback_error) || claims_loss(dialect, commit_error)
        }
        error => Fault::of_query(dialect, error) == Fault::ConnectionLost,
    }
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
    // 40P01, which has no kind.
    (Is("deadlock detected"), Fault::Retryable),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn database_error(kind: DatabaseErrorKind, message: &str) -> Error {
        Error::DatabaseError(kind, Box::new(message.to_owned()))
    }

    #[test]
    fn errors_of_queries_are_classified_by_kind_and_text() {
        use DatabaseErrorKind::{
            ClosedConnection, ReadOnlyTransaction, SerializationFailure, UnableToSendCommand,
            UniqueViolation, Unknown,
        };
        use Fault::{ConnectionLost, PeerNotReady, Query, Retryable, WrongRole};
        let cases = [
            (Unknown, "Server has gone away", ConnectionLost),
            (Unknown, "MySQL server has gone away", ConnectionLost),
            (Unknown, "Lost connection to server during query", ConnectionLost),
            (Unknown, "Lost connection to MySQL server during query", ConnectionLost),
            (
                Unknown,
                "The client was disconnected by the server because of inactivity. See wait_timeout and \
                 interactive_timeout for configuring this behavior.",
                ConnectionLost,
            ),
            (Unknown, "TLS/SSL error: unexpected eof while reading", ConnectionLost),
            (Unknown, "TLS/SSL error: shutdown while in init", ConnectionLost),
            (Unknown, "TLS/SSL error: Connection reset by peer (104)", ConnectionLost),
            (Unknown, "TLS/SSL error: Broken pipe (32)", ConnectionLost),
            (Unknown, "SSL connection error: error:00000000:lib(0)::reason(0)", ConnectionLost),
            (Unknown, "Received malformed packet", ConnectionLost),
            (Unknown, "SSL SYSCALL error: EOF detected\n", ConnectionLost),
            (Unknown, "no COPY in progress\n", ConnectionLost),
            (Unknown, "server conn crashed?", ConnectionLost),
            (ClosedConnection, "server closed the connection unexpectedly", ConnectionLost),
            (
                ClosedConnection,
                "terminating connection due to administrator command",
                ConnectionLost,
            ),
            (UnableToSendCommand, "no connection to the server\n", ConnectionLost),
            (Unknown, "WSREP has not yet prepared node for application use", PeerNotReady),
            (
                Unknown,
                "Error while appending streaming replication fragment(provider status: Not \
                 connected to Primary Component)",
                PeerNotReady,
            ),
            (Unknown, "Server shutdown in progress", PeerNotReady),
            (
                Unknown,
                "The MariaDB server is running with the --read-only option so it cannot execute this \
                 statement",
                WrongRole,
            ),
            (ReadOnlyTransaction, "cannot execute INSERT in a read-only transaction", WrongRole),
            (Unknown, "Cannot execute statement in a READ ONLY transaction", WrongRole),
            (Unknown, "Table 't' is read only", WrongRole),
            (SerializationFailure, "could not serialize access", Retryable),
            (
                Unknown,
                "Deadlock found when trying to get lock; try restarting transaction",
                Retryable,
            ),
            (Unknown, "Lock wait timeout exceeded; try restarting transaction", Retryable),
            (Unknown, "deadlock detected", Retryable),
            (Unknown, "database is locked", Retryable),
            (Unknown, "out of memory of a user", Query),
            (Unknown, "You have an error in your SQL syntax", Query),
            (Unknown, "WSREP has not yet prepared node, says a ticket", Query),
            (Unknown, "Table 't' is read only, they say", Query),
            (Unknown, "Incorrect integer value: 'Server has gone away' for column 'n'", Query),
            (Unknown, "near 'Lost connection to server during query'", Query),
            (Unknown, "Incorrect integer value: 'provider status: x' for column 'n'", Query),
            (Unknown, "invalid input syntax for type integer: \"provider status: x\"", Query),
            (Unknown, "Query execution was interrupted", Query),
            (UniqueViolation, "Duplicate entry 'gone away' for key 'title'", Query),
        ];
        for (kind, message, expected) in cases {
            assert_eq!(Fault::of(&database_error(kind, message)), expected, "{message}");
        }
        assert_eq!(
            Fault::of(&Error::NotFound),
            Query,
            "an empty result is an error of the query itself"
        );
    }

    #[test]
    fn shortages_of_a_server_are_classified_by_text() {
        for message in [
            "Can't create more than max_prepared_stmt_count statements (current value: 0)",
            "Out of memory; restart server and try again (needed 8 bytes)",
            "Out of memory.",
            "Out of sort memory, consider increasing server sort buffer size",
            "Disk full (/tmp/#sql); waiting for someone to free some space",
            "Can't create a new thread (errno 11 \"Resource temporarily unavailable\")",
            "could not extend file \"base/5/1259\": No space left on device",
            "out of shared memory",
            "database or disk is full",
        ] {
            let error = database_error(DatabaseErrorKind::Unknown, message);
            assert_eq!(Fault::of(&error), Fault::OutOfResources, "{message}");
        }
    }

    #[test]
    fn texts_of_one_database_are_not_recognized_in_errors_of_another() {
        use Dialect::{MySql, Other, Postgres, Sqlite};
        use Fault::{ConnectionLost, PeerNotReady, Retryable};
        for (text, database, fault) in [
            ("WSREP has not yet prepared node for application use", MySql, PeerNotReady),
            ("Server has gone away", MySql, ConnectionLost),
            ("no COPY in progress", Postgres, ConnectionLost),
            ("deadlock detected", Postgres, Retryable),
            ("database is locked", Sqlite, Retryable),
        ] {
            let error = database_error(DatabaseErrorKind::Unknown, text);
            for dialect in [MySql, Postgres, Sqlite, Other] {
                let expected =
                    if [database, Other].contains(&dialect) { fault } else { Fault::Query };
                assert_eq!(Fault::of_query(dialect, &error), expected, "{text} from {dialect}");
            }
        }
        let error = ConnectionError::BadConnection("Access denied for user".to_owned());
        assert_eq!(Fault::of_login_to(MySql, &error), Fault::Misconfigured);
        assert_eq!(Fault::of_login_to(Postgres, &error), Fault::PeerDown);
    }

    #[test]
    fn errors_of_logins_are_classified_by_text() {
        use Fault::{Misconfigured, PeerDown, PeerFull, PeerNotReady};
        let of_libpq = "connection to server at \"db0\" (10.0.0.1), port 5432 failed: FATAL:  ";
        let of_mysql = "";
        let cases = [
            (of_mysql, "Can't connect to server on '127.0.0.1' (115)", PeerDown),
            (of_mysql, "Lost connection to server at 'handshake: reading initial", PeerDown),
            (of_mysql, "Unknown server host 'db0' (-2)", PeerDown),
            (of_mysql, "Can't connect to MySQL server on '127.0.0.1:3306' (111)", PeerDown),
            (
                of_mysql,
                "Lost connection to MySQL server at 'reading initial communication",
                PeerDown,
            ),
            (of_mysql, "Unknown MySQL server host 'db0' (-2)", PeerDown),
            (of_mysql, "The server is currently in offline mode", PeerNotReady),
            (of_mysql, "Too many connections", PeerFull),
            (of_mysql, "User app already has more than 'max_user_connections' active", PeerFull),
            (of_mysql, "User 'a' has exceeded the 'max_user_connections' resource", PeerFull),
            (of_mysql, "Benutzer 'a' hat die Ressource 'max_user_connections'", PeerFull),
            (
                of_mysql,
                "Access denied for user 'app'@'10.0.0.1' (using password: YES)",
                Misconfigured,
            ),
            (of_mysql, "Access denied for user 'Too many connections'@'x'", Misconfigured),
            (of_mysql, "ProxySQL Error: Access denied for user 'app'@'10.0.0.1'", Misconfigured),
            (of_mysql, "User 'a' has exceeded the 'max_connections_per_hour' resource", PeerFull),
            (of_mysql, "Unknown database 'shop'", Misconfigured),
            (of_mysql, "Host 'a' is not allowed to connect to this MariaDB server", Misconfigured),
            (
                of_mysql,
                "Connections using insecure transport are prohibited while \
                 --require_secure_transport=ON.",
                Misconfigured,
            ),
            (of_mysql, "Your password has expired. To log in you must change it", Misconfigured),
            (
                of_mysql,
                "Authentication plugin 'client_ed25519' cannot be loaded: /usr",
                Misconfigured,
            ),
            (of_mysql, "Plugin client_ed25519 could not be loaded: not found", Misconfigured),
            (
                of_mysql,
                "Authentication plugin 'caching_sha2_password' reported error: Authentication \
                 requires secure connection.",
                Misconfigured,
            ),
            (of_mysql, "SSL connection error: SSL is required but", Misconfigured),
            (
                of_mysql,
                "SSL connection error: error:0A000086:SSL routines::certificate verify failed",
                Misconfigured,
            ),
            (of_mysql, "SSL connection error: error:00000000:lib(0)::reason(0)", PeerDown),
            (
                of_mysql,
                "SSL connection error: error:0A000126:SSL routines::unexpected eof while reading",
                PeerDown,
            ),
            (of_mysql, "TLS/SSL error: Connection reset by peer (104)", PeerDown),
            (of_mysql, "TLS/SSL error: unexpected eof while reading", PeerDown),
            (of_mysql, "TLS/SSL error: self-signed certificate", Misconfigured),
            (of_libpq, "sorry, too many clients already\n", PeerFull),
            (of_libpq, "remaining connection slots are reserved for non-replication", PeerFull),
            (of_libpq, "too many connections for role \"app\"", PeerFull),
            (of_libpq, "the database system is starting up", PeerNotReady),
            (of_libpq, "the database system is shutting down", PeerNotReady),
            (of_libpq, "server is not accepting clients, try another node\n", PeerNotReady),
            (of_libpq, "password authentication failed for user \"app\"", Misconfigured),
            (of_libpq, "database \"shop\" does not exist", Misconfigured),
            (of_libpq, "role \"too many connections for\" does not exist", Misconfigured),
            (of_libpq, "role \"a:  the database system is\" does not exist", Misconfigured),
            (
                of_libpq,
                "permission denied for database \"shop\"\nDETAIL:  User does not have CONNECT \
                 privilege.\n",
                Misconfigured,
            ),
            (
                of_libpq,
                "the database system is not accepting connections\nDETAIL:  Hot standby mode is \
                 disabled.\n",
                PeerNotReady,
            ),
            (of_libpq, "Peer authentication failed for user \"app\"", Misconfigured),
            ("", "connection to server at \"db0\" failed: Connection refused", PeerDown),
            ("", "unable to open database file", PeerDown),
        ];
        for (introduction, message, expected) in cases {
            let error = ConnectionError::BadConnection(format!("{introduction}{message}"));
            assert_eq!(Fault::of_login(&error), expected, "{message}");
        }
        let not_ready = database_error(
            DatabaseErrorKind::Unknown,
            "WSREP has not yet prepared node for application use",
        );
        let error = ConnectionError::CouldntSetupConfiguration(not_ready);
        assert_eq!(Fault::of_login(&error), PeerNotReady);
    }

    #[test]
    fn refusals_of_proxies_are_classified_by_text() {
        use Fault::{Misconfigured, PeerDown, PeerFull, PeerNotReady};
        for (message, expected) in [
            ("database \"shop\" is disabled\n", PeerNotReady),
            ("all backend nodes are down, pgpool requires at least one", PeerNotReady),
            ("client connections exceeded (max_user_client_connections)", PeerFull),
            ("Sorry, too many clients already", PeerFull),
            ("SASL authentication failed", Misconfigured),
            ("password authentication failed", Misconfigured),
            ("\"trust\" authentication failed", Misconfigured),
            ("no such database: shop", Misconfigured),
            ("login rejected", Misconfigured),
            ("unsupported startup parameter in options: statement_timeout", Misconfigured),
        ] {
            let text =
                format!("connection to server at \"db0\", port 6432 failed: FATAL:  {message}");
            assert_eq!(
                Fault::of_login(&ConnectionError::BadConnection(text)),
                expected,
                "{message}"
            );
        }
        // A proxy accepts a login itself, and reports the refusal of the server behind it later.
        for (kind, message, expected) in [
            (
                DatabaseErrorKind::Unknown,
                "Access denied for user 'a'@'b' to database 'c'",
                Misconfigured,
            ),
            (DatabaseErrorKind::Unknown, "Too many connections", PeerFull),
            (
                DatabaseErrorKind::Unknown,
                "User 'a' has exceeded the 'max_user_connections' resource",
                PeerFull,
            ),
            (
                DatabaseErrorKind::Unknown,
                "Max connect failure while reaching hostgroup 1",
                PeerNotReady,
            ),
            (DatabaseErrorKind::ClosedConnection, "query_wait_timeout", PeerFull),
            (
                DatabaseErrorKind::ClosedConnection,
                "server login has been failing, cached error: connect failed (server_login_retry)",
                PeerNotReady,
            ),
            (DatabaseErrorKind::ClosedConnection, "server closed the connection", PeerDown),
            (DatabaseErrorKind::Unknown, "Lost connection to server during query", PeerDown),
        ] {
            let error = ConnectionError::CouldntSetupConfiguration(database_error(kind, message));
            assert_eq!(Fault::of_login(&error), expected, "{message}");
        }
    }

    #[test]
    fn timeout_of_the_client_library_is_recognized() {
        let of_libpq =
            "connection to server at \"db\" (10.0.0.1), port 5432 failed: timeout expired";
        let is_timeout = |reason: &str| {
            let cause = FailureCause::new(Fault::PeerDown, reason);
            matches!(LoginFailure::from_cause(cause, None), LoginFailure::Unanswered(_))
        };
        assert!(is_timeout(of_libpq) && is_timeout(&format!("{of_libpq}\n")));
        assert!(!is_timeout("connection to server at \"db\" failed: Connection refused"));
        assert!(!is_timeout("password authentication failed for user \"timeout expired\""));
    }

    #[test]
    fn failed_commit_is_classified_by_both_of_its_errors() {
        let lost = || Box::new(database_error(DatabaseErrorKind::Unknown, "Server has gone away"));
        let own = || {
            Box::new(database_error(
                DatabaseErrorKind::Unknown,
                "Deadlock found when trying to get lock",
            ))
        };
        for (rollback_error, commit_error, expected, fault) in [
            (lost(), own(), true, Fault::Retryable),
            (own(), lost(), true, Fault::ConnectionLost),
            (own(), own(), false, Fault::Retryable),
        ] {
            let error = Error::RollbackErrorOnCommit { rollback_error, commit_error };
            assert_eq!(claims_loss(Dialect::Other, &error), expected, "{error}");
            assert_eq!(Fault::of(&error), fault, "{error}");
        }
    }

    #[test]
    fn closure_of_the_application_takes_precedence() {
        let classifier = Classifier::with_closure(Arc::new(|failed: Failure<'_>| match failed {
            Failure::Query(Error::NotFound) => Some(Fault::PeerNotReady),
            Failure::Query(Error::RollbackTransaction) => panic!("on purpose"),
            Failure::Login(ConnectionError::BadConnection(text)) if text == "ours" => {
                Some(Fault::PeerFull)
            }
            _ => None,
        }));
        let login = |text: &str| ConnectionError::BadConnection(text.to_owned());
        assert_eq!(classifier.classify_query(&Error::NotFound), (Fault::PeerNotReady, Loss::No));
        assert_eq!(
            classifier.classify_query(&Error::RollbackTransaction),
            (Fault::Query, Loss::No)
        );
        let lost = database_error(DatabaseErrorKind::Unknown, "Server has gone away");
        assert_eq!(
            classifier.classify_query(&lost),
            (Fault::ConnectionLost, Loss::Claimed),
            "the closure leaves this one to the tables"
        );
        assert_eq!(classifier.classify_login(&login("ours")), Fault::PeerFull);
        assert_eq!(classifier.classify_login(&login("Access denied")), Fault::Misconfigured);
    }
}
