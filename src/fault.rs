//! What an error says about the link it came from.

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error};

/// How the client libraries word the loss of a connection. diesel hands MySQL's on as text without
/// a number, and the MariaDB and the Oracle library word them differently. These are whole texts:
/// a server quotes data in its messages, which may hold any words. They come from the client
/// library, never from the server, so that they are the same in every locale; the last one is the
/// exception, and only ever an additional hint.
const LOST: [&str; 3] =
    ["Server has gone away", "MySQL server has gone away", "Connection was killed"];

/// How the text of a connection that was lost during a call begins; what follows varies.
const LOST_DURING: &str = "Lost connection to ";

/// How a Galera node that takes no work refuses it (a constant text of the server's). It also
/// accepts logins and answers pings.
const NOT_READY: &str = "WSREP has not yet prepared node";

/// Whether `error` is a reason to have the peer probed at once.
pub(crate) fn is_suspicious(error: &Error) -> bool {
    let is_not_ready = |error: &Error| match error {
        Error::DatabaseError(_, information) => information.message().starts_with(NOT_READY),
        _ => false,
    };
    is_lost_connection(error)
        || match error {
            Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
                is_not_ready(rollback_error) || is_not_ready(commit_error)
            }
            error => is_not_ready(error),
        }
}

/// Whether `error` says that the connection it came from is gone.
///
/// It says nothing about the server at the other end: a `KILL`, an idle timeout, a proxy that
/// recycles its sessions and a crash all read alike.
pub(crate) fn is_lost_connection(error: &Error) -> bool {
    match error {
        Error::DatabaseError(kind, information) => is_lost(*kind, information.as_ref()),
        Error::RollbackErrorOnCommit { rollback_error, commit_error } => {
            is_lost_connection(rollback_error) || is_lost_connection(commit_error)
        }
        _ => false,
    }
}

fn is_lost(
    kind: DatabaseErrorKind,
    information: &(dyn DatabaseErrorInformation + Send + Sync),
) -> bool {
    match kind {
        // PostgreSQL: the first call after the loss, and every later one.
        DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => true,
        // MySQL: everything but six kinds.
        DatabaseErrorKind::Unknown => {
            let message = information.message();
            LOST.contains(&message) || message.starts_with(LOST_DURING)
        }
        _ => false,
    }
}

/// Whether the reason for which a login failed is that the client library's own time-out was over:
/// libpq has one (`connect_timeout`).
pub(crate) fn is_timeout(why: &str) -> bool {
    why.trim_end().ends_with("timeout expired")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database_error(kind: DatabaseErrorKind, message: &str) -> Error {
        Error::DatabaseError(kind, Box::new(message.to_owned()))
    }

    #[test]
    fn tells_a_lost_connection_from_a_query_s_own_error() {
        use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand, UniqueViolation, Unknown};
        let cases = [
            (Unknown, "Server has gone away", true),
            (Unknown, "MySQL server has gone away", true),
            (Unknown, "Lost connection to server during query", true),
            (Unknown, "Lost connection to MySQL server during query", true),
            (ClosedConnection, "server closed the connection unexpectedly", true),
            (ClosedConnection, "terminating connection due to administrator command", true),
            (UnableToSendCommand, "no connection to the server\n", true),
            (Unknown, "You have an error in your SQL syntax", false),
            (Unknown, "Incorrect integer value: 'Server has gone away' for column 'n'", false),
            (Unknown, "near 'Lost connection to server during query'", false),
            (Unknown, "WSREP has not yet prepared node for application use", false),
            (Unknown, "Deadlock found when trying to get lock", false),
            (UniqueViolation, "Duplicate entry 'gone away' for key 'title'", false),
        ];
        for (kind, message, lost) in cases {
            let error = database_error(kind, message);
            assert_eq!(is_lost_connection(&error), lost, "{message}");
        }
        assert!(!is_lost_connection(&Error::NotFound), "an empty result is no fault");
        assert!(!is_suspicious(&Error::NotFound), "an empty result is no fault");
    }

    #[test]
    fn a_lost_connection_and_a_node_that_refuses_work_are_suspicious() {
        for (message, expected) in [
            ("Server has gone away", true),
            ("WSREP has not yet prepared node for application use", true),
            ("Deadlock found when trying to get lock", false),
        ] {
            let error = database_error(DatabaseErrorKind::Unknown, message);
            assert_eq!(is_suspicious(&error), expected, "{message}");
        }
    }

    #[test]
    fn a_login_that_timed_out_in_the_client_library_was_not_answered() {
        let of_libpq =
            "connection to server at \"db\" (10.0.0.1), port 5432 failed: timeout expired";
        assert!(is_timeout(of_libpq) && is_timeout(&format!("{of_libpq}\n")));
        assert!(!is_timeout("connection to server at \"db\" failed: Connection refused"));
        assert!(!is_timeout("password authentication failed for user \"timeout expired\""));
    }

    #[test]
    fn looks_at_both_halves_of_a_failed_commit() {
        let lost = || Box::new(database_error(DatabaseErrorKind::Unknown, "Server has gone away"));
        let own = || Box::new(database_error(DatabaseErrorKind::Unknown, "Deadlock found"));
        for (rollback_error, commit_error, expected) in
            [(lost(), own(), true), (own(), lost(), true), (own(), own(), false)]
        {
            let error = Error::RollbackErrorOnCommit { rollback_error, commit_error };
            assert_eq!(is_lost_connection(&error), expected, "{error}");
        }
    }
}
