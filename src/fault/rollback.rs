//! The errors with which a server rolls the whole transaction back. After other errors of a statement it goes on, or,
//! as PostgreSQL does, refuses everything until it is told to roll back.

use diesel::result::{DatabaseErrorKind, Error};

/// Texts of MySQL, MariaDB and Galera: 1213, MariaDB's 1020 and Group Replication's 3101. (After a 1205 the transaction
/// goes on, unless `innodb_rollback_on_timeout` is set.) Each of them is a conflict, after which a transaction is run
/// again.
const ROLLED_BACK: &[&str] = &[
    "Deadlock found when trying to get lock",
    "Record has changed since last read in table",
    "Plugin instructed the server to rollback the current transaction",
];

/// Whether a server rolls the whole transaction back when it answers a statement with this error.
pub(crate) fn shows_rollback(error: &Error) -> bool {
    let Error::DatabaseError(kind, information) = error else { return false };
    // MySQL's 1213 in a prepared statement.
    *kind == DatabaseErrorKind::SerializationFailure
        || ROLLED_BACK.iter().any(|text| information.message().starts_with(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_timeout_does_not_end_the_transaction() {
        use DatabaseErrorKind::{SerializationFailure, UniqueViolation, Unknown};
        for (kind, text, expected) in [
            (Unknown, "Deadlock found when trying to get lock; try restarting transaction", true),
            (SerializationFailure, "Deadlock found", true),
            (Unknown, "database or disk is full", false),
            (Unknown, "Lock wait timeout exceeded; try restarting transaction", false),
            (Unknown, "WSREP has not yet prepared node for application use", false),
            (Unknown, "database is locked", false),
            (UniqueViolation, "Duplicate entry '1' for key 'PRIMARY'", false),
        ] {
            let error = Error::DatabaseError(kind, Box::new(text.to_owned()));
            assert_eq!(shows_rollback(&error), expected, "{text}");
        }
        assert!(!shows_rollback(&Error::NotFound));
    }
}
