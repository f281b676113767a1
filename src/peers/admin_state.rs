//! The administrative state of a peer, as set by an operator. No check and no timer changes it,
//! except that a draining peer becomes drained when its last session has ended. Pure.

use std::mem;
use std::time::Instant;

use crate::events::EventKind;

/// The administrative state of a peer: whether an operator lets the peer serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminState {
    /// The peer is in service.
    Ready,
    /// The peer gets no new work, and each of its links is closed at its checkin. When the last
    /// session has ended, the peer is removed if `remove_when_drained` is set.
    Draining { since: Instant, remove_when_drained: bool },
    /// The peer gets no new work, and the pool has no session with it.
    Drained { since: Instant },
    /// The peer is not a member of the set any more. Its index stays reserved until no link, login
    /// or check refers to it, and is then reused for a new peer.
    Removed,
}

impl AdminState {
    /// Starts draining: the peer gets no new work from now on. With `remove_when_drained` the peer
    /// is removed as soon as it is drained.
    pub(super) fn drain(&mut self, remove_when_drained: bool, now: Instant) -> Option<EventKind> {
        match *self {
            Self::Ready => {
                *self = Self::Draining { since: now, remove_when_drained };
                Some(EventKind::Draining)
            }
            Self::Draining { since, remove_when_drained: false } => {
                *self = Self::Draining { since, remove_when_drained };
                None
            }
            Self::Drained { .. } if remove_when_drained => {
                *self = Self::Removed;
                Some(EventKind::Removed)
            }
            Self::Draining { .. } | Self::Drained { .. } | Self::Removed => None,
        }
    }

    /// Puts the peer back into service.
    pub(super) fn resume(&mut self) -> Option<EventKind> {
        let was_ready = mem::replace(self, Self::Ready) == Self::Ready;
        (!was_ready).then_some(EventKind::Resumed)
    }

    /// Marks a draining peer as drained, or removes it: the pool has no session with it any more.
    /// Returns the resulting events, or `None` if the peer was not draining.
    pub(super) fn finish_draining(&mut self, now: Instant) -> Option<[Option<EventKind>; 2]> {
        let Self::Draining { since, remove_when_drained } = *self else { return None };
        *self = if remove_when_drained { Self::Removed } else { Self::Drained { since: now } };
        let took = now.saturating_duration_since(since);
        Some([Some(EventKind::Drained { took }), remove_when_drained.then_some(EventKind::Removed)])
    }
}
