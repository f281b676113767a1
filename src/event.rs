//! Events: what happens to the peers.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::fault::Fault;

/// The application's event handler.
pub(crate) type EventHandler = dyn Fn(&Event) + Send;

/// Something that has happened to a peer. [`Display`](fmt::Display) tells it in words, as the log does.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The name of the peer.
    pub peer: String,
    /// Whether it was in service: not drained, and not being drained. What happens to a peer that is not
    /// is no reason to wake anybody.
    pub in_service: bool,
    /// What.
    pub kind: EventKind,
}

/// What has happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// It failed, and is left alone until a check succeeds.
    #[non_exhaustive]
    Down {
        /// In the words of the client library, without URL or password.
        reason: String,
        /// What that says of it.
        fault: Fault,
        /// When it is checked next, from now.
        next_check: Duration,
    },
    /// It works again.
    #[non_exhaustive]
    Up {
        /// For how long it did not.
        was_down: Duration,
    },
    /// It has no connection to give; those that it has given go on being used.
    #[non_exhaustive]
    Full {
        /// In the words of the client library.
        reason: String,
    },
    /// It was full, and has connections to give again.
    HasRoom,
    /// It is down already, and now does not let the application in, which nobody but an operator can
    /// mend: a wrong password, database or TLS setting, here or there. (Of one that was up it is
    /// [`Down`](Self::Down), with [`Fault::Misconfigured`].)
    #[non_exhaustive]
    Misconfigured {
        /// In the words of the client library.
        reason: String,
    },
    /// An operator has it drained, or its name does not lead there any more
    /// ([`resolve_interval`](crate::PeerManagerBuilder::resolve_interval)): it gets no new work.
    Draining,
    /// It is drained: the pool has no session there any more.
    #[non_exhaustive]
    Drained {
        /// How long that took.
        took: Duration,
    },
    /// An operator has it serve again.
    Resumed,
    /// An operator has changed its weight.
    #[non_exhaustive]
    WeightChanged {
        /// What it was.
        from: u32,
        /// What it is.
        to: u32,
    },
    /// It is a peer from now on.
    Added,
    /// It is no peer any more, and was drained before.
    Removed,
    /// A login for the pool failed. That may be one of many, and is not kept in the history.
    #[non_exhaustive]
    ConnectFailed {
        /// In the words of the client library, without URL or password.
        reason: String,
        /// What that says of the peer.
        fault: Fault,
        /// How long it took to fail.
        took: Duration,
    },
    /// A connection of the pool was closed. Not kept in the history.
    #[non_exhaustive]
    ConnectionClosed {
        /// Why.
        reason: CloseReason,
        /// How old it was.
        age: Duration,
    },
    /// Queries that hung were cut off, as the peer has stopped.
    #[non_exhaustive]
    QueriesAborted {
        /// Connections on which a query hung.
        hung: usize,
        /// How many of those could be cut off.
        aborted: usize,
    },
}

/// Why a connection of the pool was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// It was found dead, or broken, or was left inside a transaction.
    Broken,
    /// Its peer is down.
    PeerDown,
    /// Its peer is drained.
    Drained,
    /// It was as old as connections get (`connection_max_age`).
    TooOld,
    /// To make room for one to a peer that has fewer.
    Rebalanced,
    /// By the pool: one of its own time limits, its customizer, or its end.
    ByPool,
}

impl CloseReason {
    /// As it is called in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::PeerDown => "peer_down",
            Self::Drained => "drained",
            Self::TooOld => "too_old",
            Self::Rebalanced => "rebalanced",
            Self::ByPool => "by_pool",
        }
    }
}

impl EventKind {
    /// Whether it is a change of the peer's state, and not one of many things that happen there.
    pub(crate) fn is_transition(&self) -> bool {
        !matches!(self, Self::ConnectFailed { .. } | Self::ConnectionClosed { .. })
    }

    /// In one word, or two.
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
            Self::Resumed => "resumed",
            Self::WeightChanged { .. } => "weight_changed",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::ConnectionClosed { .. } => "connection_closed",
            Self::QueriesAborted { .. } => "queries_aborted",
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
                "peer {peer} does not let us in: {reason}; look at its user, password, database and TLS, \
                 here and there",
            ),
            EventKind::Down { reason, next_check, .. } => {
                write!(f, "peer {peer} is down: {reason}; {}", in_words(*next_check))
            }
            EventKind::Up { was_down } => write!(f, "peer {peer} is up after {was_down:.1?}"),
            EventKind::Full { reason } => {
                write!(
                    f,
                    "peer {peer} is full: {reason}; other peers get the new connections meanwhile"
                )
            }
            EventKind::HasRoom => write!(f, "peer {peer} takes connections again"),
            EventKind::Draining => write!(f, "peer {peer} is being drained"),
            // Nobody was there.
            EventKind::Drained { took: Duration::ZERO } => write!(f, "peer {peer} is drained"),
            EventKind::Drained { took } => write!(f, "peer {peer} is drained, after {took:.1?}"),
            EventKind::Resumed => write!(f, "peer {peer} serves again"),
            EventKind::WeightChanged { from, to } => {
                write!(f, "the weight of peer {peer} is {to}, and was {from}")
            }
            EventKind::Added => write!(f, "peer {peer} was added"),
            EventKind::Removed => write!(f, "peer {peer} was removed"),
            EventKind::ConnectFailed { reason, took, .. } => {
                write!(f, "a login to peer {peer} failed after {took:.1?}: {reason}")
            }
            EventKind::ConnectionClosed { reason, age } => {
                let reason = match reason {
                    CloseReason::Broken => "it was broken",
                    CloseReason::PeerDown => "the peer is down",
                    CloseReason::Drained => "the peer is drained",
                    CloseReason::TooOld => "it was too old",
                    CloseReason::Rebalanced => "another peer has fewer",
                    CloseReason::ByPool => "the pool did so",
                };
                write!(f, "a connection to peer {peer} was closed after {age:.1?}: {reason}")
            }
            EventKind::QueriesAborted { hung, aborted } => {
                write!(f, "peer {peer} is unresponsive: aborted {aborted} of {hung} hung queries")
            }
        }
    }
}

/// When something is checked next.
pub(crate) fn in_words(next_check: Duration) -> String {
    if next_check.is_zero() {
        return "next check now".to_owned();
    }
    format!("next check in {next_check:.1?}")
}
