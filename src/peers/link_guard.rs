//! What is counted about a link is counted by this guard, from the first byte of its login until
//! its connection is closed.

use std::sync::Arc;
use std::time::Instant;

use crate::event::{CloseReason, EventKind};
use crate::peers::activity::{Activity, LinkState};
use crate::peers::set::{PeerSet, Picked};

/// A place on one peer: a login in flight, then a link. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct LinkGuard {
    set: Arc<PeerSet>,
    peer: usize,
    name: Arc<str>,
    is_link: bool,
    activity: Arc<Activity>,
    /// Of the link, and when it was made.
    link_state: Option<(Arc<LinkState>, Instant)>,
    in_use: bool,
    /// Why it ends, where that is known.
    retired: Option<CloseReason>,
}

impl LinkGuard {
    /// The lease of a dial that [`PeerSet::pick`] has already counted.
    pub(crate) fn of_dial(set: Arc<PeerSet>, picked: &Picked) -> Self {
        Self {
            set,
            peer: picked.peer,
            name: picked.name.clone(),
            is_link: false,
            activity: picked.activity.clone(),
            link_state: None,
            in_use: false,
            retired: None,
        }
    }

    pub(crate) fn set(&self) -> &Arc<PeerSet> {
        &self.set
    }

    pub(crate) fn peer(&self) -> usize {
        self.peer
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The login has succeeded, and its connection is used.
    pub(crate) fn becomes_link(&mut self, link_state: Arc<LinkState>, created_at: Instant) {
        self.is_link = true;
        self.activity.counters.connects.add_one();
        // First, so that there is no moment at which its peer has neither.
        self.activity.add(link_state.clone());
        self.set.count(self.peer, |counts| {
            counts.connecting -= 1;
            counts.links += 1;
        });
        self.link_state = Some((link_state, created_at));
    }

    /// It is checked out, and was found fine if it was looked at.
    pub(crate) fn serves(&self) {
        self.activity.counters.checkouts.add_one();
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// The link is about to be closed. The first reason counts.
    pub(crate) fn retire(&mut self, reason: CloseReason) {
        self.retired.get_or_insert(reason);
    }

    /// Why the link ends: because of its peer, if that is so.
    fn close_reason(&self) -> CloseReason {
        let of_peer = self.set.read(|peers| {
            let peer = &peers[self.peer];
            match (peer.is_in_service(), peer.is_up()) {
                (false, _) => Some(CloseReason::Drained),
                (true, false) => Some(CloseReason::PeerDown),
                (true, true) => None,
            }
        });
        of_peer.or(self.retired).unwrap_or(CloseReason::ByPool)
    }

    /// The link is checked out, or is no more.
    pub(crate) fn set_in_use(&mut self, in_use: bool) {
        if self.in_use != in_use {
            self.activity.count_in_use(in_use);
            self.in_use = in_use;
        }
    }
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        self.set_in_use(false);
        if let Some((_, created_at)) = &self.link_state {
            let reason = self.close_reason();
            self.activity.counters.retired(reason).add_one();
            self.set
                .tell(self.peer, EventKind::ConnectionClosed { reason, age: created_at.elapsed() });
        }
        // From now on it does not keep the peer's place.
        self.set.count(self.peer, |counts| {
            if self.is_link {
                counts.links -= 1;
            } else {
                counts.connecting -= 1;
            }
        });
        // Last, so that a peer without one has none that is counted.
        if let Some((link_state, _)) = &self.link_state {
            self.activity.remove(link_state);
        }
    }
}
