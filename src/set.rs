//! The peers of one manager behind one lock, which is never held across a server call, a
//! destructor or a log line.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{info, warn};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::caught::caught;
use crate::exchange::Standing;
use crate::peer::{Counts, Peer, Transition};
use crate::policy::{AllDown, Recheck, Strategy};
use crate::share::{nobody_takes_work, pick, shares, surplus};
use crate::url::PeerUrl;

/// A check is due up to this much later than its interval, so that a thousand processes that saw
/// the same failure do not return at once; and a link ends up to this much earlier than told, so
/// that links that were made together do not end together.
const JITTER: f64 = 0.1;

/// As good as for ever: the clock cannot tell much longer times.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// No peer, where the index of one may stand.
const NONE: usize = usize::MAX;

/// The peers of one manager.
#[derive(Debug)]
pub(crate) struct PeerSet {
    rules: Rules,
    wake: Sender<Instant>,
    /// Grows with each change of a peer's state.
    epoch: AtomicU64,
    /// The peer that has a link too many, or [`NONE`]: looked at on every check-in, without the
    /// lock.
    surplus: AtomicUsize,
    closed: AtomicBool,
    inner: Mutex<Inner>,
}

/// What the set was told to do.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) check_interval: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) recheck: Recheck,
    pub(crate) all_down: AllDown,
    pub(crate) strategy: Strategy,
    pub(crate) rebalance_pace: Duration,
    pub(crate) link_max_age: Duration,
}

#[derive(Debug)]
struct Inner {
    peers: Vec<Peer>,
    rng: SmallRng,
    last_move: Option<Instant>,
}

/// A peer that was picked for a new connection.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) peer: usize,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) in_use: Arc<AtomicUsize>,
    pub(crate) was_up: bool,
}

/// A probe that the checker is to make.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) peer: usize,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) began: Instant,
}

impl PeerSet {
    /// `wake` reaches the checker: a bounded channel of one, so that waking it never blocks.
    pub(crate) fn new(
        mut peers: Vec<Peer>,
        rules: Rules,
        mut rng: SmallRng,
        wake: Sender<Instant>,
        now: Instant,
    ) -> Self {
        for peer in &mut peers {
            peer.next_check = due(now, rules.check_interval, &mut rng);
        }
        Self {
            rules,
            wake,
            epoch: AtomicU64::new(1),
            surplus: AtomicUsize::new(NONE),
            closed: AtomicBool::new(false),
            inner: Mutex::new(Inner { peers, rng, last_move: None }),
        }
    }

    /// Nothing under the lock can panic half-way through a change, so a poisoned lock is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the peers.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[Peer]) -> T) -> T {
        read(&self.lock().peers)
    }

    /// Changes one peer, then logs what came of it, and lets the checker look at its schedule.
    pub(crate) fn update(
        &self,
        peer: usize,
        now: Instant,
        change: impl FnOnce(&mut Peer, Instant) -> Option<Transition>,
    ) {
        let transition = {
            let inner = &mut *self.lock();
            let due = due(now, self.rules.check_interval, &mut inner.rng);
            let transition = change(&mut inner.peers[peer], due);
            if transition.is_some() {
                self.changed(&inner.peers);
            }
            transition
        };
        if let Some(transition) = transition {
            log_transition(&transition);
        }
        // Full means that the checker will look anyway; disconnected, that there is none any more.
        let _ = self.wake.try_send(now);
    }

    /// A peer's state is another: what was worked out from it is worked out anew.
    fn changed(&self, peers: &[Peer]) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.look_for_surplus(peers);
    }

    fn look_for_surplus(&self, peers: &[Peer]) {
        let surplus = surplus(peers, self.rules.strategy).unwrap_or(NONE);
        self.surplus.store(surplus, Ordering::Relaxed);
    }

    /// Picks a peer for a new connection and counts the dial.
    pub(crate) fn pick(&self, tried: impl Fn(usize) -> bool) -> Option<Picked> {
        let Inner { peers, rng, .. } = &mut *self.lock();
        let index = pick(peers, tried, self.rules.strategy, self.rules.all_down, rng)?;
        let peer = &mut peers[index];
        peer.counts.dialing += 1;
        let picked = Picked {
            peer: index,
            name: peer.name.clone(),
            url: peer.url.clone(),
            in_use: peer.in_use.clone(),
            was_up: peer.is_up(),
        };
        self.look_for_surplus(peers);
        Some(picked)
    }

    /// Changes what is counted about one peer.
    pub(crate) fn count(&self, peer: usize, change: impl FnOnce(&mut Counts)) {
        let Inner { peers, .. } = &mut *self.lock();
        change(&mut peers[peer].counts);
        self.look_for_surplus(peers);
    }

    /// When a link that is born at `now` is too old.
    pub(crate) fn expiry(&self, now: Instant) -> Instant {
        let age = self.rules.link_max_age.min(FOREVER);
        now + age.mul_f64(1.0 - JITTER * self.lock().rng.random::<f64>())
    }

    /// How long one login may take.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.rules.connect_timeout
    }

    /// Grows with each change of a peer's state.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// How each peer stands. The links of a peer that is down are not to be used again; but while
    /// no peer takes work nothing is retired: a link that still works is better than none.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let peers = &self.lock().peers;
        let share = shares(peers, self.rules.strategy);
        let nobody = nobody_takes_work(peers);
        let standing = |peer: &Peer| Standing {
            usable: peer.is_up() || nobody,
            share: if nobody { peer.weight } else { share(peer) },
            tier: peer.tier,
        };
        peers.iter().map(standing).collect()
    }

    /// Whether a link to this peer is not to be used again.
    pub(crate) fn is_retired(&self, peer: usize) -> bool {
        let peers = &self.lock().peers;
        !peers[peer].is_up() && !nobody_takes_work(peers)
    }

    /// The peer that has a link too many, at most once each `rebalance_pace`: whoever asks retires
    /// one of its links. Not if the one who asks cannot, or the pace would be spent on nothing.
    pub(crate) fn take_surplus(
        &self,
        can_retire: impl Fn(usize) -> bool,
        now: Instant,
    ) -> Option<usize> {
        let surplus = self.surplus.load(Ordering::Relaxed);
        if surplus == NONE || !can_retire(surplus) {
            return None;
        }
        let last_move = &mut self.lock().last_move;
        let is_paced = last_move
            .is_some_and(|last| now.saturating_duration_since(last) < self.rules.rebalance_pace);
        if is_paced {
            return None;
        }
        *last_move = Some(now);
        Some(surplus)
    }

    /// Does what is due at `now`: clears marks under [`Recheck::Clear`], and hands out the probes
    /// to make. Also says when to look again.
    pub(crate) fn take_due(&self, now: Instant) -> (Vec<Probe>, Option<Instant>) {
        let mut probes = Vec::new();
        let mut cleared = Vec::new();
        let mut next: Option<Instant> = None;
        {
            let Inner { peers, rng, .. } = &mut *self.lock();
            for (index, peer) in peers.iter_mut().enumerate() {
                // A peer that keeps a login hanging is the checker's to try, and so comes back by a
                // probe.
                let is_cleared = self.rules.recheck == Recheck::Clear && peer.counts.stuck == 0;
                if is_cleared && peer.next_check <= now {
                    cleared.extend(peer.clear(now, due(now, self.rules.check_interval, rng)));
                }
                if peer.probe_due().is_some_and(|due| due <= now) {
                    peer.probe_begins(now);
                    probes.push(Probe { peer: index, url: peer.url.clone(), began: now });
                }
                // A mark that is cleared unasked is due whether a probe is running or not.
                let is_mark = is_cleared && !peer.is_up();
                let mark = is_mark.then_some(peer.next_check);
                next = [next, mark, peer.probe_due()].into_iter().flatten().min();
            }
            if !cleared.is_empty() {
                self.changed(peers);
            }
        }
        cleared.iter().for_each(log_transition);
        (probes, next)
    }

    /// The manager is gone: nothing is checked any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One interval from `now`, and up to [`JITTER`] of it more. An interval too long for the clock
/// is as good as the longest that it can tell.
fn due(now: Instant, interval: Duration, rng: &mut SmallRng) -> Instant {
    let interval = interval.min(FOREVER);
    now + interval + interval.mul_f64(JITTER * rng.random::<f64>())
}

/// A logger is user code, and this runs where a panic costs a slot or the checker.
fn log_transition(transition: &Transition) {
    let _ = caught(|| match transition {
        Transition::Down { name, why, next_check } => {
            warn!("peer {name} is down: {why}; next check in {next_check:.1?}");
        }
        Transition::Up { name, was_down } => info!("peer {name} is up after {was_down:.1?}"),
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use crossbeam_channel::{Receiver, bounded};
    use rand::SeedableRng;

    use super::*;

    pub(crate) const INTERVAL: Duration = Duration::from_secs(30);
    const PACE: Duration = Duration::from_millis(200);

    /// A set of so many peers, the receiving end of its wake-up channel, and the instant at which
    /// its story starts.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    pub(crate) fn set_of(peers: usize, recheck: Recheck) -> (PeerSet, Receiver<Instant>, Instant) {
        let start = Instant::now();
        let (wake, woken) = bounded(1);
        let peer = |index| {
            let url = PeerUrl::new(format!("url{index}"));
            Peer::new(format!("peer{index}").into(), url, 1, 0, start, start)
        };
        let rules = Rules {
            check_interval: INTERVAL,
            connect_timeout: Duration::from_secs(5),
            recheck,
            all_down: AllDown::Try,
            strategy: Strategy::LeastConnections,
            rebalance_pace: PACE,
            link_max_age: INTERVAL,
        };
        let rng = SmallRng::seed_from_u64(7);
        let set = PeerSet::new((0..peers).map(peer).collect(), rules, rng, wake, start);
        (set, woken, start)
    }

    fn take_down(set: &PeerSet, peer: usize, now: Instant) {
        set.update(peer, now, |peer, due| peer.connect_failed(now, now, "refused".into(), due));
    }

    fn is_up(set: &PeerSet, peer: usize) -> bool {
        set.read(|peers| peers[peer].is_up())
    }

    #[test]
    fn checks_are_due_after_the_interval_and_up_to_a_tenth_of_it() {
        let mut rng = SmallRng::seed_from_u64(1);
        let (_, _, start) = set_of(1, Recheck::Probe);
        let delays: Vec<Duration> =
            (0..1000).map(|_| due(start, INTERVAL, &mut rng) - start).collect();
        assert!(delays.iter().all(|delay| (INTERVAL..INTERVAL.mul_f64(1.1)).contains(delay)));
        let (least, most) = (delays.iter().min(), delays.iter().max());
        assert!(least < Some(&INTERVAL.mul_f64(1.01)), "the least of many is near the interval");
        assert!(most > Some(&INTERVAL.mul_f64(1.09)), "the most of many is near its end");
        due(start, Duration::MAX, &mut rng);
    }

    #[test]
    fn a_link_is_retired_with_its_peer_but_not_when_every_peer_is_down() {
        let (set, _woken, now) = set_of(2, Recheck::Probe);
        assert!(!set.is_retired(0), "its peer is up");
        take_down(&set, 0, now);
        assert!(set.is_retired(0), "its peer is down and another is up");
        assert!(!set.is_retired(1), "that one's links stay");
        take_down(&set, 1, now);
        assert!(!set.is_retired(0), "no peer is up: a link that works is better than none");
    }

    #[test]
    fn links_move_one_at_a_time() {
        let (set, _woken, now) = set_of(3, Recheck::Probe);
        assert_eq!(set.take_surplus(|_| true, now), None, "there is none");
        for (peer, links) in [5, 4, 3].into_iter().enumerate() {
            set.count(peer, |counts| counts.links = links);
        }
        assert_eq!(set.take_surplus(|_| true, now), Some(0), "one is missing elsewhere");
        assert_eq!(set.take_surplus(|_| true, now + PACE / 2), None, "the next one has to wait");
        assert_eq!(set.take_surplus(|_| true, now + PACE), Some(0), "as long as it has not left");
        set.count(2, |counts| counts.dialing = 1);
        assert_eq!(
            set.take_surplus(|_| true, now + 2 * PACE),
            None,
            "a dial in flight is a link to come"
        );
        set.count(2, |counts| counts.dialing = 0);
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
    fn a_mark_is_probed_when_it_is_due_or_cleared_unasked() {
        for (recheck, probed, up) in [(Recheck::Probe, 1, false), (Recheck::Clear, 0, true)] {
            let (set, woken, now) = set_of(2, recheck);
            take_down(&set, 0, now);
            assert_eq!(woken.try_recv(), Ok(now), "the checker is told to look at its schedule");
            // The other peer's own check is not at issue here.
            set.update(1, now, |peer, _| {
                peer.next_check = now + 10 * INTERVAL;
                None
            });
            let (probes, next) = set.take_due(now + INTERVAL / 2);
            assert!(probes.is_empty(), "{recheck:?}: nothing is due yet");
            let next = next.expect("two peers have two due times");
            assert!(next >= now + INTERVAL, "{recheck:?}: not before the interval");
            let (probes, _) = set.take_due(next);
            assert_eq!(probes.len(), probed, "{recheck:?}: the probes made when the mark is due");
            assert_eq!(is_up(&set, 0), up, "{recheck:?}: whether the mark is cleared unasked");
            let (probes, _) = set.take_due(next);
            assert!(probes.is_empty(), "{recheck:?}: one at a time");
        }
    }

    #[test]
    fn a_mark_is_cleared_unasked_also_while_a_probe_hangs() {
        let (set, _woken, now) = set_of(1, Recheck::Clear);
        let (probes, _) = set.take_due(now + 2 * INTERVAL);
        assert_eq!(probes.len(), 1, "it is up, and probed when that is due");
        let later = now + 3 * INTERVAL;
        take_down(&set, 0, later);
        let (_, next) = set.take_due(later);
        let next = next.expect("its mark has a due time");
        set.take_due(next);
        assert!(is_up(&set, 0), "the probe has not ended, and the mark is cleared");
    }
}
