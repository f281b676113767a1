//! How often, and how long: figures that only grow, written without a lock by whoever does the work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::event::Retired;

/// The upper ends of the classes into which times are sorted; what takes longer is in the last one,
/// which has none. From a query over the loopback interface to one that should have been cut off.
pub(crate) const CLASSES: [Duration; 15] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(10),
];

/// What was done on one peer.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Connections that were handed out.
    pub(crate) check_outs: Count,
    /// Queries that have ended, however.
    pub(crate) queries: Times,
    /// Queries that have ended with a lost connection.
    pub(crate) lost: Count,
    /// Queries that hung and were cut off.
    pub(crate) cut_off: Count,
    /// Logins for the pool that have succeeded.
    pub(crate) logins: Times,
    /// Those of them that became connections of the pool.
    pub(crate) connects: Count,
    /// Logins that have failed, for the pool and of checks.
    pub(crate) failures: Count,
    /// How often it was marked down.
    pub(crate) downs: Count,
    retired: [Count; RETIRED.len()],
}

/// Why connections are closed, in the order in which they are counted.
pub(crate) const RETIRED: [Retired; 6] = [
    Retired::Broken,
    Retired::PeerDown,
    Retired::Drained,
    Retired::TooOld,
    Retired::Rebalanced,
    Retired::ByPool,
];

impl Tally {
    /// How many connections were closed for this reason.
    pub(crate) fn retired(&self, why: Retired) -> &Count {
        &self.retired[why as usize]
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something took, each time.
#[derive(Debug, Default)]
pub(crate) struct Times([Class; CLASSES.len() + 1]);

/// What took about as long. The two are written together, so they share a processor's cache line.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Class {
    count: Count,
    nanos: Count,
}

impl Times {
    pub(crate) fn add(&self, took: Duration) {
        let class = CLASSES.iter().position(|end| took <= *end).unwrap_or(CLASSES.len());
        let Class { count, nanos } = &self.0[class];
        count.add_one();
        nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How often.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|class| class.count.get()).sum()
    }

    /// All together.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.0.iter().map(|class| class.nanos.get()).sum())
    }

    /// Of each class, how often and how many nanoseconds all together.
    #[cfg(feature = "metrics")]
    pub(crate) fn classes(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|Class { count, nanos }| (count.get(), nanos.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_and_added_up() {
        let times = Times::default();
        for took in [Duration::ZERO, Duration::from_micros(101), Duration::from_secs(3600)] {
            times.add(took);
        }
        assert_eq!(times.count(), 3);
        assert_eq!(times.total(), Duration::from_secs(3600) + Duration::from_micros(101));
    }

    #[test]
    fn each_reason_has_its_own_count() {
        for (at, why) in RETIRED.into_iter().enumerate() {
            assert_eq!(why as usize, at, "{why:?}");
        }
    }

    #[test]
    fn classes_are_in_order() {
        assert!(CLASSES.is_sorted(), "the first that is long enough is the right one");
    }
}
