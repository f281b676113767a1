//! What the queries of one link have shown since a transaction began: whether it was interrupted, and what its
//! COMMIT has answered. The application's own error type may hide both.

use std::mem;
use std::sync::{Arc, Mutex};

use crate::fault::Fault;
use crate::panics::lock;

/// The reason why a transaction could not be carried on, and may be run again from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Interruption {
    /// Other transactions were in the way: a deadlock, a serialization or a certification failure.
    Conflict,
    /// The peer takes no such work at the moment.
    PeerUnusable,
    /// The connection is lost.
    ConnectionLost,
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
}

/// What a COMMIT has answered.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum CommitSeen {
    /// No COMMIT was sent.
    #[default]
    No,
    Committed,
    /// The COMMIT failed, and nothing was saved.
    Aborted,
    /// The COMMIT failed with this error, and may have saved the transaction or not.
    Doubtful(Arc<str>),
}

/// What the queries of one link have shown since the record was reset.
#[derive(Debug, Default)]
pub(crate) struct TransactionRecord {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The worst interruption since a query has succeeded.
    interruption: Option<Interruption>,
    state: TransactionState,
    last: LastQuery,
    /// Whether the query that was begun last has failed. diesel may tell the end of such a query a second time, as a
    /// success.
    has_failed: bool,
    /// Whose query is the next one.
    next: NextQuery,
    commit: CommitSeen,
    /// How many transactions the application has begun through its [`PeerConnection`] and not ended. In contrast to
    /// diesel's depth, this is known after the connection was lost as well.
    ///
    /// [`PeerConnection`]: crate::PeerConnection
    open: u32,
}

/// What has become of the transaction since it began, as far as errors tell.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum TransactionState {
    #[default]
    Open,
    /// The server has answered a query by rolling the whole transaction back.
    RolledBack,
    /// The connection was lost, which rolls the transaction back as well.
    Lost,
    /// The application has gone on afterwards, outside of the transaction. A part of what it did may be saved.
    GoneOn,
}

/// How the last query has ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum LastQuery {
    #[default]
    Succeeded,
    Failed,
    Interrupted,
}

/// Whose query is the next one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum NextQuery {
    #[default]
    Application,
    Commit,
    /// A beginning, a rollback or a savepoint, which do no work.
    Control,
}

/// A query that has failed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) interruption: Option<Interruption>,
    /// Whether the server rolls the whole transaction back when it answers this.
    pub(crate) rolls_back: bool,
}

impl TransactionRecord {
    /// Begins a new record.
    pub(crate) fn reset(&self) {
        let seen = &mut *lock(&self.seen);
        *seen = Seen { open: seen.open, ..Seen::default() };
    }

    /// Records that the application begins a transaction through its `PeerConnection`.
    pub(crate) fn transaction_begins(&self) {
        let seen = &mut *lock(&self.seen);
        seen.open = seen.open.saturating_add(1);
    }

    /// Records that the application ends a transaction through its `PeerConnection`.
    pub(crate) fn transaction_ends(&self) {
        let seen = &mut *lock(&self.seen);
        seen.open = seen.open.saturating_sub(1);
    }

    /// Records that all transactions have ended.
    pub(crate) fn all_transactions_end(&self) {
        lock(&self.seen).open = 0;
    }

    /// Whether the application has begun a transaction through its `PeerConnection` and not ended it.
    pub(crate) fn has_open_transaction(&self) -> bool {
        lock(&self.seen).open > 0
    }

    /// Records that a query begins.
    pub(crate) fn query_begins(&self) {
        lock(&self.seen).has_failed = false;
    }

    /// Records that the next query is the COMMIT of a transaction.
    pub(crate) fn commit_begins(&self) {
        lock(&self.seen).next = NextQuery::Commit;
    }

    /// Records that the next query is a beginning, a rollback or a savepoint.
    pub(crate) fn control_begins(&self) {
        lock(&self.seen).next = NextQuery::Control;
    }

    /// Whether the query that ends now is a COMMIT.
    pub(crate) fn is_committing(&self) -> bool {
        lock(&self.seen).next == NextQuery::Commit
    }

    /// Records a query that has succeeded. `fails_as_a_whole` is whether the database refuses all further work of a
    /// transaction after an error, and answers its COMMIT with success, as PostgreSQL does.
    pub(crate) fn query_succeeded(&self, fails_as_a_whole: bool) {
        let seen = &mut *lock(&self.seen);
        if seen.has_failed {
            return;
        }
        match mem::take(&mut seen.next) {
            NextQuery::Application => {
                seen.interruption = None;
                if seen.state != TransactionState::Open {
                    seen.state = TransactionState::GoneOn;
                }
            }
            NextQuery::Commit if fails_as_a_whole && seen.last != LastQuery::Succeeded => {
                seen.commit = CommitSeen::Aborted;
            }
            NextQuery::Commit => seen.commit = CommitSeen::Committed,
            NextQuery::Control => {}
        }
        seen.last = LastQuery::Succeeded;
    }

    /// Records a query that has failed. If it is a COMMIT, `doubt` is the text of its error if its outcome is not
    /// known.
    pub(crate) fn query_failed(&self, failure: Failure, doubt: Option<Arc<str>>) {
        let Failure { interruption, rolls_back } = failure;
        let seen = &mut *lock(&self.seen);
        match mem::take(&mut seen.next) {
            // A text may consist of several statements, and its answer may be lost.
            NextQuery::Application if seen.state == TransactionState::RolledBack => {
                seen.state = TransactionState::GoneOn;
            }
            NextQuery::Commit => {
                seen.commit = doubt.map_or(CommitSeen::Aborted, CommitSeen::Doubtful);
            }
            NextQuery::Application | NextQuery::Control => {}
        }
        if seen.state == TransactionState::Open {
            if interruption == Some(Interruption::ConnectionLost) {
                seen.state = TransactionState::Lost;
            } else if rolls_back {
                seen.state = TransactionState::RolledBack;
            }
        }
        seen.has_failed = true;
        seen.last = match interruption {
            Some(_) => LastQuery::Interrupted,
            None => LastQuery::Failed,
        };
        seen.interruption = seen.interruption.max(interruption);
    }

    /// Returns the worst interruption, unless the application has gone on after it: a query has succeeded since.
    pub(crate) fn interruption(&self) -> Option<Interruption> {
        lock(&self.seen).interruption
    }

    /// Whether everything that the transaction has done is rolled back, or was refused at last. Then nothing of it is
    /// saved, although it has ended before its COMMIT.
    pub(crate) fn was_interrupted_at_last(&self) -> bool {
        let Seen { state, last, .. } = *lock(&self.seen);
        match state {
            TransactionState::Open => last == LastQuery::Interrupted,
            TransactionState::RolledBack | TransactionState::Lost => true,
            TransactionState::GoneOn => false,
        }
    }

    /// Returns what the last COMMIT has answered. One that has not ended was not sent.
    pub(crate) fn commit(&self) -> CommitSeen {
        lock(&self.seen).commit.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(interruption: Option<Interruption>, rolls_back: bool) -> Failure {
        Failure { interruption, rolls_back }
    }

    /// Records a query that begins and ends.
    fn query_ends(record: &TransactionRecord, failure: Option<Failure>) {
        record.query_begins();
        match failure {
            None => record.query_succeeded(false),
            Some(failure) => record.query_failed(failure, None),
        }
    }

    #[test]
    fn record_keeps_the_worst_interruption_until_a_query_succeeds() {
        let record = TransactionRecord::default();
        query_ends(&record, None);
        query_ends(&record, Some(Failure::default()));
        assert_eq!(record.interruption(), None);
        query_ends(&record, Some(failure(Some(Interruption::PeerUnusable), false)));
        query_ends(&record, Some(failure(Some(Interruption::Conflict), false)));
        query_ends(&record, Some(Failure::default()));
        assert_eq!(record.interruption(), Some(Interruption::PeerUnusable));
        record.control_begins();
        query_ends(&record, None);
        assert_eq!(
            record.interruption(),
            Some(Interruption::PeerUnusable),
            "a rollback is no work"
        );
        query_ends(&record, None);
        assert_eq!(record.interruption(), None, "the application has gone on");
        query_ends(&record, Some(failure(Some(Interruption::Conflict), false)));
        record.query_succeeded(false);
        assert_eq!(
            record.interruption(),
            Some(Interruption::Conflict),
            "that query has ended before"
        );
        record.reset();
        assert_eq!(record.interruption(), None);
    }

    /// The queries of a transaction that was not there any more at its end, and whether nothing of it is saved.
    #[test]
    fn nothing_is_saved_if_the_server_rolled_back_and_nothing_followed() {
        let lost = || Some(failure(Some(Interruption::ConnectionLost), false));
        let deadlock = || Some(failure(Some(Interruption::Conflict), true));
        let lock_timeout = || Some(failure(Some(Interruption::Conflict), false));
        let refused = || Some(failure(Some(Interruption::PeerUnusable), false));
        let no_savepoint = || Some(Failure::default());
        for (queries, expected) in [
            (vec![None, deadlock(), no_savepoint()], true),
            (vec![None, lost(), lost()], true),
            (vec![None, refused(), refused()], true),
            // A statement has committed.
            (vec![None, no_savepoint()], false),
            (vec![None, lock_timeout(), no_savepoint()], false),
            // The second statement was committed by itself.
            (vec![None, deadlock(), None, no_savepoint()], false),
            (vec![None, deadlock(), None, lock_timeout(), no_savepoint()], false),
            (vec![None, deadlock(), None, lost()], false),
            // A part of the statement that has failed may be saved: a text has several, and an answer may be lost.
            (vec![None, deadlock(), Some(Failure::default()), no_savepoint()], false),
            (vec![None, deadlock(), lost(), lost()], false),
            // The connection to a proxy that has lost its server.
            (vec![None, lost(), None, no_savepoint()], false),
        ] {
            let record = TransactionRecord::default();
            let text = format!("{queries:?}");
            let last = queries.len() - 1;
            for (number, query) in queries.into_iter().enumerate() {
                if number == last {
                    // The release of the savepoint.
                    record.control_begins();
                }
                query_ends(&record, query);
            }
            assert_eq!(record.was_interrupted_at_last(), expected, "{text}");
        }
    }

    #[test]
    fn record_tells_what_the_last_commit_has_answered() {
        let record = TransactionRecord::default();
        query_ends(&record, None);
        assert_eq!(record.commit(), CommitSeen::No);
        record.commit_begins();
        assert_eq!(record.commit(), CommitSeen::No, "the COMMIT has not ended");
        query_ends(&record, None);
        assert_eq!(record.commit(), CommitSeen::Committed);
        record.commit_begins();
        record
            .query_failed(failure(Some(Interruption::ConnectionLost), false), Some("gone".into()));
        // diesel's own ROLLBACK follows.
        record.query_failed(failure(Some(Interruption::ConnectionLost), false), None);
        assert_eq!(record.commit(), CommitSeen::Doubtful("gone".into()));
        record.commit_begins();
        record.query_failed(Failure::default(), None);
        assert_eq!(record.commit(), CommitSeen::Aborted);
        for (fails_as_a_whole, expected) in
            [(true, CommitSeen::Aborted), (false, CommitSeen::Committed)]
        {
            record.query_failed(Failure::default(), None);
            record.commit_begins();
            record.query_begins();
            record.query_succeeded(fails_as_a_whole);
            assert_eq!(record.commit(), expected, "the COMMIT of a failed transaction succeeds");
        }
    }

    #[test]
    fn open_transactions_are_counted_across_resets() {
        let record = TransactionRecord::default();
        record.transaction_begins();
        record.transaction_begins();
        record.reset();
        record.transaction_ends();
        assert!(record.has_open_transaction());
        record.transaction_ends();
        record.transaction_ends();
        assert!(!record.has_open_transaction());
    }
}
