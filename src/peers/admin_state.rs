//! The administrative state of a peer: whether an operator, or the resolution of its host name, lets it
//! serve. No check changes it; a draining peer becomes drained when its last session has ended. Pure.

use std::time::Instant;

/// The administrative state of a peer: whether an operator lets the peer serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminState {
    /// The peer is in service.
    InService,
    /// The peer gets no new work, and its links are replaced by links to other peers. When the last session has
    /// ended, the peer is removed if `remove_when_drained` is set.
    Draining { since: Instant, remove_when_drained: bool },
    /// The peer gets no new work, and the pool has no session with it.
    Drained { since: Instant },
    /// The peer is not a member of the set any more. Its index stays reserved until no link, login
    /// or check refers to it, and is then reused for a new peer.
    Removed,
}

impl AdminState {
    /// Starts draining: the peer gets no new work from now on.
    pub(super) fn drain(&mut self, now: Instant) {
        if *self == Self::InService {
            *self = Self::Draining { since: now, remove_when_drained: false };
        }
    }

    /// Removes the peer, after draining it if it is not drained yet.
    pub(super) fn remove(&mut self, now: Instant) {
        *self = match *self {
            Self::InService => Self::Draining { since: now, remove_when_drained: true },
            Self::Draining { since, .. } => Self::Draining { since, remove_when_drained: true },
            Self::Drained { .. } | Self::Removed => Self::Removed,
        };
    }

    /// Marks a draining peer as drained, or removes it: the pool has no session with it any more. Has no
    /// effect on a peer that is not draining.
    pub(super) fn end_draining(&mut self, now: Instant) {
        if let Self::Draining { remove_when_drained, .. } = *self {
            *self = if remove_when_drained { Self::Removed } else { Self::Drained { since: now } };
        }
    }
}
