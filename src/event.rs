//! What happens to the peers, told to whoever wants to know.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::fault::Fault;

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
        why: String,
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
        why: String,
    },
    /// It was full, and has connections to give again.
    HasRoom,
    /// It is down already, and now does not let the application in, which nobody but an operator can
    /// mend: a wrong password, database or TLS setting, here or there. (Of one that was up it is
    /// [`Down`](Self::Down), with [`Fault::Misconfigured`].)
    #[non_exhaustive]
    Misconfigured {
        /// In the words of the client library.
        why: String,
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
    Weighted {
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
        why: String,
        /// What that says of the peer.
        fault: Fault,
        /// How long it took to fail.
        took: Duration,
    },
    /// A connection of the pool was closed. Not kept in the history.
    #[non_exhaustive]
    LinkRetired {
        /// Why.
        why: Retired,
        /// How old it was.
        age: Duration,
    },
    /// Queries that hung were cut off, as the peer has stopped.
    #[non_exhaustive]
    LinksAborted {
        /// Connections on which a query hung.
        hung: usize,
        /// How many of those could be cut off.
        cut_off: usize,
    },
}

/// Why a connection of the pool was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retired {
    /// It was found dead, or broken, or was left inside a transaction.
    Broken,
    /// Its peer is down.
    PeerDown,
    /// Its peer is drained.
    Drained,
    /// It was as old as connections get (`link_max_age`).
    TooOld,
    /// To make room for one to a peer that has fewer.
    Rebalanced,
    /// By the pool: one of its own time limits, its customizer, or its end.
    ByPool,
}

impl Retired {
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
        !matches!(self, Self::ConnectFailed { .. } | Self::LinkRetired { .. })
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
            Self::Weighted { .. } => "weighted",
            Self::Added => "added",
            Self::Removed => "removed",
            Self::ConnectFailed { .. } => "connect_failed",
            Self::LinkRetired { .. } => "link_retired",
            Self::LinksAborted { .. } => "links_aborted",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, .. } = self;
        match &self.kind {
            EventKind::Down { why, fault: Fault::Misconfigured, .. }
            | EventKind::Misconfigured { why } => write!(
                f,
                "peer {peer} does not let us in: {why}; look at its user, password, database and TLS, \
                 here and there",
            ),
            EventKind::Down { why, next_check, .. } => {
                write!(f, "peer {peer} is down: {why}; {}", in_words(*next_check))
            }
            EventKind::Up { was_down } => write!(f, "peer {peer} is up after {was_down:.1?}"),
            EventKind::Full { why } => {
                write!(
                    f,
                    "peer {peer} is full: {why}; other peers get the new connections meanwhile"
                )
            }
            EventKind::HasRoom => write!(f, "peer {peer} takes connections again"),
            EventKind::Draining => write!(f, "peer {peer} is being drained"),
            // Nobody was there.
            EventKind::Drained { took: Duration::ZERO } => write!(f, "peer {peer} is drained"),
            EventKind::Drained { took } => write!(f, "peer {peer} is drained, after {took:.1?}"),
            EventKind::Resumed => write!(f, "peer {peer} serves again"),
            EventKind::Weighted { from, to } => {
                write!(f, "the weight of peer {peer} is {to}, and was {from}")
            }
            EventKind::Added => write!(f, "peer {peer} was added"),
            EventKind::Removed => write!(f, "peer {peer} was removed"),
            EventKind::ConnectFailed { why, took, .. } => {
                write!(f, "a login to peer {peer} failed after {took:.1?}: {why}")
            }
            EventKind::LinkRetired { why, age } => {
                let why = match why {
                    Retired::Broken => "it was broken",
                    Retired::PeerDown => "the peer is down",
                    Retired::Drained => "the peer is drained",
                    Retired::TooOld => "it was too old",
                    Retired::Rebalanced => "another peer has fewer",
                    Retired::ByPool => "the pool did so",
                };
                write!(f, "a connection to peer {peer} was closed after {age:.1?}: {why}")
            }
            EventKind::LinksAborted { hung, cut_off } => {
                write!(f, "peer {peer}: {cut_off} of {hung} queries that hang were cut off")
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

/// Told of what happens to the peers: [`event_handler`](crate::PeerManagerBuilder::event_handler).
///
/// Every method does nothing by default. They are called one after the other on a thread of their own,
/// so they may block, and what panics is caught: the pool goes on meanwhile. While one blocks, events
/// queue up, and those that find the queue full are dropped
/// ([`events_dropped`](crate::Snapshot::events_dropped)). Events that are under way when the pool ends
/// may not be told.
///
/// They may use the [`Peers`](crate::Peers) and the pool. The handler must not own the pool, which
/// would never end: it lives as long as that.
///
/// ```
/// use diesel_peers::{Event, EventHandler};
///
/// struct Pager;
///
/// impl EventHandler for Pager {
///     fn peer_down(&self, event: &Event) {
///         eprintln!("wake somebody up: {event}");
///     }
/// }
/// ```
#[expect(unused_variables, reason = "they do nothing by default")]
pub trait EventHandler: Send + 'static {
    /// [`EventKind::Down`].
    fn peer_down(&self, event: &Event) {}

    /// [`EventKind::Up`].
    fn peer_up(&self, event: &Event) {}

    /// [`EventKind::Full`].
    fn peer_full(&self, event: &Event) {}

    /// [`EventKind::HasRoom`].
    fn peer_has_room(&self, event: &Event) {}

    /// [`EventKind::Misconfigured`].
    fn peer_misconfigured(&self, event: &Event) {}

    /// [`EventKind::Draining`].
    fn peer_draining(&self, event: &Event) {}

    /// [`EventKind::Drained`].
    fn peer_drained(&self, event: &Event) {}

    /// [`EventKind::Resumed`].
    fn peer_resumed(&self, event: &Event) {}

    /// [`EventKind::Weighted`].
    fn peer_weighted(&self, event: &Event) {}

    /// [`EventKind::Added`].
    fn peer_added(&self, event: &Event) {}

    /// [`EventKind::Removed`].
    fn peer_removed(&self, event: &Event) {}

    /// [`EventKind::ConnectFailed`].
    fn connect_failed(&self, event: &Event) {}

    /// [`EventKind::LinkRetired`].
    fn link_retired(&self, event: &Event) {}

    /// [`EventKind::LinksAborted`].
    fn links_aborted(&self, event: &Event) {}
}

/// Calls the event's own method.
pub(crate) fn tell(handler: &dyn EventHandler, event: &Event) {
    match &event.kind {
        EventKind::Down { .. } => handler.peer_down(event),
        EventKind::Up { .. } => handler.peer_up(event),
        EventKind::Full { .. } => handler.peer_full(event),
        EventKind::HasRoom => handler.peer_has_room(event),
        EventKind::Misconfigured { .. } => handler.peer_misconfigured(event),
        EventKind::Draining => handler.peer_draining(event),
        EventKind::Drained { .. } => handler.peer_drained(event),
        EventKind::Resumed => handler.peer_resumed(event),
        EventKind::Weighted { .. } => handler.peer_weighted(event),
        EventKind::Added => handler.peer_added(event),
        EventKind::Removed => handler.peer_removed(event),
        EventKind::ConnectFailed { .. } => handler.connect_failed(event),
        EventKind::LinkRetired { .. } => handler.link_retired(event),
        EventKind::LinksAborted { .. } => handler.links_aborted(event),
    }
}
