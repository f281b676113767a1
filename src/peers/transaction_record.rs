//! What the queries of one link have shown since a transaction began: whether it was interrupted, and what its
//! COMMIT has answered. The application's own error type may hide both.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use crate::fault::Fault;
use crate::panics::lock;

/// The reason why a transaction could not be carried on, and may be run again from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interruption {
    /// Other transactions were in the way: a deadlock, a serialization or a certification failure.
    Conflict = 1,
    /// The peer takes no such work at the moment.
    PeerUnusable = 2,
    /// The connection is lost.
    ConnectionLost = 3,
}

impl Interruption {
    /// Returns the interruption that a fault is, if it is one. A refused write is one only if the peers have to
    /// accept writes: the application's own transaction may be read-only.
    pub(crate) fn of(fault: Fault, requires_writes: bool) -> Option<Self> {
        match fault {
            Fault::Retryable => Some(Self::Conflict),
            Fault::PeerNotReady | Fault::PeerDown | Fault::PeerFull => Some(Self::PeerUnusable),
            Fault::WrongRole if requires_writes => Some(Self::PeerUnusable),
            Fault::ConnectionLost => Some(Self::ConnectionLost),
            Fault::WrongRole | Fault::OutOfResources | Fault::Misconfigured | Fault::Query => None,
        }
    }

    /// Whether the transaction has to run on another connection.
    pub(crate) fn needs_another_link(self) -> bool {
        self > Self::Conflict
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Conflict, Self::PeerUnusable, Self::ConnectionLost]
            .into_iter()
            .find(|interruption| *interruption as u8 == number)
    }
}

/// What a COMMIT has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CommitSeen {
    /// No COMMIT was sent.
    No,
    Committed,
    /// The COMMIT failed, and nothing was saved.
    Aborted,
    /// The COMMIT failed with this error, and may have saved the transaction or not.
    Doubtful(Arc<str>),
}

const COMMIT_NONE: u8 = 0;
const COMMIT_BEGUN: u8 = 1;
const COMMIT_DONE: u8 = 2;
const COMMIT_ABORTED: u8 = 3;
const COMMIT_DOUBTFUL: u8 = 4;

/// What the queries of one link have shown since the record was reset. Only the thread that uses the connection
/// writes and reads it.
#[derive(Debug, Default)]
pub(crate) struct TransactionRecord {
    /// The worst [`Interruption`].
    interruption: AtomicU8,
    /// Whether a query has succeeded after an interruption.
    continued: AtomicBool,
    /// Whether the last query has failed.
    last_failed: AtomicBool,
    commit: AtomicU8,
    commit_error: Mutex<Option<Arc<str>>>,
}

impl TransactionRecord {
    /// Begins a new record.
    pub(crate) fn reset(&self) {
        self.interruption.store(0, Ordering::Relaxed);
        self.continued.store(false, Ordering::Relaxed);
        self.last_failed.store(false, Ordering::Relaxed);
        self.commit.store(COMMIT_NONE, Ordering::Relaxed);
    }

    /// Records that the next query is the COMMIT of a transaction.
    pub(crate) fn commit_begins(&self) {
        self.commit.store(COMMIT_BEGUN, Ordering::Relaxed);
    }

    /// Whether the query that ends now is a COMMIT.
    pub(crate) fn is_committing(&self) -> bool {
        self.commit.load(Ordering::Relaxed) == COMMIT_BEGUN
    }

    /// Records a query that has succeeded. `fails_as_a_whole` is whether the database refuses all further work of a
    /// transaction after an error, and answers its COMMIT with success, as PostgreSQL does.
    pub(crate) fn query_succeeded(&self, fails_as_a_whole: bool) {
        if self.is_committing() {
            let is_saved = !(fails_as_a_whole && self.last_failed.load(Ordering::Relaxed));
            let commit = if is_saved { COMMIT_DONE } else { COMMIT_ABORTED };
            self.commit.store(commit, Ordering::Relaxed);
        }
        self.last_failed.store(false, Ordering::Relaxed);
        if fails_as_a_whole {
            return;
        }
        if self.interruption.load(Ordering::Relaxed) != 0 {
            self.continued.store(true, Ordering::Relaxed);
        }
    }

    /// Records a query that has failed, and whether that was an interruption.
    pub(crate) fn query_failed(&self, interruption: Option<Interruption>) {
        self.last_failed.store(true, Ordering::Relaxed);
        if let Some(interruption) = interruption {
            self.interruption.fetch_max(interruption as u8, Ordering::Relaxed);
        }
    }

    /// Records the failure of a COMMIT. `doubt` is the text of its error if the outcome is not known.
    pub(crate) fn commit_failed(&self, doubt: Option<Arc<str>>) {
        let commit = if doubt.is_some() { COMMIT_DOUBTFUL } else { COMMIT_ABORTED };
        *lock(&self.commit_error) = doubt;
        self.commit.store(commit, Ordering::Relaxed);
    }

    /// Returns the worst interruption.
    pub(crate) fn interruption(&self) -> Option<Interruption> {
        Interruption::from_number(self.interruption.load(Ordering::Relaxed))
    }

    /// Whether a query has succeeded after an interruption. If the server had rolled the transaction back, this
    /// query was not part of it.
    pub(crate) fn has_continued(&self) -> bool {
        self.continued.load(Ordering::Relaxed)
    }

    /// Returns what the last COMMIT has answered.
    pub(crate) fn commit(&self) -> CommitSeen {
        match self.commit.load(Ordering::Relaxed) {
            COMMIT_DONE => CommitSeen::Committed,
            COMMIT_ABORTED => CommitSeen::Aborted,
            COMMIT_DOUBTFUL => {
                CommitSeen::Doubtful(lock(&self.commit_error).clone().unwrap_or_default())
            }
            // A COMMIT that has begun was not sent, as no query has ended since.
            _ => CommitSeen::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_keeps_the_worst_interruption_and_what_followed_it() {
        let record = TransactionRecord::default();
        record.query_succeeded(false);
        record.query_failed(None);
        assert_eq!((record.interruption(), record.has_continued()), (None, false));
        record.query_failed(Some(Interruption::ConnectionLost));
        record.query_failed(Some(Interruption::Conflict));
        assert_eq!(record.interruption(), Some(Interruption::ConnectionLost));
        assert!(!record.has_continued(), "no query has succeeded since");
        record.query_succeeded(false);
        assert!(record.has_continued());
        record.reset();
        assert_eq!((record.interruption(), record.has_continued()), (None, false));
    }

    #[test]
    fn record_tells_what_the_last_commit_has_answered() {
        let record = TransactionRecord::default();
        record.query_succeeded(false);
        assert_eq!(record.commit(), CommitSeen::No);
        record.commit_begins();
        assert_eq!(record.commit(), CommitSeen::No, "the COMMIT has not ended");
        record.query_succeeded(false);
        assert_eq!(record.commit(), CommitSeen::Committed);
        record.commit_begins();
        record.commit_failed(Some("gone".into()));
        // diesel's own ROLLBACK follows.
        record.query_failed(Some(Interruption::ConnectionLost));
        assert_eq!(record.commit(), CommitSeen::Doubtful("gone".into()));
        record.commit_begins();
        record.commit_failed(None);
        assert_eq!(record.commit(), CommitSeen::Aborted);
        for (fails_as_a_whole, expected) in
            [(true, CommitSeen::Aborted), (false, CommitSeen::Committed)]
        {
            record.query_failed(None);
            record.commit_begins();
            record.query_succeeded(fails_as_a_whole);
            assert_eq!(record.commit(), expected, "the COMMIT of a failed transaction succeeds");
        }
    }
}
