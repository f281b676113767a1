//! One line for each change of state, outside every lock; and a logger that panics breaks nothing.
//! In a file of its own, as the logger is the whole process's.

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel_peers::{PeerState, Peers};
use log::{Level, LevelFilter, Log, Metadata, Record};
use support::backend::{PATIENCE, SOON, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

static LINES: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());
static PEERS: Mutex<Option<Peers>> = Mutex::new(None);
static PANICS: AtomicBool = AtomicBool::new(false);

/// A logger as an application might have one: it looks at the peers while it is at it.
struct Curious;

impl Log for Curious {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("diesel_peers")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let peers = PEERS.lock().unwrap().clone();
            drop(peers.map(|peers| peers.snapshot()));
            LINES.lock().unwrap().push((record.level(), record.args().to_string()));
            assert!(!PANICS.load(Ordering::SeqCst), "this logger panics");
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_line_for_each_change() {
    log::set_logger(&Curious).expect("this process has no other");
    log::set_max_level(LevelFilter::Trace);
    let server = Server::start();
    let builder = manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 2);
    *PEERS.lock().unwrap() = Some(peers.clone());
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);

    for panics in [false, true] {
        PANICS.store(panics, Ordering::SeqCst);
        LINES.lock().unwrap().clear();
        server.crash();
        wait_until("it is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        let failures = || peers.snapshot().peers[0].failures;
        let so_far = failures();
        wait_until("it fails again", PATIENCE, || failures() >= so_far + 3);
        server.accept(true);
        wait_until("it is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("it serves", PATIENCE, || pool.get().is_ok());
        wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);

        let lines = LINES.lock().unwrap().clone();
        let [(down_level, down), (up_level, up)] = &lines[..] else {
            panic!("one line down, one up: {lines:?}");
        };
        assert_eq!((*down_level, *up_level), (Level::Warn, Level::Info));
        assert!(down.starts_with("peer peer0 is down: refused by "), "{down}");
        assert!(up.starts_with("peer peer0 is up after "), "{up}");
    }
}
