//! The retries of one transaction: whether it is run again, the pauses between its runs, the change of the connection,
//! and the resolution of a COMMIT without an answer.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::R2D2Connection;
use log::debug;

use crate::events::log::LOG_TARGET;
use crate::login::observer::Observer;
use crate::peers::set::PeerSet;
use crate::peers::transaction_record::Interruption;
use crate::pool::connection::PeerConnection;
use crate::redact::printable;
use crate::settings::retry::RetryPolicy;
use crate::transaction::ledger::Decision;
use crate::transaction::left_session::LeftSession;
use crate::transaction::outcome::{Doubt, DoubtReason, Verdict};

/// The time after which the first try of the resolver is aborted, which doubles with each further one. A server that is
/// not the primary any more may answer checks and never a COMMIT.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a try has at least: longer than it waits for a lock.
const SHORTEST_TRY: Duration = Duration::from_secs(3);

/// The retries of one transaction.
pub(super) struct Retries<'a> {
    policy: &'a RetryPolicy,
    end: Instant,
    attempts: u32,
}

impl<'a> Retries<'a> {
    #[expect(clippy::disallowed_methods, reason = "the deadline of a transaction starts here")]
    pub(super) fn begin<C>(policy: &'a RetryPolicy, conn: &PeerConnection<C>) -> Self {
        conn.pool.set.retry_budget.deposit();
        Self::for_resolution(policy, Instant::now() + policy.deadline)
    }

    /// Returns the retries for the resolution of a doubt, without any run.
    pub(super) fn for_resolution(policy: &'a RetryPolicy, end: Instant) -> Self {
        Self { policy, end, attempts: 1 }
    }

    /// Prepares the connection for another run, after a pause. Returns `false` if there is to be none. If the
    /// connection changes, the session that is left behind is ended.
    pub(super) fn prepare<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
        interruption: Interruption,
        session: Option<&LeftSession>,
    ) -> bool {
        let is_observed = Observer::is_installed(&mut **conn);
        let needs_another = interruption.needs_another_link() || conn.link_mut().is_broken();
        if !is_observed && !conn.link_mut().is_broken()
            || needs_another && self.policy.stays_on_peer
            || self.attempts >= self.policy.max_attempts
        {
            return false;
        }
        let from = conn.link().guard.peer.clone();
        let mut pauses = self.attempts;
        let Some(now) = self.pause(pauses, &conn.pool.set) else { return false };
        if !conn.pool.set.retry_budget.withdraw(now) {
            from.activity.counters.retries_refused.add_one();
            debug!(target: LOG_TARGET, "a transaction is not run again: the retry budget is used up");
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "the time of a checkout is taken here")]
        while let Some(Err(error)) = needs_another.then(|| conn.change_link(&[], Instant::now)) {
            // As long as the deadline allows it, a peer may come back.
            debug!(target: LOG_TARGET, "a transaction waits for a peer: {error}");
            pauses = pauses.saturating_add(1);
            if self.pause(pauses, &conn.pool.set).is_none() {
                return false;
            }
        }
        if let Some(session) = session.filter(|_| needs_another) {
            self.within_limit(conn, 0, |conn| session.end(conn));
        }
        self.attempts += 1;
        from.activity.counters.retries.add_one();
        debug!(
            target: LOG_TARGET,
            "a transaction that was interrupted on peer {} is run again on peer {}", from.name, conn.peer()
        );
        true
    }

    /// Decides about a COMMIT without an answer, on a connection to another peer.
    #[expect(clippy::disallowed_methods, reason = "the time for the resolution starts here")]
    pub(super) fn resolve_elsewhere<C: R2D2Connection + Send + 'static>(
        &mut self,
        conn: &mut PeerConnection<C>,
        doubt: Doubt,
        session: Option<&LeftSession>,
    ) -> Verdict {
        if doubt.entry.is_some() {
            // The runs may have used up the time.
            self.end = self.end.max(Instant::now() + self.policy.deadline / 2);
        }
        self.resolve(conn, doubt, session, true)
    }

    /// Decides about a COMMIT without an answer, if the transaction has recorded an entry. With `elsewhere` the first
    /// connection is not asked. If a try fails, the session of the transaction is ended. The outcome stays unknown if
    /// the deadline is over before.
    #[expect(clippy::disallowed_methods, reason = "the time of a checkout is taken here")]
    pub(super) fn resolve<C: R2D2Connection + Send + 'static>(
        &self,
        conn: &mut PeerConnection<C>,
        mut doubt: Doubt,
        session: Option<&LeftSession>,
        mut elsewhere: bool,
    ) -> Verdict {
        let Some(entry) = doubt.entry.clone() else { return Verdict::Unknown(doubt) };
        let commit_error = doubt.error.clone();
        let mut pauses = 0_u32;
        let mut ends_session_first = false;
        // The peers that could not decide. They are asked again when all others were.
        let mut asked = Vec::new();
        loop {
            let mut changed =
                if elsewhere { conn.change_link(&asked, Instant::now) } else { Ok(()) };
            if changed.is_err() && !asked.is_empty() {
                asked.clear();
                changed = conn.change_link(&asked, Instant::now);
            }
            let peer = changed.is_ok().then(|| conn.link().guard.peer.id);
            let decided = changed.and_then(|()| {
                self.within_limit(conn, pauses, |conn| {
                    if let Some(session) = session.filter(|_| ends_session_first) {
                        session.end(conn);
                    }
                    let decided = entry.decide(conn);
                    if let (Some(session), Err(_)) = (session, &decided) {
                        // It may hold the lock of the transaction. If the try was aborted, this has to wait for the
                        // next.
                        ends_session_first = conn.link_mut().is_broken();
                        session.end(conn);
                    }
                    decided.map_err(|error| printable(&error.to_string()))
                })
            });
            elsewhere = decided != Ok(Decision::Again);
            asked.extend(peer.filter(|_| elsewhere));
            match decided {
                Ok(Decision::Committed) => return Verdict::Committed,
                Ok(Decision::Aborted) => return Verdict::Aborted,
                Ok(Decision::Unknown(reason)) => {
                    doubt.reason = reason;
                    return Verdict::Unknown(doubt);
                }
                Ok(Decision::OtherHistory) => doubt.reason = DoubtReason::OtherHistory,
                Ok(Decision::Again | Decision::Standby) => {}
                Err(error) => {
                    debug!(target: LOG_TARGET, "a COMMIT is not resolved yet: {error}");
                    doubt.reason = DoubtReason::CommitUnanswered;
                    doubt.error = format!("{commit_error} (not resolved: {error})").into();
                }
            }
            pauses = pauses.saturating_add(1);
            if self.pause(pauses, &conn.pool.set).is_none() {
                return Verdict::Unknown(doubt);
            }
        }
    }

    /// Runs one try of the resolver, after so many others. Its queries are aborted after some time.
    #[expect(clippy::disallowed_methods, reason = "the time of the try starts here")]
    fn within_limit<C: R2D2Connection + Send + 'static, T>(
        &self,
        conn: &mut PeerConnection<C>,
        tries: u32,
        attempt: impl FnOnce(&mut PeerConnection<C>) -> T,
    ) -> T {
        let now = Instant::now();
        let limit = TRY_TIMEOUT.saturating_mul(1 << tries.min(10));
        let end = (now + limit).min(self.end.max(now + SHORTEST_TRY));
        let deadline = conn.link_mut().set_deadline(end);
        let result = catch_unwind(AssertUnwindSafe(|| attempt(conn)));
        if deadline.is_some_and(|deadline| !conn.pool.set.deadlines.unregister(deadline)) {
            // The checker aborts the queries of this connection at this moment, so it must not be used again.
            conn.link_state().shut_down();
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Waits before the next run. Returns the time afterwards, or `None` if the deadline would be over.
    #[expect(clippy::disallowed_methods, reason = "the pause is bounded by the deadline")]
    fn pause(&self, attempts: u32, set: &PeerSet) -> Option<Instant> {
        let pause = RetryPolicy::pause(attempts, &mut set.rng());
        if Instant::now() + pause >= self.end {
            return None;
        }
        thread::sleep(pause);
        Some(Instant::now())
    }
}
