//! What an error says about the link it came from.

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error};

/// How the client libraries word the loss of a connection. diesel hands MySQL's on as text without
/// a number, and the MariaDB and the Oracle library word them differently ("Lost connection to
/// MySQL server"). These texts come from the client library, never from the server, so that they
/// are the same in every locale; `Connection was killed` is the one exception, and only ever an
/// additional hint.
const LOST: [&str; 3] = ["gone away", "Lost connection to ", "Connection was killed"];

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
            LOST.iter().any(|text| message.contains(text))
        }
        _ => false,
    }
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
            (Unknown, "Deadlock found when trying to get lock", false),
            (UniqueViolation, "Duplicate entry 'gone away' for key 'title'", false),
        ];
        for (kind, message, lost) in cases {
            let error = database_error(kind, message);
            assert_eq!(is_lost_connection(&error), lost, "{message}");
        }
        assert!(!is_lost_connection(&Error::NotFound), "an empty result is no fault");
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
