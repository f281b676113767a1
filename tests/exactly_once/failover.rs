//! The failover of a primary to its synchronous standby. The standby has whatever the primary has answered. What the
//! primary has executed and not answered may be visible there, and be lost with it.

use std::ops::Range;
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
        let Self { primary, standby } = self;
        // A crash from which the primary comes back.
        pause(rng, 100..500);
        primary.restart();
        pause(rng, 100..500);
        // COMMITs without a standby are executed on the primary, and wait. After a crash everybody sees them, and
        // the new primary will not have them.
        let (loses_standby, is_restarted) = (rng.random_ratio(3, 4), rng.random_ratio(2, 3));
        if loses_standby {
            standby.kill();
            pause(rng, 10..300);
            if is_restarted {
                primary.restart();
                pause(rng, 500..1500);
            }
        }
        primary.kill();
        if loses_standby {
            standby.restart();
        }
        standby.promote();
        primary.become_standby_of(standby);
        std::mem::swap(primary, standby);
    }
}

fn pause(rng: &mut SmallRng, millis: Range<u64>) {
    thread::sleep(Duration::from_millis(rng.random_range(millis)));
}
