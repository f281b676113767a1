//! Whether a table can be a ledger: it is rolled back with its transactions, survives a crash of the server, and
//! refuses a token that is there.

use diesel::connection::TransactionManager;
use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};

use crate::fault::Fault;
use crate::settings::ledger::LedgerTable;
use crate::transaction::ledger::table::ABORTED;
#[cfg(feature = "doctor")]
use crate::transaction::ledger::{Token, table::HISTORY};
use crate::transaction::rows;
use crate::url::dialect::Dialect;

impl LedgerTable {
    /// Returns this table with the schema in which this session finds it. A closure may change where its session looks
    /// for tables.
    pub(super) fn qualified<C: R2D2Connection + 'static>(&self, conn: &mut C) -> QueryResult<Self> {
        let sql = match Dialect::for_connection::<C>() {
            _ if self.name.contains('.') => return Ok(self.clone()),
            Dialect::MySql => {
                "SELECT IF(DATABASE() REGEXP '^[A-Za-z_][A-Za-z0-9_]*$', DATABASE(), \
                               CONCAT('`', DATABASE(), '`')) AS text"
                    .to_owned()
            }
            Dialect::Postgres => format!(
                "SELECT relnamespace::regnamespace::text AS text FROM pg_class WHERE oid = \
                 '{}'::regclass",
                self.name
            ),
            Dialect::Sqlite | Dialect::Other => return Ok(self.clone()),
        };
        let schema = rows::text(conn, &sql)?.unwrap_or_default();
        let table = Self { name: format!("{schema}.{}", self.name) };
        // (A quote in the name of a schema is not supported.)
        Ok(if table.validate().is_ok() { table } else { self.clone() })
    }

    /// Checks that the table is rolled back with its transaction, and that it survives a crash of the server.
    pub(super) fn verify_table<C: R2D2Connection + 'static>(
        &self,
        conn: &mut C,
    ) -> QueryResult<()> {
        let table = &self.name;
        let (schema, name) = self.parts();
        let sql = match Dialect::for_connection::<C>() {
            Dialect::MySql => {
                let unquoted = schema.map(|schema| schema.trim_matches(['"', '`']));
                let schema = unquoted.map_or("DATABASE()".to_owned(), |name| format!("'{name}'"));
                format!(
                    "SELECT transactions AS text FROM information_schema.tables JOIN \
                     information_schema.engines USING (engine) WHERE table_schema = {schema} AND \
                     table_name = '{name}'"
                )
            }
            Dialect::Postgres => format!(
                "SELECT CASE relkind WHEN 'r' THEN relpersistence::text ELSE '-' END AS text FROM \
                 pg_class WHERE oid = to_regclass('{table}')"
            ),
            Dialect::Sqlite => {
                let schema = schema.unwrap_or("main");
                format!(
                    "SELECT type AS text FROM {schema}.sqlite_master WHERE name = '{name}' COLLATE NOCASE"
                )
            }
            Dialect::Other => return Ok(()),
        };
        match (Dialect::for_connection::<C>(), rows::text(conn, &sql)?.as_deref()) {
            (Dialect::MySql, Some("YES"))
            | (Dialect::Postgres, Some("p"))
            | (Dialect::Sqlite, Some("table")) => Ok(()),
            (Dialect::MySql, Some(_)) => Err(self.unsuitable(
                "its engine has no transactions",
                &format!("change it: ALTER TABLE {table} ENGINE = InnoDB"),
            )),
            (Dialect::Postgres, Some("-")) | (Dialect::Sqlite, Some(_)) => Err(self.unsuitable(
                "it is not a plain table",
                &format!("create one: {}", self.create_table()),
            )),
            (_, Some(_)) => Err(self.unsuitable(
                "it is not a logged table, which survives a crash",
                &format!("change it: ALTER TABLE {table} SET LOGGED"),
            )),
            (Dialect::MySql, None) => Err(self.unsuitable(
                "there is no such table, or its user has no right to it",
                &format!("create it: {}", self.create_table()),
            )),
            (_, None) => Err(self.unsuitable(
                "there is no such table",
                &format!("create it: {}", self.create_table()),
            )),
        }
    }

    /// Checks that the table refuses a token that is there, without keeping one.
    pub(super) fn verify_key<C: R2D2Connection + 'static>(
        &self,
        conn: &mut C,
        token: &str,
    ) -> QueryResult<()> {
        C::TransactionManager::begin_transaction(conn)?;
        let mut insert = || rows::execute(conn, &self.insert(token, ABORTED));
        let mut inserted = insert();
        if inserted == Ok(1) {
            // The token was not there.
            inserted = insert();
        }
        let rolled_back = C::TransactionManager::rollback_transaction(conn);
        match inserted {
            Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => rolled_back,
            Err(error) => Err(error),
            Ok(1) => Err(self.unsuitable(
                "its column `token` is not unique by itself",
                &format!("change it: ALTER TABLE {} ADD PRIMARY KEY (token)", self.name),
            )),
            Ok(_) => Err(self.inserts_nothing()),
        }
    }

    /// Verifies the table as at its first use on a connection, and returns the name of its history, if it was used
    /// before. Nothing is left behind. Whether a server that is read-only would accept a token is not known.
    #[cfg(feature = "doctor")]
    pub(in crate::transaction::ledger) fn inspect<C: R2D2Connection + 'static>(
        &self,
        conn: &mut C,
    ) -> QueryResult<Option<String>> {
        self.verify_table(conn)?;
        let read = rows::text(conn, &self.select(HISTORY));
        let history = read.map_err(|error| self.explained(error))?;
        let Token(new) = Token::new()?;
        match self.verify_key(conn, &new) {
            Err(error) if Fault::of(&error) == Fault::WrongRole => {}
            verified => verified.map_err(|error| self.explained(error))?,
        }
        Ok(history)
    }

    /// Says what is missing, if the database refuses a statement because of the table itself.
    pub(super) fn explained(&self, error: Error) -> Error {
        match (&error, Fault::of(&error)) {
            (Error::DatabaseError(_, information), Fault::Query | Fault::Misconfigured) => self
                .unsuitable(
                    information.message(),
                    &format!(
                        "the user needs the rights to SELECT and INSERT, and the table these columns: {}",
                        self.create_table()
                    ),
                ),
            _ => error,
        }
    }

    pub(super) fn inserts_nothing(&self) -> Error {
        self.unsuitable(
            "an INSERT has inserted nothing",
            "drop the rule or the trigger that prevents it",
        )
    }

    pub(super) fn unsuitable(&self, flaw: &str, correction: &str) -> Error {
        let text = format!("the table {} cannot be a ledger: {flaw}; {correction}", self.name);
        Error::QueryBuilderError(text.into())
    }
}
