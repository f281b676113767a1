//! Runs transactions that survive the loss of a peer: a transaction that was interrupted is run again, on a
//! connection to another peer if need be, and the outcome of each COMMIT is determined.
//!
//! What is known at which place: the observer has seen what the COMMIT has answered (`CommitSeen`); one run of the
//! closure has a result (`Attempt`); one peer that is asked about a COMMIT in doubt gives a `Decision`, and all that
//! were asked a [`Verdict`]; the caller gets the [`Outcome`] of the transaction.

mod attempt;
mod deadline;
mod ledger;
mod outcome;
mod resolution;
mod retries;
mod rows;
#[cfg(feature = "serde")]
mod serialize;
mod session;

use std::sync::Arc;

use diesel::connection::{Connection, SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel::result::Error;

use crate::events::EventKind;
use crate::peers::link_state::LinkState;
use crate::peers::set::peer_ref::PeerRef;
use crate::peers::transaction_record::{CommitSeen, Interruption};
use crate::pool::connection::PeerConnection;
use crate::pool::passthrough::PeerTransactionManager;
use crate::settings::retry::RetryPolicy;
use crate::transaction::attempt::{Attempt, Run};
use crate::transaction::deadline::Deadline;
use crate::transaction::ledger::Token;
use crate::transaction::retries::Retries;
use crate::transaction::session::TransactionSession;
use crate::url::dialect::Dialect;

pub use outcome::{Doubt, DoubtReason, Outcome, TransactionError, Verdict};

impl<C: R2D2Connection + Send + 'static> PeerConnection<C> {
    /// Runs a transaction, and runs it again if it was interrupted, with the pool's [`RetryPolicy`].
    ///
    /// It is run again, from its beginning, after a deadlock, a serialization or certification failure, and
    /// when the peer takes no work or the connection is lost before the `COMMIT` was sent. Then this checkout
    /// changes to a connection to another peer. So `work` may be called several times, and must have no effects
    /// outside of the database. Other errors roll the transaction back and are returned.
    ///
    /// What the observed queries have ended with decides, not the closure's error. A closure that does not
    /// return after such an error, but goes on, gets [`Outcome::Unknown`] if a part may have been saved. If
    /// `work` panics, the transaction is rolled back.
    ///
    /// # Errors
    ///
    /// Within an open transaction the outcome is [`Outcome::Aborted`] with [`Error::AlreadyInTransaction`]. In a
    /// test transaction `work` is run once.
    pub fn transaction_with_retry<T, E>(
        &mut self,
        work: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Outcome<T, E>
    where
        E: From<Error>,
    {
        self.retry_policy().transaction(self, work)
    }

    /// Runs queries that only read, and runs them again if they were interrupted, with the pool's
    /// [`RetryPolicy`].
    ///
    /// `work` may be called several times, also after a `COMMIT` within it whose outcome is not known. Otherwise
    /// it is as [`transaction_with_retry`](Self::transaction_with_retry), without a transaction around it.
    ///
    /// # Errors
    ///
    /// Returns the closure's error of the last run.
    pub fn read_with_retry<T, E>(
        &mut self,
        work: impl FnMut(&mut Self) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error>,
    {
        self.retry_policy().read(self, work)
    }

    /// Returns a retry policy with the settings of the pool, for a transaction that needs a different one.
    #[must_use]
    pub fn retry_policy(&self) -> RetryPolicy {
        let settings = self.pool.set.settings();
        RetryPolicy {
            max_attempts: settings.retry_attempts,
            deadline: settings.retry_deadline,
            ledger: settings.ledger.clone(),
            ..RetryPolicy::new()
        }
    }

    fn link_state(&self) -> Arc<LinkState> {
        self.link().state().clone()
    }

    /// Returns a doubt about the last transaction.
    fn doubt(&self, reason: DoubtReason, error: Arc<str>) -> Doubt {
        Doubt { reason, peer: self.peer().into(), error, unresolved: None, entry: None }
    }

    /// Returns the depth of the open transaction. It is unknown after an error of the transaction manager.
    fn transaction_depth(&mut self) -> Result<u32, Error> {
        let status = C::TransactionManager::transaction_manager_status_mut(&mut **self);
        Ok(status.transaction_depth()?.map_or(0, std::num::NonZeroU32::get))
    }

    /// Whether this connection is within a transaction of the caller, which may have been lost with the connection.
    fn is_in_transaction(&mut self) -> bool {
        match self.transaction_depth() {
            Ok(depth) => depth > 0,
            Err(_) => self.link().state().record.has_open_transaction(),
        }
    }

    /// Rolls back whatever transaction is open. After an error the connection is broken, and will be closed.
    fn roll_back(&mut self) {
        self.roll_back_to(0);
        self.link().state().record.all_transactions_end();
    }

    /// Ends what diesel does not count: a transaction that a text has begun, and the characteristics that MySQL has for
    /// the next transaction (`SET TRANSACTION`).
    fn roll_back_uncounted(&mut self) {
        let dialect = Dialect::for_connection::<C>();
        if matches!(dialect, Dialect::MySql | Dialect::Postgres) && !self.link_mut().is_broken() {
            // After an error the connection is broken.
            let _ = self.batch_execute("ROLLBACK");
        }
    }

    /// Rolls back the transactions below this depth.
    fn roll_back_to(&mut self, depth: u32) {
        while self.transaction_depth().is_ok_and(|current| current > depth) {
            if PeerTransactionManager::rollback_transaction(self).is_err() {
                return;
            }
        }
    }
}

/// Runs `work`, which is one transaction of plain diesel code, and returns its outcome.
///
/// Nothing is run again. If the `COMMIT` of the last transaction in `work` has failed with an error that does
/// not say whether the server has executed it, the outcome is [`Outcome::Unknown`], whatever `work` returns. A
/// `COMMIT` is recognized if diesel's transaction manager has made it.
pub fn outcome_of<C, T, E>(
    conn: &mut PeerConnection<C>,
    work: impl FnOnce(&mut PeerConnection<C>) -> Result<T, E>,
) -> Outcome<T, E>
where
    C: R2D2Connection + Send + 'static,
{
    // Within a transaction its record goes on.
    let is_outermost = !conn.is_in_transaction();
    let before = conn.link_state();
    if is_outermost {
        before.record.reset();
    }
    let result = work(conn);
    // A retry within `work` may have changed the connection.
    let seen = match (before.record.commit(), conn.link_state().record.commit()) {
        (doubt @ CommitSeen::Doubtful(_), _) => doubt,
        (_, seen) => seen,
    };
    let ended_early =
        |text: &str| Outcome::Unknown(conn.doubt(DoubtReason::EndedEarly, text.into()));
    match (seen, result) {
        (CommitSeen::Doubtful(error), _) => {
            Outcome::Unknown(conn.doubt(DoubtReason::CommitUnanswered, error))
        }
        (CommitSeen::No | CommitSeen::Committed, Ok(value)) => Outcome::Committed(value),
        (CommitSeen::Aborted, Ok(_)) => ended_early("the COMMIT has saved nothing"),
        (CommitSeen::Committed, Err(_)) => ended_early("an error followed the COMMIT"),
        (CommitSeen::No | CommitSeen::Aborted, Err(error)) => Outcome::Aborted(error),
    }
}

impl RetryPolicy {
    /// Runs a transaction on a connection, as [`PeerConnection::transaction_with_retry`] does, with this policy.
    pub fn transaction<C, T, E>(
        &self,
        conn: &mut PeerConnection<C>,
        mut work: impl FnMut(&mut PeerConnection<C>) -> Result<T, E>,
    ) -> Outcome<T, E>
    where
        C: R2D2Connection + Send + 'static,
        E: From<Error>,
    {
        if conn.link_mut().holds_test_transaction() {
            return match conn.transaction(work) {
                Ok(value) => Outcome::Committed(value),
                Err(error) => Outcome::Aborted(error),
            };
        }
        // A connection that is broken is changed after the first run, which fails at its beginning.
        if conn.is_in_transaction() {
            return Outcome::Aborted(Error::AlreadyInTransaction.into());
        }
        let mut retries = Retries::begin(self, conn);
        // Of an idempotent transaction, the last run whose outcome is not known. It may be saved, whatever follows.
        let mut unknown = None;
        let aborted = |error: E, unknown: Option<Doubt>| match unknown {
            Some(doubt) => Outcome::Unknown(doubt),
            None => Outcome::Aborted(error),
        };
        loop {
            let mut run = Run::new(self);
            let attempt = run.execute(conn, &mut work);
            let orphan = run.orphaned_session(conn);
            let (error, interruption) = match attempt {
                Attempt::Committed(value) => return Outcome::Committed(value),
                Attempt::Aborted(error) => return aborted(error, unknown),
                Attempt::Interrupted(error, interruption) => (error, interruption),
                Attempt::EndedEarly(doubt) => {
                    let origin = conn.link().guard.peer.clone();
                    record_doubt(&origin, &doubt);
                    origin.activity.counters.outcomes_unknown.add_one();
                    return Outcome::Unknown(doubt);
                }
                Attempt::InDoubt(doubt, value, error) => {
                    let origin = conn.link().guard.peer.clone();
                    record_doubt(&origin, &doubt);
                    let verdict = retries.resolve(conn, doubt, orphan);
                    record_verdict(&origin, &verdict);
                    match verdict {
                        Verdict::Committed => return Outcome::Committed(value),
                        // The connection that has decided it is another session.
                        Verdict::Aborted if self.stays_on_peer => return aborted(error, unknown),
                        // It never will be committed, so it may be run again, on the connection that has decided it.
                        Verdict::Aborted => (error, Interruption::Conflict),
                        Verdict::Unknown(doubt) if self.is_idempotent => {
                            unknown = Some(doubt);
                            (error, Interruption::ConnectionLost)
                        }
                        Verdict::Unknown(doubt) => return Outcome::Unknown(doubt),
                    }
                }
            };
            if !retries.prepare(conn, interruption, orphan) {
                return aborted(error, unknown);
            }
        }
    }

    /// Runs queries that only read, as [`PeerConnection::read_with_retry`] does, with this policy. Its isolation
    /// level does not matter, as there is no transaction.
    ///
    /// # Errors
    ///
    /// Returns the closure's error of the last run.
    pub fn read<C, T, E>(
        &self,
        conn: &mut PeerConnection<C>,
        mut work: impl FnMut(&mut PeerConnection<C>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        C: R2D2Connection + Send + 'static,
        E: From<Error>,
    {
        // Within a transaction of the caller a loss ends all of it.
        if conn.is_in_transaction() {
            return work(conn);
        }
        let mut retries = Retries::begin(self, conn);
        loop {
            let link_state = conn.link_state();
            link_state.record.reset();
            let error = match work(conn) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(interruption) = link_state.record.interruption() else { return Err(error) };
            conn.roll_back();
            if !retries.prepare(conn, interruption, None) {
                return Err(error);
            }
        }
    }
}

/// Records that the outcome of a transaction on this peer is not known.
fn record_doubt(origin: &PeerRef, doubt: &Doubt) {
    origin.record(EventKind::TransactionInDoubt { reason: doubt.error().to_owned() });
}

/// Records what has become of a transaction in doubt on this peer.
fn record_verdict(origin: &PeerRef, verdict: &Verdict) {
    let counters = &origin.activity.counters;
    let kind = match verdict {
        Verdict::Committed => {
            counters.found_committed.add_one();
            EventKind::TransactionResolved { is_committed: true }
        }
        Verdict::Aborted => {
            counters.found_aborted.add_one();
            EventKind::TransactionResolved { is_committed: false }
        }
        Verdict::Unknown(doubt) => {
            counters.outcomes_unknown.add_one();
            // Without a ledger there was nothing to find out.
            if doubt.entry.is_none() {
                return;
            }
            EventKind::TransactionUnresolved { reason: doubt.cause() }
        }
    };
    origin.record(kind);
}

impl Doubt {
    /// Finds out what has become of the transaction, if it was run with a [`Ledger`](crate::Ledger). This
    /// may be another process than the one that has run it: with the feature `serde`, a doubt can be stored.
    ///
    /// After [`Verdict::Aborted`] the transaction is never committed, even if its `COMMIT` is still on its way. What
    /// cannot be found out stays [`Verdict::Unknown`], with the reason. The checkout changes to other peers until one
    /// can decide, or until the deadline of the pool's retry policy. Within an open transaction nothing is asked.
    pub fn resolve<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> Verdict {
        let mut doubt = self.clone();
        if conn.is_in_transaction() {
            doubt.unresolved = Some(Error::AlreadyInTransaction.to_string().into());
            return Verdict::Unknown(doubt);
        }
        let deadline = Deadline::after(conn.retry_policy().deadline);
        let session =
            doubt.token().map(|token| TransactionSession::of_token(Token(token.to_owned())));
        let is_broken = conn.link_mut().is_broken();
        resolution::resolve(conn, doubt, session.as_ref(), is_broken, deadline)
    }
}
