//! The retries of one transaction: whether it is run again, and on which connection.

use std::time::Instant;

use diesel::r2d2::R2D2Connection;
use log::debug;

use crate::events::log::LOG_TARGET;
use crate::login::observer::Observer;
use crate::peers::transaction_record::Interruption;
use crate::pool::connection::PeerConnection;
use crate::settings::retry::RetryPolicy;
use crate::transaction::deadline::Deadline;
use crate::transaction::outcome::{Doubt, Verdict};
use crate::transaction::resolution;
use crate::transaction::session::TransactionSession;

/// The retries of one transaction.
pub(super) struct Retries<'a> {
    policy: &'a RetryPolicy,
    deadline: Deadline,
    attempts: u32,
}

impl<'a> Retries<'a> {
    pub(super) fn begin<C>(policy: &'a RetryPolicy, conn: &PeerConnection<C>) -> Self {
        conn.pool.set.retry_budget.deposit();
        Self { policy, deadline: Deadline::after(policy.deadline), attempts: 1 }
    }

    /// Prepares the connection for another run, after a pause, and terminates the session that is orphaned. Returns
    /// `false` if there is to be no other run.
    pub(super) fn prepare<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
        interruption: Interruption,
        orphan: Option<&TransactionSession>,
    ) -> bool {
        let Some(changes_link) = self.changes_link(conn, interruption) else { return false };
        let from = conn.link().guard.peer.clone();
        let Some(now) = self.deadline.pause(self.attempts, &conn.pool.set) else { return false };
        if !conn.pool.set.retry_budget.withdraw(now) {
            from.activity.counters.retries_refused.add_one();
            debug!(target: LOG_TARGET, "a transaction is not run again: the retry budget is used up");
            return false;
        }
        if changes_link {
            if !self.change_link(conn) {
                return false;
            }
            if let Some(orphan) = orphan {
                self.deadline.bound_try(conn, 0, |conn| orphan.terminate(conn));
            }
        }
        self.attempts += 1;
        from.activity.counters.retries.add_one();
        debug!(
            target: LOG_TARGET,
            "a transaction that was interrupted on peer {} is run again on peer {}", from.name, conn.peer()
        );
        true
    }

    /// Returns whether another run needs another connection, or `None` if there is to be no other run.
    fn changes_link<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        interruption: Interruption,
    ) -> Option<bool> {
        let is_broken = conn.link_mut().is_broken();
        let changes_link = is_broken || interruption.needs_another_link();
        // The application may have replaced the observer, and then what was seen is not all there was.
        let is_observed = is_broken || Observer::is_installed(&mut **conn);
        let may_run = self.attempts < self.policy.max_attempts
            && is_observed
            && !(changes_link && self.policy.stays_on_peer);
        may_run.then_some(changes_link)
    }

    /// Changes the connection. As long as the deadline allows it, a peer may come back.
    #[expect(clippy::disallowed_methods, reason = "the time of a checkout is taken here")]
    fn change_link<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
    ) -> bool {
        let mut tries = self.attempts;
        while let Err(error) = conn.change_link(&[], Instant::now) {
            debug!(target: LOG_TARGET, "a transaction waits for a peer: {error}");
            tries = tries.saturating_add(1);
            if self.deadline.pause(tries, &conn.pool.set).is_none() {
                return false;
            }
        }
        true
    }

    /// Resolves a COMMIT without an answer, on a connection to another peer.
    pub(super) fn resolve<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
        doubt: Doubt,
        orphan: Option<&TransactionSession>,
    ) -> Verdict {
        if doubt.entry.is_some() {
            // The runs may have used up the time.
            self.deadline = self.deadline.or_later(Deadline::after(self.policy.deadline / 2));
        }
        resolution::resolve(conn, doubt, orphan, true, self.deadline)
    }
}
