//! The errors of a COMMIT after which nothing was saved for certain. After every other one, the outcome of the
//! transaction is in doubt.

use diesel::result::{DatabaseErrorKind, Error};

use crate::url::dialect::Dialect;

/// Texts after which nothing was saved. MySQL and Galera: 1213 and 1047. A 1180 of Galera proves nothing: the
/// group may have received the transaction. PostgreSQL: 40P01, which has no kind.
const ABORTED: &[&str] = &[
    "Deadlock found when trying to get lock",
    "WSREP has not yet prepared node for application use",
    "deadlock detected",
];

/// As [`ABORTED`], with SQLite, whose COMMIT leaves the transaction open.
const ABORTED_IN_SQLITE: &[&str] = &["database is locked", "database or disk is full"];

/// Whether this error of a COMMIT shows that nothing was saved.
pub(crate) fn shows_abort(dialect: Dialect, error: &Error) -> bool {
    match error {
        Error::DatabaseError(kind, information) => {
            // Constraints and serialization are examined before anything is saved. (MySQL's errors of a COMMIT
            // have no kind.)
            let by_kind = matches!(
                kind,
                DatabaseErrorKind::UniqueViolation
                    | DatabaseErrorKind::ForeignKeyViolation
                    | DatabaseErrorKind::NotNullViolation
                    | DatabaseErrorKind::CheckViolation
                    | DatabaseErrorKind::ExclusionViolation
                    | DatabaseErrorKind::RestrictViolation
                    | DatabaseErrorKind::SerializationFailure
            );
            let begins = |text: &&str| information.message().starts_with(*text);
            let of_sqlite = dialect == Dialect::Sqlite && ABORTED_IN_SQLITE.iter().any(begins);
            by_kind || of_sqlite || ABORTED.iter().any(begins)
        }
        Error::RollbackErrorOnCommit { commit_error, .. } => shows_abort(dialect, commit_error),
        // diesel did not send a COMMIT.
        Error::NotInTransaction | Error::AlreadyInTransaction | Error::RollbackTransaction => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: DatabaseErrorKind, text: &str) -> Error {
        Error::DatabaseError(kind, Box::new(text.to_owned()))
    }

    #[test]
    fn only_these_errors_of_a_commit_leave_no_doubt() {
        use DatabaseErrorKind::{
            ClosedConnection, ForeignKeyViolation, SerializationFailure, UnableToSendCommand,
            UniqueViolation, Unknown,
        };
        use Dialect::{MySql, Postgres, Sqlite};
        let cases = [
            (MySql, Unknown, "Deadlock found when trying to get lock; try restarting", true),
            (MySql, Unknown, "WSREP has not yet prepared node for application use", true),
            (
                MySql,
                Unknown,
                "Error while appending streaming replication fragment(provider status: Not connected)",
                false,
            ),
            (MySql, Unknown, "Server has gone away", false),
            (MySql, Unknown, "Lost connection to server during query", false),
            (MySql, Unknown, "Received malformed packet", false),
            (MySql, Unknown, "Lock wait timeout exceeded; try restarting transaction", false),
            (MySql, Unknown, "Server shutdown in progress", false),
            (MySql, Unknown, "Query execution was interrupted", false),
            (Postgres, ForeignKeyViolation, "insert or update on table violates", true),
            (Postgres, UniqueViolation, "duplicate key value", true),
            (Postgres, SerializationFailure, "could not serialize access", true),
            (Postgres, Unknown, "deadlock detected", true),
            (Postgres, ClosedConnection, "server closed the connection unexpectedly", false),
            (Postgres, UnableToSendCommand, "no connection to the server", false),
            (Postgres, Unknown, "canceling statement due to user request", false),
            (Sqlite, Unknown, "database is locked", true),
            (Sqlite, Unknown, "database or disk is full", true),
            (Sqlite, Unknown, "disk I/O error", false),
            (Postgres, Unknown, "database is locked", false),
        ];
        for (dialect, kind, text, expected) in cases {
            let commit_error = error(kind, text);
            assert_eq!(shows_abort(dialect, &commit_error), expected, "{text}");
            let with_rollback = Error::RollbackErrorOnCommit {
                rollback_error: Box::new(error(Unknown, "Server has gone away")),
                commit_error: Box::new(commit_error),
            };
            assert_eq!(shows_abort(dialect, &with_rollback), expected, "{text}, then a rollback");
        }
        assert!(shows_abort(MySql, &Error::NotInTransaction), "no COMMIT was sent");
    }
}
