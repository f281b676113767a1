//! The time by which a transaction, its further runs and the resolution of its COMMIT end.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::R2D2Connection;

use crate::peers::set::PeerSet;
use crate::pool::connection::PeerConnection;
use crate::settings::retry::RetryPolicy;

/// The time after which the first try is aborted, which doubles with each further one. A server that is not the primary
/// any more may answer checks and never a COMMIT.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// The time that a try has at least: longer than it waits for a lock.
const SHORTEST_TRY: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    end: Instant,
}

impl Deadline {
    #[expect(clippy::disallowed_methods, reason = "the time starts here")]
    pub(super) fn after(time: Duration) -> Self {
        Self { end: Instant::now() + time }
    }

    /// Returns the later of two deadlines.
    pub(super) fn or_later(self, other: Self) -> Self {
        Self { end: self.end.max(other.end) }
    }

    /// Runs queries of the crate's own as one try, after so many others. They are aborted after some time.
    #[expect(clippy::disallowed_methods, reason = "the time of the try starts here")]
    pub(super) fn bound_try<C: R2D2Connection + Send + 'static, T>(
        self,
        conn: &mut PeerConnection<C>,
        tries: u32,
        queries: impl FnOnce(&mut PeerConnection<C>) -> T,
    ) -> T {
        let now = Instant::now();
        let limit = TRY_TIMEOUT.saturating_mul(1 << tries.min(10));
        let end = (now + limit).min(self.end.max(now + SHORTEST_TRY));
        let registered = conn.link_mut().set_deadline(end);
        let result = catch_unwind(AssertUnwindSafe(|| queries(conn)));
        if registered.is_some_and(|registered| !conn.pool.set.deadlines.unregister(registered)) {
            // The checker aborts the queries of this connection at this moment, so it must not be used again.
            conn.link_state().shut_down();
        }
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Waits before another try. Returns the time afterwards, or `None` if the deadline would be over.
    #[expect(clippy::disallowed_methods, reason = "the pause is bounded by the deadline")]
    pub(super) fn pause(self, tries: u32, set: &PeerSet) -> Option<Instant> {
        let pause = RetryPolicy::pause(tries, &mut set.rng());
        if Instant::now() + pause >= self.end {
            return None;
        }
        thread::sleep(pause);
        Some(Instant::now())
    }
}
