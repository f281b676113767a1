//! The ledger: a table in which each transaction writes a token of its own, as its last statement. After a COMMIT
//! without an answer the *resolver* writes the same token, on another peer, and so decides: if it can commit, the
//! original never will; if the token is there already, the row says which of the two has written it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

use diesel::connection::{SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};
use rand::TryRng;
use rand::rngs::SysRng;

use crate::peers::link_state::LinkLedger;
use crate::pool::connection::PeerConnection;
use crate::settings::retry::Ledger;
use crate::transaction::rows;
use crate::url::dialect::Dialect;

/// The time for which the resolver waits for the lock of a token: the original may hold it.
const LOCK_TIMEOUT_SECONDS: u32 = 2;

/// Written by the transaction itself.
const COMMITTED: &str = "c";
/// Written by the resolver.
const ABORTED: &str = "a";

/// The token of one run of a transaction, in hexadecimal digits: 48 bits of time in milliseconds and 80 random bits.
/// Tokens are ordered by time, so that a table grows at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token(pub(super) String);

impl Token {
    #[expect(clippy::disallowed_methods, reason = "a token must be new after a restart as well")]
    pub(super) fn new() -> QueryResult<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let millis = since.map_or(0, |since| since.as_millis());
        let mut random = [0; 10];
        SysRng
            .try_fill_bytes(&mut random)
            .map_err(|error| Error::QueryBuilderError(Box::new(error)))?;
        let mut digits = Self::time_digits(millis);
        for byte in random {
            write!(digits, "{byte:02x}").expect("a string accepts everything");
        }
        Ok(Self(digits))
    }

    /// Returns the digits with which a token of this time begins.
    pub(super) fn time_digits(millis: u128) -> String {
        format!("{:012x}", millis & 0xffff_ffff_ffff)
    }
}

/// What a transaction in doubt has written in its ledger, if it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) ledger: Ledger,
    pub(super) token: Token,
    /// The history that the transaction belongs to.
    pub(super) history: Arc<str>,
}

/// What one try of the resolver has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Committed,
    /// The transaction is not committed and never will be.
    Aborted,
    /// The token is older than the watermark, and is not there.
    Forgotten,
    /// The table on this peer belongs to other data.
    OtherHistory,
    /// The token was there and is gone. Who has written it is not known.
    Again,
}

/// The key of the row with the name of the history. All peers with the same data have the same.
const HISTORY: &str = "history";

impl Ledger {
    /// Returns this ledger with the schema of its table, and the name of the history that the table on this connection
    /// belongs to. At the first use of a connection, this verifies that the table is suitable. A transaction must not be
    /// open.
    ///
    /// # Errors
    ///
    /// Returns an error if a statement fails, or if the table would not keep what a transaction has written.
    pub(super) fn open<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<(Self, Arc<str>)> {
        let link_state = conn.link_state();
        if let Some(LinkLedger { table, qualified, history }) = link_state.ledger.get() {
            if *table == self.table {
                return Ok((Self { table: qualified.clone(), ..self.clone() }, history.clone()));
            }
        }
        if let Err(flaw) = self.validate() {
            return Err(self.unsuitable(&flaw.to_string()));
        }
        self.verify_table(conn)?;
        let ledger = self.qualified(conn)?;
        let mut history = ledger.read(conn, HISTORY)?;
        if history.is_none() {
            // Another process may do the same, and then the first one counts.
            let Token(new) = Token::new()?;
            match rows::execute(&mut **conn, &ledger.insert(HISTORY, &new)) {
                Ok(_) | Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {}
                Err(error) => return Err(error),
            }
            history = ledger.read(conn, HISTORY)?;
        }
        ledger.verify_key(conn)?;
        let history: Arc<str> = history.ok_or(Error::NotFound)?.into();
        let (table, qualified) = (self.table.clone(), ledger.table.clone());
        let _ = link_state.ledger.set(LinkLedger { table, qualified, history: history.clone() });
        Ok((ledger, history))
    }

    /// Returns this ledger with the schema in which this session finds the table. A closure may change where its
    /// session looks for tables.
    fn qualified<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Self> {
        let sql = match Dialect::for_connection::<C>() {
            _ if self.table.contains('.') => return Ok(self.clone()),
            Dialect::MySql => "SELECT DATABASE() AS text".to_owned(),
            Dialect::Postgres => format!(
                "SELECT relnamespace::regnamespace::text AS text FROM pg_class WHERE oid = \
                 '{}'::regclass",
                self.table
            ),
            Dialect::Sqlite | Dialect::Other => return Ok(self.clone()),
        };
        let schema = rows::text(&mut **conn, &sql)?.unwrap_or_default();
        let ledger = Self { table: format!("{schema}.{}", self.table), ..self.clone() };
        // Other names would have to be quoted. The documentation says what follows.
        Ok(if ledger.validate().is_ok() { ledger } else { self.clone() })
    }

    /// Checks that the table refuses a token that is there.
    fn verify_key<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        C::TransactionManager::begin_transaction(&mut **conn)?;
        let inserted = rows::execute(&mut **conn, &self.insert(HISTORY, ABORTED));
        conn.roll_back();
        match inserted {
            Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => Ok(()),
            Ok(_) => Err(self.unsuitable("its column `token` is not unique by itself")),
            Err(error) => Err(error),
        }
    }

    fn unsuitable(&self, flaw: &str) -> Error {
        let text = format!("the table {} cannot be a ledger: {flaw}", self.table);
        Error::QueryBuilderError(text.into())
    }

    /// Inserts a row that is not there yet.
    fn insert_row<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        sql: &str,
    ) -> QueryResult<()> {
        match rows::execute(&mut **conn, sql)? {
            1 => Ok(()),
            _ => Err(self.unsuitable("an INSERT has inserted nothing")),
        }
    }

    /// Checks that the table is rolled back with its transaction, and that it survives a crash of the server.
    fn verify_table<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        let table = &self.table;
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
        match rows::text(&mut **conn, &sql)? {
            Some(found) if found == expected => Ok(()),
            Some(_) => Err(self.unsuitable(flaw)),
            None => Err(self.unsuitable("there is no such table")),
        }
    }

    pub(super) fn insert(&self, token: &str, outcome: &str) -> String {
        format!("INSERT INTO {} (token, outcome) VALUES ('{token}', '{outcome}')", self.table)
    }
}

impl Entry {
    /// Returns the entry of a new transaction, whose token is not written yet. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns an error if the ledger cannot be used on this connection.
    pub(super) fn new<C: R2D2Connection + Send + 'static>(
        ledger: &Ledger,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Self> {
        let (ledger, history) = ledger.open(conn)?;
        Ok(Self { ledger: Ledger::table(ledger.table), token: Token::new()?, history })
    }

    /// Writes the token of the open transaction. `lock` is a function to call before.
    pub(super) fn write<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        lock: Option<&str>,
    ) -> QueryResult<()> {
        let Self { ledger, token: Token(token), .. } = self;
        let insert = match lock {
            None => ledger.insert(token, COMMITTED),
            Some(lock) => format!(
                "INSERT INTO {} (token, outcome) SELECT '{token}', '{COMMITTED}' FROM {lock}",
                ledger.table
            ),
        };
        ledger.insert_row(conn, &insert)
    }

    /// Tries to decide about the transaction that has written this entry.
    ///
    /// # Errors
    ///
    /// Returns the error of a statement. It may be one that does not repeat itself.
    pub(super) fn decide<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Decision> {
        let Self { ledger, token, history } = self;
        let (ledger, found) = ledger.open(conn)?;
        if *found != **history {
            return Ok(Decision::OtherHistory);
        }
        let dialect = Dialect::for_connection::<C>();
        let decided = begin(conn, dialect).and_then(|()| {
            let insert = ledger.insert(&token.0, ABORTED);
            let insert = match dialect {
                // MySQL takes the first part for a comment, and waits for as long as the server is configured to.
                Dialect::MySql => format!(
                    "/*M!100100 SET STATEMENT innodb_lock_wait_timeout={LOCK_TIMEOUT_SECONDS} FOR */ \
                     {insert}"
                ),
                _ => insert,
            };
            ledger.insert_row(conn, &insert)?;
            // A cleaner that has deleted the token before the INSERT has raised the watermark before.
            if ledger.has_forgotten(conn, token)? {
                conn.roll_back();
                return Ok(Decision::Forgotten);
            }
            C::TransactionManager::commit_transaction(&mut **conn)?;
            Ok(Decision::Aborted)
        });
        match decided {
            Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {
                conn.roll_back();
                match ledger.read(conn, &token.0)?.as_deref() {
                    Some(COMMITTED) => ledger.wait_for_replicas(conn).map(|()| Decision::Committed),
                    Some(ABORTED) => Ok(Decision::Aborted),
                    // The transaction that had written it was rolled back since, or the token was deleted.
                    _ => Ok(Decision::Again),
                }
            }
            Err(error) => {
                conn.roll_back();
                Err(error)
            }
            decided => decided,
        }
    }
}

impl Ledger {
    /// Commits a row that means nothing. A transaction that others see may not have reached the replicas that its
    /// COMMIT has to wait for: the server was restarted in the middle, or its session was ended. What is committed
    /// after it reaches them after it.
    fn wait_for_replicas<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        let Token(new) = Token::new()?;
        self.insert_row(conn, &self.insert(&new, ABORTED))
    }

    /// Reads a row. Outside of a transaction this sees every row that was committed before.
    pub(super) fn read<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        token: &str,
    ) -> QueryResult<Option<String>> {
        let sql = format!("SELECT outcome AS text FROM {} WHERE token = '{token}'", self.table);
        rows::text(&mut **conn, &sql)
    }
}

/// Begins a transaction that sees what others commit meanwhile.
fn begin<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    dialect: Dialect,
) -> QueryResult<()> {
    C::TransactionManager::begin_transaction(&mut **conn)?;
    // MySQL's snapshot begins with the first SELECT, which follows the INSERT.
    if dialect == Dialect::Postgres {
        conn.batch_execute(&format!(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; \
             SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_new_and_ordered() {
        let mut tokens: Vec<_> = (0..3)
            .map(|_| {
                std::thread::yield_now();
                Token::new().expect("the system has random numbers").0
            })
            .collect();
        assert!(tokens.iter().all(|token| token.len() == 32), "{tokens:?}");
        let times: Vec<_> = tokens.iter().map(|token| token[..12].to_owned()).collect();
        assert!(times.is_sorted(), "{tokens:?}");
        tokens.dedup();
        assert_eq!(tokens.len(), 3);
    }
}
