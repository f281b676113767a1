//! Old tokens are deleted. The row `watermark` says which ones: every token that is older may have been there, so
//! nothing can be concluded from its absence. It is raised in the transaction that deletes.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel::result::{DatabaseErrorKind, Error, QueryResult};

use crate::pool::connection::PeerConnection;
use crate::settings::ledger::LedgerTable;
use crate::settings::retry::{Isolation, RetryPolicy};
use crate::transaction::ledger::Token;
use crate::transaction::outcome::Outcome;
use crate::transaction::rows;
use crate::url::dialect::Dialect;

/// The key of the row with the watermark: the time before which tokens may have been deleted, in the digits with
/// which a token begins. This key and that of the history come after all tokens in the order of texts.
const WATERMARK: &str = "watermark";

/// How many tokens a transaction deletes.
const BATCH: usize = 1000;

impl LedgerTable {
    /// Deletes the tokens that are older than `retention`, by the clock of the database, and returns how many there
    /// were. Call this now and then, for example once an hour with a retention of one day in one of the processes. The
    /// outcome of an older transaction that is in doubt stays unknown.
    ///
    /// The tokens are deleted in several transactions, each of which is run again if it was interrupted, with the
    /// limits of the pool's retry policy. The table is that in which tokens are written on this connection, also if its
    /// session looks for tables elsewhere since. Transactions that write tokens do not wait for this. Several processes
    /// may call it at the same time.
    ///
    /// # Errors
    ///
    /// Returns the error of a transaction that could not be committed. The ones before it are committed. Within an
    /// open transaction the error is [`Error::AlreadyInTransaction`].
    pub fn clean<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        retention: Duration,
    ) -> QueryResult<usize> {
        let policy = conn.retry_policy().without_ledger().isolation(Isolation::ReadCommitted);
        let policy = policy.read_only(false).idempotent(true);
        let (table, cutoff) = run(&policy, conn, |conn| {
            let table = self.of_tokens(conn)?;
            cutoff(conn, retention).map(|cutoff| (table, cutoff))
        })?;
        match run(&policy, conn, |conn| table.create_watermark(conn)) {
            // Another process has created it at the same time.
            Ok(()) | Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => {}
            Err(error) => return Err(error),
        }
        let mut deleted = 0;
        loop {
            let batch = run(&policy, conn, |conn| table.delete_batch(conn, &cutoff))?;
            deleted += batch;
            if batch < BATCH {
                return Ok(deleted);
            }
        }
    }

    fn create_watermark<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> QueryResult<()> {
        if self.read(conn, WATERMARK)?.is_none() {
            let insert = self.insert(WATERMARK, &Token::time_digits(0));
            rows::execute(&mut **conn, &insert)?;
        }
        Ok(())
    }

    /// Raises the watermark, and deletes some of the tokens before the cutoff.
    fn delete_batch<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        cutoff: &str,
    ) -> QueryResult<usize> {
        let table = &self.name;
        // Compares the bytes. A collation may order digits in another way (Danish: `aa` after `z`).
        let is_before = |column: &str| match Dialect::for_connection::<C>() {
            Dialect::MySql => format!("CAST({column} AS BINARY) < '{cutoff}'"),
            Dialect::Postgres => format!("{column} COLLATE \"C\" < '{cutoff}'"),
            Dialect::Sqlite | Dialect::Other => format!("{column} < '{cutoff}'"),
        };
        // This goes first, so that of several cleaners one waits for the other.
        conn.batch_execute(&format!(
            "UPDATE {table} SET outcome = '{cutoff}' WHERE token = '{WATERMARK}' AND {}",
            is_before("outcome")
        ))?;
        if self.read(conn, WATERMARK)?.is_none_or(|watermark| *watermark < *cutoff) {
            let error = format!("the table {table} has lost its row '{WATERMARK}'");
            return Err(Error::QueryBuilderError(error.into()));
        }
        // The first condition uses the index.
        let oldest =
            format!("token < '{cutoff}' AND {} ORDER BY token LIMIT {BATCH}", is_before("token"));
        let delete = match Dialect::for_connection::<C>() {
            Dialect::MySql => format!("DELETE FROM {table} WHERE {oldest}"),
            _ => format!(
                "DELETE FROM {table} WHERE token IN (SELECT token FROM {table} WHERE {oldest})"
            ),
        };
        rows::execute(&mut **conn, &delete)
    }

    /// Whether the token may have been deleted. This has to be asked after the token was not found, in a transaction
    /// that sees what others commit.
    pub(super) fn has_forgotten<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        token: &Token,
    ) -> QueryResult<bool> {
        Ok(self.read(conn, WATERMARK)?.is_some_and(|watermark| token.0 < watermark))
    }
}

/// Returns the digits with which the tokens begin that are as old as the retention, by the clock of the database.
fn cutoff<C: R2D2Connection + Send + 'static>(
    conn: &mut PeerConnection<C>,
    retention: Duration,
) -> QueryResult<String> {
    let now = match Dialect::for_connection::<C>() {
        Dialect::MySql => "SELECT CAST(UNIX_TIMESTAMP() AS CHAR) AS text",
        Dialect::Postgres => {
            "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint::text AS text"
        }
        Dialect::Sqlite | Dialect::Other => "SELECT strftime('%s', 'now') AS text",
    };
    let now = rows::text(&mut **conn, now)?.and_then(|now| now.parse::<u64>().ok());
    let now = u128::from(now.ok_or(Error::NotFound)?) * 1000;
    Ok(Token::time_digits(now.saturating_sub(retention.as_millis())))
}

/// Runs a transaction that has the same effect if it is committed twice.
fn run<C: R2D2Connection + Send + 'static, T>(
    policy: &RetryPolicy,
    conn: &mut PeerConnection<C>,
    work: impl FnMut(&mut PeerConnection<C>) -> QueryResult<T>,
) -> QueryResult<T> {
    match policy.transaction(conn, work) {
        Outcome::Committed(value) => Ok(value),
        Outcome::Aborted(error) => Err(error),
        Outcome::Unknown(doubt) => Err(Error::QueryBuilderError(doubt.into())),
    }
}
