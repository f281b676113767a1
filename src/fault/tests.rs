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
        (ClosedConnection, "terminating connection due to administrator command", ConnectionLost),
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
        (Unknown, "Deadlock found when trying to get lock; try restarting transaction", Retryable),
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
            let expected = if [database, Other].contains(&dialect) { fault } else { Fault::Query };
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
        (of_mysql, "Lost connection to MySQL server at 'reading initial communication", PeerDown),
        (of_mysql, "Unknown MySQL server host 'db0' (-2)", PeerDown),
        (of_mysql, "The server is currently in offline mode", PeerNotReady),
        (of_mysql, "Too many connections", PeerFull),
        (of_mysql, "User app already has more than 'max_user_connections' active", PeerFull),
        (of_mysql, "User 'a' has exceeded the 'max_user_connections' resource", PeerFull),
        (of_mysql, "Benutzer 'a' hat die Ressource 'max_user_connections'", PeerFull),
        (of_mysql, "Access denied for user 'app'@'10.0.0.1' (using password: YES)", Misconfigured),
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
        (of_mysql, "Authentication plugin 'client_ed25519' cannot be loaded: /usr", Misconfigured),
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
        let text = format!("connection to server at \"db0\", port 6432 failed: FATAL:  {message}");
        assert_eq!(Fault::of_login(&ConnectionError::BadConnection(text)), expected, "{message}");
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
    let of_libpq = "connection to server at \"db\" (10.0.0.1), port 5432 failed: timeout expired";
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
    assert_eq!(classifier.classify_query(&Error::RollbackTransaction), (Fault::Query, Loss::No));
    let lost = database_error(DatabaseErrorKind::Unknown, "Server has gone away");
    assert_eq!(
        classifier.classify_query(&lost),
        (Fault::ConnectionLost, Loss::Claimed),
        "the closure leaves this one to the tables"
    );
    assert_eq!(classifier.classify_login(&login("ours")), Fault::PeerFull);
    assert_eq!(classifier.classify_login(&login("Access denied")), Fault::Misconfigured);
}
