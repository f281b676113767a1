//! Detects a pooler with transaction pooling that does not know prepared statements: it runs the next query of
//! a connection in another session of the server, which has not prepared the statement.

use std::sync::atomic::Ordering;

use diesel::result::{DatabaseErrorKind, Error};
use log::error;

use crate::events::log::LOG_TARGET;
use crate::panics::catch_panic;
use crate::peers::set::peer_ref::PeerRef;

/// How diesel names the statements that it keeps.
const NAME: &str = "prepared statement \"__diesel_stmt_";

/// Logs once for each pool what to do, if the error shows that a prepared statement belongs to another session.
pub(super) fn report_loss(peer: &PeerRef, error: &Error) {
    if !is_lost(error) || peer.set.statement_loss_reported.swap(true, Ordering::Relaxed) {
        return;
    }
    let (pool, name, reason) = (&*peer.settings().pool_name, &*peer.name, error.to_string());
    // A logger is user code, which may panic.
    let _ = catch_panic(|| {
        error!(
            target: LOG_TARGET, pool = pool, peer = name, event = "prepared_statement_lost",
            reason = reason.as_str();
            "peer {name} runs the queries of a connection in several sessions, as a pooler with transaction \
             pooling does, and queries fail ({reason}): set `statement_cache` to \"disabled\", or have the \
             pooler track prepared statements (PgBouncer 1.21 and later: max_prepared_statements)"
        );
    });
}

fn is_lost(error: &Error) -> bool {
    let Error::DatabaseError(DatabaseErrorKind::Unknown, information) = error else { return false };
    let rest = information.message().strip_prefix(NAME);
    let what = rest.map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    matches!(what, Some("\" does not exist" | "\" already exists"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statement_of_another_session_is_recognized() {
        for (text, expected) in [
            ("prepared statement \"__diesel_stmt_1\" does not exist", true),
            ("prepared statement \"__diesel_stmt_12\" already exists", true),
            ("prepared statement \"mine\" does not exist", false),
            ("prepared statement \"__diesel_stmt_1\" does not exist, says a user", false),
        ] {
            let information = Box::new(text.to_owned());
            let error = Error::DatabaseError(DatabaseErrorKind::Unknown, information);
            assert_eq!(is_lost(&error), expected, "{text}");
        }
    }
}
