//! The status of each peer, as the handle `Peers` reports it.

#![allow(clippy::disallowed_methods, reason = "the time of the next check is asserted")]

use std::time::{Duration, Instant};

use diesel::connection::{
    AnsiTransactionManager, Connection, SimpleConnection, TransactionManager,
};
use diesel::r2d2::{ManageConnection, Pool};
use diesel_peers::{Balance, PeerState};
use support::backend::{PATIENCE, build, links, manager_of, pool_of, state, status};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

#[test]
fn new_peer_counts_as_up_and_its_first_check_is_scheduled() {
    let server = Server::start();
    let before = Instant::now();
    let manager = build(manager_of::<ScriptedConnection>([server.url()]).weight("peer0", 3));
    let status = status(&manager.peers(), "peer0");
    assert_eq!((status.name.as_str(), status.weight), ("peer0", 3));
    assert_eq!(
        (status.state, status.reason),
        (PeerState::Up, None),
        "a peer that was not tried yet counts as up"
    );
    assert_eq!((status.connections, status.in_use), (0, 0));
    assert_eq!((status.connects, status.connect_failures), (0, 0));
    let interval = Duration::from_secs(30);
    let until_check = status.next_check - before;
    assert!(until_check >= interval, "the default interval is 30 s: {until_check:?}");
    let latest = Instant::now() + interval.mul_f64(1.1);
    assert!(status.next_check <= latest, "the jitter is at most a tenth: {until_check:?}");
}

#[test]
fn connections_in_use_are_counted_at_checkout_and_checkin() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        for is_tested in [true, false] {
            let server = Server::start();
            let builder = manager_of::<ScriptedConnection>([server.url()]).balance(balance);
            let manager = build(builder);
            let peers = manager.peers();
            let pool = Pool::builder().max_size(3).test_on_check_out(is_tested);
            let pool = pool.build(manager).expect("the peer is up");
            let in_use = || status(&peers, "peer0").in_use;
            let case = format!("{balance:?}, tested: {is_tested}");
            assert_eq!((in_use(), links(&peers)[0]), (0, 3), "{case}: all connections are idle");
            let mut two = [(); 2].map(|()| pool.get().expect("the pool has three"));
            for conn in &mut two {
                conn.batch_execute("SELECT 1").expect("the query succeeds");
            }
            // r2d2 calls the manager at checkout only to test a connection. Without a test, only a
            // slot that takes its link from the exchange is known to be in use.
            let is_counted = is_tested || balance == Balance::PerCheckout;
            assert_eq!(in_use(), if is_counted { 2 } else { 0 }, "{case}: two are checked out");
            drop(two);
            assert_eq!(in_use(), 0, "{case}: all are checked in");
            server.cut_off();
            let mut conn = pool.get().expect("another connection is created");
            conn.batch_execute("SELECT 1").ok();
            drop(conn);
            assert_eq!(in_use(), 0, "{case}: a lost connection is not counted");
        }
    }
}

#[test]
fn ping_is_not_counted_as_a_query() {
    let server = Server::start();
    // A scripted connection has no socket to inspect, so each checkout pings.
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("SELECT 1").expect("the query succeeds");
    drop(conn);
    server.cut_off();
    drop(pool.get().expect("another connection is created"));
    let status = status(&peers, "peer0");
    assert_eq!(status.connects, 2, "the ping found the loss");
    assert_eq!(
        (status.queries, status.queries_lost),
        (1, 0),
        "only the application's query is counted"
    );
}

#[test]
fn idle_connection_in_a_test_transaction_is_not_in_use() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    conn.begin_test_transaction().expect("the transaction begins");
    assert_eq!(status(&peers, "peer0").in_use, 1, "the connection is checked out");
    drop(conn);
    assert_eq!(status(&peers, "peer0").in_use, 0, "the connection is checked in");
}

#[test]
fn failed_connects_and_failed_checks_are_counted() {
    let server = Server::start();
    server.crash();
    let builder = manager_of::<ScriptedConnection>([server.url()]);
    let manager = build(builder.check_interval(Duration::from_millis(50)));
    let failures = || status(&manager.peers(), "peer0").connect_failures;
    manager.connect().map(drop).expect_err("the server has crashed");
    let after_connect = failures();
    assert!(after_connect >= 1, "a failed connect is counted");
    wait_until("failed checks are counted", PATIENCE, || failures() >= after_connect + 2);
    assert_eq!(status(&manager.peers(), "peer0").connects, 0);
}

#[test]
fn connection_with_an_open_transaction_is_replaced() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    AnsiTransactionManager::begin_transaction(&mut **conn).expect("the transaction begins");
    drop(conn);
    let mut conn = pool.get().expect("the peer is up");
    let transaction = AnsiTransactionManager::transaction_manager_status_mut(&mut **conn);
    assert_eq!(transaction.transaction_depth(), Ok(None), "no transaction is open");
    assert_eq!(status(&peers, "peer0").connects, 2, "the connection was replaced");
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "the peer is not marked down for that");
}

#[test]
fn checkouts_are_counted_on_the_peer_that_serves_them() {
    for is_tested in [true, false] {
        let server = Server::start();
        let builder = manager_of::<ScriptedConnection>([server.url()]).ping_idle(Duration::ZERO);
        let manager = build(builder);
        let peers = manager.peers();
        let pool = Pool::builder().max_size(2).test_on_check_out(is_tested);
        let pool = pool.build(manager).expect("the peer is up");
        for _ in 0..3 {
            let mut conn = pool.get().expect("the peer is up");
            conn.batch_execute("SELECT 1").expect("the query succeeds");
        }
        if is_tested {
            // The pings of both connections fail, and a third connection is created.
            server.cut_off();
            drop(pool.get().expect("the peer is up"));
        }
        let expected = if is_tested { 4 } else { 3 };
        assert_eq!(status(&peers, "peer0").checkouts, expected, "tested: {is_tested}");
    }
}
