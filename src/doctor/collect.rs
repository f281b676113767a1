//! Collects the facts of one peer, with queries for each kind of database.

mod column;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod recorder;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::any::Any;

use crate::fault::LoginFailure;
pub(super) use recorder::FactRecorder;

/// The table in which diesel records the migrations that were applied.
const MIGRATIONS: &str = "__diesel_schema_migrations";

/// The steps of the examination, as in "the peer did not ... within `connect_timeout`".
const RETURN_SETTINGS: &str = "return its settings";
const RETURN_MIGRATIONS: &str = "return its migrations";

/// Runs the queries for this kind of connection and records their results. Does nothing for a
/// connection that is not one of diesel's own.
///
/// # Errors
///
/// If the connection is lost.
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
    expect(clippy::unnecessary_wraps, reason = "without a database's feature no query can fail")
)]
pub(super) fn collect(conn: &mut dyn Any, recorder: &FactRecorder<'_>) -> Result<(), LoginFailure> {
    #[cfg(feature = "mysql")]
    if let Some(conn) = conn.downcast_mut() {
        return mysql::collect(conn, recorder);
    }
    #[cfg(feature = "postgres")]
    if let Some(conn) = conn.downcast_mut() {
        return postgres::collect(conn, recorder);
    }
    #[cfg(feature = "sqlite")]
    if let Some(conn) = conn.downcast_mut() {
        return sqlite::collect(conn, recorder);
    }
    let _ = (conn, recorder);
    Ok(())
}
