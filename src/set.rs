//! The peers of one manager behind one lock, which is never held across a server call, a
//! destructor or a log line.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use log::{info, warn};
use rand::RngExt;
use rand::rngs::SmallRng;

use crate::builder::{AllDown, Recheck};
use crate::peer::{Peer, Transition};
use crate::pick::pick;
use crate::url::PeerUrl;

/// A check is due up to this much later than its interval, so that a thousand processes that saw
/// the same failure do not return at once.
const JITTER: f64 = 0.1;

/// The least time between two links that are retired to even out their number: a peer that came
/// back is filled a few links at a time.
const REBALANCE_PACE: Duration = Duration::from_millis(200);

/// The peers of one manager.
#[derive(Debug)]
pub(crate) struct PeerSet {
    check_interval: Duration,
    recheck: Recheck,
    all_down: AllDown,
    wake: Sender<Instant>,
    closed: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    peers: Vec<Peer>,
    rng: SmallRng,
    last_rebalance: Option<Instant>,
}

/// A peer that was picked for a new connection.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(crate) peer: usize,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) was_up: bool,
}

/// A probe that the checker is to make.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) peer: usize,
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) began: Instant,
}

impl PeerSet {
    /// `wake` reaches the checker: a bounded channel of one, so that waking it never blocks.
    pub(crate) fn new(
        peers: Vec<(Arc<str>, PeerUrl)>,
        check_interval: Duration,
        recheck: Recheck,
        all_down: AllDown,
        mut rng: SmallRng,
        wake: Sender<Instant>,
        now: Instant,
    ) -> Self {
        let peers = peers
            .into_iter()
            .map(|(name, url)| Peer::new(name, url, now, due(now, check_interval, &mut rng)))
            .collect();
        Self {
            check_interval,
            recheck,
            all_down,
            wake,
            closed: AtomicBool::new(false),
            inner: Mutex::new(Inner { peers, rng, last_rebalance: None }),
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
            let Inner { peers, rng, .. } = &mut *self.lock();
            let due = due(now, self.check_interval, rng);
            change(&mut peers[peer], due)
        };
        if let Some(transition) = transition {
            log_transition(&transition);
        }
        // Full means that the checker will look anyway; disconnected, that there is none any more.
        let _ = self.wake.try_send(now);
    }

    /// Picks a peer for a new connection and counts the dial.
    pub(crate) fn pick(&self, tried: impl Fn(usize) -> bool) -> Option<Picked> {
        let Inner { peers, rng, .. } = &mut *self.lock();
        let index = pick(peers, tried, self.all_down, rng)?;
        let peer = &mut peers[index];
        peer.counts.dialing += 1;
        Some(Picked {
            peer: index,
            name: peer.name.clone(),
            url: peer.url.clone(),
            was_up: peer.is_up(),
        })
    }

    /// Changes what is counted about one peer.
    pub(crate) fn count<T>(&self, peer: usize, change: impl FnOnce(&mut Peer) -> T) -> T {
        change(&mut self.lock().peers[peer])
    }

    /// Whether a link to this peer is not to be used again because the peer is down. While no
    /// peer is up nothing is retired: a link that still works is better than none.
    pub(crate) fn is_retired(&self, peer: usize) -> bool {
        let peers = &self.lock().peers;
        !peers[peer].is_up() && peers.iter().any(Peer::is_up)
    }

    /// Whether a link to this peer is to be retired, at most one each [`REBALANCE_PACE`], so that
    /// the next connection goes to a peer that has at least two fewer.
    pub(crate) fn is_surplus(&self, peer: usize, now: Instant) -> bool {
        let Inner { peers, last_rebalance, .. } = &mut *self.lock();
        let fewest = peers.iter().filter(|peer| peer.is_up()).map(|peer| peer.counts.load()).min();
        let is_surplus = fewest.is_some_and(|fewest| peers[peer].counts.links >= fewest + 2);
        let is_paced =
            last_rebalance.is_some_and(|last| now.saturating_duration_since(last) < REBALANCE_PACE);
        if !is_surplus || is_paced {
            return false;
        }
        *last_rebalance = Some(now);
        true
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
                if self.recheck == Recheck::Clear && peer.next_check <= now {
                    cleared.extend(peer.clear(now, due(now, self.check_interval, rng)));
                }
                if peer.probe_due().is_some_and(|due| due <= now) {
                    peer.probe_begins(now);
                    probes.push(Probe {
                        peer: index,
                        name: peer.name.clone(),
                        url: peer.url.clone(),
                        began: now,
                    });
                }
                next = [next, peer.probe_due()].into_iter().flatten().min();
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
    const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);
    let interval = interval.min(FOREVER);
    now + interval + interval.mul_f64(JITTER * rng.random::<f64>())
}

fn log_transition(transition: &Transition) {
    match transition {
        Transition::Down { name, why, next_check } => {
            warn!("peer {name} is down: {why}; next check in {next_check:.1?}");
        }
        Transition::Up { name, was_down } => info!("peer {name} is up after {was_down:.1?}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use crossbeam_channel::{Receiver, bounded};
    use rand::SeedableRng;

    use super::*;

    pub(crate) const INTERVAL: Duration = Duration::from_secs(30);

    /// A set of so many peers, the receiving end of its wake-up channel, and the instant at which
    /// its story starts.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as the start")]
    pub(crate) fn set_of(peers: usize, recheck: Recheck) -> (PeerSet, Receiver<Instant>, Instant) {
        let start = Instant::now();
        let (wake, woken) = bounded(1);
        let peers = (0..peers)
            .map(|index| (format!("peer{index}").into(), PeerUrl::new(format!("url{index}"))))
            .collect();
        let rng = SmallRng::seed_from_u64(7);
        let set = PeerSet::new(peers, INTERVAL, recheck, AllDown::Try, rng, wake, start);
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
    fn links_move_to_a_peer_with_two_fewer_one_at_a_time() {
        let (set, _woken, now) = set_of(3, Recheck::Probe);
        let links = |counts: [usize; 3]| {
            for (peer, links) in counts.into_iter().enumerate() {
                set.count(peer, |peer| peer.counts.links = links);
            }
        };
        links([4, 4, 3]);
        assert!(!set.is_surplus(0, now), "as even as eleven links can be");
        links([5, 4, 3]);
        assert!(set.is_surplus(0, now), "one more than fair, and one is missing elsewhere");
        assert!(!set.is_surplus(0, now + REBALANCE_PACE / 2), "the next one has to wait");
        assert!(!set.is_surplus(1, now + REBALANCE_PACE), "this peer has no surplus");
        assert!(set.is_surplus(0, now + REBALANCE_PACE), "after the pace");
        set.count(2, |peer| peer.counts.dialing = 1);
        assert!(!set.is_surplus(0, now + 2 * REBALANCE_PACE), "a dial in flight is a link to come");
        set.count(2, |peer| peer.counts.dialing = 0);
        take_down(&set, 2, now);
        assert!(
            !set.is_surplus(0, now + 3 * REBALANCE_PACE),
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
}
