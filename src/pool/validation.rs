//! Validates a link before it is handed out: by its socket where that is enough, which costs no round
//! trip, and otherwise by a ping.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::ConnectionError;
use diesel::r2d2::{Error, R2D2Connection};

use crate::peers::set::PeerSet;
use crate::pool::link::{Link, PingError};
use crate::redact::on_one_line;

/// The longest gap between the drop of a slot whose checkout has failed and the checkout that r2d2 tries
/// next. After a failure r2d2 calls the application's error handler, which may take its time, drops the slot,
/// and tries the next one at once, all in the same thread. The caller waits for all these checkouts as one, so
/// they share one deadline.
const RETRY_GAP: Duration = Duration::from_millis(10);

/// The time for which a query that has ended shows that the sessions of its peer work, although logins fail.
/// After a password was changed that lasts, and a ping at each checkout would cost much.
const PROOF_TIME: Duration = Duration::from_millis(250);

thread_local! {
    /// The last checkout of this thread, if it failed because a peer did not answer.
    static LAST_FAILED: Cell<Option<FailedCheckout>> = const { Cell::new(None) };
}

struct FailedCheckout {
    /// Identifies the pool. Only compared.
    set: *const PeerSet,
    /// When the checkout failed, and then when its slot was dropped.
    at: Instant,
    end: Instant,
    timed_out_peers: Vec<usize>,
}

/// Records that a slot whose checkout has failed on this thread is dropped at `now`.
pub(crate) fn failed_slot_dropped(now: Instant) {
    if let Some(failed) = LAST_FAILED.take() {
        LAST_FAILED.set(Some(FailedCheckout { at: now, ..failed }));
    }
}

/// The validation of one checkout, which may try several links.
pub(crate) struct Validation<Clock> {
    clock: Clock,
    pub(crate) began: Instant,
    /// The deadline for the pings of this checkout, from the first ping on. When a peer has used up the time,
    /// links of other peers are lent without a ping. Only a link that has to be pinged gets a deadline of its
    /// own, one for each peer.
    end: Option<Instant>,
    /// The peers that did not answer a ping.
    timed_out_peers: Vec<usize>,
}

impl<Clock: Fn() -> Instant> Validation<Clock> {
    /// Begins the validation of a checkout. If r2d2 has just retried after a failed checkout, this
    /// validation continues with the deadline of that one.
    pub(crate) fn begin(set: &Arc<PeerSet>, clock: Clock) -> Self {
        let began = clock();
        let is_continued = |failed: &FailedCheckout| {
            failed.set == Arc::as_ptr(set) && began.saturating_duration_since(failed.at) < RETRY_GAP
        };
        let failed = LAST_FAILED.take().filter(is_continued);
        let (end, timed_out_peers) =
            failed.map(|failed| (failed.end, failed.timed_out_peers)).unzip();
        Self { clock, began, end, timed_out_peers: timed_out_peers.unwrap_or_default() }
    }

    /// Records that the checkout has failed, for the checkout that r2d2 tries next.
    pub(crate) fn record_failure(self, set: &Arc<PeerSet>) {
        let Self { clock, end, timed_out_peers, .. } = self;
        if let (Some(end), false) = (end, timed_out_peers.is_empty()) {
            let (set, at) = (Arc::as_ptr(set), clock());
            LAST_FAILED.set(Some(FailedCheckout { set, at, end, timed_out_peers }));
        }
    }

    /// Checks whether this link can be handed out. Pings its server if the socket is not proof enough.
    pub(crate) fn validate<C: R2D2Connection + 'static>(
        &mut self,
        link: &mut Link<C>,
    ) -> Result<(), Error> {
        let settings = link.guard.peer.settings();
        let (timeout, idle) = (settings.ping_timeout, settings.ping_idle);
        // The sessions of a peer that is down have to show that they still work.
        let activity = &link.guard.peer.activity;
        let is_proof = |at| self.began.saturating_duration_since(at) < PROOF_TIME;
        let is_suspect = activity.is_down() && !activity.last_query_end().is_some_and(is_proof);
        if !is_suspect && link.is_alive(idle, self.began) {
            return Ok(());
        }
        let peer = link.guard.peer.index;
        let is_of_another =
            !self.timed_out_peers.is_empty() && !self.timed_out_peers.contains(&peer);
        if !is_suspect && !link.is_in_doubt(self.began) && is_of_another && link.is_quiet() {
            // No time is left for a ping, and one peer without an answer says nothing about another.
            return Ok(());
        }
        let now = (self.clock)();
        if is_of_another {
            self.end = self.end.filter(|end| *end > now);
        }
        let end = *self.end.get_or_insert(now + timeout);
        if end <= now && link.can_be_aborted() {
            return Err(discarded_error(&format!(
                "no time was left to ping peer {}",
                link.guard.peer.name
            )));
        }
        match link.ping(now, end) {
            Ok(()) => Ok(()),
            Err(PingError::Query(error)) => Err(error.into()),
            Err(PingError::NotReady(reason)) => {
                link.guard.peer.suspect((self.clock)());
                Err(discarded_error(&on_one_line(&reason)))
            }
            Err(PingError::Panicked(panicked)) => Err(discarded_error(&panicked.to_string())),
            Err(PingError::TimedOut) => {
                self.timed_out_peers.push(peer);
                link.guard.peer.suspect((self.clock)());
                let name = &link.guard.peer.name;
                Err(discarded_error(&format!(
                    "peer {name} did not answer a ping within {timeout:?}"
                )))
            }
        }
    }
}

/// Returns the error of a connection that is not handed out for another reason than a query's error.
pub(crate) fn discarded_error(reason: &str) -> Error {
    Error::ConnectionError(ConnectionError::BadConnection(format!(
        "connection discarded: {reason}"
    )))
}
