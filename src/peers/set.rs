//! The peers of one manager behind one lock. The lock is never held during a request to a server, a
//! destructor or a log call.

mod changes;
mod resolved;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::deadlines::{CancelReason, Deadlines, Ticket};
use crate::events::EventKind;
use crate::events::log::{EventLog, NewEvent};
use crate::panics::{catch_panic, lock};
use crate::peers::outage::Outage;
use crate::peers::peer::{Counts, Peer};
use crate::peers::peer_config::PeerValidator;
use crate::peers::peer_ref::PeerRef;
use crate::peers::placement::{PeerView, no_peer_available, pick, shares, surplus};
use crate::peers::resolved_host::ResolvedHost;
use crate::peers::schedule::{self, HealthCheck, PassResults, StalledPeer};
use crate::settings::{CheckTimes, Settings};

/// The interval at which the checker scans the running queries, while there are any.
const QUERY_SCAN_INTERVAL: Duration = Duration::from_millis(50);

/// The interval at which the checker tests whether a draining peer still has sessions.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The minimum time without an answer after which a hedged login to the next peer starts.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(250);

/// The same time for a peer whose usual login time is not known yet.
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_secs(1);

/// The value of an atomic peer index that stands for no peer.
const NO_PEER: usize = usize::MAX;

pub use changes::Drain;

/// The peers of one manager.
#[derive(Debug)]
pub(crate) struct PeerSet {
    settings: Settings,
    validator: PeerValidator,
    event_log: EventLog,
    wake: Sender<()>,
    /// Wakes the resolver when there may be hosts that were never resolved.
    hosts_changed: (Sender<()>, Receiver<()>),
    deadlines: Deadlines,
    outage: Outage,
    /// Whether the checker scans the running queries.
    scans_queries: AtomicBool,
    /// Incremented with each change of a peer's state.
    epoch: AtomicU64,
    /// The peer that has one link too many, or [`NO_PEER`]. Every checkin reads it, without the lock.
    surplus: AtomicUsize,
    closed: AtomicBool,
    inner: Mutex<Inner>,
    /// Notified whenever the state of a peer changes.
    changes: Condvar,
}

#[derive(Debug)]
struct Inner {
    peers: Vec<Peer>,
    /// The hosts whose names are resolved.
    hosts: Vec<ResolvedHost>,
    /// The id of the newest peer.
    last_id: u64,
    rng: SmallRng,
    last_rebalance: Option<Instant>,
    next_query_scan: Option<Instant>,
}

impl PeerSet {
    /// Creates the set. `wake` wakes the checker: a channel with a capacity of one, so that
    /// `try_send` never blocks and one wake-up is never lost.
    pub(crate) fn new(
        mut peers: Vec<Peer>,
        settings: Settings,
        (validator, event_log): (PeerValidator, EventLog),
        mut rng: SmallRng,
        wake: Sender<()>,
        now: Instant,
    ) -> Self {
        let mut last_id = 0;
        for peer in &mut peers {
            last_id += 1;
            peer.id = last_id;
            peer.next_check = settings.check_times(now, &mut rng).regular;
        }
        let hosts =
            peers.iter().filter_map(|peer| ResolvedHost::from_peer(peer, &validator)).collect();
        Self {
            settings,
            validator,
            event_log,
            wake,
            hosts_changed: bounded(1),
            deadlines: Deadlines::default(),
            outage: Outage::default(),
            scans_queries: AtomicBool::new(false),
            epoch: AtomicU64::new(1),
            surplus: AtomicUsize::new(NO_PEER),
            closed: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                peers,
                hosts,
                last_id,
                rng,
                last_rebalance: None,
                next_query_scan: None,
            }),
            changes: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Returns a reference to the peer at this index.
    pub(crate) fn peer(self: &Arc<Self>, index: usize) -> PeerRef {
        self.read(|peers| PeerRef::new(self.clone(), index, &peers[index]))
    }

    /// Calls `read` with the peers, under the lock.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[Peer]) -> T) -> T {
        read(&self.lock().peers)
    }

    /// Changes one peer, publishes the resulting event, and wakes the checker.
    pub(crate) fn update(
        &self,
        peer: usize,
        now: Instant,
        change: impl FnOnce(&mut Peer, CheckTimes) -> Option<EventKind>,
    ) {
        self.change(|Inner { peers, rng, .. }, events| {
            let mut event = change(&mut peers[peer], self.settings.check_times(now, rng));
            if let Some(EventKind::Down { next_check, .. }) = &mut event {
                // The next check is sooner while all peers are down.
                let next = peers[peer].scheduled_check(no_peer_available(peers));
                *next_check = next.saturating_duration_since(now);
            }
            let peer = &peers[peer];
            // Events of a removed peer are not published.
            events.extend(event.filter(|_| !peer.is_removed()).map(|kind| peer.new_event(kind)));
        });
    }

    /// Changes the peers, publishes the resulting events, and wakes the checker.
    fn change<T>(&self, change: impl FnOnce(&mut Inner, &mut Vec<NewEvent>) -> T) -> T {
        let mut events = Vec::new();
        let outcome = {
            let inner = &mut *self.lock();
            let outcome = change(inner, &mut events);
            self.publish(&inner.peers, events);
            outcome
        };
        self.event_log.write_log();
        self.wake();
        outcome
    }

    /// Records events in the event log and updates what depends on the peers' states. The caller
    /// writes the log afterwards, outside the lock.
    fn publish(&self, peers: &[Peer], events: Vec<NewEvent>) {
        if !events.is_empty() {
            self.state_changed(peers);
        }
        self.event_log.record(events);
    }

    /// Records an event of a peer that does not change the peer's state.
    pub(crate) fn record(&self, peer: usize, kind: EventKind) {
        self.read(|peers| self.event_log.record([peers[peer].new_event(kind)]));
        self.event_log.write_log();
    }

    pub(crate) fn event_log(&self) -> &EventLog {
        &self.event_log
    }

    /// Wakes the checker, so that it runs its schedule.
    pub(crate) fn wake(&self) {
        // A full channel means that the checker wakes up anyway. A disconnected one means that it
        // has ended.
        let _ = self.wake.try_send(());
    }

    /// Updates everything that is derived from the peers' states, after a change.
    fn state_changed(&self, peers: &[Peer]) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.changes.notify_all();
        self.update_surplus(peers);
        if !no_peer_available(peers) {
            self.outage.end();
        }
    }

    /// Recalculates which peer has one link too many.
    fn update_surplus(&self, peers: &[Peer]) {
        let surplus = surplus(peers, self.settings.strategy).unwrap_or(NO_PEER);
        self.surplus.store(surplus, Ordering::Relaxed);
    }

    /// Picks a peer for a new connection and counts a login in progress on it.
    pub(crate) fn pick(self: &Arc<Self>, tried: impl Fn(&Peer) -> bool) -> Option<PeerRef> {
        let Inner { peers, rng, .. } = &mut *self.lock();
        let index = pick(peers, tried, self.settings.strategy, self.settings.all_down, rng)?;
        let peer = &mut peers[index];
        peer.counts.connecting += 1;
        let picked = PeerRef::new(self.clone(), index, peer);
        self.update_surplus(peers);
        Some(picked)
    }

    /// Updates the counts of one peer.
    pub(crate) fn update_counts(&self, peer: usize, change: impl FnOnce(&mut Counts)) {
        let Inner { peers, .. } = &mut *self.lock();
        change(&mut peers[peer].counts);
        self.update_surplus(peers);
    }

    /// Returns when a link that is created at `now` reaches its maximum age.
    pub(crate) fn expiry(&self, now: Instant) -> Instant {
        self.settings.expiry(now, &mut self.lock().rng)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns how long to wait for this peer's answer to a login before a hedged login to the next
    /// peer starts.
    pub(crate) fn hedge_delay(&self, peer: &PeerRef) -> Duration {
        let expected = peer.read(Peer::expected_login);
        let hedge = expected.map_or(DEFAULT_HEDGE_DELAY, |expected| expected.max(MIN_HEDGE_DELAY));
        // Leaves time for the hedged login.
        hedge.min(self.settings.connect_deadline / 2)
    }

    /// Returns a new random number generator, forked from the one of the set.
    pub(crate) fn rng(&self) -> SmallRng {
        self.lock().rng.fork()
    }

    pub(crate) fn outage(&self) -> &Outage {
        &self.outage
    }

    pub(crate) fn no_peer_available(&self) -> bool {
        no_peer_available(&self.lock().peers)
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.deadlines
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
    pub(crate) fn query_begins(&self) {
        if !self.scans_queries.load(Ordering::Relaxed) {
            self.scans_queries.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Returns a number that grows with each change of a peer's state.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns the view of each peer for the exchange. The links of a peer that is down or out of
    /// service must not be used again. But while no peer is available, the links of a peer that is
    /// down stay usable: a link that still works is better than none.
    pub(crate) fn peer_views(&self) -> Vec<PeerView> {
        let peers = &self.lock().peers;
        let share = shares(peers, self.settings.strategy);
        let all_down = no_peer_available(peers);
        let view = |peer: &Peer| PeerView {
            activity: peer.activity.clone(),
            is_usable: peer.is_in_service() && (peer.is_up() || all_down),
            share: if all_down && peer.is_in_service() { peer.weight } else { share(peer) },
            tier: peer.tier,
        };
        peers.iter().map(view).collect()
    }

    /// Whether the links to this peer must be closed instead of used again.
    pub(crate) fn must_close_links(&self, peer: usize) -> bool {
        let peers = &self.lock().peers;
        !peers[peer].is_in_service() || !peers[peer].is_up() && !no_peer_available(peers)
    }

    /// Returns the peer that has one link too many, at most once per `rebalance_interval`. The caller
    /// retires one of its links. If the caller can retire none, the result is `None` and the
    /// interval does not start, so that it is not wasted.
    pub(crate) fn take_surplus(
        &self,
        can_retire: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let surplus = self.surplus.load(Ordering::Relaxed);
        if surplus == NO_PEER || !can_retire(surplus) {
            return None;
        }
        let last_rebalance = &mut self.lock().last_rebalance;
        let is_too_soon = last_rebalance.is_some_and(|last| {
            now.saturating_duration_since(last) < self.settings.rebalance_interval
        });
        if is_too_soon {
            return None;
        }
        *last_rebalance = Some(now);
        Some(surplus)
    }

    /// Runs the checker's scheduled work at `now`: cancels overdue calls, updates the peers, and
    /// aborts hung queries. Returns the health checks to run, and when to call this function again.
    pub(crate) fn tick(&self, now: Instant) -> (Vec<HealthCheck>, Option<Instant>) {
        let (overdue, next_deadline) = self.deadlines.take_overdue(now);
        for cancel in overdue {
            let _ = catch_panic(|| cancel(CancelReason::Deadline(now)));
        }
        let mut results = PassResults::default();
        let next = {
            let Inner { peers, rng, next_query_scan, .. } = &mut *self.lock();
            let mut check_times = || self.settings.check_times(now, rng);
            let next_check =
                schedule::begin_checks(peers, &self.settings, &mut check_times, now, &mut results);
            self.scan_queries(peers, next_query_scan, &mut check_times, now, &mut results);
            let next_drained = schedule::finish_draining(peers, now, &mut results)
                .then_some(now + DRAIN_POLL_INTERVAL);
            self.publish(peers, results.events);
            [next_check, *next_query_scan, next_drained, next_deadline].into_iter().flatten().min()
        };
        self.event_log.write_log();
        for StalledPeer { peer, links, was_up } in results.stalled {
            let hung = links.len();
            let aborted = links.iter().filter(|link| link.shut_down()).count();
            self.read(|peers| peers[peer].activity.counters.queries_aborted.add(aborted as u64));
            // A query that cannot be aborted goes on hanging, and is reported only once.
            if was_up || aborted > 0 {
                self.record(peer, EventKind::QueriesAborted { hung, aborted });
            }
        }
        (results.checks, next)
    }

    /// Scans the running queries, if the time of the next scan has come.
    fn scan_queries(
        &self,
        peers: &mut [Peer],
        next_query_scan: &mut Option<Instant>,
        check_times: impl FnMut() -> CheckTimes,
        now: Instant,
        results: &mut PassResults,
    ) {
        if next_query_scan.is_some_and(|at| at <= now) {
            // A query that begins now requests another scan, or is found by this scan or the next
            // one.
            let is_requested = self.scans_queries.swap(false, Ordering::Relaxed);
            let is_any_running =
                schedule::find_stalls(peers, &self.settings, check_times, now, results);
            self.scans_queries.fetch_or(is_any_running, Ordering::Relaxed);
            *next_query_scan =
                (is_requested || is_any_running).then_some(now + QUERY_SCAN_INTERVAL);
        } else if self.scans_queries.load(Ordering::Relaxed) {
            next_query_scan.get_or_insert(now + QUERY_SCAN_INTERVAL);
        }
    }

    /// Postpones all deadlines by the time for which this process was suspended: the calls had no
    /// chance to end meanwhile.
    pub(crate) fn postpone_deadlines(&self, by: Duration) {
        self.deadlines.postpone(by);
    }

    /// Closes the set, because its manager has been dropped: no peer is checked any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changes.notify_all();
    }

    /// Cancels all pending calls, because the checker ends. Returns whether there were any.
    pub(crate) fn cancel_all(&self) -> bool {
        let all = self.deadlines.take_all();
        let is_any_pending = !all.is_empty();
        for cancel in all {
            let _ = catch_panic(|| cancel(CancelReason::PoolClosed));
        }
        is_any_pending
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fault::{Fault, LoginFailure};
    use crate::settings::policy::Recovery;
    use crate::settings::tests::{INTERVAL, PACE, settings};
    use crate::url::PeerUrl;

    /// Creates a set of `peers` peers. Returns it with the receiving end of its wake-up channel and
    /// the instant at which it was created.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    pub(crate) fn set_of(peers: usize, recovery: Recovery) -> (PeerSet, Receiver<()>, Instant) {
        let start = Instant::now();
        let (wake, woken) = bounded(1);
        let peer = |index| {
            let url = PeerUrl::new(format!("url{index}"));
            Peer::new(format!("peer{index}").into(), url, 1, 0, start)
        };
        let rng = SmallRng::seed_from_u64(7);
        let set = PeerSet::new(
            (0..peers).map(peer).collect(),
            Settings { recovery, ..settings() },
            (PeerValidator::default(), EventLog::default()),
            rng,
            wake,
            start,
        );
        (set, woken, start)
    }

    fn take_down(set: &PeerSet, peer: usize, now: Instant) {
        set.update(peer, now, |peer, check_times| {
            let failure = LoginFailure::refused(Fault::PeerDown, "refused");
            peer.connect_failed((now, now), failure, check_times)
        });
    }

    fn is_up(set: &PeerSet, peer: usize) -> bool {
        set.read(|peers| peers[peer].is_up())
    }

    #[test]
    fn links_are_retired_when_their_peer_is_down_unless_every_peer_is_down() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        assert!(!set.must_close_links(0), "links of a peer that is up stay");
        take_down(&set, 0, now);
        assert!(
            set.must_close_links(0),
            "links of a peer that is down are retired while another peer is up"
        );
        assert!(!set.must_close_links(1), "links of the peer that is up stay");
        take_down(&set, 1, now);
        assert!(!set.must_close_links(0), "no link is retired while no peer is up");
    }

    #[test]
    fn links_are_rebalanced_one_per_interval() {
        let (set, _woken, now) = set_of(3, Recovery::AfterCheck);
        assert_eq!(set.take_surplus(|_| true, now), None, "equal peers have no surplus");
        for (peer, links) in [5, 4, 3].into_iter().enumerate() {
            set.update_counts(peer, |counts| counts.links = links);
        }
        assert_eq!(set.take_surplus(|_| true, now), Some(0), "the fullest peer has a surplus");
        assert_eq!(
            set.take_surplus(|_| true, now + PACE / 2),
            None,
            "no second link moves within the interval"
        );
        assert_eq!(
            set.take_surplus(|_| true, now + PACE),
            Some(0),
            "the surplus is returned again after the interval"
        );
        set.update_counts(2, |counts| counts.connecting = 1);
        assert_eq!(
            set.take_surplus(|_| true, now + 2 * PACE),
            None,
            "no link moves while a login to the emptiest peer is in progress"
        );
        set.update_counts(2, |counts| counts.connecting = 0);
        let only_1 = |peer| peer == 1;
        assert_eq!(
            set.take_surplus(only_1, now + 3 * PACE),
            None,
            "a peer without a surplus is not returned"
        );
        assert_eq!(
            set.take_surplus(|_| true, now + 3 * PACE),
            Some(0),
            "a refused surplus does not start the interval"
        );
        take_down(&set, 2, now);
        assert_eq!(
            set.take_surplus(|_| true, now + 3 * PACE),
            None,
            "no link moves to a peer that is down"
        );
    }

    #[test]
    fn expired_mark_causes_a_check_or_is_cleared_without_one() {
        for (recovery, checked, up) in
            [(Recovery::AfterCheck, 1, false), (Recovery::AfterInterval, 0, true)]
        {
            let (set, woken, now) = set_of(2, recovery);
            take_down(&set, 0, now);
            assert_eq!(woken.try_recv(), Ok(()), "a mark wakes the checker");
            // Keeps the check of the other peer out of this test.
            set.update(1, now, |peer, _| {
                peer.next_check = now + 10 * INTERVAL;
                None
            });
            let (checks, next) = set.tick(now + INTERVAL / 2);
            assert!(checks.is_empty(), "{recovery:?}: no check begins before the interval");
            let next = next.expect("a check of each peer is scheduled");
            assert!(
                next >= now + INTERVAL,
                "{recovery:?}: the next pass is not before the interval"
            );
            let (checks, _) = set.tick(next);
            assert_eq!(
                checks.len(),
                checked,
                "{recovery:?}: the number of checks when the mark expires"
            );
            assert_eq!(
                is_up(&set, 0),
                up,
                "{recovery:?}: whether the mark is cleared without a check"
            );
            let (checks, _) = set.tick(next);
            assert!(checks.is_empty(), "{recovery:?}: no second check begins while one is running");
        }
    }

    #[test]
    fn peer_that_refused_a_query_is_checked_at_once_and_not_cleared_without_a_check() {
        for recovery in [Recovery::AfterCheck, Recovery::AfterInterval] {
            let (set, _woken, now) = set_of(2, recovery);
            set.update(0, now, |peer, check_times| peer.query_refused(now, check_times));
            let (checks, _) = set.tick(now);
            assert_eq!(checks.len(), 1, "{recovery:?}: the check begins at once");
            assert!(!is_up(&set, 0), "{recovery:?}: the peer is down until the check ends");
        }
    }

    #[test]
    fn deadlines_are_postponed_by_the_time_for_which_the_process_was_suspended() {
        let (set, _woken, now) = set_of(1, Recovery::AfterCheck);
        let second = Duration::from_secs(1);
        let is_canceled = Arc::new(AtomicBool::new(false));
        let canceled = is_canceled.clone();
        set.add_deadline(now + second, move |_| canceled.store(true, Ordering::Relaxed));
        set.postpone_deadlines(5 * second);
        set.tick(now + 5 * second);
        assert!(
            !is_canceled.load(Ordering::Relaxed),
            "a call is not canceled for time in which the process was suspended"
        );
        set.tick(now + 6 * second);
        assert!(
            is_canceled.load(Ordering::Relaxed),
            "the call is canceled at its postponed deadline"
        );
    }

    #[test]
    fn expired_mark_is_cleared_even_while_a_check_hangs() {
        let (set, _woken, now) = set_of(1, Recovery::AfterInterval);
        let (checks, _) = set.tick(now + 2 * INTERVAL);
        assert_eq!(checks.len(), 1, "a peer that is up is checked on schedule");
        let later = now + 3 * INTERVAL;
        take_down(&set, 0, later);
        let (_, next) = set.tick(later);
        let next = next.expect("the expiry of the mark is scheduled");
        set.tick(next);
        assert!(is_up(&set, 0), "the mark is cleared although the check has not ended");
    }
}
