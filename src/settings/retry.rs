//! The retry policy: how often, how long and in which way a transaction is run again.

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::settings::ledger::Ledger;
use crate::url::dialect::Dialect;

pub(crate) const DEFAULT_RETRY_ATTEMPTS: u32 = 10;

/// Galera evicts a member that does not answer after 5 to 15 seconds, and a query on a frozen server is aborted after
/// some 4.
pub(crate) const DEFAULT_RETRY_DEADLINE: Duration = Duration::from_secs(30);

/// Practically unlimited, as for every duration.
const LONGEST_DEADLINE: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// The longest pause before the second run; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a transaction is run again.
///
/// ```
/// # use diesel_peers::{Isolation, PeerConnection};
/// # use diesel::prelude::*;
/// # fn transfer(conn: &mut PeerConnection<SqliteConnection>) -> QueryResult<()> {
/// let serializable = conn.retry_policy().isolation(Isolation::Serializable).max_attempts(20);
/// let outcome = serializable.transaction(conn, |conn| {
///     diesel::sql_query("UPDATE accounts SET balance = balance - 1 WHERE id = 1").execute(conn)
/// });
/// # let _ = outcome;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub(crate) max_attempts: u32,
    pub(crate) deadline: Duration,
    pub(crate) stays_on_peer: bool,
    pub(crate) is_idempotent: bool,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) read_only: bool,
}

/// The isolation level of a transaction. The names are those of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// `READ COMMITTED`
    ReadCommitted,
    /// `REPEATABLE READ`
    RepeatableRead,
    /// `SERIALIZABLE`
    Serializable,
}

impl Isolation {
    fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "ISOLATION LEVEL READ COMMITTED",
            Self::RepeatableRead => "ISOLATION LEVEL REPEATABLE READ",
            Self::Serializable => "ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryPolicy {
    /// Creates a policy with the defaults, without a ledger.
    /// [`PeerConnection::retry_policy`](crate::PeerConnection::retry_policy) returns one with the settings and the
    /// ledger of the pool.
    #[must_use]
    pub fn new() -> Self {
        Self {
            max_attempts: DEFAULT_RETRY_ATTEMPTS,
            deadline: DEFAULT_RETRY_DEADLINE,
            stays_on_peer: false,
            is_idempotent: false,
            ledger: None,
            isolation: None,
            read_only: false,
        }
    }

    /// Sets how often a transaction is run at most. 1 means that it is not run again.
    ///
    /// Defaults to 10.
    #[must_use]
    pub fn max_attempts(mut self, max_attempts: u32) -> Self {
        self.max_attempts = max_attempts;
        self
    }

    /// Sets the time after which a transaction is not run again. A run that has begun is not aborted.
    ///
    /// Defaults to 30 seconds. That is longer than a Galera cluster takes to evict a member that does not answer.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(LONGEST_DEADLINE);
        self
    }

    /// Sets whether the checkout keeps its connection. Then only conflicts with other transactions lead to another
    /// run. Use this if the session has a state that a connection to another peer would not have: variables (`SET`),
    /// temporary tables, locks.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn stay_on_peer(mut self, stays: bool) -> Self {
        self.stays_on_peer = stays;
        self
    }

    /// Sets whether a transaction may be run again although an earlier run may have been committed: it has the same
    /// effect if it is committed twice.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn idempotent(mut self, is_idempotent: bool) -> Self {
        self.is_idempotent = is_idempotent;
        self
    }

    /// Sets the ledger, which makes the outcome of each transaction known. A `COMMIT` whose answer was lost is then
    /// resolved before the outcome is returned, if a peer can decide it in time: a transaction that was not committed
    /// is run again.
    ///
    /// Defaults to none: the outcome of such a transaction is unknown.
    #[must_use]
    pub fn ledger(mut self, ledger: impl Into<Ledger>) -> Self {
        self.ledger = Some(ledger.into());
        self
    }

    /// Writes no tokens, for transactions of the ledger's own.
    pub(crate) fn without_ledger(mut self) -> Self {
        self.ledger = None;
        self
    }

    /// Sets the isolation level of the transaction. SQLite's transactions are always serializable, so there it has
    /// no effect.
    ///
    /// Defaults to the level of the session.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = Some(isolation);
        self
    }

    /// Sets whether the transaction is `READ ONLY`. It has no effect with SQLite.
    ///
    /// Defaults to `false`.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Returns the statement that sets the characteristics of the transaction.
    fn characteristics(&self) -> Option<String> {
        let read_only = self.read_only.then_some("READ ONLY");
        let all: Vec<_> = self.isolation.map(Isolation::sql).into_iter().chain(read_only).collect();
        (!all.is_empty()).then(|| format!("SET TRANSACTION {}", all.join(", ")))
    }

    /// Returns the statement to run before `BEGIN`.
    pub(crate) fn before_begin(&self, dialect: Dialect) -> Option<String> {
        if dialect == Dialect::MySql { self.characteristics() } else { None }
    }

    /// Returns the statement to run after `BEGIN`.
    pub(crate) fn after_begin(&self, dialect: Dialect) -> Option<String> {
        if dialect == Dialect::Postgres { self.characteristics() } else { None }
    }

    /// Returns a random pause after so many runs.
    pub(crate) fn pause(attempts: u32, rng: &mut impl Rng) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16));
        doubled.min(LONGEST_PAUSE).mul_f64(rng.random::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn characteristics_are_set_where_the_database_expects_them() {
        let policy = RetryPolicy::new().isolation(Isolation::Serializable).read_only(true);
        let sql = Some("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY".to_owned());
        assert_eq!(policy.before_begin(Dialect::MySql), sql);
        assert_eq!(policy.after_begin(Dialect::MySql), None);
        assert_eq!(policy.before_begin(Dialect::Postgres), None);
        assert_eq!(policy.after_begin(Dialect::Postgres), sql);
        assert_eq!(policy.after_begin(Dialect::Sqlite), None);
        assert_eq!(RetryPolicy::new().after_begin(Dialect::Postgres), None);
    }

    #[test]
    fn pauses_grow_and_are_random() {
        let mut rng = SmallRng::seed_from_u64(5);
        for (attempts, longest) in [(1, 10), (2, 20), (4, 80), (8, 1000), (u32::MAX, 1000)] {
            let pauses: Vec<_> = (0..100).map(|_| RetryPolicy::pause(attempts, &mut rng)).collect();
            let longest = Duration::from_millis(longest);
            assert!(pauses.iter().all(|pause| *pause <= longest), "after {attempts}: {pauses:?}");
            assert!(
                pauses.iter().any(|pause| *pause > longest / 2),
                "after {attempts}: {pauses:?}"
            );
            assert!(
                pauses.iter().any(|pause| *pause < longest / 2),
                "after {attempts}: {pauses:?}"
            );
        }
    }
}
