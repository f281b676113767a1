//! Statements whose answer matters, on any of diesel's own connections.

use std::any::Any;

use diesel::result::{Error, QueryResult};

/// Runs `$body` with diesel's own connection that `$conn` is.
macro_rules! on_own_connection {
    ($conn:expr, |$own:ident| $body:expr) => {{
        #[cfg(feature = "mysql")]
        if let Some($own) = (&mut *$conn).downcast_mut::<diesel::MysqlConnection>() {
            return $body;
        }
        #[cfg(feature = "postgres")]
        if let Some($own) = (&mut *$conn).downcast_mut::<diesel::PgConnection>() {
            return $body;
        }
        #[cfg(feature = "sqlite")]
        if let Some($own) = (&mut *$conn).downcast_mut::<diesel::SqliteConnection>() {
            return $body;
        }
        unsupported()
    }};
}

fn unsupported<T>() -> QueryResult<T> {
    Err(Error::QueryBuilderError("a ledger needs one of diesel's own connection types".into()))
}

/// Runs a statement as a prepared one, for whose errors diesel knows the kind on every database.
pub(super) fn execute(conn: &mut dyn Any, sql: &str) -> QueryResult<usize> {
    let _ = (&conn, sql);
    on_own_connection!(conn, |own| diesel::RunQueryDsl::execute(diesel::sql_query(sql), own))
}

/// Returns the column `text` of the first row, if there is one.
pub(super) fn text(conn: &mut dyn Any, sql: &str) -> QueryResult<Option<String>> {
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Text)]
        text: String,
    }
    let _ = (&conn, sql);
    on_own_connection!(conn, |own| {
        let rows: QueryResult<Vec<Row>> = diesel::RunQueryDsl::load(diesel::sql_query(sql), own);
        rows.map(|rows| rows.into_iter().next().map(|row| row.text))
    })
}
