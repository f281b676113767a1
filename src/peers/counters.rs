//! The counters and histograms of one peer. They only grow, and each thread updates them without a
//! lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::events::CloseReason;

/// The inclusive upper bounds of the histogram buckets; one more bucket, without a bound, holds
/// everything slower. They range from a query over the loopback interface to one that should have
/// been aborted.
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

/// The counters of one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    /// Checkouts that the peer has served.
    pub(crate) checkouts: Counter,
    /// Queries that have ended, successfully or not.
    pub(crate) queries: Histogram,
    /// Queries that have ended with a lost connection.
    pub(crate) queries_lost: Counter,
    /// Hung queries that were aborted.
    pub(crate) queries_aborted: Counter,
    /// Transactions and reads that were interrupted and were run again.
    pub(crate) retries: Counter,
    /// Transactions and reads that were interrupted and were not run again, because the retry budget was used up.
    pub(crate) retries_refused: Counter,
    /// COMMITs whose error does not say whether they were executed.
    pub(crate) commits_in_doubt: Counter,
    /// Of these, those that a ledger has found committed, and not committed.
    pub(crate) found_committed: Counter,
    pub(crate) found_aborted: Counter,
    /// Transactions that were in doubt and stayed so.
    pub(crate) outcomes_unknown: Counter,
    /// Orphaned sessions of lost transactions that were ended.
    pub(crate) sessions_ended: Counter,
    /// Logins for the pool that succeeded.
    pub(crate) logins: Histogram,
    /// Successful logins whose connections became connections of the pool.
    pub(crate) connects: Counter,
    /// Logins that failed, for the pool and for checks.
    pub(crate) connect_failures: Counter,
    /// How often the peer was marked down.
    pub(crate) downs: Counter,
    /// Closed connections by [`CloseReason`], indexed as in [`CLOSE_REASONS`].
    closed: [Counter; CLOSE_REASONS.len()],
}

/// All close reasons, in the order of their counters.
pub(crate) const CLOSE_REASONS: [CloseReason; 7] = [
    CloseReason::Broken,
    CloseReason::PeerDown,
    CloseReason::Drained,
    CloseReason::TooOld,
    CloseReason::Rebalanced,
    CloseReason::OverLimit,
    CloseReason::ByPool,
];

impl PeerCounters {
    /// Returns the counter of connections that were closed for this reason.
    pub(crate) fn closed(&self, reason: CloseReason) -> &Counter {
        &self.closed[reason as usize]
    }
}

/// A counter that only grows.
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

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram([Bucket; BUCKET_BOUNDS.len() + 1]);

/// One bucket: how many durations fell into it, and their sum. Both are written together, so they
/// share a cache line of the processor.
#[derive(Debug, Default)]
#[repr(align(16))]
struct Bucket {
    count: Counter,
    nanos: Counter,
}

impl Histogram {
    pub(crate) fn add(&self, took: Duration) {
        let bucket =
            BUCKET_BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BUCKET_BOUNDS.len());
        let Bucket { count, nanos } = &self.0[bucket];
        count.add_one();
        nanos.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Returns the number of durations.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.count.get()).sum()
    }

    /// Returns the sum of all durations.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.0.iter().map(|bucket| bucket.nanos.get()).sum())
    }

    /// Returns each bucket's number of durations and their sum in nanoseconds.
    #[cfg(feature = "metrics")]
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|Bucket { count, nanos }| (count.get(), nanos.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_and_sums_durations() {
        let histogram = Histogram::default();
        for took in [Duration::ZERO, Duration::from_micros(101), Duration::from_secs(3600)] {
            histogram.add(took);
        }
        assert_eq!(histogram.count(), 3);
        assert_eq!(histogram.total(), Duration::from_secs(3600) + Duration::from_micros(101));
    }

    #[test]
    fn each_close_reason_has_its_own_counter() {
        for (at, reason) in CLOSE_REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, at, "{reason:?}");
        }
    }

    #[test]
    fn bucket_bounds_are_sorted() {
        assert!(
            BUCKET_BOUNDS.is_sorted(),
            "the first bound that is not exceeded must select the bucket"
        );
    }
}
