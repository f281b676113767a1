//! Seeing that a link is fine before it is handed out: for free when its socket shows it, else by a
//! ping.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::ConnectionError;
use diesel::r2d2::{Error, R2D2Connection};

use crate::link::{Link, Unanswered};
use crate::set::PeerSet;

/// When a check-out has failed r2d2 tries the next slot at once, in the same thread. Such check-outs
/// are one to whoever waits for them, and share one deadline; this is how soon "at once" is.
const AT_ONCE: Duration = Duration::from_millis(10);

thread_local! {
    /// This thread's last check-out, if it failed because of its deadline.
    static FAILED: Cell<Option<Failed>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Failed {
    set: *const PeerSet,
    at: Instant,
    end: Instant,
}

/// The check of one check-out, of however many links.
pub(crate) struct Sounding<Clock> {
    clock: Clock,
    pub(crate) began: Instant,
    /// When all its pings must have ended, if there was one.
    end: Option<Instant>,
}

impl<Clock: Fn() -> Instant> Sounding<Clock> {
    pub(crate) fn begin(set: &Arc<PeerSet>, clock: Clock) -> Self {
        let began = clock();
        let goes_on = |failed: &Failed| {
            failed.set == Arc::as_ptr(set) && began.saturating_duration_since(failed.at) < AT_ONCE
        };
        let end = FAILED.take().filter(goes_on).map(|failed| failed.end);
        Self { clock, began, end }
    }

    /// Sees whether this link can be handed out.
    pub(crate) fn of<C: R2D2Connection>(&mut self, link: &mut Link<C>) -> Result<(), Error> {
        let rules = link.lease.set().rules();
        let (timeout, idle) = (rules.ping_timeout, rules.ping_idle);
        if link.is_sound(idle, self.began) {
            return Ok(());
        }
        let now = (self.clock)();
        let end = *self.end.get_or_insert(now + timeout);
        let outcome =
            if end <= now && link.can_be_cut() { Err(Unanswered::Late) } else { link.ping(end) };
        match outcome {
            Ok(()) => Ok(()),
            Err(Unanswered::Query(error)) => Err(error.into()),
            Err(Unanswered::Panicked(panicked)) => Err(refused(&panicked.to_string())),
            Err(Unanswered::Late) => {
                let now = (self.clock)();
                let set = link.lease.set();
                FAILED.set(Some(Failed { set: Arc::as_ptr(set), at: now, end }));
                set.suspect(link.lease.peer(), now);
                let name = link.lease.name();
                Err(refused(&format!("peer {name} did not answer a ping within {timeout:?}")))
            }
        }
    }
}

/// Why a connection is not handed out, when no query said so.
pub(crate) fn refused(why: &str) -> Error {
    Error::ConnectionError(ConnectionError::BadConnection(format!("connection retired: {why}")))
}
