//! What each kind of database is asked.

mod asker;
#[cfg(feature = "mysql")]
mod mysql;
mod one;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::any::Any;

use crate::login::bounded::LoginFailure;
pub(super) use asker::Asker;

/// Where diesel's migrations are written down.
const MIGRATIONS: &str = "__diesel_schema_migrations";

/// What who falls silent meanwhile did not do.
const SETTINGS: &str = "tell its settings";
const APPLIED: &str = "tell its migrations";

/// Asks this connection all that one of its kind can be asked. Of another kind it is nothing.
///
/// # Errors
///
/// When the connection is lost meanwhile.
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
    expect(clippy::unnecessary_wraps, reason = "there is nobody to ask")
)]
pub(super) fn ask(conn: &mut dyn Any, asker: &Asker<'_>) -> Result<(), LoginFailure> {
    #[cfg(feature = "mysql")]
    if let Some(conn) = conn.downcast_mut() {
        return mysql::ask(conn, asker);
    }
    #[cfg(feature = "postgres")]
    if let Some(conn) = conn.downcast_mut() {
        return postgres::ask(conn, asker);
    }
    #[cfg(feature = "sqlite")]
    if let Some(conn) = conn.downcast_mut() {
        return sqlite::ask(conn, asker);
    }
    let _ = (conn, asker);
    Ok(())
}
