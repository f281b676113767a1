//! The whole rule in virtual time: the real checker, set of peers and exchange, with threads that use the pool
//! one checkout after the other, and query times that the test chooses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::events::{CloseReason, EventKind};
use crate::health::checker::{Checker, apply_verdict};
use crate::peers::link_guard::LinkGuard;
use crate::peers::link_state::LinkState;
use crate::peers::set::PeerSet;
use crate::peers::set::peer_ref::PeerRef;
use crate::peers::set::tests::set_with;
use crate::pool::customizer::Customizer;
use crate::pool::exchange::{Exchange, Parkable, ToClose};
use crate::settings::Settings;
use crate::settings::policy::{SlowPeers, Strategy};
use crate::settings::tests::settings;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The time between two ticks of the checker.
const TICK: Duration = Duration::from_millis(50);

/// A link to a peer that is only counted.
struct SimulatedLink {
    guard: LinkGuard,
    state: Arc<LinkState>,
    created_at: Instant,
}

impl SimulatedLink {
    fn new(peer: PeerRef, now: Instant) -> Self {
        let state: Arc<LinkState> = Arc::default();
        let mut guard = LinkGuard::for_login(peer);
        guard.promote_to_link(state.clone(), now);
        Self { guard, state, created_at: now }
    }
}

impl Parkable for SimulatedLink {
    fn peer(&self) -> usize {
        self.guard.peer.index
    }

    fn created_at(&self) -> Instant {
        self.created_at
    }

    fn is_due(&self, _: Instant) -> bool {
        false
    }

    fn set_in_use(&mut self, in_use: bool) {
        self.guard.set_in_use(in_use);
    }

    fn is_marked_for_replacement(&self) -> bool {
        self.guard.is_marked_for_replacement()
    }

    fn mark_for_replacement(&mut self, reason: CloseReason) {
        self.guard.mark_for_replacement(reason);
    }

    fn cancel_replacement(&mut self) {
        self.guard.cancel_replacement();
    }

    fn shut_down(&mut self) -> bool {
        false
    }
}

/// A pool in virtual time.
struct Simulation {
    set: Arc<PeerSet>,
    checker: Checker,
    exchange: Exchange<SimulatedLink>,
    start: Instant,
    now: Instant,
    next_tick: Instant,
    /// When each busy thread ends its checkout, with the number of the thread.
    ends: BinaryHeap<Reverse<(Instant, usize)>>,
    held: Vec<Option<SimulatedLink>>,
    rng: SmallRng,
    /// The longest time of a query, after which it fails.
    statement_timeout: Duration,
    /// The peer and the query time of each checkout that has ended since this was last cleared.
    served: Vec<(usize, Duration)>,
}

/// Returns the query time of a checkout of this peer that begins at this time after the start.
type QueryTime<'a> = &'a dyn Fn(usize, Duration, &mut SmallRng) -> Duration;

impl Simulation {
    fn new(peers: usize, links: usize, threads: usize, settings: Settings) -> Self {
        let strategy = settings.strategy;
        let (set, _woken, start) = set_with(peers, settings);
        let mut simulation = Self {
            checker: Checker::new(set.clone()),
            exchange: Exchange::new(strategy, Customizer::Unknown, SmallRng::seed_from_u64(5)),
            start,
            now: start,
            next_tick: start,
            ends: BinaryHeap::new(),
            held: Vec::new(),
            rng: SmallRng::seed_from_u64(6),
            statement_timeout: Duration::MAX,
            served: Vec::new(),
            set,
        };
        simulation.update_exchange();
        for _ in 0..links {
            let link = simulation.open().expect("a peer is available");
            let slot = simulation.exchange.add_slot(link, thread::current().id());
            simulation.exchange.check_in(None, Some(slot), |_| None);
        }
        simulation.held.resize_with(threads, || None);
        simulation.ends.extend((0..threads).map(|number| Reverse((start, number))));
        simulation
    }

    fn open(&self) -> Option<SimulatedLink> {
        Some(SimulatedLink::new(self.set.pick(|_| false)?, self.now))
    }

    fn update_exchange(&self) {
        self.exchange.update_peers(self.set.epoch(), || self.set.peer_views());
    }

    /// Goes on until this time after the start.
    fn run_until(&mut self, end: Duration, query_time: QueryTime<'_>) {
        let end = self.start + end;
        while self.now < end {
            let &Reverse((at, thread)) = self.ends.peek().expect("each thread is busy");
            if self.next_tick <= at {
                self.now = self.next_tick;
                self.tick();
            } else {
                self.now = at;
                self.ends.pop();
                self.end_checkout(thread);
                self.begin_checkout(thread, query_time);
            }
        }
    }

    fn tick(&mut self) {
        self.next_tick = self.now + TICK;
        self.set.query_scan_requested.store(true, Ordering::Relaxed);
        self.checker.tick(self.now);
        self.update_exchange();
        // What `replacement.rs` does.
        if self
            .set
            .links_to_replace()
            .is_some_and(|links| links > self.exchange.pending_replacements())
        {
            drop(self.open().and_then(|link| self.exchange.offer(link)));
        }
    }

    fn end_checkout(&mut self, thread: usize) {
        let Some(link) = self.held[thread].take() else { return };
        let began = link.state.waiting_since().expect("each checkout makes a query");
        if self.now - began >= self.statement_timeout {
            link.state.fail_checkout();
        }
        let activity = &link.guard.peer.activity;
        activity.counters.queries.add(link.state.query_ends(self.now));
        activity.query_ended(self.now);
        self.served.push((link.guard.peer.index, self.now - began));
        let (set, now) = (self.set.clone(), self.now);
        let to_close = self
            .exchange
            .check_in(Some(link), None, |is_parked| set.claim_rebalance(is_parked, now));
        assert!(!matches!(to_close, ToClose::WithSlot(_)), "no customizer uses links");
    }

    fn begin_checkout(&mut self, thread: usize, query_time: QueryTime<'_>) {
        self.update_exchange();
        let link = self.exchange.check_out(None, None, self.now).expect("there are links enough");
        link.state.query_begins(self.now, false);
        let passed = self.now - self.start;
        let took = query_time(link.guard.peer.index, passed, &mut self.rng);
        let took = took.min(self.statement_timeout);
        self.ends.push(Reverse((self.now + took, thread)));
        self.held[thread] = Some(link);
    }

    fn slow(&self) -> Vec<bool> {
        self.set.read(|peers| peers.iter().map(|peer| peer.slow.is_some()).collect())
    }

    fn links(&self) -> Vec<usize> {
        self.set.read(|peers| peers.iter().map(|peer| peer.counts.links).collect())
    }

    /// Returns how often a peer has become slow.
    fn outliers(&self) -> usize {
        let events = self.set.event_log.history();
        events.iter().filter(|event| matches!(event.kind, EventKind::Slow { .. })).count()
    }

    /// Returns the share of the peer in percent, the number of checkouts, and the time that 99 % of these do not
    /// exceed.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn take_served(&mut self, peer: usize) -> (f64, usize, Duration) {
        let served = std::mem::take(&mut self.served);
        let own = served.iter().filter(|(served_by, _)| *served_by == peer).count();
        let mut times: Vec<Duration> = served.iter().map(|(_, took)| *took).collect();
        times.sort_unstable();
        let p99 = times[times.len() * 99 / 100];
        (100.0 * own as f64 / served.len() as f64, served.len(), p99)
    }
}

/// A time that varies as those of short queries do: exponentially, but no shorter than half of the mean.
fn varied(mean: Duration, rng: &mut SmallRng) -> Duration {
    mean.mul_f64(0.5 - 0.5 * (1.0 - rng.random::<f64>()).ln())
}

fn with(strategy: Strategy) -> Settings {
    Settings { strategy, slow_peers: SlowPeers::Shift, ..settings() }
}

/// A peer becomes slower by `factor` after five seconds, for this time.
fn slow_peer_is_relieved(
    strategy: Strategy,
    (threads, links): (usize, usize),
    factor: u32,
    length: Duration,
) {
    let (fault, cure) = (5 * SECOND, 5 * SECOND + length);
    // The time after which the peer has to be relieved, and the time after which it has to be back.
    let (noticed, back) =
        if factor == 10 { (3 * SECOND, 10 * SECOND) } else { (6 * SECOND, 15 * SECOND) };
    // With more threads the queries are longer, so that the simulation is not.
    let usual = if threads > 4 { 10 } else { 2 } * MILLISECOND;
    let case = format!("{threads} threads, {factor} times, {strategy}");
    let query_time = |peer, at, rng: &mut SmallRng| {
        let is_slow = peer == 1 && at >= fault && at < cure;
        varied(if is_slow { factor * usual } else { usual }, rng)
    };
    let mut simulation = Simulation::new(3, links, threads, with(strategy));
    simulation.run_until(SECOND, &query_time);
    simulation.take_served(1);
    simulation.run_until(fault, &query_time);
    let (share, before, p99_before) = simulation.take_served(1);
    assert!((31.0..36.0).contains(&share), "{case}: {share} % before the fault");
    assert_eq!(simulation.slow(), [false; 3], "{case}");

    simulation.run_until(fault + noticed, &query_time);
    assert_eq!(simulation.slow(), [false, true, false], "{case}: noticed");
    simulation.take_served(1);
    simulation.run_until(fault + noticed + 4 * SECOND, &query_time);
    let (share, during, p99) = simulation.take_served(1);
    assert!(share < 2.0, "{case}: {share} % while the peer is slow");
    assert!(p99 <= p99_before.mul_f64(1.5), "{case}: {p99:?} after {p99_before:?}");
    let least = if factor == 10 { 95 } else { 90 };
    assert!(100 * during >= least * before, "{case}: {during} after {before}");
    assert!(simulation.links()[1] < links / 3, "{case}: its connections follow");
    simulation.run_until(cure, &query_time);
    let (share, ..) = simulation.take_served(1);
    assert!(share > 0.0, "{case}: a slow peer still gets checkouts");

    simulation.run_until(cure + back, &query_time);
    assert_eq!(simulation.slow(), [false; 3], "{case}: cured");
    simulation.take_served(1);
    simulation.run_until(cure + back + 3 * SECOND, &query_time);
    let (share, ..) = simulation.take_served(1);
    assert!((30.0..36.0).contains(&share), "{case}: {share} % after the cure");
    assert_eq!(simulation.outliers(), 1, "{case}");
}

#[test]
fn slow_peer_is_relieved_and_comes_back_with_each_strategy() {
    for strategy in
        [Strategy::LeastConnections, Strategy::RoundRobin, Strategy::Random, Strategy::Ordered]
    {
        slow_peer_is_relieved(strategy, (1, 9), 10, 13 * SECOND);
        slow_peer_is_relieved(strategy, (5, 9), 10, 13 * SECOND);
    }
}

#[test]
fn slow_peer_is_relieved_and_comes_back_with_many_threads_and_when_much_slower() {
    slow_peer_is_relieved(Strategy::LeastConnections, (16, 24), 10, 13 * SECOND);
    slow_peer_is_relieved(Strategy::LeastConnections, (16, 24), 100, 16 * SECOND);
    // All connections are in use, so the slow peer has one for its trials only.
    slow_peer_is_relieved(Strategy::LeastConnections, (9, 9), 10, 13 * SECOND);
    // A trial of 200 ms is made after ten seconds of query time.
    slow_peer_is_relieved(Strategy::LeastConnections, (1, 9), 100, 25 * SECOND);
}

#[test]
fn trials_that_fail_cost_as_much_as_trials_that_are_slow() {
    let (fails, cure) = (8 * SECOND, 88 * SECOND);
    // With four connections all of them are in use, and that of the slow peer does not leave at once.
    for (threads, links) in [(1, 9), (4, 9), (4, 4)] {
        let case = format!("{threads} threads, {links} connections");
        let mut simulation = Simulation::new(3, links, threads, with(Strategy::LeastConnections));
        simulation.statement_timeout = SECOND;
        let query_time = |peer, at, rng: &mut SmallRng| {
            let is_slow = peer == 1 && at >= 5 * SECOND && at < cure;
            let slow = if at < fails { 100 * MILLISECOND } else { 10 * SECOND };
            varied(if is_slow { slow } else { 10 * MILLISECOND }, rng)
        };
        simulation.run_until(fails, &query_time);
        assert_eq!(simulation.slow(), [false, true, false], "{case}");
        simulation.served.clear();
        simulation.run_until(cure, &query_time);
        let failed: Vec<&(usize, Duration)> =
            simulation.served.iter().filter(|(_, took)| *took == SECOND).collect();
        assert!(!failed.is_empty() && failed.iter().all(|(peer, _)| *peer == 1), "{case}");
        let time: Duration = failed.iter().map(|(_, took)| *took).sum();
        let pool_time = simulation.served.iter().map(|(_, took)| *took).sum::<Duration>();
        assert!(50 * time <= pool_time + 100 * SECOND, "{case}: {time:?} of {pool_time:?}");
        simulation.run_until(cure + 60 * SECOND, &query_time);
        assert_eq!(simulation.slow(), [false; 3], "{case}: cured");
    }
}

/// It was compared before, and its events would not end.
#[test]
fn peer_that_does_not_serve_any_more_does_not_become_slow() {
    let simulation = Simulation::new(3, 9, 1, with(Strategy::LeastConnections));
    let (set, now) = (&simulation.set, simulation.now);
    let find_slow = |index: usize| {
        let id = set.read(|peers| peers[index].id);
        let outlier = Outlier { peer: 0, time: SECOND, others: MILLISECOND };
        apply_verdict(set, index, id, &Verdict::Slow(outlier), now);
        apply_verdict(set, index, id, &Verdict::KeepsLinks(0, 2), now);
    };
    find_slow(1);
    set.update(2, now, |peer, _| peer.weight = 0);
    find_slow(2);
    assert_eq!(simulation.slow(), [false, true, false]);
    assert_eq!(simulation.outliers(), 1);
}

#[test]
fn slow_peer_without_a_connection_gets_one_for_its_trials() {
    // Fewer connections than peers, all of which are in use.
    let mut simulation = Simulation::new(3, 2, 2, with(Strategy::LeastConnections));
    let peer = simulation.links().iter().position(|links| *links == 1).expect("two have one");
    let cure = 20 * SECOND;
    let query_time = |of: usize, at: Duration, rng: &mut SmallRng| {
        let is_slow = of == peer && (5..cure.as_secs()).contains(&at.as_secs());
        varied(if is_slow { 100 } else { 10 } * MILLISECOND, rng)
    };
    simulation.run_until(15 * SECOND, &query_time);
    assert!(simulation.slow()[peer]);
    simulation.served.clear();
    simulation.run_until(cure, &query_time);
    let (share, ..) = simulation.take_served(peer);
    assert!(share < 2.0, "{share} % while the peer is slow");
    simulation.run_until(cure + 70 * SECOND, &query_time);
    assert_eq!(simulation.slow(), [false; 3]);
}

type Case<'a> = (&'a str, usize, Duration, QueryTime<'a>);

#[test]
fn peers_that_are_not_slow_keep_their_shares() {
    let (minute, ten_minutes) = (60 * SECOND, 600 * SECOND);
    let cases: [Case<'_>; 4] = [
        ("1.3 times slower", 1, minute, &|peer, _, rng| {
            varied(if peer == 1 { 2600 } else { 2000 } * MILLISECOND / 1000, rng)
        }),
        ("half of the work long", 4, ten_minutes, &|_, _, rng| {
            if rng.random() { MILLISECOND } else { 100 * MILLISECOND }
        }),
        ("half of the work long, 1.3 times slower", 4, ten_minutes, &|peer, _, rng| {
            let time = if rng.random() { MILLISECOND } else { 100 * MILLISECOND };
            if peer == 1 { time.mul_f64(1.3) } else { time }
        }),
        ("some workers wait for a row or hold a report", 8, minute, &|_, _, rng| match rng
            .random_range(0..1000)
        {
            0 => 30 * SECOND,
            1..50 => SECOND,
            _ => varied(10 * MILLISECOND, rng),
        }),
    ];
    for (case, threads, length, query_time) in cases {
        let strategies = [Strategy::LeastConnections, Strategy::RoundRobin];
        // The long cases take a while.
        for strategy in &strategies[..if length > minute { 1 } else { 2 }] {
            let mut simulation = Simulation::new(3, 12, threads, with(*strategy));
            simulation.run_until(length, query_time);
            assert_eq!(simulation.outliers(), 0, "{case}, {strategy}");
            let (share, ..) = simulation.take_served(1);
            let is_held = case.contains("report") && *strategy == Strategy::LeastConnections;
            assert!(is_held || (31.0..35.5).contains(&share), "{case}, {strategy}: {share} %");
        }
    }
}

#[test]
fn work_that_changes_does_not_make_a_peer_of_small_weight_slow() {
    let settings = with(Strategy::LeastConnections);
    for weight in [10, 100] {
        let mut simulation = Simulation::new(3, 24, 4, settings.clone());
        for peer in ["peer1", "peer2"] {
            simulation
                .set
                .set_weight(peer, weight, simulation.start)
                .expect("there is such a peer");
        }
        // A batch of long queries each half minute.
        simulation.run_until(125 * SECOND, &|_, at, rng| {
            varied(if at.as_secs() / 15 % 2 == 0 { 5 } else { 250 } * MILLISECOND, rng)
        });
        assert_eq!(simulation.outliers(), 0, "weights of 1 and {weight}");
    }
}

#[test]
fn slow_peer_is_only_reported_with_tell_and_ignored_with_off() {
    for (slow_peers, outliers) in [(SlowPeers::Tell, 1), (SlowPeers::Off, 0)] {
        let settings = Settings { slow_peers, ..with(Strategy::RoundRobin) };
        let mut simulation = Simulation::new(3, 8, 1, settings);
        let query_time = |peer, at, rng: &mut SmallRng| {
            varied(if peer == 1 && at < 10 * SECOND { 20 } else { 2 } * MILLISECOND, rng)
        };
        simulation.run_until(10 * SECOND, &query_time);
        assert_eq!(simulation.outliers(), outliers, "{slow_peers}");
        assert_eq!(simulation.slow()[1], outliers == 1, "{slow_peers}");
        let (share, ..) = simulation.take_served(1);
        assert!((32.0..34.5).contains(&share), "{slow_peers}: {share} %");
        simulation.run_until(12 * SECOND, &query_time);
        assert_eq!(simulation.slow(), [false; 3], "{slow_peers}");
    }
}

#[test]
fn slow_one_of_two_peers_is_relieved_and_the_last_one_is_not() {
    let mut simulation = Simulation::new(2, 8, 4, with(Strategy::LeastConnections));
    let query_time = |peer, at: Duration, rng: &mut SmallRng| {
        let is_slow = if at < 5 * SECOND { peer == 1 } else { true };
        varied(if is_slow { 20 } else { 2 } * MILLISECOND, rng)
    };
    simulation.run_until(5 * SECOND, &query_time);
    assert_eq!(simulation.slow(), [false, true]);
    simulation.run_until(15 * SECOND, &query_time);
    assert_eq!(simulation.slow(), [false; 2], "both are as slow, so neither is an outlier");
    assert_eq!(simulation.outliers(), 1);
    simulation.run_until(18 * SECOND, &|peer, _, rng| {
        varied(if peer == 1 { 2 } else { 90 } * MILLISECOND, rng)
    });
    assert_eq!(simulation.slow(), [true, false]);
    let now = simulation.now;
    drop(simulation.set.drain("peer1", now).expect("there is such a peer"));
    simulation.run_until(19 * SECOND, &query_time);
    assert_eq!(simulation.slow(), [false; 2], "a peer that is left alone is not slow");
}

#[test]
fn share_of_a_peer_that_begins_to_serve_grows() {
    let slow_start = 10 * SECOND;
    let mut simulation =
        Simulation::new(3, 12, 6, Settings { slow_start, ..with(Strategy::LeastConnections) });
    // A cold cache, which does not make the peer slow.
    let query_time = |peer, at: Duration, rng: &mut SmallRng| {
        let is_cold = peer == 1 && (3..12).contains(&at.as_secs());
        varied(if is_cold { 50 } else { 10 } * MILLISECOND, rng)
    };
    let share = |simulation: &mut Simulation, seconds: [u32; 2]| {
        simulation.run_until(seconds[0] * SECOND, &query_time);
        simulation.take_served(1);
        simulation.run_until(seconds[1] * SECOND, &query_time);
        simulation.take_served(1).0
    };
    let at_start = share(&mut simulation, [1, 2]);
    assert!((30.0..36.0).contains(&at_start), "{at_start} %: a peer that is up at the start");
    let now = simulation.now;
    drop(simulation.set.drain("peer1", now).expect("there is such a peer"));
    simulation.run_until(3 * SECOND, &query_time);
    let now = simulation.now;
    simulation.set.resume("peer1", now).expect("there is such a peer");
    let early = share(&mut simulation, [3, 5]);
    assert!(early < 8.0, "{early} % in the first fifth of the time");
    let late = share(&mut simulation, [15, 18]);
    assert!((30.0..36.0).contains(&late), "{late} % after the time");
    assert_eq!(simulation.outliers(), 0);
}
