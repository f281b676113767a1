//! After an outage of all peers, a pool serves as soon as one peer is back, even with r2d2's default
//! settings, which let a slot sleep for up to 15 seconds between two tries.
//!
//! `DIESEL_PEERS_TEST_SECONDS` is the length of the longest outage in seconds. If it is more than 40, many
//! outages of 20 seconds and more run at the same time.

#![allow(clippy::disallowed_methods, reason = "outages and delays are measured by the clock")]

use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::Pool;
use diesel_peers::PeerState;
use scheduled_thread_pool::ScheduledThreadPool;
use support::backend::{PATIENCE, build};
use support::scripted::Servers;
use support::{how_long, wait_until};

/// The sizes of the pools.
const SIZES: [u32; 6] = [2, 3, 4, 6, 10, 16];

/// The lengths of the outages. r2d2 alone tries again 0.4, 1.2, 2.8, 6 and 12.4 seconds after the first
/// try, so it would be late by almost three seconds after the first length, and by six after the second.
const LENGTHS: [Duration; 2] = [Duration::from_millis(3100), Duration::from_millis(6400)];

/// The limit of the delay: far longer than a check and a login take, and shorter than until r2d2's next try.
const LATE: Duration = Duration::from_millis(2500);

/// The number of long outages for each size of pool, and the length of the shortest of them.
const LONG_OUTAGES: u32 = 8;
const SHORTEST_LONG_OUTAGE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
struct Outage {
    max_size: u32,
    length: Duration,
    /// Whether the outage begins before the pool is built. Otherwise the pool loses its connections.
    is_at_start: bool,
}

impl Outage {
    /// Runs the outage, and returns how long after the return of one of two peers the pool serves a query.
    fn delay(self) -> Duration {
        let servers = Servers::start(2);
        let crash_all = || servers.iter().for_each(|server| server.crash());
        let manager = build(servers.builder());
        let pool = || Pool::builder().max_size(self.max_size);
        let pool = if self.is_at_start {
            crash_all();
            pool().build_unchecked(manager)
        } else {
            let pool = pool().build(manager).expect("both peers are up");
            crash_all();
            pool
        };
        thread::scope(|scope| {
            let application = scope.spawn(|| {
                loop {
                    if let Ok(mut conn) = pool.get() {
                        conn.batch_execute("SELECT 1")
                            .expect("the connection was tested at checkout");
                        return Instant::now();
                    }
                }
            });
            thread::sleep(self.length);
            assert!(!application.is_finished(), "every peer is down");
            let returned = Instant::now();
            servers[0].accept(true);
            let served = application.join().expect("the application does not panic");
            served.duration_since(returned)
        })
    }
}

fn outages() -> Vec<Outage> {
    let longest = env::var("DIESEL_PEERS_TEST_SECONDS").ok();
    let longest = longest.map(|text| text.parse().expect("a number of seconds"));
    let longest =
        longest.map(Duration::from_secs).filter(|longest| *longest > 2 * SHORTEST_LONG_OUTAGE);
    let outage =
        |max_size, length, number: u32| Outage { max_size, length, is_at_start: number % 2 == 0 };
    match longest {
        None => {
            let of_size = |size: u32| {
                let lengths = (size / 2..).zip(LENGTHS);
                lengths.map(move |(number, length)| outage(size, length, number))
            };
            SIZES.into_iter().flat_map(of_size).collect()
        }
        // Each outage has a different length.
        Some(longest) => {
            let sizes: Vec<u32> = [1].into_iter().chain(SIZES).collect();
            let count = LONG_OUTAGES * u32::try_from(sizes.len()).expect("a few sizes") - 1;
            let step = longest.saturating_sub(SHORTEST_LONG_OUTAGE) / count;
            let lengths = (0..=count).map(|number| SHORTEST_LONG_OUTAGE + number * step);
            let numbers = 0..;
            numbers
                .zip(lengths)
                .zip(sizes.into_iter().cycle())
                .map(|((number, length), size)| outage(size, length, number / 7))
                .collect()
        }
    }
}

/// The other peers return a moment after the first one, and are noticed at the same pace.
#[test]
fn peers_that_return_after_the_first_one_are_up_soon() {
    let servers = Servers::start(3);
    let manager = build(servers.builder());
    let peers = manager.peers();
    let pool = Pool::builder().max_size(3).build(manager).expect("the peers are up");
    servers.iter().for_each(|server| server.crash());
    let up = || peers.snapshot().peers.iter().filter(|peer| peer.state == PeerState::Up).count();
    wait_until("all peers are down", PATIENCE, || {
        if let Ok(mut conn) = pool.get_timeout(Duration::from_millis(100)) {
            let _ = conn.batch_execute("SELECT 1");
        }
        up() == 0
    });
    servers[0].accept(true);
    wait_until("the first peer is up", PATIENCE, || up() == 1);
    servers[1].accept(true);
    let delay = how_long("the second peer is up", PATIENCE, || up() == 2);
    thread::sleep(Duration::from_secs(1));
    servers[2].accept(true);
    let later = how_long("the third peer is up", PATIENCE, || up() == 3);
    // Otherwise they would be checked once in the interval, which is 30 seconds.
    assert!(delay.max(later) < Duration::from_secs(10), "after {delay:?} and {later:?}");
}

/// The pools of three databases that are down and of one that works share three workers.
#[test]
fn pool_whose_peers_are_down_holds_no_worker_that_another_pool_needs() {
    let workers = Arc::new(ScheduledThreadPool::new(3));
    let down: Vec<_> = (0..3).map(|_| Servers::start(1)).collect();
    let pools: Vec<_> = down
        .iter()
        .map(|servers| {
            servers[0].accept(false);
            let manager = build(servers.builder());
            Pool::builder().max_size(2).thread_pool(workers.clone()).build_unchecked(manager)
        })
        .collect();
    // Until then each pool has tried several times. r2d2's first delay is 400 ms.
    thread::sleep(Duration::from_secs(2));
    let works = Servers::start(1);
    let pool =
        Pool::builder().max_size(1).thread_pool(workers).build_unchecked(build(works.builder()));
    pool.get_timeout(LATE).expect("a worker is free");
    drop(pools);
}

#[test]
fn pool_serves_as_soon_as_a_peer_returns_after_an_outage_of_all_peers() {
    let outages = outages();
    let mut delays = BTreeMap::<u32, Vec<(Outage, Duration)>>::new();
    thread::scope(|scope| {
        let runs: Vec<_> =
            outages.iter().map(|outage| (outage, scope.spawn(|| outage.delay()))).collect();
        for (outage, run) in runs {
            let delay = run.join().expect("the outage ends");
            delays.entry(outage.max_size).or_default().push((*outage, delay));
        }
    });
    for (size, delays) in &mut delays {
        delays.sort_by_key(|(_, delay)| *delay);
        let delays: Vec<_> = delays
            .iter()
            .map(|(outage, delay)| format!("{delay:.0?} after {:.1?}", outage.length))
            .collect();
        println!("max_size {size}: {}", delays.join(", "));
    }
    // In a pool of one connection, no second slot waits for a peer while the only slot sleeps.
    for (outage, delay) in delays.range(2..).flat_map(|(_, delays)| delays) {
        assert!(*delay < LATE, "the pool serves {delay:?} after the return of a peer: {outage:?}");
    }
}
