//! RAII guard that counts one connection on its peer, from the first byte of its login until the
//! connection is closed.

use std::sync::Arc;
use std::time::Instant;

use crate::events::{CloseReason, EventKind};
use crate::peers::activity::{Activity, LinkState};
use crate::peers::set::{PeerSet, Picked};

/// Counts one login in progress on a peer, then the link that results from it. Dropping the guard
/// ends the count.
#[derive(Debug)]
pub(crate) struct LinkGuard {
    set: Arc<PeerSet>,
    peer: usize,
    name: Arc<str>,
    is_link: bool,
    activity: Arc<Activity>,
    /// The state of the link, and when the link was created. `None` while the login is in progress.
    link_state: Option<(Arc<LinkState>, Instant)>,
    in_use: bool,
    /// Why the link is closed, if that is known.
    close_reason: Option<CloseReason>,
}

impl LinkGuard {
    /// Creates the guard of a login that [`PeerSet::pick`] has already counted.
    pub(crate) fn for_login(set: Arc<PeerSet>, picked: &Picked) -> Self {
        Self {
            set,
            peer: picked.peer,
            name: picked.name.clone(),
            is_link: false,
            activity: picked.activity.clone(),
            link_state: None,
            in_use: false,
            close_reason: None,
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

    /// Counts a link instead of a login: the login has succeeded and a caller uses its connection.
    pub(crate) fn promote_to_link(&mut self, link_state: Arc<LinkState>, created_at: Instant) {
        self.is_link = true;
        self.activity.counters.connects.add_one();
        // The link is added first, so that its peer never appears to have neither a login nor a
        // session.
        self.activity.add_link(link_state.clone());
        self.set.update_counts(self.peer, |counts| {
            counts.connecting -= 1;
            counts.links += 1;
        });
        self.link_state = Some((link_state, created_at));
    }

    /// Counts a checkout, after any validation of the link has succeeded.
    pub(crate) fn count_checkout(&self) {
        self.activity.counters.checkouts.add_one();
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// Records why the link is about to be closed. The first reason is kept.
    pub(crate) fn retire(&mut self, reason: CloseReason) {
        self.close_reason.get_or_insert(reason);
    }

    /// Returns why the link is closed. The state of its peer takes precedence over the recorded
    /// reason.
    fn final_close_reason(&self) -> CloseReason {
        let peer_reason = self.set.read(|peers| {
            let peer = &peers[self.peer];
            match (peer.is_in_service(), peer.is_up()) {
                (false, _) => Some(CloseReason::Drained),
                (true, false) => Some(CloseReason::PeerDown),
                (true, true) => None,
            }
        });
        peer_reason.or(self.close_reason).unwrap_or(CloseReason::ByPool)
    }

    /// Sets whether the link is checked out.
    pub(crate) fn set_in_use(&mut self, in_use: bool) {
        if self.in_use != in_use {
            self.activity.count_in_use(in_use);
            self.in_use = in_use;
        }
    }
}

impl Drop for LinkGuard {
    #[expect(clippy::disallowed_methods, reason = "the age of a closed connection is logged")]
    fn drop(&mut self) {
        self.set_in_use(false);
        if let Some((_, created_at)) = &self.link_state {
            let reason = self.final_close_reason();
            self.activity.counters.closed(reason).add_one();
            self.set.record(
                self.peer,
                EventKind::ConnectionClosed { reason, age: created_at.elapsed() },
            );
        }
        // After this update, the link no longer reserves the index of its peer.
        self.set.update_counts(self.peer, |counts| {
            if self.is_link {
                counts.links -= 1;
            } else {
                counts.connecting -= 1;
            }
        });
        // The session is removed last, so that a peer without open sessions has no counted link
        // either.
        if let Some((link_state, _)) = &self.link_state {
            self.activity.remove_link(link_state);
        }
    }
}
