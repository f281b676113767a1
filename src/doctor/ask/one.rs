//! Queries that give one column of texts.

use diesel::query_builder::SqlQuery;
use diesel::query_dsl::methods::LoadQuery;
use diesel::result::QueryResult;
use diesel::sql_types::{Nullable, Text};
use diesel::{Connection, QueryableByName, RunQueryDsl, sql_query};

use crate::doctor::fact::Value;

/// A row of one column that is called `value`.
#[derive(QueryableByName)]
pub(in crate::doctor) struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    pub(in crate::doctor) value: Option<String>,
}

/// The texts that a query gives.
pub(super) fn texts<C: Connection>(conn: &mut C, query: &str) -> QueryResult<Vec<String>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    let rows: Vec<Row> = sql_query(query).load(conn)?;
    Ok(rows.into_iter().filter_map(|row| row.value).collect())
}

/// The first of them, or that there is none.
pub(super) fn text<C: Connection>(conn: &mut C, query: &str) -> QueryResult<Option<Value>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    let first = texts(conn, query)?.into_iter().next();
    Ok(Some(first.map_or(Value::None, Value::Text)))
}

/// The migrations, if `query` finds their table.
pub(super) fn migrations<C: Connection>(conn: &mut C, query: &str) -> QueryResult<Option<Value>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    if texts(conn, query)?.is_empty() {
        return Ok(Some(Value::None));
    }
    let query = format!("SELECT version AS value FROM {}", super::MIGRATIONS);
    texts(conn, &query).map(|versions| Some(Value::list(versions)))
}
