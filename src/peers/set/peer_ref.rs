//! A reference to one peer of a set, for everything that concerns this peer alone: a login, a link, a
//! health check.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Inner, PeerSet};
use crate::events::EventKind;
use crate::events::log::NewEvent;
use crate::peers::activity::Activity;
use crate::peers::peer::{Counts, Peer};
use crate::peers::placement::pick;
use crate::settings::{CheckTimes, Settings};

/// The minimum time without an answer after which a hedged login to the next peer starts.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(250);

/// The same time for a peer whose usual login time is not known yet.
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_secs(1);

/// A reference to one peer of a set.
#[derive(Clone)]
pub(crate) struct PeerRef {
    pub(crate) set: Arc<PeerSet>,
    /// The index of the peer in the set. A login, a link or a check that is counted keeps the index for
    /// the peer.
    pub(crate) index: usize,
    /// Identifies the peer. After the peer was removed, its index and its name may be another peer's.
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) activity: Arc<Activity>,
}

impl PeerSet {
    /// Picks a peer for a new connection and counts a login in progress on it. While this host cannot make
    /// connections, only checks are made.
    pub(crate) fn pick(self: &Arc<Self>, tried: impl Fn(&Peer) -> bool) -> Option<PeerRef> {
        let Inner { peers, rng, host_failure, .. } = &mut *self.lock();
        if host_failure.is_some() {
            return None;
        }
        let index = pick(peers, tried, self.settings.strategy, self.settings.all_down, rng)?;
        let peer = &mut peers[index];
        peer.counts.connecting += 1;
        let picked = PeerRef::new(self.clone(), index, peer);
        self.update_rebalance_from(peers);
        Some(picked)
    }
}

impl PeerRef {
    pub(crate) fn new(set: Arc<PeerSet>, index: usize, peer: &Peer) -> Self {
        Self { set, index, id: peer.id, name: peer.name.clone(), activity: peer.activity.clone() }
    }

    pub(crate) fn settings(&self) -> &Settings {
        self.set.settings()
    }

    /// Calls `read` with the peer, under the lock of the set.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Peer) -> T) -> T {
        self.set.read(|peers| read(&peers[self.index]))
    }

    /// Changes the peer, publishes the events that result, and wakes the checker. Changes nothing if the peer was
    /// removed and its index is another peer's: not everything that refers to a peer is counted until it ends.
    pub(crate) fn update(&self, now: Instant, change: impl FnOnce(&mut Peer, CheckTimes)) {
        self.set.change(now, |transaction| {
            if transaction.peers()[self.index].id == self.id {
                transaction.update(self.index, change);
            }
        });
    }

    /// Has the checker check the peer soon, because something speaks against it.
    pub(crate) fn suspect(&self, now: Instant) {
        self.update(now, |peer, _| peer.suspect(now));
    }

    /// Whether the links to the peer must be closed instead of used again.
    pub(crate) fn must_close_links(&self) -> bool {
        let inner = self.set.lock();
        !inner.is_usable(&inner.peers[self.index])
    }

    /// Returns how long to wait for the answer to a login before a hedged login to the next peer starts.
    pub(crate) fn hedge_delay(&self) -> Duration {
        let expected = self.read(Peer::slow_login_after);
        let hedge = expected.map_or(DEFAULT_HEDGE_DELAY, |expected| expected.max(MIN_HEDGE_DELAY));
        // Leaves time for the hedged login.
        hedge.min(self.settings().connect_deadline / 2)
    }

    /// Updates the numbers of logins and links of the peer.
    pub(crate) fn update_counts(&self, change: impl FnOnce(&mut Counts)) {
        self.set.update_counts(self.index, change);
    }

    /// Records an event that does not change the state of the peer, which may have been removed.
    pub(crate) fn record(&self, kind: EventKind) {
        self.set.read(|peers| {
            let peer = &peers[self.index];
            let in_service = peer.id == self.id && peer.is_in_service();
            let event = NewEvent { peer: self.name.clone(), in_service, kind };
            self.set.event_log.record([event]);
        });
        self.set.event_log.write_log();
    }
}

impl fmt::Debug for PeerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerRef").field(&self.name).finish()
    }
}
