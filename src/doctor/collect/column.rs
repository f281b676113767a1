//! Queries whose result is one column of texts.

use diesel::query_builder::SqlQuery;
use diesel::query_dsl::methods::LoadQuery;
use diesel::result::QueryResult;
use diesel::sql_types::{Nullable, Text};
use diesel::{Connection, QueryableByName, RunQueryDsl, sql_query};

use crate::doctor::fact::FactValue;

/// A row with one column, whose name is `value`.
#[derive(QueryableByName)]
pub(in crate::doctor) struct Row {
    #[diesel(sql_type = Nullable<Text>)]
    pub(in crate::doctor) value: Option<String>,
}

/// Returns the column `value` of a query, without NULLs.
pub(super) fn texts<C: Connection>(conn: &mut C, query: &str) -> QueryResult<Vec<String>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    let rows: Vec<Row> = sql_query(query).load(conn)?;
    Ok(rows.into_iter().filter_map(|row| row.value).collect())
}

/// Returns the first text of a query, or [`FactValue::None`] if there is none.
pub(super) fn text<C: Connection>(conn: &mut C, query: &str) -> QueryResult<Option<FactValue>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    let first = texts(conn, query)?.into_iter().next();
    Ok(Some(first.map_or(FactValue::None, FactValue::Text)))
}

/// Returns the versions of the applied migrations, or [`FactValue::None`] if `find_table` finds no table
/// of migrations.
pub(super) fn migrations<C: Connection>(
    conn: &mut C,
    find_table: &str,
) -> QueryResult<Option<FactValue>>
where
    SqlQuery: LoadQuery<'static, C, Row>,
{
    if texts(conn, find_table)?.is_empty() {
        return Ok(Some(FactValue::None));
    }
    let query = format!("SELECT version AS value FROM {}", super::MIGRATIONS);
    texts(conn, &query).map(|versions| Some(FactValue::sorted_list(versions)))
}
