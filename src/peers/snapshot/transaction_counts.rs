//! What has become of the transactions and reads that were interrupted on a peer.

use crate::peers::counters::PeerCounters;

/// What has become of the transactions and reads that were interrupted on a peer. All are counters that start at 0 when
/// the peer is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TransactionCounts {
    /// Transactions and reads that were interrupted on the peer and were run again.
    pub retries: u64,
    /// Transactions and reads that were interrupted on the peer and were not run again, because the retry budget of the
    /// pool was used up.
    pub retries_refused: u64,
    /// `COMMIT`s whose error does not say whether they were executed, whoever has made them.
    pub commits_in_doubt: u64,
    /// Runs of `transaction_with_retry` that were in doubt and that a ledger has found committed.
    pub found_committed: u64,
    /// Runs of `transaction_with_retry` that were in doubt and that a ledger has found not committed.
    pub found_aborted: u64,
    /// Runs of `transaction_with_retry` whose outcome stayed unknown: no peer could decide, or the closure ended the
    /// transaction. (An idempotent transaction may have been run again.)
    pub outcomes_unknown: u64,
    /// Sessions of transactions whose connection was lost that were ended through this peer. They held locks.
    pub sessions_ended: u64,
}

impl TransactionCounts {
    pub(crate) fn new(counters: &PeerCounters) -> Self {
        Self {
            retries: counters.retries.get(),
            retries_refused: counters.retries_refused.get(),
            commits_in_doubt: counters.commits_in_doubt.get(),
            found_committed: counters.found_committed.get(),
            found_aborted: counters.found_aborted.get(),
            outcomes_unknown: counters.outcomes_unknown.get(),
            sessions_ended: counters.sessions_ended.get(),
        }
    }

    /// Returns the key of each counter, its title in a table, and its value.
    pub(crate) fn columns(self) -> [(&'static str, &'static str, u64); 7] {
        let Self {
            retries,
            retries_refused,
            commits_in_doubt,
            found_committed,
            found_aborted,
            outcomes_unknown,
            sessions_ended,
        } = self;
        [
            ("retries", "Retries", retries),
            ("retries_refused", "Over budget", retries_refused),
            ("commits_in_doubt", "In doubt", commits_in_doubt),
            ("found_committed", "Found committed", found_committed),
            ("found_aborted", "Found aborted", found_aborted),
            ("outcomes_unknown", "Unknown", outcomes_unknown),
            ("sessions_ended", "Sessions ended", sessions_ended),
        ]
    }

    /// Whether every counter is 0.
    pub(crate) fn is_zero(self) -> bool {
        self == Self::default()
    }
}
