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
    /// Returns the name of the history that the table on this connection belongs to. At the first use of a
    /// connection, this verifies that the table is suitable. A transaction must not be open.
    ///
    /// # Errors
    ///
    /// Returns an error if a statement fails, or if the table would not keep what a transaction has written.
    pub(super) fn history<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<Arc<str>> {
        let link_state = conn.link_state();
        if let Some((table, history)) = link_state.ledger.get()
            && *table == self.table
        {
            return Ok(history.clone());
        }
        self.verify_table(conn)?;
        let mut history = self.read(conn, HISTORY)?;
        if history.is_none() {
            // Another process may do the same, and then the first one counts.
            let Token(new) = Token::new()?;
            match rows::execute(&mut **conn, &self.insert(HISTORY, &new)) {
                Ok(_) | Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {}
                Err(error) => return Err(error),
            }
            history = self.read(conn, HISTORY)?;
        }
        let history: Arc<str> = history.ok_or(Error::NotFound)?.into();
        let _ = link_state.ledger.set((self.table.clone(), history.clone()));
        Ok(history)
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
                    "SELECT relpersistence::text AS text FROM pg_class WHERE oid = '{table}'::regclass"
                );
                (sql, "p", "it is not logged, so it would not survive a crash")
            }
            Dialect::Sqlite | Dialect::Other => return Ok(()),
        };
        match rows::text(&mut **conn, &sql)? {
            // The next statement says so.
            None => Ok(()),
            Some(found) if found == expected => Ok(()),
            Some(_) => Err(Error::QueryBuilderError(
                format!("the table {table} cannot be a ledger: {flaw}").into(),
            )),
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
        let history = ledger.history(conn)?;
        Ok(Self { ledger: Ledger::table(&ledger.table), token: Token::new()?, history })
    }

    /// Writes the token of the open transaction, after `before`.
    pub(super) fn write<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        before: &str,
    ) -> QueryResult<()> {
        conn.batch_execute(&format!("{before}{}", self.ledger.insert(&self.token.0, COMMITTED)))
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
        if *ledger.history(conn)? != **history {
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
            rows::execute(&mut **conn, &insert)?;
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
        rows::execute(&mut **conn, &self.insert(&new, ABORTED)).map(drop)
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
    const READ_COMMITTED: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED";
    if dialect == Dialect::MySql {
        conn.batch_execute(READ_COMMITTED)?;
    }
    C::TransactionManager::begin_transaction(&mut **conn)?;
    if dialect == Dialect::Postgres {
        let timeout =
            format!("{READ_COMMITTED}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'");
        conn.batch_execute(&timeout)?;
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
