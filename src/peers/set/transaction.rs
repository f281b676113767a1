//! Changes of the peers under their lock. Every change of a peer's state passes `Transaction::update`,
//! which records what has happened to the peer. (The numbers of logins and links change without events.)

use std::sync::Arc;
use std::time::Instant;

use super::logins::HostChange;
use super::peer_ref::PeerRef;
use super::{Inner, PeerSet};
use crate::events::EventKind;
use crate::events::log::NewEvent;
use crate::peers::peer::Peer;
use crate::peers::peer_config::PeerConfig;
use crate::peers::placement::shares;
use crate::peers::transition::events_between;
use crate::settings::{CheckTimes, Settings};
use crate::url::PeerUrl;

impl PeerSet {
    /// Changes one peer, and wakes the checker.
    #[cfg(test)]
    pub(crate) fn update(
        self: &Arc<Self>,
        peer: usize,
        now: Instant,
        change: impl FnOnce(&mut Peer, CheckTimes),
    ) {
        self.change(now, |transaction| transaction.update(peer, change));
    }

    /// Changes the peers, writes the log, and wakes the checker.
    pub(super) fn change<T>(
        self: &Arc<Self>,
        now: Instant,
        change: impl FnOnce(&mut Transaction<'_>) -> T,
    ) -> T {
        let outcome = self.transaction(now, change);
        self.event_log.write_log();
        self.wake();
        outcome
    }

    /// Changes the peers under their lock, and records the events that result. The caller writes the log
    /// afterwards, because a logger may take its time.
    pub(crate) fn transaction<T>(
        self: &Arc<Self>,
        now: Instant,
        change: impl FnOnce(&mut Transaction<'_>) -> T,
    ) -> T {
        let mut inner = self.lock();
        let mut transaction = Transaction::new(self, &mut inner, now);
        let outcome = change(&mut transaction);
        transaction.commit();
        outcome
    }
}

/// A change of the peers, from [`PeerSet::transaction`].
pub(crate) struct Transaction<'a> {
    pub(crate) now: Instant,
    pub(super) set: &'a Arc<PeerSet>,
    pub(super) inner: &'a mut Inner,
    events: Vec<NewEvent>,
    /// Whether anything has changed that the shares of the peers depend on.
    shares_changed: bool,
    /// Whether no peer was available before the change.
    was_outage: bool,
    /// A change of whether this host can make connections, to be logged.
    pub(super) host_change: Option<HostChange>,
}

impl<'a> Transaction<'a> {
    fn new(set: &'a Arc<PeerSet>, inner: &'a mut Inner, now: Instant) -> Self {
        let was_outage = inner.available == 0;
        let events = Vec::new();
        Self { now, set, inner, events, shares_changed: false, was_outage, host_change: None }
    }

    pub(crate) fn settings(&self) -> &'a Settings {
        &self.set.settings
    }

    pub(crate) fn peers(&self) -> &[Peer] {
        &self.inner.peers
    }

    /// Whether no new connection can be opened: no peer is available, or this host cannot make connections.
    pub(crate) fn cannot_connect(&self) -> bool {
        self.inner.cannot_connect()
    }

    /// Whether this host cannot make connections.
    pub(crate) fn host_has_failed(&self) -> bool {
        self.inner.host_failure.is_some()
    }

    /// Records that this host can or cannot make connections any more.
    pub(super) fn host_changed(&mut self, change: HostChange) {
        self.shares_changed = true;
        self.host_change = Some(change);
    }

    /// Returns a time before which the checker has nothing to do for any peer.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.inner.next_due
    }

    /// Forgets when the checker has something to do, before it examines all peers.
    pub(crate) fn clear_next_due(&mut self) {
        self.inner.next_due = None;
    }

    /// Takes into account when the checker has something to do for this peer.
    pub(crate) fn update_next_due(&mut self, index: usize) {
        self.inner.update_next_due(index, self.set.settings.recovery);
    }

    /// Takes into account that the checker has something to do at `at`.
    pub(crate) fn due_at(&mut self, at: Instant) {
        self.inner.due_at(at);
    }

    /// Returns a reference to the peer at this index.
    pub(crate) fn peer_ref(&self, index: usize) -> PeerRef {
        PeerRef::new(self.set.clone(), index, &self.inner.peers[index])
    }

    /// Changes the state of a peer, and records what has happened to it.
    pub(crate) fn update<T>(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Peer, CheckTimes) -> T,
    ) -> T {
        let Inner { peers, rng, available, host_failure, .. } = self.inner;
        let peer = &mut peers[index];
        let before = peer.clone();
        let outcome = change(peer, self.set.settings.check_times(self.now, rng));
        match (before.is_available(), peer.is_available()) {
            (false, true) => peer.slow_start.begin(self.now, self.set.settings.slow_start),
            (_, false) => peer.slow_start.end(),
            (true, true) => {}
        }
        peer.activity.set_slow(peer.is_relieved());
        peer.activity.set_state(!peer.is_up(), !peer.is_in_service());
        *available -= usize::from(before.is_available());
        *available += usize::from(peer.is_available());
        // Neither is an event, but the exchange has to know.
        self.shares_changed |= peer.tier != before.tier
            || peer.slow_start != before.slow_start
            || peer.most_links_while_slow() != before.most_links_while_slow()
            || peer.health.sessions_fail != before.health.sessions_fail;
        let cannot_connect = *available == 0 || host_failure.is_some();
        for kind in events_between(&before, peer, cannot_connect, self.now) {
            self.record(index, kind);
        }
        self.update_next_due(index);
        outcome
    }

    /// Records a change of a peer's state.
    fn record(&mut self, index: usize, kind: EventKind) {
        self.shares_changed = true;
        self.events.push(new_event(&self.inner.peers[index], kind));
    }

    /// Adds a peer to the vector, in the place of a removed peer that nothing refers to any more,
    /// if there is one. Returns its index.
    pub(super) fn insert(&mut self, config: &PeerConfig, url: PeerUrl) -> usize {
        let Inner { peers, available, rng, last_id, .. } = self.inner;
        *last_id += 1;
        let PeerConfig { name, url: _, weight, tier, max_connections } = config;
        let (weight, tier) = (weight.unwrap_or(1), tier.unwrap_or(0));
        let mut peer = Peer::new(name.as_str().into(), url, weight, tier, self.now);
        peer.id = *last_id;
        peer.max_connections = max_connections.or(self.set.settings.max_connections);
        peer.checks.next = self.set.settings.check_times(self.now, rng).regular;
        peer.slow_start.begin(self.now, self.set.settings.slow_start);
        *available += usize::from(peer.is_available());
        let index = peers.iter().position(Peer::is_vacant).unwrap_or(peers.len());
        match peers.get_mut(index) {
            Some(vacant) => *vacant = peer,
            None => peers.push(peer),
        }
        self.record(index, EventKind::Added);
        index
    }

    /// Forgets which of the peers without a share of the work are slow: those that are not available, and those of a
    /// tier that does not serve. Nothing would show that they are fast again.
    fn forget_slowness_without_work(&mut self) {
        if self.peers().iter().all(|peer| peer.slow.is_none()) {
            return;
        }
        let share = shares(self.peers(), self.set.settings.strategy);
        for index in 0..self.peers().len() {
            let peer = &self.peers()[index];
            if peer.slow.is_some() && share(peer) == 0 {
                self.update(index, |peer, _| peer.slow = None);
            }
        }
    }

    /// Publishes the recorded events, and updates what depends on the peers' states.
    fn commit(mut self) {
        self.forget_slowness_without_work();
        if self.was_outage && self.inner.available > 0 {
            let often_until = self.now + self.set.settings.check_interval;
            for peer in &mut self.inner.peers {
                peer.checks.outage_ended(often_until);
            }
        }
        if self.shares_changed {
            self.set.state_changed(self.inner, self.now);
        }
        self.inner.check_invariant(self.set.settings.recovery);
        self.set.event_log.record(self.events);
    }
}

/// Creates an event of this peer, to be published.
fn new_event(peer: &Peer, kind: EventKind) -> NewEvent {
    NewEvent { peer: peer.name.clone(), in_service: peer.is_in_service(), kind }
}
