//! A random mix of changes and faults: operators drain, resume, add, remove and weight peers, and servers
//! are killed and frozen, while sixteen threads work. At any time one peer is spared, a different one every
//! few seconds. As long as one peer works no `pool.get()` fails, and in the end nothing is left behind.
//!
//! `DIESEL_PEERS_TEST_SECONDS` sets the duration in seconds (12 by default), `DIESEL_PEERS_TEST_SEED` the
//! seed. Each run prints its seed.

#![cfg(all(target_os = "linux", feature = "mysql"))]
#![allow(clippy::disallowed_methods, reason = "the test's length is measured by the clock")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use diesel::MysqlConnection;
use diesel_peers::{PeerConfig, PeerState, Peers};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::backend::{Backend, PATIENCE, SOON, fill, links, manager_over, pool_of, state};
use support::load::Load;
use support::mariadb::MariaDb;
use support::process::our_threads;
use support::{EndsThreads, wait_until};

const SERVERS: usize = 4;
const OPERATORS: u64 = 3;
const THREADS: usize = 16;
const CONNECTIONS: u32 = 16;

/// The time for which the same peer is spared.
const PHASE: Duration = Duration::from_secs(4);

/// The index of the spared peer. Operators hold this lock for reading while they change a peer.
type Spared = RwLock<usize>;

fn name(server: usize) -> String {
    format!("peer{server}")
}

/// Picks one of the other peers.
fn victim(spared: usize, rng: &mut SmallRng) -> usize {
    (spared + rng.random_range(1..SERVERS)) % SERVERS
}

/// Makes one random change, as an operator. A change that is impossible at the moment is an error and has
/// no effect.
fn operate(peers: &Peers, urls: &[String], spared: &Spared, rng: &mut SmallRng) {
    let spared = spared.read().unwrap_or_else(PoisonError::into_inner);
    let server = victim(*spared, rng);
    let name = name(server);
    let config = |server: usize| PeerConfig::new(self::name(server), &urls[server]);
    let _ = match rng.random_range(0..8) {
        0 => peers.drain(&name).map(drop),
        1 => peers.drain(&name).map(|drain| {
            let _ = drain.wait(Duration::from_millis(20));
        }),
        2 => peers.resume(&name),
        3 => peers.remove(&name).map(drop),
        4 => peers.add(config(server)),
        5 => peers.set_weight(&name, rng.random_range(0..4)),
        6 => peers.check_now(&name),
        _ => {
            let others: Vec<_> =
                (0..SERVERS).filter(|one| one == &*spared || rng.random()).map(config).collect();
            peers.replace(others)
        }
    };
}

/// Makes sure that a peer is in the set, up and in service, whatever was done to it before.
fn restore(peers: &Peers, servers: &mut [MariaDb], broken: &mut BTreeMap<usize, bool>, at: usize) {
    mend(servers, broken, at);
    let name = name(at);
    let _ = peers.add(PeerConfig::new(&name, servers[at].url()));
    peers.resume(&name).expect("the peer is in the set");
    peers.set_weight(&name, 1).expect("the peer is in the set");
    wait_until(&format!("{name} is up"), PATIENCE, || state(peers, &name) == PeerState::Up);
}

/// Kills or freezes a server, or mends it if it is broken. `broken` lists the broken servers, and whether
/// they are frozen.
fn break_one(servers: &mut [MariaDb], broken: &mut BTreeMap<usize, bool>, at: usize, freeze: bool) {
    if broken.contains_key(&at) {
        mend(servers, broken, at);
        return;
    }
    if freeze {
        servers[at].freeze();
    } else {
        servers[at].kill();
    }
    broken.insert(at, freeze);
}

fn mend(servers: &mut [MariaDb], broken: &mut BTreeMap<usize, bool>, at: usize) {
    match broken.remove(&at) {
        Some(true) => servers[at].thaw(),
        Some(false) => servers[at].restart(),
        None => {}
    }
}

/// Returns the number of open descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("Linux lists the descriptors").count()
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

#[test]
fn no_checkout_fails_while_one_peer_works_and_nothing_is_left_behind() {
    let length = Duration::from_secs(setting("DIESEL_PEERS_TEST_SECONDS").unwrap_or(12));
    let seed =
        setting("DIESEL_PEERS_TEST_SEED").unwrap_or_else(|| rand::make_rng::<SmallRng>().random());
    println!("DIESEL_PEERS_TEST_SEED={seed}");

    let mut servers = <MariaDb as Backend>::start(SERVERS);
    let urls: Vec<String> = servers.iter().map(MariaDb::url).collect();
    let before = descriptors();
    let builder = manager_over(&servers)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(1))
        .rebalance_interval(Duration::from_millis(20))
        .rng_seed(seed);
    let (pool, peers) = pool_of::<MysqlConnection>(builder, CONNECTIONS);
    fill(&pool, &peers, &[4; SERVERS]);
    let full = descriptors();

    let (spared, ended) = (Spared::new(0), AtomicBool::new(false));
    let seen = Load::run(&pool, THREADS, "DO SLEEP(0.001)", |load| {
        thread::scope(|scope| {
            let _end = EndsThreads(&ended);
            for operator in 0..OPERATORS {
                let (peers, urls, spared, ended) = (&peers, &urls, &spared, &ended);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed.wrapping_add(1 + operator));
                    while !ended.load(Ordering::Relaxed) {
                        operate(peers, urls, spared, &mut rng);
                        thread::sleep(Duration::from_millis(rng.random_range(0..20)));
                    }
                });
            }
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut broken = BTreeMap::new();
            let start = Instant::now();
            for phase in 0.. {
                {
                    let next = phase % SERVERS;
                    let spared = &mut *spared.write().unwrap_or_else(PoisonError::into_inner);
                    restore(&peers, &mut servers, &mut broken, next);
                    *spared = next;
                }
                let (begin, rounds) = (Instant::now(), load.rounds());
                while begin.elapsed() < PHASE {
                    let at = victim(phase % SERVERS, &mut rng);
                    break_one(&mut servers, &mut broken, at, rng.random());
                    thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
                }
                wait_until("every thread finishes a query", PATIENCE, || {
                    load.all_came_back(&rounds, 1)
                });
                if start.elapsed() >= length {
                    break;
                }
            }
            ended.store(true, Ordering::Relaxed);
            let _all = spared.write().unwrap_or_else(PoisonError::into_inner);
            for at in 0..SERVERS {
                restore(&peers, &mut servers, &mut broken, at);
            }
            wait_until("every peer has its share again", PATIENCE, || {
                let mut links = links(&peers);
                links.sort_unstable();
                links == [4; SERVERS]
            });
        });
    });
    println!("{:?} served, {} queries failed", seen.served, seen.failed.len());
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");

    let sessions = |servers: &[MariaDb]| servers.iter().map(MariaDb::sessions).collect::<Vec<_>>();
    // A check may be under way, which has a session too.
    wait_until("the servers have only the pool's sessions", PATIENCE, || {
        sessions(&servers) == [4; SERVERS]
    });
    wait_until("no more descriptors are open than before the load", PATIENCE, || {
        descriptors() <= full
    });
    let logs_in = |thread: &String| thread.starts_with("peers-dial");
    wait_until("no login thread is left", PATIENCE, || !our_threads().iter().any(logs_in));
    drop(pool);
    wait_until("no thread is left", PATIENCE, || our_threads().is_empty());
    wait_until("no session is left", PATIENCE, || sessions(&servers) == [0; SERVERS]);
    wait_until("all descriptors of the pool are closed", PATIENCE, || descriptors() <= before);
}
