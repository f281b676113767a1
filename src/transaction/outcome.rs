//! The outcome of a transaction: committed, aborted, or not known.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::transaction::ledger::Entry;
use crate::transaction::ledger::xid::XidEntry;

/// The outcome of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a transaction may not have been committed"]
pub enum Outcome<T, E> {
    /// The transaction is committed. Contains what the closure has returned.
    Committed(T),
    /// Nothing of the transaction is saved. Contains the closure's error, or diesel's error of `BEGIN` or
    /// `COMMIT`.
    Aborted(E),
    /// The transaction may be saved or not.
    Unknown(Doubt),
}

impl<T, E> Outcome<T, E> {
    /// Returns what the closure has returned if the transaction is committed, and an error otherwise.
    ///
    /// # Errors
    ///
    /// Returns the error of a transaction that is not known to be committed.
    pub fn into_result(self) -> Result<T, TransactionError<E>> {
        match self {
            Self::Committed(value) => Ok(value),
            Self::Aborted(error) => Err(TransactionError::Aborted(error)),
            Self::Unknown(doubt) => Err(TransactionError::Unknown(doubt)),
        }
    }

    /// Converts the error of a transaction that was aborted, for example into one that implements
    /// [`Error`](std::error::Error).
    pub fn map_err<F>(self, convert: impl FnOnce(E) -> F) -> Outcome<T, F> {
        match self {
            Self::Committed(value) => Outcome::Committed(value),
            Self::Aborted(error) => Outcome::Aborted(convert(error)),
            Self::Unknown(doubt) => Outcome::Unknown(doubt),
        }
    }

    /// Whether the transaction is known to be committed.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed(_))
    }
}

/// The error of a transaction that is not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransactionError<E> {
    /// Nothing of the transaction is saved.
    Aborted(E),
    /// The transaction may be saved or not.
    Unknown(Doubt),
}

impl<E: fmt::Display> fmt::Display for TransactionError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted(error) => error.fmt(f),
            Self::Unknown(doubt) => doubt.fmt(f),
        }
    }
}

impl<E: Error + 'static> Error for TransactionError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            // Its text is that of the error itself.
            Self::Aborted(error) => error.source(),
            Self::Unknown(_) => None,
        }
    }
}

/// The reason why the outcome of a transaction is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DoubtReason {
    /// The `COMMIT` was sent, and its error does not say whether the server has executed it. With a ledger, no peer
    /// could decide before the deadline.
    CommitUnanswered,
    /// The transaction ended before its `COMMIT`, so a part of it may be saved: a statement has committed it
    /// (MySQL's `CREATE TABLE`, a `COMMIT` in a text), or the server has rolled it back and the closure has gone
    /// on after the error.
    EndedEarly,
    /// The transaction is older than the ledger keeps outcomes, so it may have been committed.
    Forgotten,
    /// The ledger on the peers that were asked belongs to other data.
    OtherHistory,
    /// The id of the transaction is committed on a server that was restarted or replaced since, so it may be that of
    /// another one ([`Ledger::Xid`](crate::Ledger::Xid)).
    OtherIncarnation,
}

/// A transaction whose outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    pub(super) reason: DoubtReason,
    pub(super) peer: Arc<str>,
    pub(super) error: Arc<str>,
    /// Why the last resolution could not decide.
    pub(super) unresolved: Option<Arc<str>>,
    /// What the transaction has recorded in its ledger.
    pub(super) entry: Option<Box<Entry>>,
}

impl Doubt {
    /// Returns the reason why the outcome is not known.
    #[must_use]
    pub fn reason(&self) -> DoubtReason {
        self.reason
    }

    /// Returns the name of the peer on which the transaction was run.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Returns the text of the error that has left the outcome open.
    #[must_use]
    pub fn error(&self) -> &str {
        &self.error
    }

    /// Returns the text of the last error that has prevented a ledger from resolving it.
    #[must_use]
    pub fn unresolved(&self) -> Option<&str> {
        self.unresolved.as_deref()
    }

    /// Returns both errors.
    pub(super) fn cause(&self) -> String {
        match &self.unresolved {
            None => self.error.to_string(),
            Some(unresolved) => format!("{} (not resolved: {unresolved})", self.error),
        }
    }

    /// Returns the name of the ledger's table with its schema, if the transaction has written a token into one.
    #[must_use]
    pub fn table(&self) -> Option<&str> {
        match self.entry.as_deref() {
            Some(Entry::Table(entry)) => Some(&entry.table.name),
            _ => None,
        }
    }

    /// Returns the token of the transaction, if it had a ledger: the key of its row in the table, or with transaction
    /// ids the source of the key of its advisory lock.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| &*entry.token().0)
    }

    /// Returns PostgreSQL's id of the transaction, if this is its ledger.
    #[must_use]
    pub fn xid(&self) -> Option<u64> {
        match self.entry.as_deref() {
            Some(Entry::Xid(XidEntry { xid, .. })) => Some(*xid),
            _ => None,
        }
    }
}

impl DoubtReason {
    /// Returns the name that is used in serialized doubts.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::CommitUnanswered => "commit_unanswered",
            Self::EndedEarly => "ended_early",
            Self::Forgotten => "forgotten",
            Self::OtherHistory => "other_history",
            Self::OtherIncarnation => "other_incarnation",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, peer, .. } = self;
        let error = self.cause();
        match reason {
            DoubtReason::CommitUnanswered => {
                write!(f, "the transaction on peer {peer} may be committed or not: {error}")
            }
            DoubtReason::EndedEarly => write!(
                f,
                "the transaction on peer {peer} ended before its COMMIT, and a part of it may be saved: \
                 {error}"
            ),
            DoubtReason::Forgotten => write!(
                f,
                "the transaction on peer {peer} may be committed or not, and the ledger does not know it any \
                 more: {error}"
            ),
            DoubtReason::OtherHistory => write!(
                f,
                "the transaction on peer {peer} may be committed or not, and the ledger that was asked has \
                 another history: {error}"
            ),
            DoubtReason::OtherIncarnation => write!(
                f,
                "the transaction on peer {peer} may be committed or not, as its id may be that of another one since \
                 the server was restarted or replaced: {error}"
            ),
        }
    }
}

impl Error for Doubt {}

/// What has become of a transaction that was in doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the outcome may still be unknown"]
pub enum Verdict {
    /// The transaction is committed.
    Committed,
    /// Nothing of the transaction is saved, and nothing ever will be.
    Aborted,
    /// The transaction may be saved or not.
    Unknown(Doubt),
}
