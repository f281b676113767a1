//! The failover of a primary to its synchronous standby. The standby has whatever the primary has answered, and the
//! transactions of COMMITs that wait for it may be visible on the primary and lost with it.

use std::thread;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;
use support::postgres::Postgres;

/// A primary and its synchronous standby.
pub(crate) struct Pair {
    pub(crate) primary: Postgres,
    pub(crate) standby: Postgres,
}

impl Pair {
    pub(crate) fn start() -> Self {
        let primary = Postgres::start();
        let standby = primary.start_synchronous_standby();
        Self { primary, standby }
    }

    /// Kills the primary, promotes the standby, and makes the old primary the standby of the new one.
    pub(crate) fn fail_over(&mut self, rng: &mut SmallRng) {
        let mut pause = |millis| thread::sleep(Duration::from_millis(rng.random_range(0..millis)));
        pause(1000);
        let Self { primary, standby } = self;
        let (is_late, restarts) = (rng.random(), rng.random());
        if is_late {
            // COMMITs are executed on the primary, and wait.
            standby.freeze();
            thread::sleep(Duration::from_millis(rng.random_range(10..300)));
            if restarts {
                // Afterwards, everybody sees the transactions that the standby does not have.
                primary.restart();
                thread::sleep(Duration::from_millis(rng.random_range(500..1500)));
            }
        }
        primary.kill();
        if is_late {
            standby.thaw();
        }
        standby.promote();
        primary.become_standby_of(standby);
        std::mem::swap(primary, standby);
    }
}
