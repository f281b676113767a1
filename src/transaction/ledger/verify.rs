//! Whether a table can be a ledger: it is rolled back with its transactions, survives a crash of the server, and refuses
//! a token that is there.

use diesel::connection::TransactionManager;
use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};

use crate::settings::ledger::LedgerTable;
use crate::transaction::ledger::table::{ABORTED, HISTORY};
use crate::transaction::rows;
use crate::url::dialect::Dialect;

impl LedgerTable {
    /// Returns this ledger with the schema in which this session finds the table. A closure may change where its
    /// session looks for tables.
    pub(super) fn qualified<C: R2D2Connection + 'static>(&self, conn: &mut C) -> QueryResult<Self> {
        let sql = match Dialect::for_connection::<C>() {
            _ if self.name.contains('.') => return Ok(self.clone()),
            Dialect::MySql => "SELECT DATABASE() AS text".to_owned(),
            Dialect::Postgres => format!(
                "SELECT relnamespace::regnamespace::text AS text FROM pg_class WHERE oid = \
                 '{}'::regclass",
                self.name
            ),
            Dialect::Sqlite | Dialect::Other => return Ok(self.clone()),
        };
        let schema = rows::text(conn, &sql)?.unwrap_or_default();
        let ledger = Self { name: format!("{schema}.{}", self.name), ..self.clone() };
        // Other names would have to be quoted. The documentation says what follows.
        Ok(if ledger.validate().is_ok() { ledger } else { self.clone() })
    }

    /// Checks that the table is rolled back with its transaction, and that it survives a crash of the server.
    pub(super) fn verify_table<C: R2D2Connection + 'static>(
        &self,
        conn: &mut C,
    ) -> QueryResult<()> {
        let table = &self.name;
        let (schema, name) = table.split_once('.').map_or((None, &**table), |(s, n)| (Some(s), n));
        let (sql, expected, flaw) = match Dialect::for_connection::<C>() {
            Dialect::MySql => {
                let schema = schema.map_or("DATABASE()".to_owned(), |schema| format!("'{schema}'"));
                let sql = format!(
                    "SELECT transactions AS text FROM information_schema.tables JOIN \
                     information_schema.engines USING (engine) WHERE table_schema = {schema} AND \
                     table_name = '{name}'"
                );
                (sql, "YES", "its engine has no transactions")
            }
            Dialect::Postgres => {
                let sql = format!(
                    "SELECT CASE relkind WHEN 'r' THEN relpersistence::text ELSE '-' END AS text FROM \
                     pg_class WHERE oid = '{table}'::regclass"
                );
                (sql, "p", "it is not a logged table, which survives a crash")
            }
            Dialect::Sqlite | Dialect::Other => return Ok(()),
        };
        match rows::text(conn, &sql)? {
            Some(found) if found == expected => Ok(()),
            Some(_) => Err(self.unsuitable(flaw)),
            None => Err(self.unsuitable("there is no such table")),
        }
    }

    /// Checks that the table refuses a token that is there.
    pub(super) fn verify_key<C: R2D2Connection + 'static>(&self, conn: &mut C) -> QueryResult<()> {
        C::TransactionManager::begin_transaction(conn)?;
        let inserted = rows::execute(conn, &self.insert(HISTORY, ABORTED));
        C::TransactionManager::rollback_transaction(conn)?;
        match inserted {
            Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(()),
            Ok(_) => Err(self.unsuitable("its column `token` is not unique by itself")),
            Err(error) => Err(error),
        }
    }

    pub(super) fn unsuitable(&self, flaw: &str) -> Error {
        let text = format!("the table {} cannot be a ledger: {flaw}", self.name);
        Error::QueryBuilderError(text.into())
    }
}
