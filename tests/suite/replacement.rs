//! Connections that the pool gives up by its own decision: too old, one too many of a peer, or to a peer that
//! is drained or down. A new connection is there first. r2d2 is not told of a broken connection: it would open
//! no other while it has `min_idle` of them, and would wake no thread that waits.

#![allow(clippy::disallowed_methods, reason = "the tests wait for a time")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::event::{HandleEvent, ReleaseEvent};
use diesel::r2d2::{ConnectionManager, ManageConnection, Pool};
use diesel_peers::{Balance, CloseReason, EventKind, PeerState};
use support::backend::{PATIENCE, SOON, build, links, pool_of, state};
use support::scripted::{ScriptedConnection, Servers};
use support::wait_until;

/// Creates a pool that opens connections only when a thread asks for one.
fn pool_without_idle<M: ManageConnection>(manager: M, max_size: u32) -> Pool<M> {
    Pool::builder()
        .max_size(max_size)
        .min_idle(Some(0))
        .connection_timeout(Duration::from_secs(5))
        .build(manager)
        .expect("the servers are running")
}

/// Has a thread wait for a connection of a pool that has no other, runs `meanwhile`, and returns the
/// connection to the pool. Asserts that the thread gets one.
fn assert_waiting_thread_is_served<M: ManageConnection>(
    what: &str,
    pool: &Pool<M>,
    meanwhile: impl FnOnce(),
) {
    let held: Vec<_> = (0..pool.max_size()).map(|_| pool.get().expect("a server runs")).collect();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.get().map(drop));
        wait_until("the thread waits", PATIENCE, || pool.state().idle_connections == 0);
        thread::sleep(SOON);
        meanwhile();
        drop(held);
        let served = waiting.join().expect("the thread does not panic");
        assert!(served.is_ok(), "{what}: {served:?}");
    });
}

#[test]
fn thread_that_waits_gets_a_connection_whatever_happens_to_the_one_that_comes_back() {
    let servers = Servers::start(2);
    let own = ConnectionManager::<ScriptedConnection>::new(servers[0].url());
    assert_waiting_thread_is_served("diesel's own", &pool_without_idle(own, 1), || {});

    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        let builder = servers.builder().balance(balance).connection_max_age(SOON);
        let pool = pool_without_idle(build(builder), 1);
        assert_waiting_thread_is_served("too old", &pool, || thread::sleep(2 * SOON));
    }

    let manager = build(servers.builder());
    let peers = manager.peers();
    let pool = pool_without_idle(manager, 1);
    assert_waiting_thread_is_served("drained", &pool, || {
        let used = peers.snapshot().peers.into_iter().find(|peer| peer.connections > 0);
        let drain = peers.drain(&used.expect("one connection is open").name).expect("it exists");
        assert!(!drain.wait(SOON), "the connection is in use");
    });

    servers[1].accept(false);
    let manager = build(servers.builder().check_interval(SOON));
    let peers = manager.peers();
    let pool = pool_without_idle(manager, 2);
    assert_waiting_thread_is_served("one too many", &pool, || {
        assert_eq!(links(&peers), [2, 0], "peer1 is down");
        servers[1].accept(true);
        wait_until("peer1 is up", PATIENCE, || state(&peers, "peer1") == PeerState::Up);
    });
}

/// Counts the slots that r2d2 closes.
#[derive(Debug, Default, Clone)]
struct Released(Arc<AtomicUsize>);

impl HandleEvent for Released {
    fn handle_release(&self, _: ReleaseEvent) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn connections_move_without_a_closed_slot_and_without_a_gap() {
    let servers = Servers::start(3);
    let released = Released::default();
    let closed = Arc::new(Mutex::new(Vec::new()));
    let recorder = closed.clone();
    let builder = servers.builder().check_interval(SOON).rebalance_interval(SOON / 10);
    let manager = build(builder.event_handler(move |event| {
        if let EventKind::ConnectionClosed { reason, .. } = event.kind {
            recorder.lock().expect("no thread has panicked").push((event.peer.clone(), reason));
        }
    }));
    let peers = manager.peers();
    let builder = Pool::builder().max_size(9).event_handler(Box::new(released.clone()));
    let pool = builder.build(manager).expect("the servers are running");
    let use_until = |what: &str, is_spread: &dyn Fn(&[usize]) -> bool| {
        wait_until(what, PATIENCE, || {
            let mut all: Vec<_> = (0..9).map_while(|_| pool.try_get()).collect();
            assert_eq!(all.len(), 9, "{what}: each slot has a connection at all times");
            for conn in &mut all {
                conn.batch_execute("a query").expect("the connection works");
            }
            drop(all);
            is_spread(&links(&peers))
        });
    };
    use_until("the pool is full", &|links| links == [3, 3, 3]);
    let drain = peers.drain("peer0").expect("it exists");
    assert!(drain.wait(PATIENCE), "the drain ends");
    use_until("peer0 is drained", &|links| links[0] == 0);
    peers.resume("peer0").expect("it exists");
    use_until("peer0 is back", &|links| links == [3, 3, 3]);
    peers.set_weight("peer1", 7).expect("it exists");
    use_until("peer1 has more weight", &|links| links == [1, 7, 1]);
    peers.set_weight("peer1", 1).expect("it exists");
    use_until("peer1 has the same weight again", &|links| links == [3, 3, 3]);
    servers[2].accept(false);
    wait_until("peer2 is down", PATIENCE, || state(&peers, "peer2").is_marked_down());
    use_until("its connections are replaced", &|links| links[2] == 0);
    assert_eq!(released.0.load(Ordering::Relaxed), 0, "r2d2 has closed no slot");

    let count = |name: &str, reason| {
        let closed = closed.lock().expect("no thread has panicked");
        closed.iter().filter(|(peer, why)| peer == name && *why == reason).count()
    };
    // The handler runs on a thread of its own.
    wait_until("the last event has come", PATIENCE, || count("peer2", CloseReason::PeerDown) >= 3);
    assert_eq!(count("peer0", CloseReason::Drained), 3);
    assert_eq!(count("peer2", CloseReason::PeerDown), 3);
    assert!(count("peer1", CloseReason::Rebalanced) >= 4);
}

/// All other servers refuse logins, and their sessions work.
#[test]
fn connections_to_a_drained_peer_stay_until_another_peer_accepts_logins() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        let servers = Servers::start(2);
        let builder = servers.builder().check_interval(SOON).balance(balance);
        let (pool, peers) = pool_of(builder.all_down_interval(SOON), 4);
        let use_all = || {
            let all: Vec<_> = (0..4).map(|_| pool.get().expect("a connection works")).collect();
            assert!(all.into_iter().all(|mut conn| conn.batch_execute("a query").is_ok()));
        };
        wait_until("the pool is full", PATIENCE, || links(&peers) == [2, 2]);
        servers[1].accept(false);
        wait_until("peer1 is down", PATIENCE, || state(&peers, "peer1").is_marked_down());
        wait_until("peer0 has all connections", PATIENCE, || {
            use_all();
            links(&peers) == [4, 0]
        });
        let drain = peers.drain("peer0").expect("it exists");
        for _ in 0..10 {
            use_all();
        }
        assert!(!drain.wait(SOON), "{balance:?}: no other peer accepts logins");
        assert_eq!(links(&peers), [4, 0], "{balance:?}");
        servers[1].accept(true);
        wait_until("the connections have moved", PATIENCE, || {
            use_all();
            links(&peers) == [0, 4]
        });
        assert!(drain.wait(PATIENCE), "{balance:?}: the drain ends");
    }
}
