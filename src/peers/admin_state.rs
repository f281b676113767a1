//! The administrative state of a peer, as set by an operator. No check and no timer changes it,
//! except that a draining peer becomes drained when its last session has ended. Pure.

use std::time::Instant;

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
    pub(super) fn drain(&mut self, remove_when_drained: bool, now: Instant) {
        *self = match *self {
            Self::Ready => Self::Draining { since: now, remove_when_drained },
            Self::Draining { since, remove_when_drained: false } => {
                Self::Draining { since, remove_when_drained }
            }
            Self::Drained { .. } if remove_when_drained => Self::Removed,
            Self::Draining { .. } | Self::Drained { .. } | Self::Removed => return,
        };
    }

    /// Marks a draining peer as drained, or removes it: the pool has no session with it any more. Has no
    /// effect on a peer that is not draining.
    pub(super) fn finish_draining(&mut self, now: Instant) {
        if let Self::Draining { remove_when_drained, .. } = *self {
            *self = if remove_when_drained { Self::Removed } else { Self::Drained { since: now } };
        }
    }
}
