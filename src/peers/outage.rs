//! While every peer is down: r2d2 puts a slot that could not connect to sleep for up to half its
//! `connection_timeout`, 15 seconds by default, and would notice that late that a peer is back. So one
//! that wants to connect always waits here for the word.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use crate::panics::lock;

/// For how long an outage is watched. Who waits keeps the pool alive, and one relieves the other, so
/// that an application that drops its pool and builds another one until its database is there would
/// otherwise have them all. After so long an outage half a minute more matters little.
const WATCHED: Duration = Duration::from_secs(5 * 60);

/// The outage that there is, or may be.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first was told the whole story of this outage.
    told: Option<Instant>,
    /// The one who waits. Dropping it relieves them.
    waiting: Option<Sender<()>>,
}

/// What becomes of one who could not connect.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// Fail, and tell the story: it is the first of this outage, or somebody else waits now.
    Fail,
    /// A peer may be up: try again.
    TryAgain,
}

impl Outage {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Every peer is down, and a connection could not be made. The first to say so goes away at once
    /// with the story; who comes later waits for the end of the outage and relieves the one before.
    /// `is_over` is asked once the end cannot be missed any more.
    pub(crate) fn wait(&self, now: Instant, longest: Duration, is_over: impl Fn() -> bool) -> Word {
        if is_over() {
            return if longest.is_zero() { Word::Fail } else { Word::TryAgain };
        }
        let (relieve, word) = bounded(1);
        {
            let state = &mut *self.lock();
            let told = *state.told.get_or_insert(now);
            if told == now || now.saturating_duration_since(told) > WATCHED {
                return Word::Fail;
            }
            state.waiting = Some(relieve);
        }
        if is_over() || word.recv_timeout(longest).is_ok() { Word::TryAgain } else { Word::Fail }
    }

    /// A peer is up.
    pub(crate) fn end(&self) {
        let state = &mut *self.lock();
        state.told = None;
        if let Some(waiting) = state.waiting.take() {
            let _ = waiting.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Longer than the test takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    fn the_first_fails_the_others_wait_and_relieve_each_other_until_it_ends() {
        let outage = Outage::default();
        let start = Instant::now();
        let later = |millis| start + Duration::from_millis(millis);
        let not_over = || false;
        assert_eq!(outage.wait(start, LONG, not_over), Word::Fail, "the first has the story");
        thread::scope(|scope| {
            let one = scope.spawn(|| outage.wait(later(1), LONG, not_over));
            while outage.lock().waiting.is_none() {
                thread::yield_now();
            }
            let other = scope.spawn(|| outage.wait(later(2), LONG, not_over));
            assert_eq!(one.join().expect("no panic"), Word::Fail, "it is relieved");
            outage.end();
            assert_eq!(other.join().expect("no panic"), Word::TryAgain, "a peer is up");
        });
        assert_eq!(outage.wait(later(3), LONG, not_over), Word::Fail, "another outage");
        assert_eq!(outage.wait(later(4), LONG, || true), Word::TryAgain, "it ended meanwhile");
        assert_eq!(outage.wait(later(5), Duration::ZERO, not_over), Word::Fail, "no longer");
        assert_eq!(
            outage.wait(later(3) + WATCHED + LONG, LONG, not_over),
            Word::Fail,
            "nobody waits for ever"
        );
    }
}
