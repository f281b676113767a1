//! A peer to which logins fail is marked down and gets no connections; it comes back after the interval.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::r2d2::{ManageConnection, Pool};
use diesel_peers::{AllDown, Failure, Fault, PeerState, Recovery};
use support::backend::{
    Backend, PATIENCE, SOON, build, fill, links, manager_over, pool_of, state, status,
};
use support::scripted::Servers;
use support::{wait_until, within};

support::on_every_backend!(
    peer_that_is_down_at_the_start_gets_no_query,
    error_has_the_reason_of_each_peer_when_all_are_down,
    recovered_peer_gets_its_share_after_a_check,
    pool_is_filled_from_the_only_recovered_peer,
);

fn peer_that_is_down_at_the_start_gets_no_query<B: Backend>() {
    let mut servers = B::start(3);
    servers[1].kill();
    let (pool, peers) = pool_of(manager_over(&servers), 6);
    fill(&pool, &peers, &[3, 0, 3]);
    let down = status(&peers, "peer1");
    assert_eq!(down.state, PeerState::Down, "the killed peer is marked down");
    assert!(down.reason.is_some_and(|reason| !reason.is_empty()), "the status has a reason");
    assert!(down.connect_failures >= 1 && down.connects == 0, "failed logins are counted");
    for _ in 0..20 {
        let mut conn = pool.get().expect("two peers are up");
        conn.batch_execute("SELECT 1").expect("the peer is up");
        assert_ne!(conn.peer(), "peer1", "no query goes to the peer that is down");
    }
}

fn error_has_the_reason_of_each_peer_when_all_are_down<B: Backend>() {
    let mut servers = B::start(2);
    servers.iter_mut().for_each(Backend::kill);
    let manager = build(manager_over(&servers));
    let peers = manager.peers();
    let error = Pool::builder()
        .max_size(2)
        .connection_timeout(Duration::from_secs(2))
        .build(manager)
        .expect_err("all peers are down");
    let error = error.to_string();
    for expected in ["peer0: ", "peer1: ", "next check "] {
        assert!(error.contains(expected), "the error has the state of each peer: {error}");
    }
    for server in &servers {
        assert!(!error.contains(&server.url()), "the error does not show a URL: {error}");
    }
    assert!(peers.snapshot().peers.iter().all(|peer| peer.state.is_marked_down()), "{peers:?}");
    servers[0].restart();
    wait_until("the pool's last try ends", PATIENCE, || peers.snapshot().closed);
}

fn recovered_peer_gets_its_share_after_a_check<B: Backend>() {
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 6);
    fill(&pool, &peers, &[2, 2, 2]);
    servers[0].kill();
    wait_until("a check marks peer0 down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    // A connection is inspected at its checkout and at its checkin.
    let check_out_all = || (0..6).map_while(|_| pool.try_get()).collect::<Vec<_>>();
    wait_until("the connections move to the other peers", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [0, 3, 3]
    });
    servers[0].restart();
    wait_until("a check finds peer0 up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    wait_until("peer0 has its share again", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [2, 2, 2]
    });
    wait_until("peer0 serves", PATIENCE, || {
        let mut all = check_out_all();
        let conn = all.iter_mut().find(|conn| conn.peer() == "peer0");
        conn.is_some_and(|conn| conn.batch_execute("SELECT 1").is_ok())
    });
}

fn pool_is_filled_from_the_only_recovered_peer<B: Backend>() {
    let mut servers = B::start(3);
    servers.iter_mut().for_each(Backend::kill);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 4);
    for name in ["peer0", "peer1", "peer2"] {
        wait_until(&format!("{name} is marked down"), PATIENCE, || {
            state(&peers, name).is_marked_down()
        });
    }
    servers[2].restart();
    wait_until("a checkout succeeds", PATIENCE, || pool.get().is_ok());
    fill(&pool, &peers, &[0, 0, 4]);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "peers that are not restarted stay down");
}

/// With this recovery the mark is cleared without a check: the next login shows whether the peer is up.
#[test]
fn mark_is_cleared_without_a_check_with_recovery_after_interval() {
    let servers = Servers::start(2);
    servers[0].crash();
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder.recovery(Recovery::AfterInterval).check_interval(SOON), 4);
    fill(&pool, &peers, &[0, 4]);
    wait_until("the mark is set", PATIENCE, || state(&peers, "peer0").is_marked_down());
    let logins = servers[0].logins();
    wait_until("the mark is cleared", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    assert_eq!(servers[0].logins(), logins, "no login precedes the end of the mark");
}

/// A node that accepts logins but refuses transactions, as a Galera node that is not ready, stays down.
#[test]
fn login_alone_does_not_bring_a_peer_back() {
    let servers = Servers::start(1);
    let server = &servers[0];
    server.crash();
    let (pool, peers) = pool_of(servers.builder().check_interval(SOON), 1);
    wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    server.work(false);
    server.accept(true);
    let begins = server.begins();
    wait_until("peer0 has refused three transactions", PATIENCE, || server.begins() >= begins + 3);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "a peer that refuses transactions is down");
    assert!(pool.try_get().is_none(), "no connection to a down peer is handed out");
    server.work(true);
    wait_until("peer0 is up when it accepts transactions", PATIENCE, || pool.get().is_ok());
    wait_until("no connection is left in a transaction", PATIENCE, || {
        // Refused transactions never began, so they are not rolled back.
        server.rollbacks() > 0 && server.begins() >= server.rollbacks()
    });
}

/// A login while the peer is down includes a check in a transaction, which is rolled back.
#[test]
fn connection_that_brought_its_peer_back_is_not_in_a_transaction() {
    let servers = Servers::start(1);
    let server = &servers[0];
    server.crash();
    let manager = build(servers.builder().all_down_interval(PATIENCE));
    ManageConnection::connect(&manager).expect_err("the peer is down");
    // The checker makes one check at once, and the next one after a long time.
    let failures = || status(&manager.peers(), "peer0").connect_failures;
    wait_until("the peer is checked", PATIENCE, || failures() == 2);
    server.accept(true);
    let conn = ManageConnection::connect(&manager).expect("a down peer is dialed");
    assert_eq!((server.begins(), server.rollbacks()), (1, 1), "the check is rolled back");
    assert_eq!(state(&manager.peers(), "peer0"), PeerState::Up, "the peer is up again");
    drop(conn);
}

/// A node that refuses transactions still accepts logins, so each new connection has to pass a check.
#[test]
fn node_that_refuses_transactions_gets_no_connection() {
    let servers = Servers::start(2);
    servers[0].work(false);
    let (pool, peers) = pool_of(servers.builder(), 4);
    fill(&pool, &peers, &[0, 4]);
    let status = status(&peers, "peer0");
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::PeerNotReady)));
    assert_eq!(servers[0].open(), 0, "no session is left on the node");
}

/// A node that starts to refuse transactions is checked at once, before its next scheduled check.
#[test]
fn node_that_starts_to_refuse_transactions_is_checked_at_once() {
    let servers = Servers::start(2);
    let (pool, peers) = pool_of(servers.builder(), 4);
    fill(&pool, &peers, &[2, 2]);
    servers[0].work(false);
    wait_until("a refused transaction marks peer0 down", PATIENCE, || {
        let mut conn = pool.get().expect("the node answers pings");
        let outcome = conn.transaction(|_| Ok::<_, diesel::result::Error>(()));
        assert!(outcome.is_ok() || conn.peer() == "peer0", "transactions on peer1 succeed");
        state(&peers, "peer0").is_marked_down()
    });
}

#[test]
fn all_down_setting_decides_whether_down_peers_are_dialed() {
    for (all_down, dialed) in [(AllDown::Try, true), (AllDown::Fail, false)] {
        let servers = Servers::start(1);
        servers[0].crash();
        // With this interval no check counts as a login during the test.
        let builder = servers.builder().all_down_interval(Duration::from_secs(30));
        let manager = build(builder.all_down(all_down).all_down_wait(Duration::ZERO));
        let connect = || ManageConnection::connect(&manager).expect_err("the peer is down");
        connect();
        let logins = servers[0].logins();
        let error = connect().to_string();
        assert_eq!(
            servers[0].logins() > logins,
            dialed,
            "{all_down:?}: whether the peer is dialed"
        );
        assert!(error.contains("peer0: ") && error.contains("refused by"), "{all_down:?}: {error}");
    }
}

/// No new connection could replace a closed one.
#[test]
fn expired_connections_are_kept_while_all_peers_are_down() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder.check_interval(SOON).connection_max_age(5 * SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    for server in servers.iter() {
        server.accept(false);
    }
    let all_are = |expected| ["peer0", "peer1"].iter().all(|name| state(&peers, name) == expected);
    wait_until("all peers are down", PATIENCE, || all_are(PeerState::Down));
    assert!(!within(6 * SOON, || false), "the connections exceed the maximum age");
    for _ in 0..20 {
        let mut conn = pool.get_timeout(SOON).expect("expired connections stay in use");
        conn.batch_execute("SELECT 1").expect("sessions go on");
    }
    for server in servers.iter() {
        server.accept(true);
    }
    wait_until("all peers are up", PATIENCE, || all_are(PeerState::Up));
    let connects = || peers.snapshot().peers.iter().map(|peer| peer.connects).sum::<u64>();
    let before = connects();
    wait_until("the expired connections are replaced", PATIENCE, || {
        drop(pool.get().expect("the peers are up"));
        connects() >= before + 4
    });
}

/// The refusal of a query leads to a mark and a check, also with this recovery. Otherwise the node would soon
/// get queries again.
#[test]
fn refused_transaction_is_checked_at_once_with_recovery_after_interval() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder.recovery(Recovery::AfterInterval), 4);
    fill(&pool, &peers, &[2, 2]);
    servers[0].work(false);
    let refused = || {
        let mut conn = pool.get().expect("the node answers pings");
        conn.transaction(|_| Ok::<_, diesel::result::Error>(())).is_err()
    };
    wait_until("a transaction is refused", PATIENCE, refused);
    let failures = || status(&peers, "peer0").connect_failures;
    wait_until("peer0 is checked", PATIENCE, || failures() > 0);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "the peer stays down");
    assert_eq!((0..100).filter(|_| refused()).count(), 0, "no query goes to the down peer");
}

/// The application's health check is part of each login and of each check.
#[test]
fn peer_that_fails_the_applications_health_check_is_down() {
    let servers = Servers::start(2);
    let fails = Arc::new(AtomicBool::new(true));
    let (check_fails, first) = (fails.clone(), servers[0].url().to_owned());
    let builder = servers.builder().check_interval(SOON).health_check(move |conn| {
        if conn.url() == first && check_fails.load(Ordering::SeqCst) {
            return Err(diesel::result::Error::NotFound);
        }
        Ok(())
    });
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[0, 2]);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "a peer that fails the check is down");
    fails.store(false, Ordering::SeqCst);
    wait_until("peer0 passes the check and gets a connection", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [1, 1]
    });
}

/// A full peer is up, and has never been down.
#[test]
fn error_has_the_reason_of_each_peer_when_all_are_full() {
    let servers = Servers::start(1);
    servers[0].accept(false);
    let is_full =
        |failed: Failure<'_>| matches!(failed, Failure::Login(_)).then_some(Fault::PeerFull);
    let manager = build(servers.builder().classify(is_full));
    let error = ManageConnection::connect(&manager).expect_err("the peer is full").to_string();
    assert!(error.contains("peer0: refused by") && error.contains(", next check in "), "{error}");
}

/// A proxy lets a check or a login in and has a dead connection to its server for it. The next session gets
/// another one.
#[test]
fn session_that_is_lost_right_after_its_login_is_repeated_once() {
    let servers = Servers::start(2);
    let (pool, peers) = pool_of(servers.builder().check_interval(PATIENCE), 2);
    fill(&pool, &peers, &[1, 1]);
    let check = |stale| {
        let logins = servers[0].logins();
        servers[0].cut_off_next(stale);
        peers.check_now("peer0").expect("the peer exists");
        wait_until("the peer is checked", PATIENCE, || servers[0].logins() == logins + 2);
    };
    check(1);
    assert!(
        !within(SOON, || state(&peers, "peer0").is_marked_down()),
        "one lost session does not take the peer away"
    );
    check(2);
    wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());

    servers[0].cut_off_next(1);
    let manager = build(servers.builder().check_interval(PATIENCE));
    drop(manager.connect().expect("both peers are up"));
    drop(manager.connect().expect("both peers are up"));
    let failures: u64 =
        manager.peers().snapshot().peers.iter().map(|peer| peer.connect_failures).sum();
    assert_eq!(failures, 0, "a login for the pool is repeated as well");
}
