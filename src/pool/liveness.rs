//! Seeing that a link is fine before it is handed out: for free when its socket shows it, else by a
//! ping.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::ConnectionError;
use diesel::r2d2::{Error, R2D2Connection};

use crate::peers::set::PeerSet;
use crate::pool::link::{Link, Unanswered};

/// When a checkout has failed r2d2 tries the next slot at once, in the same thread. Such checkouts
/// are one to whoever waits for them, and share one deadline; this is how soon "at once" is.
const AT_ONCE: Duration = Duration::from_millis(10);

thread_local! {
    /// This thread's last checkout, if it failed and a peer did not answer.
    static LAST_FAILED: Cell<Option<FailedCheckout>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct FailedCheckout {
    set: *const PeerSet,
    at: Instant,
    end: Instant,
    silent: usize,
}

/// The check of one checkout, of however many links.
pub(crate) struct Validation<Clock> {
    clock: Clock,
    pub(crate) began: Instant,
    /// When all its pings must have ended, if there was one.
    end: Option<Instant>,
    /// The peer that has not answered, and used up the time.
    silent: Option<usize>,
}

impl<Clock: Fn() -> Instant> Validation<Clock> {
    pub(crate) fn begin(set: &Arc<PeerSet>, clock: Clock) -> Self {
        let began = clock();
        let goes_on = |failed: &FailedCheckout| {
            failed.set == Arc::as_ptr(set) && began.saturating_duration_since(failed.at) < AT_ONCE
        };
        let failed = LAST_FAILED.take().filter(goes_on);
        let (end, silent) = failed.map(|failed| (failed.end, failed.silent)).unzip();
        Self { clock, began, end, silent }
    }

    /// The checkout has failed.
    pub(crate) fn fails(&self, set: &Arc<PeerSet>) {
        if let (Some(end), Some(silent)) = (self.end, self.silent) {
            let at = (self.clock)();
            LAST_FAILED.set(Some(FailedCheckout { set: Arc::as_ptr(set), at, end, silent }));
        }
    }

    /// Sees whether this link can be handed out.
    pub(crate) fn of<C: R2D2Connection>(&mut self, link: &mut Link<C>) -> Result<(), Error> {
        let settings = link.guard.set().settings();
        let (timeout, idle) = (settings.ping_timeout, settings.ping_idle);
        if link.is_alive(idle, self.began) {
            return Ok(());
        }
        let peer = link.guard.peer();
        if self.silent.is_some_and(|silent| silent != peer) && link.is_quiet() {
            // There is no time left to ask, and that one peer is silent says nothing about another.
            return Ok(());
        }
        let now = (self.clock)();
        let end = *self.end.get_or_insert(now + timeout);
        if end <= now && link.can_be_cut() {
            return Err(refused(&format!("no time was left to ask peer {}", link.guard.name())));
        }
        match link.ping(end) {
            Ok(()) => Ok(()),
            Err(Unanswered::Query(error)) => Err(error.into()),
            Err(Unanswered::Panicked(panicked)) => Err(refused(&panicked.to_string())),
            Err(Unanswered::Late) => {
                self.silent = Some(peer);
                link.guard.set().suspect(peer, (self.clock)());
                let name = link.guard.name();
                Err(refused(&format!("peer {name} did not answer a ping within {timeout:?}")))
            }
        }
    }
}

/// Why a connection is not handed out, when no query said so.
pub(crate) fn refused(reason: &str) -> Error {
    Error::ConnectionError(ConnectionError::BadConnection(format!("connection retired: {reason}")))
}
