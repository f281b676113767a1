//! RAII guard that counts one connection on its peer, from the choice of the peer until the connection is
//! closed.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::events::{CloseReason, EventKind};
use crate::peers::link_state::LinkState;
use crate::peers::set::peer_ref::PeerRef;

/// Counts one login in progress on a peer, then the link that results from it. Dropping the guard
/// ends the count.
#[derive(Debug)]
pub(crate) struct LinkGuard {
    pub(crate) peer: PeerRef,
    /// The state of the link, and when the link was created. `None` while the login is in progress.
    link: Option<(Arc<LinkState>, Instant)>,
    in_use: bool,
    /// Why the link is marked for replacement, if it is.
    replacement_reason: Option<CloseReason>,
    /// Whether the session of the link has been ended, so that only its slot needs it.
    session_ended: bool,
    /// Why the link is closed, if that is known.
    close_reason: Option<CloseReason>,
}

impl LinkGuard {
    /// Creates the guard of a login that [`PeerSet::pick`](super::set::PeerSet::pick) has already
    /// counted.
    pub(crate) fn for_login(peer: PeerRef) -> Self {
        Self {
            peer,
            link: None,
            in_use: false,
            replacement_reason: None,
            session_ended: false,
            close_reason: None,
        }
    }

    /// Counts a link instead of a login: the login has succeeded and a caller uses its connection.
    pub(crate) fn promote_to_link(&mut self, link_state: Arc<LinkState>, created_at: Instant) {
        self.peer.activity.counters.connects.add_one();
        // The link is added first, so that its peer never appears to have neither a login nor a
        // session.
        self.peer.activity.add_link(link_state.clone());
        self.peer.update_counts(|counts| {
            counts.connecting -= 1;
            counts.links += 1;
        });
        self.link = Some((link_state, created_at));
    }

    /// Counts a checkout, after any validation of the link has succeeded.
    pub(crate) fn count_checkout(&self) {
        self.peer.activity.counters.checkouts.add_one();
    }

    pub(crate) fn is_in_use(&self) -> bool {
        self.in_use
    }

    /// Records why the link is about to be closed. The first reason is kept.
    pub(crate) fn set_close_reason(&mut self, reason: CloseReason) {
        self.close_reason.get_or_insert(reason);
    }

    /// Whether the link is to be replaced, whatever the state of its peer.
    pub(crate) fn is_marked_for_replacement(&self) -> bool {
        self.replacement_reason.is_some()
    }

    /// Has the checker open another link in place of this one, which stays in use until then. The first reason is
    /// kept.
    pub(crate) fn mark_for_replacement(&mut self, reason: CloseReason) {
        if self.replacement_reason.is_none() {
            self.replacement_reason = Some(reason);
            self.peer.update_counts(|counts| counts.marked_for_replacement += 1);
            self.peer.set.wake();
        }
    }

    /// Takes the mark back, because the link may be used again.
    pub(crate) fn cancel_replacement(&mut self) {
        if self.replacement_reason.take().is_some() {
            self.peer.update_counts(|counts| counts.marked_for_replacement -= 1);
            self.peer.set.wake();
        }
    }

    /// Records that the session of the link has been ended.
    pub(crate) fn end_session(&mut self) {
        if !mem::replace(&mut self.session_ended, true) {
            self.peer.update_counts(|counts| counts.ended += 1);
        }
    }

    /// Claims one of the closings of links that the limit of the peer requires. Returns whether there was one, so that
    /// the caller has to close this link. See
    /// [`PeerSet::claim_closing_over_limit`](super::set::PeerSet::claim_closing_over_limit).
    pub(crate) fn claim_closing_over_limit(&mut self, closes_first: bool) -> bool {
        if !self.session_ended
            && self.peer.set.claim_closing_over_limit(self.peer.index, closes_first)
        {
            self.session_ended = true;
            self.set_close_reason(CloseReason::OverLimit);
            return true;
        }
        false
    }

    /// Returns why the link is closed. The state of its peer takes precedence over the recorded
    /// reason.
    fn final_close_reason(&self) -> CloseReason {
        let peer_reason = self.peer.read(|peer| match (peer.is_in_service(), peer.is_up()) {
            (false, _) => Some(CloseReason::Drained),
            (true, false) => Some(CloseReason::PeerDown),
            (true, true) => None,
        });
        peer_reason.or(self.close_reason).or(self.replacement_reason).unwrap_or(CloseReason::ByPool)
    }

    /// Sets whether the link is checked out.
    pub(crate) fn set_in_use(&mut self, in_use: bool) {
        if self.in_use != in_use {
            self.peer.activity.count_in_use(in_use);
            if let Some((link_state, _)) = &self.link {
                if in_use {
                    link_state.begin_checkout();
                } else if let Some(checkout) = link_state.end_checkout() {
                    self.peer.activity.checkout_times.add(checkout);
                }
            }
            self.in_use = in_use;
        }
    }
}

impl Drop for LinkGuard {
    #[expect(clippy::disallowed_methods, reason = "the end of a link is taken here")]
    fn drop(&mut self) {
        self.set_in_use(false);
        let Some((link_state, created_at)) = self.link.take() else {
            self.peer.update_counts(|counts| counts.connecting -= 1);
            return;
        };
        let reason = self.final_close_reason();
        self.peer.activity.counters.closed(reason).add_one();
        let age = Instant::now().saturating_duration_since(created_at);
        self.peer.record(EventKind::ConnectionClosed { reason, age });
        // After this update, the link no longer reserves the index of its peer.
        self.peer.update_counts(|counts| {
            counts.links -= 1;
            counts.marked_for_replacement -= usize::from(self.is_marked_for_replacement());
            counts.ended -= usize::from(self.session_ended);
        });
        // The session is removed last, so that a peer without open sessions has no counted link
        // either.
        self.peer.activity.remove_link(&link_state);
    }
}
