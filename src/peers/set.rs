//! The peers of one manager behind one lock, which is never held across a server call, a
//! destructor or a log line.

mod changes;
mod resolved;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::event::EventKind;
use crate::panics::{catch_panic, lock};
use crate::peers::activity::Activity;
use crate::peers::admission::Admission;
use crate::peers::deadline::{CancelReason, Deadlines, Ticket};
use crate::peers::journal::{Journal, News};
use crate::peers::outage::Outage;
use crate::peers::peer::{Counts, Peer};
use crate::peers::placement::{Standing, no_peer_available, pick, shares, surplus};
use crate::peers::resolved_host::ResolvedHost;
use crate::peers::schedule::{self, HealthCheck, StalledPeer, Work};
use crate::settings::{Due, Settings};
use crate::url::PeerUrl;

/// How often the checker looks at the queries that are running, while there are any.
const QUERY_SCAN_INTERVAL: Duration = Duration::from_millis(50);

/// How often the checker looks whether a peer that is being drained is empty.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// After how long without an answer the next peer is tried beside it: at least, and as long as it is
/// not known how long a login takes there.
const MIN_HEDGE_DELAY: Duration = Duration::from_millis(250);
const DEFAULT_HEDGE_DELAY: Duration = Duration::from_secs(1);

/// No peer, where the index of one may stand.
const NO_PEER: usize = usize::MAX;

pub use changes::Drain;

/// The peers of one manager.
#[derive(Debug)]
pub(crate) struct PeerSet {
    settings: Settings,
    admission: Admission,
    journal: Journal,
    wake: Sender<()>,
    /// Has names resolved that are new.
    hosts_changed: (Sender<()>, Receiver<()>),
    deadlines: Deadlines,
    outage: Outage,
    /// Whether the checker looks at the queries that are running.
    scans_queries: AtomicBool,
    /// Grows with each change of a peer's state.
    epoch: AtomicU64,
    /// The peer that has a link too many, or [`NONE`]: looked at on every checkin, without the
    /// lock.
    surplus: AtomicUsize,
    closed: AtomicBool,
    inner: Mutex<Inner>,
    /// Told whenever a peer's state is another.
    changes: Condvar,
}

#[derive(Debug)]
struct Inner {
    peers: Vec<Peer>,
    /// Those of hosts that are resolved.
    hosts: Vec<ResolvedHost>,
    /// The number of the newest one.
    last_id: u64,
    rng: SmallRng,
    last_rebalance: Option<Instant>,
    next_query_scan: Option<Instant>,
}

/// A peer that was picked for a new connection.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) peer: usize,
    pub(crate) id: u64,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) activity: Arc<Activity>,
}

impl PeerSet {
    /// `wake` reaches the checker: a bounded channel of one, so that waking it never blocks.
    pub(crate) fn new(
        mut peers: Vec<Peer>,
        settings: Settings,
        (admission, journal): (Admission, Journal),
        mut rng: SmallRng,
        wake: Sender<()>,
        now: Instant,
    ) -> Self {
        let mut last_id = 0;
        for peer in &mut peers {
            last_id += 1;
            peer.id = last_id;
            peer.next_check = settings.due(now, &mut rng).next;
        }
        let hosts =
            peers.iter().filter_map(|peer| ResolvedHost::from_peer(peer, &admission)).collect();
        Self {
            settings,
            admission,
            journal,
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

    /// Reads the peers.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[Peer]) -> T) -> T {
        read(&self.lock().peers)
    }

    /// Changes one peer, then tells what came of it, and lets the checker look at its schedule.
    pub(crate) fn update(
        &self,
        peer: usize,
        now: Instant,
        change: impl FnOnce(&mut Peer, Due) -> Option<EventKind>,
    ) {
        self.change(|Inner { peers, rng, .. }, news| {
            let mut event = change(&mut peers[peer], self.settings.due(now, rng));
            if let Some(EventKind::Down { next_check, .. }) = &mut event {
                // While all are down that is sooner.
                let next = peers[peer].scheduled_check(no_peer_available(peers));
                *next_check = next.saturating_duration_since(now);
            }
            let peer = &peers[peer];
            // Of one that is gone nobody wants to know.
            news.extend(event.filter(|_| !peer.is_removed()).map(|event| peer.news(event)));
        });
    }

    /// Changes the peers. Where there are news their states are others, and they are told.
    fn change<T>(&self, change: impl FnOnce(&mut Inner, &mut Vec<News>) -> T) -> T {
        let mut news = Vec::new();
        let outcome = {
            let inner = &mut *self.lock();
            let outcome = change(inner, &mut news);
            self.publish(&inner.peers, news);
            outcome
        };
        self.journal.log();
        self.wake();
        outcome
    }

    /// Where there are news, the peers' states are others. They are logged outside the lock.
    fn publish(&self, peers: &[Peer], news: Vec<News>) {
        if !news.is_empty() {
            self.state_changed(peers);
        }
        self.journal.record(news);
    }

    /// Something has happened there that is no change of its state.
    pub(crate) fn record(&self, peer: usize, kind: EventKind) {
        self.read(|peers| self.journal.record([peers[peer].news(kind)]));
        self.journal.log();
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// A link to this peer was lost, or says nothing: the checker looks at the peer now.
    pub(crate) fn suspect(&self, peer: usize, now: Instant) {
        self.update(peer, now, |peer, _| {
            peer.suspect(now);
            None
        });
    }

    /// Has the checker look at what there is to do.
    pub(crate) fn wake(&self) {
        // Full means that it will look anyway; disconnected, that there is none any more.
        let _ = self.wake.try_send(());
    }

    /// A peer's state is another: what was worked out from it is worked out anew.
    fn state_changed(&self, peers: &[Peer]) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.changes.notify_all();
        self.update_surplus(peers);
        if !no_peer_available(peers) {
            self.outage.end();
        }
    }

    fn update_surplus(&self, peers: &[Peer]) {
        let surplus = surplus(peers, self.settings.strategy).unwrap_or(NO_PEER);
        self.surplus.store(surplus, Ordering::Relaxed);
    }

    /// Picks a peer for a new connection and counts the dial.
    pub(crate) fn pick(&self, tried: impl Fn(&Peer) -> bool) -> Option<Picked> {
        let Inner { peers, rng, .. } = &mut *self.lock();
        let index = pick(peers, tried, self.settings.strategy, self.settings.all_down, rng)?;
        let peer = &mut peers[index];
        peer.counts.connecting += 1;
        let picked = Picked {
            peer: index,
            id: peer.id,
            name: peer.name.clone(),
            url: peer.url.clone(),
            activity: peer.activity.clone(),
        };
        self.update_surplus(peers);
        Some(picked)
    }

    /// Changes what is counted about one peer.
    pub(crate) fn update_counts(&self, peer: usize, change: impl FnOnce(&mut Counts)) {
        let Inner { peers, .. } = &mut *self.lock();
        change(&mut peers[peer].counts);
        self.update_surplus(peers);
    }

    /// When a link that is born at `now` is too old.
    pub(crate) fn expiry(&self, now: Instant) -> Instant {
        self.settings.expiry(now, &mut self.lock().rng)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// For how long this peer's answer to a login is waited for before the next peer is tried beside
    /// it.
    pub(crate) fn hedge_delay(&self, peer: usize) -> Duration {
        let expected = self.lock().peers[peer].expected_login();
        let hedge = expected.map_or(DEFAULT_HEDGE_DELAY, |expected| expected.max(MIN_HEDGE_DELAY));
        // There has to be time left for another one.
        hedge.min(self.settings.connect_deadline / 2)
    }

    /// A generator of its own for whoever asks.
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

    /// A call begins that must have ended at `at`, or the checker runs `cut`.
    pub(crate) fn add_deadline(
        &self,
        at: Instant,
        cancel: impl FnOnce(CancelReason) + Send + 'static,
    ) -> Ticket {
        let (ticket, is_first) = self.deadlines.begin(at, cancel);
        if is_first {
            self.wake();
        }
        ticket
    }

    /// A query begins: the checker looks at those that run, for as long as there are any.
    pub(crate) fn query_begins(&self) {
        if !self.scans_queries.load(Ordering::Relaxed) {
            self.scans_queries.store(true, Ordering::Relaxed);
            self.wake();
        }
    }

    /// Grows with each change of a peer's state.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// How each peer stands. The links of a peer that is down are not to be used again; but while
    /// no peer takes work nothing is retired: a link that still works is better than none.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let peers = &self.lock().peers;
        let share = shares(peers, self.settings.strategy);
        let none_available = no_peer_available(peers);
        let standing = |peer: &Peer| Standing {
            activity: peer.activity.clone(),
            usable: peer.is_in_service() && (peer.is_up() || none_available),
            share: if none_available && peer.is_in_service() { peer.weight } else { share(peer) },
            tier: peer.tier,
        };
        peers.iter().map(standing).collect()
    }

    /// Whether a link to this peer is not to be used again.
    pub(crate) fn is_retired(&self, peer: usize) -> bool {
        let peers = &self.lock().peers;
        !peers[peer].is_in_service() || !peers[peer].is_up() && !no_peer_available(peers)
    }

    /// The peer that has a link too many, at most once each `rebalance_interval`: whoever asks retires
    /// one of its links. Not if the one who asks cannot, or the pace would be spent on nothing.
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
        let is_paced = last_rebalance.is_some_and(|last| {
            now.saturating_duration_since(last) < self.settings.rebalance_interval
        });
        if is_paced {
            return None;
        }
        *last_rebalance = Some(now);
        Some(surplus)
    }

    /// Does what is due at `now`, and hands out the checks to make. Also says when to look again.
    pub(crate) fn tick(&self, now: Instant) -> (Vec<HealthCheck>, Option<Instant>) {
        let (overdue, next_deadline) = self.deadlines.take_overdue(now);
        for cancel in overdue {
            let _ = catch_panic(|| cancel(CancelReason::Deadline(now)));
        }
        let mut work = Work::default();
        let next = {
            let Inner { peers, rng, next_query_scan, .. } = &mut *self.lock();
            let mut due = || self.settings.due(now, rng);
            let next_check =
                schedule::begin_checks(peers, &self.settings, &mut due, now, &mut work);
            self.scan_queries(peers, next_query_scan, &mut due, now, &mut work);
            let next_drained = schedule::finish_draining(peers, now, &mut work)
                .then_some(now + DRAIN_POLL_INTERVAL);
            self.publish(peers, work.news);
            [next_check, *next_query_scan, next_drained, next_deadline].into_iter().flatten().min()
        };
        self.journal.log();
        for StalledPeer { peer, links, was_up } in work.stalled {
            let hung = links.len();
            let aborted = links.iter().filter(|link| link.shut_down()).count();
            self.read(|peers| peers[peer].activity.counters.queries_aborted.add(aborted as u64));
            // What cannot be cut off hangs on, and is no news each time.
            if was_up || aborted > 0 {
                self.record(peer, EventKind::QueriesAborted { hung, aborted });
            }
        }
        (work.checks, next)
    }

    /// Looks at the queries that run, if it is time to.
    fn scan_queries(
        &self,
        peers: &mut [Peer],
        next_query_scan: &mut Option<Instant>,
        due: impl FnMut() -> Due,
        now: Instant,
        work: &mut Work,
    ) {
        if next_query_scan.is_some_and(|at| at <= now) {
            // A query that begins now asks for another look, or is seen in this one or the next.
            let asked = self.scans_queries.swap(false, Ordering::Relaxed);
            let is_any_running = schedule::find_stalls(peers, &self.settings, due, now, work);
            self.scans_queries.fetch_or(is_any_running, Ordering::Relaxed);
            *next_query_scan = (asked || is_any_running).then_some(now + QUERY_SCAN_INTERVAL);
        } else if self.scans_queries.load(Ordering::Relaxed) {
            next_query_scan.get_or_insert(now + QUERY_SCAN_INTERVAL);
        }
    }

    /// The checker came so much too late: this process stood still, and what is bounded had no chance
    /// to end meanwhile.
    pub(crate) fn postpone_deadlines(&self, late: Duration) {
        self.deadlines.postpone(late);
    }

    /// The manager is gone: nothing is checked any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changes.notify_all();
    }

    /// The checker ends: what is under way is cut off. Says whether there was anything.
    pub(crate) fn cancel_all(&self) -> bool {
        let all = self.deadlines.take_all();
        let were_there_any = !all.is_empty();
        for cancel in all {
            let _ = catch_panic(|| cancel(CancelReason::PoolClosed));
        }
        were_there_any
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fault::{Fault, Refusal};
    use crate::peers::peer::LoginOutcome;
    use crate::policy::Recovery;
    use crate::settings::tests::{INTERVAL, PACE, settings};

    /// A set of so many peers, the receiving end of its wake-up channel, and the instant at which
    /// its story starts.
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
            (Admission::default(), Journal::default()),
            rng,
            wake,
            start,
        );
        (set, woken, start)
    }

    fn take_down(set: &PeerSet, peer: usize, now: Instant) {
        set.update(peer, now, |peer, due| {
            let refused = Refusal::new(Fault::PeerDown, "refused");
            peer.connect_failed((now, now), LoginOutcome::Refused(refused), due)
        });
    }

    fn is_up(set: &PeerSet, peer: usize) -> bool {
        set.read(|peers| peers[peer].is_up())
    }

    #[test]
    fn a_link_is_retired_with_its_peer_but_not_when_every_peer_is_down() {
        let (set, _woken, now) = set_of(2, Recovery::AfterCheck);
        assert!(!set.is_retired(0), "its peer is up");
        take_down(&set, 0, now);
        assert!(set.is_retired(0), "its peer is down and another is up");
        assert!(!set.is_retired(1), "that one's links stay");
        take_down(&set, 1, now);
        assert!(!set.is_retired(0), "no peer is up: a link that works is better than none");
    }

    #[test]
    fn links_move_one_at_a_time() {
        let (set, _woken, now) = set_of(3, Recovery::AfterCheck);
        assert_eq!(set.take_surplus(|_| true, now), None, "there is none");
        for (peer, links) in [5, 4, 3].into_iter().enumerate() {
            set.update_counts(peer, |counts| counts.links = links);
        }
        assert_eq!(set.take_surplus(|_| true, now), Some(0), "one is missing elsewhere");
        assert_eq!(set.take_surplus(|_| true, now + PACE / 2), None, "the next one has to wait");
        assert_eq!(set.take_surplus(|_| true, now + PACE), Some(0), "as long as it has not left");
        set.update_counts(2, |counts| counts.connecting = 1);
        assert_eq!(
            set.take_surplus(|_| true, now + 2 * PACE),
            None,
            "a dial in flight is a link to come"
        );
        set.update_counts(2, |counts| counts.connecting = 0);
        let only_1 = |peer| peer == 1;
        assert_eq!(set.take_surplus(only_1, now + 3 * PACE), None, "not of this peer");
        assert_eq!(set.take_surplus(|_| true, now + 3 * PACE), Some(0), "which costs no pace");
        take_down(&set, 2, now);
        assert_eq!(
            set.take_surplus(|_| true, now + 3 * PACE),
            None,
            "nothing moves to a peer that is down"
        );
    }

    #[test]
    fn a_mark_is_checked_when_it_is_due_or_cleared_unasked() {
        for (recovery, checked, up) in
            [(Recovery::AfterCheck, 1, false), (Recovery::AfterInterval, 0, true)]
        {
            let (set, woken, now) = set_of(2, recovery);
            take_down(&set, 0, now);
            assert_eq!(woken.try_recv(), Ok(()), "the checker is told to look at its schedule");
            // The other peer's own check is not at issue here.
            set.update(1, now, |peer, _| {
                peer.next_check = now + 10 * INTERVAL;
                None
            });
            let (checks, next) = set.tick(now + INTERVAL / 2);
            assert!(checks.is_empty(), "{recovery:?}: nothing is due yet");
            let next = next.expect("two peers have two due times");
            assert!(next >= now + INTERVAL, "{recovery:?}: not before the interval");
            let (checks, _) = set.tick(next);
            assert_eq!(checks.len(), checked, "{recovery:?}: the checks made when the mark is due");
            assert_eq!(is_up(&set, 0), up, "{recovery:?}: whether the mark is cleared unasked");
            let (checks, _) = set.tick(next);
            assert!(checks.is_empty(), "{recovery:?}: one at a time");
        }
    }

    #[test]
    fn one_that_refuses_work_is_checked_at_once_and_not_cleared_unasked() {
        for recovery in [Recovery::AfterCheck, Recovery::AfterInterval] {
            let (set, _woken, now) = set_of(2, recovery);
            set.update(0, now, |peer, due| peer.query_refused(now, due));
            let (checks, _) = set.tick(now);
            assert_eq!(checks.len(), 1, "{recovery:?}: it is checked");
            assert!(!is_up(&set, 0), "{recovery:?}: and down meanwhile");
        }
    }

    #[test]
    fn what_is_bounded_is_given_the_time_by_which_the_process_stood_still() {
        let (set, _woken, now) = set_of(1, Recovery::AfterCheck);
        let second = Duration::from_secs(1);
        let is_cut = Arc::new(AtomicBool::new(false));
        let cancel = is_cut.clone();
        set.add_deadline(now + second, move |_| cancel.store(true, Ordering::Relaxed));
        set.postpone_deadlines(5 * second);
        set.tick(now + 5 * second);
        assert!(!is_cut.load(Ordering::Relaxed), "it has had no chance to end");
        set.tick(now + 6 * second);
        assert!(is_cut.load(Ordering::Relaxed), "it had one");
    }

    #[test]
    fn a_mark_is_cleared_unasked_also_while_a_check_hangs() {
        let (set, _woken, now) = set_of(1, Recovery::AfterInterval);
        let (checks, _) = set.tick(now + 2 * INTERVAL);
        assert_eq!(checks.len(), 1, "it is up, and checked when that is due");
        let later = now + 3 * INTERVAL;
        take_down(&set, 0, later);
        let (_, next) = set.tick(later);
        let next = next.expect("its mark has a due time");
        set.tick(next);
        assert!(is_up(&set, 0), "the check has not ended, and the mark is cleared");
    }
}
