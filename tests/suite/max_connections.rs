//! `max_connections`: no peer gets more connections than its limit, logins in progress included, whatever fails.

#![allow(clippy::disallowed_methods, reason = "the tests wait for a time")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use diesel::r2d2::Pool;
use diesel_peers::{Balance, PeerManager, Peers};
use scheduled_thread_pool::ScheduledThreadPool;
use support::backend::{PATIENCE, SOON, build, links, pool_of, state, status};
use support::scripted::{ScriptedConnection, Servers};
use support::{wait_until, within};

/// How often an event of this kind has happened to the peer.
fn count(peers: &Peers, peer: &str, kind: &str) -> usize {
    let events = peers.snapshot().events;
    events.iter().filter(|event| event.peer == peer && event.kind.as_str() == kind).count()
}

/// Asserts that the pool lends this many connections at the same time, and no more.
fn assert_lends(pool: &Pool<PeerManager<ScriptedConnection>>, expected: usize) {
    let held: Vec<_> = (0..expected).map(|_| pool.get().expect("so many are there")).collect();
    let error = pool.get_timeout(SOON).map(drop).expect_err("no more are there").to_string();
    drop(held);
    assert!(error.contains("timed out"), "{error}");
}

#[cfg(all(target_os = "linux", feature = "mysql"))]
mod mariadb {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use diesel::connection::SimpleConnection;
    use diesel_peers::{CloseReason, EventKind, PeerState};
    use support::backend::{Backend, fill, manager_over};
    use support::mariadb::MariaDb;

    use super::*;

    /// The timeout of the pool.
    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn two_of_three_peers_fail_and_the_third_gets_no_more_than_its_limit() {
        let mut servers = <MariaDb as Backend>::start(3);
        let builder = manager_over(&servers).check_interval(SOON).pool_timeout(TIMEOUT);
        let manager = build(builder.max_connections(4));
        let peers = manager.peers();
        let builder = Pool::builder().max_size(9).connection_timeout(TIMEOUT);
        let pool = builder.build(manager).expect("the servers are running");
        fill(&pool, &peers, &[3, 3, 3]);

        let (done, most) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let last = servers.pop().expect("there are three");
            let (done, most) = (&done, &most);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    most.fetch_max(last.sessions(), Ordering::Relaxed);
                }
                drop(last);
            });
            let end = EndsAtDrop(done);
            servers.iter_mut().for_each(Backend::kill);
            wait_until("the third peer has as many as it may have", PATIENCE, || {
                drop(pool.get());
                links(&peers)[2] == 4
            });
            let mut held: Vec<_> =
                (0..4).map(|_| pool.get().expect("four connections are left")).collect();
            for conn in &mut held {
                assert_eq!(conn.peer(), "peer2");
                conn.batch_execute("SELECT 1").expect("the third peer works");
            }
            for _ in 0..2 {
                let began = Instant::now();
                let error = pool.get().map(drop).expect_err("all four are in use").to_string();
                assert!(began.elapsed() < TIMEOUT * 2, "after {:?}", began.elapsed());
                assert!(error.contains("max_connections (4)"), "{error}");
            }
            // One is returned.
            thread::scope(|scope| {
                let waiting = scope.spawn(|| pool.get().map(drop));
                thread::sleep(SOON);
                held.pop();
                assert!(waiting.join().expect("no panic").is_ok(), "a returned connection is lent");
            });
            let status = status(&peers, "peer2");
            assert_eq!((status.max_connections, status.is_at_limit), (Some(4), true));
            assert_eq!(count(&peers, "peer2", "at_limit"), 1, "one event for the episode");
            assert_eq!(count(&peers, "peer2", "below_limit"), 0);

            servers.iter_mut().for_each(Backend::restart);
            wait_until("both are up", PATIENCE, || {
                ["peer0", "peer1"].iter().all(|peer| state(&peers, peer) == PeerState::Up)
            });
            let full = within(Duration::from_secs(5), || {
                drop(pool.try_get());
                pool.state().connections == 9 && links(&peers).iter().sum::<usize>() == 9
            });
            assert!(full, "the pool has all connections again: {}", peers.snapshot());
            drop(held);
            fill(&pool, &peers, &[3, 3, 3]);
            wait_until("the episode ends", PATIENCE, || !status_of(&peers));
            assert_eq!(count(&peers, "peer2", "at_limit"), 1, "one event for the episode");
            assert_eq!(count(&peers, "peer2", "below_limit"), 1, "one event for its end");
            drop(end);
        });
        let most = most.load(Ordering::Relaxed);
        // A check has a session for a moment, and is not counted as a connection.
        assert!((4..=5).contains(&most), "four connections, and at most one check: {most}");
    }

    fn status_of(peers: &Peers) -> bool {
        status(peers, "peer2").is_at_limit
    }

    struct EndsAtDrop<'a>(&'a AtomicBool);

    impl Drop for EndsAtDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn lower_limit_closes_idle_connections_at_once_and_others_when_they_come_back() {
        for balance in [Balance::PerCheckout, Balance::PerConnection] {
            let servers = <MariaDb as Backend>::start(1);
            let closed = Arc::new(AtomicUsize::new(0));
            let counter = closed.clone();
            let builder = manager_over(&servers).balance(balance).event_handler(move |event| {
                let is_over = matches!(
                    event.kind,
                    EventKind::ConnectionClosed { reason: CloseReason::OverLimit, .. }
                );
                counter.fetch_add(usize::from(is_over), Ordering::Relaxed);
            });
            let (pool, peers) = pool_of(builder, 6);
            fill(&pool, &peers, &[6]);
            let mut held: Vec<_> = (0..4).map(|_| pool.get().expect("the server runs")).collect();
            peers.set_max_connections("peer0", Some(2)).expect("the peer exists");
            if balance == Balance::PerCheckout {
                wait_until("the idle ones are closed", PATIENCE, || servers[0].sessions() == 4);
            }
            for conn in &mut held {
                conn.batch_execute("SELECT 1").expect("a connection in use stays");
            }
            drop(held);
            wait_until("the others are closed", PATIENCE, || {
                if balance == Balance::PerConnection {
                    let all: Vec<_> = (0..6).map_while(|_| pool.try_get()).collect();
                    drop(all);
                }
                servers[0].sessions() == 2
            });
            let held: Vec<_> = (0..2).map(|_| pool.get().expect("two are left")).collect();
            drop(held);
            wait_until("the reason is reported", PATIENCE, || closed.load(Ordering::Relaxed) >= 2);

            peers.set_max_connections("peer0", None).expect("the peer exists");
            wait_until("the pool is full again", PATIENCE, || {
                let all: Vec<_> = (0..6).map_while(|_| pool.get().ok()).collect();
                all.len() == 6 && servers[0].sessions() == 6
            });
        }
    }

    #[test]
    fn connections_that_are_too_old_are_replaced_where_every_peer_is_at_its_limit() {
        for balance in [Balance::PerCheckout, Balance::PerConnection] {
            let servers = <MariaDb as Backend>::start(2);
            let age = Duration::from_secs(1);
            let builder = manager_over(&servers).balance(balance).connection_max_age(age);
            let (pool, peers) = pool_of(builder.max_connections(2), 4);
            fill(&pool, &peers, &[2, 2]);
            let opened = || peers.snapshot().peers.iter().map(|peer| peer.connects).sum::<u64>();
            let before = opened();
            wait_until("each connection is replaced", PATIENCE, || {
                drop(pool.get().expect("a server runs"));
                thread::sleep(Duration::from_millis(5));
                opened() >= before + 6
            });
            assert_eq!(count(&peers, "peer0", "at_limit"), 0, "the pool lacks no connection");
            assert_eq!(count(&peers, "peer1", "at_limit"), 0, "the pool lacks no connection");
        }
    }
}

/// Hedged logins, replacements and spares: whatever happens, the limit holds.
#[test]
fn limit_holds_while_peers_come_and_go() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        let servers = Servers::start(3);
        let builder = servers.builder().balance(balance).max_connections(4);
        let builder = builder
            .peer_max_connections("peer1", 2)
            .check_interval(SOON / 4)
            .all_down_interval(SOON / 10)
            .rebalance_interval(Duration::from_millis(1))
            .connection_max_age(SOON);
        let (pool, peers) = pool_of(builder, 9);
        wait_until("the pool is full", PATIENCE, || links(&peers).iter().sum::<usize>() == 9);
        for round in 0..12 {
            let server = &servers[round % 3];
            server.crash();
            let until = Instant::now() + SOON;
            while Instant::now() < until {
                drop((0..9).map_while(|_| pool.try_get()).collect::<Vec<_>>());
                thread::sleep(Duration::from_millis(1));
            }
            server.accept(true);
        }
        // One more session each is the check's, and another one a check of the stall detection's.
        let most: Vec<_> = servers.iter().map(|server| server.most_open()).collect();
        assert!(most[0] <= 6 && most[1] <= 4 && most[2] <= 6, "{balance:?}: {most:?}");
        wait_until("the pool is full again", PATIENCE, || {
            drop(pool.try_get());
            links(&peers).iter().sum::<usize>() == 9
        });
    }
}

/// The logins are held: they are in progress until the test ends.
#[test]
fn logins_in_progress_count_while_all_peers_are_down() {
    let servers = Servers::start(1);
    let builder = servers.builder().max_connections(1).check_interval(Duration::from_secs(60));
    let (pool, peers) = pool_of(builder.all_down_interval(Duration::from_secs(60)), 4);
    wait_until("one connection is open", PATIENCE, || links(&peers) == [1]);
    servers[0].crash();
    drop(pool.get_timeout(SOON));
    wait_until("the peer is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    servers[0].hold_logins(true);
    let before = servers[0].logins();
    drop(pool.get_timeout(Duration::from_secs(1)));
    drop(pool.get_timeout(Duration::from_secs(1)));
    let logins = servers[0].logins() - before;
    servers[0].hold_logins(false);
    // One is a check that the loss has caused.
    assert!(logins <= 2, "{logins} logins at a time");
}

#[test]
fn worker_of_a_shared_thread_pool_is_not_held() {
    let workers = Arc::new(ScheduledThreadPool::new(1));
    let servers = Servers::start(1);
    let manager = build(servers.builder().max_connections(1));
    let short = Pool::builder().max_size(3).thread_pool(workers.clone()).build_unchecked(manager);
    let held = short.get().expect("one connection is allowed");
    // Until then the pool has tried several times. r2d2's first delay is 400 ms.
    thread::sleep(Duration::from_secs(1));
    let others = Servers::start(1);
    let manager = build(others.builder());
    let pool = Pool::builder().max_size(1).thread_pool(workers).build_unchecked(manager);
    pool.get_timeout(Duration::from_secs(1)).expect("the worker is free");
    drop(held);
}

/// A tier that has reached its limit still serves.
#[test]
fn next_tier_does_not_get_what_the_limits_of_a_tier_keep_out() {
    let servers = Servers::start(2);
    let builder = servers.builder().strategy(diesel_peers::Strategy::Ordered).tier("peer1", 1);
    let (pool, peers) = pool_of(builder.max_connections(2), 4);
    wait_until("the first tier is full", PATIENCE, || links(&peers) == [2, 0]);
    assert_lends(&pool, 2);
    assert_eq!(links(&peers), [2, 0]);
    servers[0].crash();
    wait_until("the next tier serves", PATIENCE, || {
        drop(pool.get_timeout(SOON));
        links(&peers)[1] == 2
    });
}

/// The workers that wait for room keep their pool alive, and let it go in time.
#[test]
fn pool_that_lacks_room_ends_when_it_is_dropped() {
    let servers = Servers::start(1);
    let builder = servers.builder().max_connections(1).connect_timeout(Duration::from_secs(1));
    let manager = build(builder.connect_deadline(Duration::from_secs(1)));
    let peers = manager.peers();
    // There is always a slot that r2d2 has a worker try next.
    let builder = Pool::builder().max_size(32).connection_timeout(SOON);
    let pool = builder.build_unchecked(manager);
    wait_until("the pool lacks connections", PATIENCE, || status(&peers, "peer0").is_at_limit);
    thread::sleep(Duration::from_secs(2));
    drop(pool);
    wait_until("the pool has ended", Duration::from_secs(10), || peers.snapshot().closed);
}
