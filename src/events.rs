//! Events: what happens to the peers.

pub(crate) mod dispatcher;
pub(crate) mod log;

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::fault::Fault;

/// The application's event handler.
pub(crate) type EventHandler = dyn Fn(&Event) + Send;

/// Something that happened to a peer. [`Display`](fmt::Display) prints the sentence that the log has. The guide
/// describes how to receive events ([observing](crate::guide::observing#events)).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When the event happened.
    pub at: SystemTime,
    /// The name of the peer.
    pub peer: String,
    /// Whether the peer was in service: neither drained nor draining. Events of a peer that is out of
    /// service are usually no reason for an alert.
    pub in_service: bool,
    /// What happened.
    pub kind: EventKind,
}

/// The kind of an [`Event`], with its details.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The peer failed and was marked down. It gets no new work until its mark is cleared (by default, by a
    /// successful check).
    #[non_exhaustive]
    Down {
        /// The error in the words of the client library, without URL or password.
        reason: String,
        /// The fault of `reason`.
        fault: Fault,
        /// The time from the event to the next health check.
        next_check: Duration,
    },
    /// The peer works again.
    #[non_exhaustive]
    Up {
        /// How long the peer was down.
        was_down: Duration,
    },
    /// The peer accepts no more connections. Its existing connections stay in use.
    #[non_exhaustive]
    Full {
        /// The error in the words of the client library.
        reason: String,
    },
    /// The peer was full and accepts connections again.
    HasRoom,
    /// The peer is down already, and now rejects the login because of a wrong user, password, database or
    /// TLS setting, which only an operator can correct. (A peer that was up reports
    /// [`Down`](Self::Down) with [`Fault::Misconfigured`].)
    #[non_exhaustive]
    Misconfigured {
        /// The error in the words of the client library.
        reason: String,
    },
    /// The peer gets no new work, because an operator drains it or its address disappeared from DNS
    /// ([`resolve_interval`](crate::PeerManagerBuilder::resolve_interval)).
    Draining,
    /// The peer is drained: the pool has no session with it any more.
    #[non_exhaustive]
    Drained {
        /// How long the draining took.
        took: Duration,
    },
    /// The peer is an outlier: alive, and much slower than the other peers
    /// ([`slow_peers`](crate::PeerManagerBuilder::slow_peers)).
    #[non_exhaustive]
    Slow {
        /// The query time of the middle one of its last checkouts: the time that a checkout spends in queries.
        query_time: Duration,
        /// The same of the other peers.
        others_query_time: Duration,
        /// Whether its work shifts to the other peers.
        is_relieved: bool,
    },
    /// The peer was slow, and is not any more, or gets no work any more because a better tier serves. (A slow peer
    /// that goes down or is drained does not report this.)
    #[non_exhaustive]
    NoLongerSlow {
        /// How long the peer was slow.
        was_slow: Duration,
    },
    /// An operator put the peer back into service.
    Resumed,
    /// An operator changed the weight of the peer.
    #[non_exhaustive]
    WeightChanged {
        /// The old weight.
        from: u32,
        /// The new weight.
        to: u32,
    },
    /// The pool lacks connections, because each peer that could take one has reached its limit
    /// ([`max_connections`](crate::PeerManagerBuilder::max_connections)), this one among them.
    #[non_exhaustive]
    AtLimit {
        /// The limit.
        max_connections: u32,
    },
    /// The pool lacked connections because of the limit of this peer, and the peer is below its limit again, or
    /// nothing has wanted a connection for a minute.
    BelowLimit,
    /// An operator changed the limit of the peer.
    #[non_exhaustive]
    LimitChanged {
        /// The old limit; `None` if there was none.
        from: Option<u32>,
        /// The new limit; `None` if there is none.
        to: Option<u32>,
    },
    /// The peer was added.
    Added,
    /// The peer was removed, after it had been drained.
    Removed,
    /// A login for the pool failed. Such events can be many and are not kept in the history.
    #[non_exhaustive]
    ConnectFailed {
        /// The error in the words of the client library, without URL or password.
        reason: String,
        /// The fault of `reason`.
        fault: Fault,
        /// How long the login took to fail.
        took: Duration,
    },
    /// A connection of the pool was closed. Such events are not kept in the history.
    #[non_exhaustive]
    ConnectionClosed {
        /// Why the connection was closed.
        reason: CloseReason,
        /// The age of the connection.
        age: Duration,
    },
    /// The peer is stalled ([`stall_after`](crate::PeerManagerBuilder::stall_after)), and its hung queries
    /// were aborted.
    #[non_exhaustive]
    QueriesAborted {
        /// The number of connections with a hung query.
        hung: usize,
        /// The number of those queries that could be aborted.
        aborted: usize,
    },
    /// The outcome of a transaction on the peer is not known
    /// ([`transaction_with_retry`](crate::PeerConnection::transaction_with_retry)). With a
    /// [`Ledger`](crate::Ledger), the pool finds it out next.
    #[non_exhaustive]
    TransactionInDoubt {
        /// The error that has left the outcome open.
        reason: String,
    },
    /// The outcome of a transaction in doubt was found out.
    #[non_exhaustive]
    TransactionResolved {
        /// Whether the transaction is committed. Otherwise it never will be.
        is_committed: bool,
    },
    /// The outcome of a transaction in doubt could not be found out, although it has a [`Ledger`](crate::Ledger).
    #[non_exhaustive]
    TransactionUnresolved {
        /// The error of the `COMMIT`, and the last one of the resolution.
        reason: String,
    },
}

/// The reason why a connection of the pool was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The connection was dead or broken, or came back inside a transaction.
    Broken,
    /// The peer is down.
    PeerDown,
    /// The peer is drained.
    Drained,
    /// The connection reached `connection_max_age`.
    TooOld,
    /// The connection made room for one to a peer that has fewer.
    Rebalanced,
    /// The peer had more connections than a lower limit allows
    /// ([`set_max_connections`](crate::Peers::set_max_connections)).
    OverLimit,
    /// The pool closed the connection: by one of its own time limits, its customizer, or its end.
    ByPool,
}

impl CloseReason {
    /// Returns a stable `snake_case` name, as used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::PeerDown => "peer_down",
            Self::Drained => "drained",
            Self::TooOld => "too_old",
            Self::Rebalanced => "rebalanced",
            Self::OverLimit => "over_limit",
            Self::ByPool => "by_pool",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl EventKind {
    /// Whether the event is a change of the peer's state, which the history keeps and the log shows.
    pub(crate) fn is_transition(&self) -> bool {
        !matches!(self, Self::ConnectFailed { .. } | Self::ConnectionClosed { .. })
    }

    /// Returns a stable `snake_case` name, as used in logs and JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Down { .. } => "down",
            Self::Up { .. } => "up",
            Self::Full { .. } => "full",
            Self::HasRoom => "has_room",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Draining => "draining",
            Self::Drained { .. } => "drained",
            Self::Slow { .. } => "slow",
            Self::NoLongerSlow { .. } => "no_longer_slow",
            Self::Resumed => "resumed",
            Self::WeightChanged { .. } => "weight_changed",
            Self::AtLimit { .. } => "at_limit",
            Self::BelowLimit => "below_limit",
            Self::LimitChanged { .. } => "limit_changed",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::ConnectionClosed { .. } => "connection_closed",
            Self::QueriesAborted { .. } => "queries_aborted",
            Self::TransactionInDoubt { .. } => "transaction_in_doubt",
            Self::TransactionResolved { .. } => "transaction_resolved",
            Self::TransactionUnresolved { .. } => "transaction_unresolved",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, .. } = self;
        match &self.kind {
            EventKind::Down { reason, fault: Fault::Misconfigured, .. }
            | EventKind::Misconfigured { reason } => write!(
                f,
                "peer {peer} rejects the login: {reason} (check user, password, database and TLS on both \
                 sides)",
            ),
            EventKind::Down { reason, next_check, .. } => {
                write!(f, "peer {peer} is down: {reason}; {}", next_check_phrase(*next_check))
            }
            EventKind::Up { was_down } => write!(f, "peer {peer} is up after {was_down:.1?}"),
            EventKind::Full { reason } => {
                write!(f, "peer {peer} is full: {reason}; new connections go to other peers")
            }
            EventKind::HasRoom => write!(f, "peer {peer} accepts connections again"),
            EventKind::Draining => write!(f, "peer {peer} is draining"),
            // The pool had no session there.
            EventKind::Drained { took: Duration::ZERO } => write!(f, "peer {peer} is drained"),
            EventKind::Drained { took } => write!(f, "peer {peer} is drained after {took:.1?}"),
            EventKind::Slow { query_time, others_query_time, is_relieved } => {
                write!(
                    f,
                    "peer {peer} is slow, an outlier: a checkout spends {query_time:.1?} in queries there, \
                     and {others_query_time:.1?} on the other peers; {}",
                    if *is_relieved { "its work goes to these" } else { "it keeps its share" },
                )
            }
            EventKind::NoLongerSlow { was_slow } => {
                write!(f, "peer {peer} is no longer slow, after {was_slow:.1?}")
            }
            EventKind::Resumed => write!(f, "peer {peer} is back in service"),
            EventKind::WeightChanged { from, to } => {
                write!(f, "weight of peer {peer} changed from {from} to {to}")
            }
            EventKind::AtLimit { max_connections } => write!(
                f,
                "peer {peer} has reached max_connections ({max_connections}), and no other peer has room: the \
                 pool lacks connections",
            ),
            EventKind::BelowLimit => write!(f, "peer {peer} is no longer held at max_connections"),
            EventKind::LimitChanged { from, to } => {
                let limit =
                    |limit: &Option<u32>| limit.map_or("none".to_owned(), |max| max.to_string());
                let (from, to) = (limit(from), limit(to));
                write!(f, "max_connections of peer {peer} changed from {from} to {to}")
            }
            EventKind::Added => write!(f, "peer {peer} was added"),
            EventKind::Removed => write!(f, "peer {peer} was removed"),
            EventKind::ConnectFailed { reason, took, .. } => {
                write!(f, "login to peer {peer} failed after {took:.1?}: {reason}")
            }
            EventKind::ConnectionClosed { reason, age } => {
                let reason = match reason {
                    CloseReason::Broken => "the connection was broken",
                    CloseReason::PeerDown => "the peer is down",
                    CloseReason::Drained => "the peer is drained",
                    CloseReason::TooOld => "the maximum age was reached",
                    CloseReason::Rebalanced => "another peer has fewer connections",
                    CloseReason::OverLimit => "the peer has more than max_connections",
                    CloseReason::ByPool => "the pool closed it",
                };
                write!(f, "a connection to peer {peer} was closed after {age:.1?}: {reason}")
            }
            EventKind::QueriesAborted { hung, aborted } => {
                write!(f, "peer {peer} is stalled: aborted {aborted} of {hung} hung queries")
            }
            EventKind::TransactionInDoubt { reason } => {
                write!(f, "a transaction on peer {peer} may be committed or not: {reason}")
            }
            EventKind::TransactionUnresolved { reason } => {
                write!(f, "the outcome of a transaction on peer {peer} stays unknown: {reason}")
            }
            EventKind::TransactionResolved { is_committed: true } => {
                write!(f, "a transaction on peer {peer} that was in doubt is committed")
            }
            EventKind::TransactionResolved { is_committed: false } => {
                write!(
                    f,
                    "a transaction on peer {peer} that was in doubt is not committed, and never will be"
                )
            }
        }
    }
}

/// Returns the time until the next health check as a phrase.
pub(crate) fn next_check_phrase(next_check: Duration) -> String {
    if next_check.is_zero() {
        return "next check now".to_owned();
    }
    format!("next check in {next_check:.1?}")
}
