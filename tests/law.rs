//! Random checkouts, failures, reaping and an operator's doings, in every order in which r2d2 may bring them about,
//! against a model that is trivial: a slot lives or it does not. The exchange itself asserts its
//! law after every move in builds with debug assertions, as test builds are.
//!
//! `DIESEL_PEERS_TEST_SECONDS` says for how long (5 by default), `DIESEL_PEERS_TEST_SEED` with which
//! seed; a failure prints its own.

#![allow(clippy::disallowed_methods, reason = "the test's length is measured by the clock")]

use std::env;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::{
    AnsiTransactionManager, Connection, SimpleConnection, TransactionManager,
};
use diesel::r2d2::ManageConnection;
use diesel_peers::{Balance, PeerConfig, PeerConnection, PeerManager, Strategy};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::backend::manager_of;
use support::scripted::{ScriptedConnection, Server};

const SERVERS: usize = 3;
const MOST_SLOTS: usize = 12;

/// A pool as r2d2 is one, without its threads: what it does next is chosen by the test.
struct Model {
    manager: PeerManager<ScriptedConnection>,
    servers: Vec<Arc<Server>>,
    idle: Vec<PeerConnection<ScriptedConnection>>,
    out: Vec<PeerConnection<ScriptedConnection>>,
    /// Slots that were forgotten with a link in hand: it is never closed.
    forgotten: usize,
    /// Whether peers were removed.
    removes: bool,
    is_tested: bool,
    touches: bool,
}

impl Model {
    fn new(rng: &mut SmallRng) -> Self {
        let servers = Servers::start(SERVERS);
        let strategies =
            [Strategy::LeastConnections, Strategy::Random, Strategy::RoundRobin, Strategy::Ordered];
        let age = Duration::from_micros(rng.random_range(1000..200_000));
        let balance =
            if rng.random_ratio(1, 5) { Balance::PerConnection } else { Balance::PerCheckout };
        let manager = manager_of(servers.iter().map(|server| server.url()))
            .rng_seed(rng.random())
            .strategy(strategies[rng.random_range(0..4)])
            .weight("peer1", rng.random_range(0..3))
            .tier("peer2", rng.random_range(0..2))
            .balance(balance)
            .connection_max_age(age)
            .rebalance_interval(Duration::from_micros(rng.random_range(0..2000)))
            .check_interval(Duration::from_millis(rng.random_range(10..30)))
            .all_down_wait(Duration::ZERO)
            .build()
            .expect("the settings are right");
        Self {
            manager,
            servers,
            idle: Vec::new(),
            out: Vec::new(),
            forgotten: 0,
            removes: false,
            is_tested: rng.random_ratio(3, 4),
            touches: rng.random_ratio(1, 3),
        }
    }

    fn step(&mut self, rng: &mut SmallRng) {
        match rng.random_range(0..100) {
            0..20 => self.connect(),
            20..55 => self.check_out(),
            55..85 => self.check_in(rng),
            85..90 => self.reap(rng),
            90..92 => self.forget(rng),
            92..94 => self.servers[rng.random_range(0..SERVERS)].crash(),
            94..95 => self.servers[rng.random_range(0..SERVERS)].cut_off(),
            95..97 => self.servers[rng.random_range(0..SERVERS)].accept(true),
            _ => self.operate(rng),
        }
    }

    /// What an operator does. What cannot be done is an error, and changes nothing.
    fn operate(&mut self, rng: &mut SmallRng) {
        let peers = self.manager.peers();
        let at = rng.random_range(0..SERVERS);
        let name = format!("peer{at}");
        let config = |at: usize| PeerConfig::new(format!("peer{at}"), self.servers[at].url());
        let _ = match rng.random_range(0..8) {
            0 => peers.drain(&name).map(drop),
            1 | 2 => peers.resume(&name),
            3 => {
                self.removes = true;
                peers.remove(&name).map(drop)
            }
            4 | 5 => peers.add(config(at)),
            6 => peers.set_weight(&name, rng.random_range(0..3)),
            _ => {
                self.removes = true;
                // Another URL by the same name is another peer.
                let other = PeerConfig::new("peer0", self.servers[at].url());
                let rest = (1..SERVERS).map(config).filter(|_| rng.random());
                peers.replace([other].into_iter().chain(rest))
            }
        };
    }

    fn connect(&mut self) {
        if self.idle.len() + self.out.len() == MOST_SLOTS {
            return;
        }
        if let Ok(mut slot) = self.manager.connect() {
            if self.touches {
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
                self.out.push(slot);
            }
        }
    }

    /// The application works with a connection, or not, and gives it back, or panics.
    fn check_in(&mut self, rng: &mut SmallRng) {
        if self.out.is_empty() {
            return;
        }
        let at = rng.random_range(0..self.out.len());
        let mut slot = self.out.swap_remove(at);
        match rng.random_range(0..20) {
            0..10 => {
                let _ = slot.batch_execute("a query");
            }
            10 => {
                // A transaction is left open.
                let _ = AnsiTransactionManager::begin_transaction(&mut *slot);
            }
            11 => {
                // diesel panics when one is begun inside another.
                let status = AnsiTransactionManager::transaction_manager_status_mut(&mut *slot);
                if let Ok(None) = status.transaction_depth() {
                    let _ = slot.begin_test_transaction();
                }
            }
            12 => {
                let manager = &self.manager;
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    /// As r2d2's guard: it gives the slot back while the thread panics.
                    struct Guard<'a>(
                        &'a PeerManager<ScriptedConnection>,
                        PeerConnection<ScriptedConnection>,
                    );
                    impl Drop for Guard<'_> {
                        fn drop(&mut self) {
                            assert!(self.0.has_broken(&mut self.1), "its thread panics");
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

    /// r2d2's reaper takes idle slots, wherever they are in the stack.
    fn reap(&mut self, rng: &mut SmallRng) {
        if !self.idle.is_empty() {
            let at = rng.random_range(0..self.idle.len());
            let slot = self.idle.swap_remove(at);
            if rng.random() { on_release(slot) } else { drop(slot) }
        }
    }

    fn forget(&mut self, rng: &mut SmallRng) {
        if !self.out.is_empty() && rng.random_ratio(1, 4) {
            let mut slot = self.out.swap_remove(0);
            let _ = slot.batch_execute("a query");
            mem::forget(slot);
            self.forgotten += 1;
        }
    }

    /// The whole model: there are as many links as there are slots.
    fn check(&self) {
        let slots = self.idle.len() + self.out.len() + self.forgotten;
        let snapshot = self.manager.peers().snapshot();
        let links: usize = snapshot.peers.iter().map(|peer| peer.connections).sum();
        // A peer that was removed may have links left whose sessions have ended.
        assert!(links == slots || self.removes && links < slots, "{links} links, {slots} slots");
        let in_use: usize = snapshot.peers.iter().map(|peer| peer.in_use).sum();
        assert!(in_use <= self.out.len() + self.idle.len() + self.forgotten, "{in_use} in use");
    }

    fn end(mut self) {
        let Self { forgotten, removes, .. } = self;
        let peers = self.manager.peers();
        // As r2d2 does when its pool is dropped: the manager first.
        drop(self.manager);
        self.idle.clear();
        self.out.clear();
        let links: usize = peers.snapshot().peers.iter().map(|peer| peer.connections).sum();
        let is_right = links == forgotten || removes && links < forgotten;
        assert!(is_right, "no link outlives its pool: {links}, {forgotten} forgotten");
        let in_use: usize = peers.snapshot().peers.iter().map(|peer| peer.in_use).sum();
        assert!(in_use <= forgotten, "nothing else is in use");
    }
}

/// A customizer's `on_release` may run SQL on whatever it gets.
fn on_release(mut slot: PeerConnection<ScriptedConnection>) {
    let _ = slot.batch_execute("SET goodbye");
    assert!(slot.peer().starts_with("peer"));
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

#[test]
fn there_are_always_as_many_links_as_slots() {
    let seconds = Duration::from_secs(setting("DIESEL_PEERS_TEST_SECONDS").unwrap_or(5));
    let given = setting("DIESEL_PEERS_TEST_SEED");
    let start = Instant::now();
    let mut steps = 0_u64;
    loop {
        let seed = given.unwrap_or_else(|| rand::make_rng::<SmallRng>().random());
        let story = catch_unwind(|| {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut model = Model::new(&mut rng);
            for _ in 0..2000 {
                model.step(&mut rng);
                model.check();
            }
            model.end();
        });
        assert!(story.is_ok(), "it failed with DIESEL_PEERS_TEST_SEED={seed}");
        steps += 2000;
        if start.elapsed() >= seconds {
            println!("{steps} steps");
            return;
        }
    }
}
