//! How often, and how long: figures that only grow, written without a lock by whoever does the work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::event::CloseReason;

/// The upper ends of the classes into which times are sorted; what takes longer is in the last one,
/// which has none. From a query over the loopback interface to one that should have been cut off.
pub(crate) const BUCKET_BOUNDS: [Duration; 15] = [
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
pub(crate) struct PeerCounters {
    /// Connections that were handed out.
    pub(crate) checkouts: Counter,
    /// Queries that have ended, however.
    pub(crate) queries: Histogram,
    /// Queries that have ended with a lost connection.
    pub(crate) queries_lost: Counter,
    /// Queries that hung and were cut off.
    pub(crate) queries_aborted: Counter,
    /// Logins for the pool that have succeeded.
    pub(crate) logins: Histogram,
    /// Those of them that became connections of the pool.
    pub(crate) connects: Counter,
    /// Logins that have failed, for the pool and of checks.
    pub(crate) connect_failures: Counter,
    /// How often it was marked down.
    pub(crate) downs: Counter,
    retired: [Counter; RETIRED.len()],
}

/// Why connections are closed, in the order in which they are counted.
pub(crate) const RETIRED: [CloseReason; 6] = [
    CloseReason::Broken,
    CloseReason::PeerDown,
    CloseReason::Drained,
    CloseReason::TooOld,
    CloseReason::Rebalanced,
    CloseReason::ByPool,
];

impl PeerCounters {
    /// How many connections were closed for this reason.
    pub(crate) fn retired(&self, reason: CloseReason) -> &Counter {
        &self.retired[reason as usize]
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
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
pub(crate) struct Histogram([Bucket; BUCKET_BOUNDS.len() + 1]);

/// What took about as long. The two are written together, so they share a processor's cache line.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Bucket {
    count: Counter,
    nanos: Counter,
}

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        let bucket =
            BUCKET_BOUNDS.iter().position(|end| took <= *end).unwrap_or(BUCKET_BOUNDS.len());
        let Bucket { count, nanos } = &self.0[bucket];
        count.add_one();
        nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How often.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.count.get()).sum()
    }

    /// All together.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.0.iter().map(|bucket| bucket.nanos.get()).sum())
    }

    /// Of each class, how often and how many nanoseconds all together.
    #[cfg(feature = "metrics")]
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|Bucket { count, nanos }| (count.get(), nanos.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_and_added_up() {
        let times = Histogram::default();
        for took in [Duration::ZERO, Duration::from_micros(101), Duration::from_secs(3600)] {
            times.add(took);
        }
        assert_eq!(times.count(), 3);
        assert_eq!(times.total(), Duration::from_secs(3600) + Duration::from_micros(101));
    }

    #[test]
    fn each_reason_has_its_own_count() {
        for (at, reason) in RETIRED.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?}");
        }
    }

    #[test]
    fn classes_are_in_order() {
        assert!(BUCKET_BOUNDS.is_sorted(), "the first that is long enough is the right one");
    }
}
