//! Random checkouts, failures, reaping and run-time changes, in every order in which r2d2 may cause them,
//! compared with a simple model: the number of links is the number of living slots, and of a few new links that take
//! the place of others. In builds with debug
//! assertions, and so in tests, the exchange itself asserts its invariant after every move.
//!
//! `DIESEL_PEERS_TEST_SECONDS` is the length of the test in seconds (5 by default), and
//! `DIESEL_PEERS_TEST_SEED` is the seed. A failure prints the seed of its run.

#![allow(clippy::disallowed_methods, reason = "the test's length is measured by the clock")]

use std::env;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use diesel::connection::{
    AnsiTransactionManager, Connection, SimpleConnection, TransactionManager,
};
use diesel::r2d2::ManageConnection;
use diesel_peers::{Balance, PeerConfig, PeerConnection, PeerManager, Strategy};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::backend::{PATIENCE, build};
use support::scripted::{ScriptedConnection, Servers};
use support::wait_until;

const SERVERS: usize = 3;
const MOST_SLOTS: usize = 12;
/// The number of links that take the place of others at the same time.
const MAX_NEW_LINKS: usize = 3;

/// A pool that works as r2d2's does, without threads: the test chooses each step.
struct Model {
    manager: PeerManager<ScriptedConnection>,
    servers: Servers,
    idle: Vec<PeerConnection<ScriptedConnection>>,
    in_use: Vec<PeerConnection<ScriptedConnection>>,
    /// Slots that were leaked while they held a link, which is never closed.
    leaked: usize,
    /// Whether an operator has removed peers.
    has_removed: bool,
    /// Whether the pool tests each connection at checkout.
    is_tested: bool,
    /// Whether the pool runs a statement on each new connection.
    customizes: bool,
}

impl Model {
    fn new(rng: &mut SmallRng) -> Self {
        let servers = Servers::start(SERVERS);
        let strategies =
            [Strategy::LeastConnections, Strategy::Random, Strategy::RoundRobin, Strategy::Ordered];
        let age = Duration::from_micros(rng.random_range(1000..200_000));
        let balance =
            if rng.random_ratio(1, 5) { Balance::PerConnection } else { Balance::PerCheckout };
        let builder = servers
            .builder()
            .rng_seed(rng.random())
            .strategy(strategies[rng.random_range(0..4)])
            .weight("peer1", rng.random_range(0..3))
            .tier("peer2", rng.random_range(0..2))
            .balance(balance)
            .connection_max_age(age)
            .rebalance_interval(Duration::from_micros(rng.random_range(0..2000)))
            .check_interval(Duration::from_millis(rng.random_range(10..30)))
            .all_down_wait(Duration::ZERO);
        Self {
            manager: build(builder),
            servers,
            idle: Vec::new(),
            in_use: Vec::new(),
            leaked: 0,
            has_removed: false,
            is_tested: rng.random_ratio(3, 4),
            customizes: rng.random_ratio(1, 3),
        }
    }

    fn step(&mut self, rng: &mut SmallRng) {
        match rng.random_range(0..100) {
            0..20 => self.connect(),
            20..55 => self.check_out(),
            55..85 => self.check_in(rng),
            85..90 => self.reap(rng),
            90..92 => self.leak(rng),
            92..94 => self.servers[rng.random_range(0..SERVERS)].crash(),
            94..95 => self.servers[rng.random_range(0..SERVERS)].cut_off(),
            95..97 => self.servers[rng.random_range(0..SERVERS)].accept(true),
            _ => self.change_peers(rng),
        }
    }

    /// A change by an operator. An impossible change is an error and has no effect.
    fn change_peers(&mut self, rng: &mut SmallRng) {
        let peers = self.manager.peers();
        let at = rng.random_range(0..SERVERS);
        let name = format!("peer{at}");
        let config = |at: usize| PeerConfig::new(format!("peer{at}"), self.servers[at].url());
        let _ = match rng.random_range(0..9) {
            0 => peers.drain(&name).map(drop),
            1 | 2 => peers.resume(&name),
            3 => {
                self.has_removed = true;
                peers.remove(&name).map(drop)
            }
            4 | 5 => peers.add(config(at)),
            6 => peers.set_weight(&name, rng.random_range(0..3)),
            7 => {
                let limit = rng.random_range(0..8);
                peers.set_max_connections(&name, (limit < 6).then_some(limit))
            }
            _ => {
                self.has_removed = true;
                // The same name with another URL is another peer.
                let other = PeerConfig::new("peer0", self.servers[at].url());
                let rest = (1..SERVERS).map(config).filter(|_| rng.random());
                peers.replace([other].into_iter().chain(rest))
            }
        };
    }

    fn connect(&mut self) {
        if self.idle.len() + self.in_use.len() == MOST_SLOTS {
            return;
        }
        if let Ok(mut slot) = self.manager.connect() {
            if self.customizes {
                let _ = slot.batch_execute("SET something");
            }
            self.idle.push(slot);
        }
    }

    fn check_out(&mut self) {
        if let Some(mut slot) = self.idle.pop() {
            if self.is_tested && self.manager.is_valid(&mut slot).is_err() {
                on_release(slot);
            } else {
                self.in_use.push(slot);
            }
        }
    }

    /// The application uses a connection, or not, and checks it in, or panics.
    fn check_in(&mut self, rng: &mut SmallRng) {
        if self.in_use.is_empty() {
            return;
        }
        let at = rng.random_range(0..self.in_use.len());
        let mut slot = self.in_use.swap_remove(at);
        match rng.random_range(0..20) {
            0..10 => {
                let _ = slot.batch_execute("a query");
            }
            10 => {
                // A transaction is left open.
                let _ = AnsiTransactionManager::begin_transaction(&mut *slot);
            }
            11 => {
                // diesel panics if a test transaction is begun inside a transaction.
                let status = AnsiTransactionManager::transaction_manager_status_mut(&mut *slot);
                if let Ok(None) = status.transaction_depth() {
                    let _ = slot.begin_test_transaction();
                }
            }
            12 => {
                let manager = &self.manager;
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    /// Checks the slot in while the thread panics, as r2d2's guard does.
                    struct Guard<'a>(
                        &'a PeerManager<ScriptedConnection>,
                        PeerConnection<ScriptedConnection>,
                    );
                    impl Drop for Guard<'_> {
                        fn drop(&mut self) {
                            assert!(
                                self.0.has_broken(&mut self.1),
                                "a connection of a panicking thread is broken"
                            );
                        }
                    }
                    let _guard = Guard(manager, slot);
                    std::panic::resume_unwind(Box::new("the application panics"));
                }));
                assert!(unwound.is_err());
                return;
            }
            _ => {}
        }
        if self.manager.has_broken(&mut slot) {
            on_release(slot);
        } else {
            self.idle.push(slot);
        }
    }

    /// r2d2's reaper closes idle slots anywhere in the stack.
    fn reap(&mut self, rng: &mut SmallRng) {
        if !self.idle.is_empty() {
            let at = rng.random_range(0..self.idle.len());
            let slot = self.idle.swap_remove(at);
            if rng.random() { on_release(slot) } else { drop(slot) }
        }
    }

    fn leak(&mut self, rng: &mut SmallRng) {
        if !self.in_use.is_empty() && rng.random_ratio(1, 4) {
            let mut slot = self.in_use.swap_remove(0);
            let _ = slot.batch_execute("a query");
            mem::forget(slot);
            self.leaked += 1;
        }
    }

    /// Compares the pool with the model.
    fn check(&self) {
        let slots = self.idle.len() + self.in_use.len() + self.leaked;
        let snapshot = self.manager.peers().snapshot();
        let links: usize = snapshot.peers.iter().map(|peer| peer.connections).sum();
        // A removed peer is not in the snapshot, but may have links left whose sessions have ended. A link
        // that takes the place of one to a peer that is down exists before that one is closed.
        assert!(links >= slots || self.has_removed, "{links} links, {slots} slots");
        assert!(links <= slots + MAX_NEW_LINKS, "{links} links, {slots} slots");
        let in_use: usize = snapshot.peers.iter().map(|peer| peer.in_use).sum();
        assert!(in_use <= slots, "{in_use} links in use, {slots} slots");
    }

    fn end(mut self) {
        let Self { leaked, has_removed, .. } = self;
        let peers = self.manager.peers();
        // r2d2's pool drops its manager first.
        drop(self.manager);
        self.idle.clear();
        self.in_use.clear();
        let links = || peers.snapshot().peers.iter().map(|peer| peer.connections).sum::<usize>();
        // A login that has just succeeded has no pool any more, and is closed by its thread.
        wait_until("no link outlives its pool", PATIENCE, || {
            links() == leaked || has_removed && links() < leaked
        });
        let in_use: usize = peers.snapshot().peers.iter().map(|peer| peer.in_use).sum();
        assert!(in_use <= leaked, "only leaked links are in use");
    }
}

/// A customizer's `on_release`, which may run SQL on each slot that r2d2 passes to it.
fn on_release(mut slot: PeerConnection<ScriptedConnection>) {
    let _ = slot.batch_execute("SET released");
    assert!(slot.peer().starts_with("peer"));
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

#[test]
fn exchange_always_has_as_many_links_as_the_pool_has_slots() {
    let seconds = Duration::from_secs(setting("DIESEL_PEERS_TEST_SECONDS").unwrap_or(5));
    let fixed_seed = setting("DIESEL_PEERS_TEST_SEED");
    let start = Instant::now();
    let mut steps = 0_u64;
    loop {
        let seed = fixed_seed.unwrap_or_else(|| rand::make_rng::<SmallRng>().random());
        let run = catch_unwind(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut model = Model::new(&mut rng);
            for _ in 0..2000 {
                model.step(&mut rng);
                model.check();
            }
            model.end();
        });
        assert!(run.is_ok(), "the run failed with DIESEL_PEERS_TEST_SEED={seed}");
        steps += 2000;
        if start.elapsed() >= seconds {
            println!("{steps} steps");
            return;
        }
    }
}
