//! The peers of one manager behind one lock. The lock is never held during a request to a server, a
//! destructor or a log call.

mod changes;
mod limit;
mod logins;
pub(crate) mod peer_ref;
mod resolved;
mod transaction;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::deadlines::{CancelReason, Deadlines, Ticket};
use crate::events::log::EventLog;
use crate::fault::host::HostFailure;
use crate::panics::lock;
use crate::peers::outage::Outage;
use crate::peers::peer::{Counts, Peer};
use crate::peers::peer_config::PeerValidator;
use crate::peers::placement::{PeerView, count_available, rebalance_from, shares};
use crate::peers::resolved_host::ResolvedHost;
use crate::peers::retry_budget::RetryBudget;
use crate::settings::Settings;
use crate::settings::policy::Recovery;

/// The interval at which the checker tests whether a draining peer still has sessions.
pub(crate) const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The value of an atomic peer index that stands for no peer.
const NO_PEER: usize = usize::MAX;

pub use changes::Drain;
pub(crate) use limit::LinksOverLimit;
use limit::RoomWait;
use logins::CurrentHostFailure;
pub(crate) use transaction::Transaction;

/// The peers of one manager.
#[derive(Debug)]
pub(crate) struct PeerSet {
    settings: Settings,
    validator: PeerValidator,
    pub(crate) event_log: EventLog,
    wake: Sender<()>,
    /// Wakes the resolver when there may be hosts that were never resolved.
    hosts_changed: (Sender<()>, Receiver<()>),
    pub(crate) deadlines: Deadlines,
    pub(crate) outage: Outage,
    pub(crate) retry_budget: RetryBudget,
    /// Whether the checker scans the running queries.
    pub(crate) query_scan_requested: AtomicBool,
    /// Incremented with each change of a peer's state.
    epoch: AtomicU64,
    /// The peer that has one link too many, or [`NO_PEER`]. Every checkin reads it, without the lock.
    rebalance_from: AtomicUsize,
    /// Whether some peer has more links than its limit allows. Every checkin reads it, without the lock.
    is_over_limit: AtomicBool,
    closed: AtomicBool,
    /// Whether a prepared statement was found lost, which is logged once.
    pub(crate) statement_loss_reported: AtomicBool,
    inner: Mutex<Inner>,
    /// Notified whenever the state of a peer changes, and when connections end while a thread waits for room.
    changes: Condvar,
}

#[derive(Debug)]
struct Inner {
    peers: Vec<Peer>,
    /// The number of peers that are available for new work. Kept up to date, because each change of a
    /// peer and each login asks whether there is one.
    available: usize,
    /// The reason why this host cannot make connections, whichever peer they lead to.
    host_failure: Option<CurrentHostFailure>,
    /// The checker has nothing to do for any peer before this time. So it examines all peers at due times
    /// only, and not whenever it is woken.
    next_due: Option<Instant>,
    /// The hosts whose names are resolved.
    hosts: Vec<ResolvedHost>,
    /// The id of the newest peer.
    last_id: u64,
    rng: SmallRng,
    last_rebalance: Option<Instant>,
    room_wait: RoomWait,
}

impl PeerSet {
    /// Creates the set. `wake` wakes the checker: a channel with a capacity of one, so that
    /// `try_send` never blocks and one wake-up is never lost.
    pub(crate) fn new(
        mut peers: Vec<Peer>,
        settings: Settings,
        validator: PeerValidator,
        event_log: EventLog,
        mut rng: SmallRng,
        wake: Sender<()>,
        now: Instant,
    ) -> Self {
        let mut last_id = 0;
        for peer in &mut peers {
            last_id += 1;
            peer.id = last_id;
            peer.checks.next = settings.check_times(now, &mut rng).regular;
        }
        let hosts =
            peers.iter().filter_map(|peer| ResolvedHost::from_peer(peer, &validator)).collect();
        Self {
            event_log: event_log.of_pool(&settings.pool_name),
            settings,
            validator,
            wake,
            hosts_changed: bounded(1),
            deadlines: Deadlines::default(),
            outage: Outage::default(),
            retry_budget: RetryBudget::default(),
            query_scan_requested: AtomicBool::new(false),
            epoch: AtomicU64::new(1),
            rebalance_from: AtomicUsize::new(NO_PEER),
            is_over_limit: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            statement_loss_reported: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                available: count_available(&peers),
                host_failure: None,
                next_due: Some(now),
                peers,
                hosts,
                last_id,
                rng,
                last_rebalance: None,
                room_wait: RoomWait::default(),
            }),
            changes: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Calls `read` with the peers, under the lock.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[Peer]) -> T) -> T {
        read(&self.lock().peers)
    }

    /// Wakes the checker, so that it runs its schedule.
    pub(crate) fn wake(&self) {
        // A full channel means that the checker wakes up anyway. A disconnected one means that it
        // has ended.
        let _ = self.wake.try_send(());
    }

    /// Updates everything that is derived from the peers' states, after a change.
    fn state_changed(&self, inner: &mut Inner, now: Instant) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.changes.notify_all();
        self.update_rebalance_from(&inner.peers);
        // While no peer is available, all peers are due earlier. A peer that begins to drain is examined at
        // once.
        (0..inner.peers.len())
            .for_each(|index| inner.update_next_due(index, self.settings.recovery));
        inner.due_at(now);
        if !inner.cannot_connect() {
            self.outage.end();
        }
    }

    /// Recalculates which peer has one link too many, and whether any has more than its limit allows.
    fn update_rebalance_from(&self, peers: &[Peer]) {
        let from = rebalance_from(peers, self.settings.strategy).unwrap_or(NO_PEER);
        self.rebalance_from.store(from, Ordering::Relaxed);
        let is_over_limit = peers.iter().any(|peer| peer.links_over_limit() > 0);
        self.is_over_limit.store(is_over_limit, Ordering::Relaxed);
    }

    /// Updates the counts of one peer.
    pub(crate) fn update_counts(&self, peer: usize, change: impl FnOnce(&mut Counts)) {
        let inner = &mut *self.lock();
        change(&mut inner.peers[peer].counts);
        inner.update_next_due(peer, self.settings.recovery);
        inner.check_invariant(self.settings.recovery);
        self.update_rebalance_from(&inner.peers);
        if inner.room_wait.waiting > 0 {
            self.changes.notify_all();
        }
    }

    /// Returns when a link that is created at `now` reaches its maximum age.
    pub(crate) fn expiry(&self, now: Instant) -> Instant {
        self.settings.expiry(now, &mut self.lock().rng)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns a new random number generator, forked from the one of the set.
    pub(crate) fn rng(&self) -> SmallRng {
        self.lock().rng.fork()
    }

    /// Whether no new connection can be opened: no peer is available, or this host cannot make connections.
    pub(crate) fn cannot_connect(&self) -> bool {
        self.lock().cannot_connect()
    }

    /// Returns the reason why this host cannot make connections, if there is one.
    pub(crate) fn host_failure(&self) -> Option<HostFailure> {
        self.lock().host_failure.as_ref().map(|current| current.failure.clone())
    }

    /// Registers a call with a deadline: the checker runs `cancel` unless the call has ended by
    /// `at`.
    pub(crate) fn add_deadline(
        &self,
        at: Instant,
        cancel: impl FnOnce(CancelReason) + Send + 'static,
    ) -> Ticket {
        let (ticket, is_first) = self.deadlines.register(at, cancel);
        if is_first {
            self.wake();
        }
        ticket
    }

    /// Starts the checker's scan of running queries, when a query begins. The scan goes on while
    /// any query runs.
    pub(crate) fn request_query_scan(&self) {
        if !self.query_scan_requested.load(Ordering::Relaxed) {
            self.query_scan_requested.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Returns a number that grows with each change of a peer's state.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Has the exchange look at the peers again, because one begins or ends to be short of resources.
    pub(crate) fn views_changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Returns the view of each peer for the exchange.
    pub(crate) fn peer_views(&self) -> Vec<PeerView> {
        let inner = &*self.lock();
        let Inner { peers, available, .. } = inner;
        let share = shares(peers, self.settings.strategy);
        let none_available = *available == 0;
        let view = |peer: &Peer| PeerView {
            activity: peer.activity.clone(),
            is_usable: inner.is_usable(peer),
            share: if none_available && peer.is_in_service() { peer.weight } else { share(peer) },
            tier: peer.tier,
        };
        peers.iter().map(view).collect()
    }

    /// Returns how many links are to be replaced; `None` while no connection can be opened.
    pub(crate) fn links_to_replace(&self) -> Option<usize> {
        let inner = &*self.lock();
        let to_replace = |peer: &Peer| {
            let Counts { links, marked_for_replacement, .. } = peer.counts;
            let are_all = !peer.is_up_and_in_service() && !peer.health.sessions_fail;
            if are_all { links } else { marked_for_replacement }
        };
        (!inner.cannot_connect()).then(|| inner.peers.iter().map(to_replace).sum())
    }

    /// Claims the one move of a link per `rebalance_interval`, if a peer has one link too many. Returns that peer,
    /// and the caller marks one of its links for replacement. If the caller `can_mark` none, the result is `None`
    /// and the interval does not start, so that it is not wasted.
    pub(crate) fn claim_rebalance(
        &self,
        can_mark: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let from = self.rebalance_from.load(Ordering::Relaxed);
        if from == NO_PEER || !can_mark(from) {
            return None;
        }
        let inner = &mut *self.lock();
        let last_rebalance = &mut inner.last_rebalance;
        // The link that is marked could not be opened again.
        let is_too_soon = inner.host_failure.is_some()
            || last_rebalance.is_some_and(|last| {
                now.saturating_duration_since(last) < self.settings.rebalance_interval
            });
        if is_too_soon {
            return None;
        }
        *last_rebalance = Some(now);
        Some(from)
    }

    /// Closes the set, because its manager has been dropped: no peer is checked any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changes.notify_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Inner {
    /// Whether the links of a peer may be used. A failed login says nothing about them, so they stay in use
    /// until others replace them. So do those of a peer that is out of service, unless an operator has taken
    /// the last peer out. Links whose sessions fail must not be used, as long as a peer is available.
    fn is_usable(&self, peer: &Peer) -> bool {
        let serves = |peer: &Peer| peer.is_in_service() && peer.weight > 0;
        let is_wanted = peer.is_in_service() || self.peers.iter().any(serves);
        is_wanted && (!peer.health.sessions_fail || self.available == 0)
    }

    /// Whether no new connection can be opened.
    fn cannot_connect(&self) -> bool {
        self.available == 0 || self.host_failure.is_some()
    }

    /// Takes into account that the peer at this index may be due earlier than before.
    fn update_next_due(&mut self, index: usize, recovery: Recovery) {
        if let Some(due) = self.peers[index].next_due(self.cannot_connect(), recovery) {
            self.due_at(due);
        }
    }

    /// Takes into account that the checker has something to do at `at`.
    fn due_at(&mut self, at: Instant) {
        self.next_due = self.next_due.into_iter().chain([at]).min();
    }

    /// Verifies what is kept up to date with the peers.
    fn check_invariant(&self, recovery: Recovery) {
        debug_assert_eq!(self.available, count_available(&self.peers));
        debug_assert!(
            self.peers.iter().all(|peer| {
                let due = peer.next_due(self.cannot_connect(), recovery);
                due.is_none_or(|due| self.next_due.is_some_and(|next| next <= due))
            }),
            "no peer is due before the time for which the checker waits"
        );
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::events::{Event, EventKind};
    use crate::fault::{Fault, LoginFailure};
    use crate::peers::peer::{Attempt, Slow};
    use crate::settings::policy::Strategy;
    use crate::settings::tests::{PACE, settings};
    use crate::url::PeerUrl;

    /// Creates a set of `peers` peers. Returns it with the receiving end of its wake-up channel and
    /// the instant at which it was created.
    pub(crate) fn set_of(
        peers: usize,
        recovery: Recovery,
    ) -> (Arc<PeerSet>, Receiver<()>, Instant) {
        set_with(peers, Settings { recovery, ..settings() })
    }

    /// Does the same as [`set_of`], with these settings.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    pub(crate) fn set_with(
        peers: usize,
        settings: Settings,
    ) -> (Arc<PeerSet>, Receiver<()>, Instant) {
        let start = Instant::now();
        let (wake, woken) = bounded(1);
        let peer = |index| {
            let url = PeerUrl::new(format!("url{index}"));
            Peer::new(format!("peer{index}").into(), url, 1, 0, start)
        };
        let rng = SmallRng::seed_from_u64(7);
        let set = PeerSet::new(
            (0..peers).map(peer).collect(),
            settings,
            PeerValidator::default(),
            EventLog::default(),
            rng,
            wake,
            start,
        );
        (Arc::new(set), woken, start)
    }

    pub(crate) fn take_down(set: &Arc<PeerSet>, peer: usize, now: Instant) {
        set.update(peer, now, |peer, check_times| {
            let failure = LoginFailure::refused(Fault::PeerDown, "refused");
            peer.connect_failed(Attempt::at(now), failure, check_times);
        });
    }

    pub(crate) fn is_up(set: &PeerSet, peer: usize) -> bool {
        set.read(|peers| peers[peer].is_up())
    }

    #[test]
    fn links_to_a_peer_without_new_work_stay_and_are_replaced_while_another_peer_is_available() {
        let (set, _woken, now) = set_of(3, Recovery::AfterCheck);
        for (peer, links) in [3, 2, 1].into_iter().enumerate() {
            set.update_counts(peer, |counts| counts.links = links);
        }
        let peer = |index| set.transaction(now, |transaction| transaction.peer_ref(index));
        assert_eq!(set.links_to_replace(), Some(0), "links of peers that are up stay");
        take_down(&set, 0, now);
        assert!(!peer(0).must_close_links(), "a failed login says nothing about sessions");
        assert_eq!(set.links_to_replace(), Some(3));
        take_down(&set, 1, now);
        assert_eq!(set.links_to_replace(), Some(5));
        let _ = set.drain("peer1", now).expect("the peer exists");
        assert_eq!(set.links_to_replace(), Some(5), "links of a drained peer are replaced as well");
        assert!(!peer(1).must_close_links(), "and stay until then");
        set.update_counts(2, |counts| counts.marked_for_replacement = 1);
        assert_eq!(set.links_to_replace(), Some(6), "a link that is too old, for example");
        let epoch = set.epoch();
        set.update(0, now, |peer, check_times| peer.query_refused(now, check_times));
        assert_eq!(
            set.links_to_replace(),
            Some(3),
            "sessions of a peer that refuses queries fail as well"
        );
        assert!(set.epoch() > epoch && !set.peer_views()[0].is_usable, "the exchange learns of it");
        take_down(&set, 2, now);
        assert_eq!(set.links_to_replace(), None, "no other peer accepts logins");
        for name in ["peer0", "peer2"] {
            assert!(!peer(1).must_close_links(), "other peers are in service");
            let _ = set.drain(name, now).expect("the peer exists");
        }
        assert!(peer(1).must_close_links(), "an operator has drained the last peer");
    }

    #[test]
    fn peer_without_work_is_not_slow() {
        let settings = Settings { strategy: Strategy::Ordered, ..settings() };
        let (set, _woken, now) = set_with(3, settings);
        for peer in [1, 2] {
            set.update(peer, now, |peer, _| peer.tier = 1);
        }
        let become_slow = |peer| {
            let (time, others) = (Duration::from_secs(1), Duration::ZERO);
            let slow = Slow { since: now, time, others, is_relieved: true, links: 1 };
            set.update(peer, now, |peer, _| peer.slow = Some(slow));
        };
        let slow = || -> Vec<bool> {
            set.read(|peers| {
                let is_slow = |peer: &Peer| {
                    assert_eq!(peer.activity.is_slow(), peer.slow.is_some());
                    peer.slow.is_some()
                };
                peers.iter().map(is_slow).collect()
            })
        };
        let no_longer_slow = || -> usize {
            let events = set.event_log.history();
            let is_one = |event: &&Event| matches!(event.kind, EventKind::NoLongerSlow { .. });
            events.iter().filter(is_one).count()
        };
        become_slow(0);
        take_down(&set, 0, now);
        become_slow(1);
        assert_eq!(slow(), [false, true, false], "the next tier serves");
        assert_eq!(no_longer_slow(), 0, "a peer that goes down reports that");
        set.update(0, now, |peer, check_times| peer.clear_mark(now, check_times));
        assert_eq!(slow(), [false; 3], "a better tier serves");
        assert_eq!(no_longer_slow(), 1, "nothing else would say so");
        become_slow(0);
        set.set_weight("peer0", 0, now).expect("there is such a peer");
        become_slow(2);
        assert_eq!(slow(), [false, false, true], "a peer without weight");
        set.set_weight("peer0", 1, now).expect("there is such a peer");
        assert_eq!(slow(), [false; 3]);
    }

    #[test]
    fn links_are_rebalanced_one_per_interval() {
        let (set, _woken, now) = set_of(3, Recovery::AfterCheck);
        assert_eq!(set.claim_rebalance(|_| true, now), None, "equal peers have no link too many");
        for (peer, links) in [5, 4, 3].into_iter().enumerate() {
            set.update_counts(peer, |counts| counts.links = links);
        }
        assert_eq!(
            set.claim_rebalance(|_| true, now),
            Some(0),
            "the fullest peer has one too many"
        );
        assert_eq!(
            set.claim_rebalance(|_| true, now + PACE / 2),
            None,
            "no second link moves within the interval"
        );
        assert_eq!(
            set.claim_rebalance(|_| true, now + PACE),
            Some(0),
            "the peer is returned again after the interval"
        );
        set.update_counts(2, |counts| counts.connecting = 1);
        assert_eq!(
            set.claim_rebalance(|_| true, now + 2 * PACE),
            None,
            "no link moves while a login to the emptiest peer is in progress"
        );
        set.update_counts(2, |counts| counts.connecting = 0);
        let only_1 = |peer| peer == 1;
        assert_eq!(
            set.claim_rebalance(only_1, now + 3 * PACE),
            None,
            "a peer without one too many is not returned"
        );
        assert_eq!(
            set.claim_rebalance(|_| true, now + 3 * PACE),
            Some(0),
            "a refused move does not start the interval"
        );
        take_down(&set, 2, now);
        assert_eq!(
            set.claim_rebalance(|_| true, now + 3 * PACE),
            None,
            "no link moves to a peer that is down"
        );
    }
}
