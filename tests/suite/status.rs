//! What the handle tells of the peers.

#![allow(clippy::disallowed_methods, reason = "due times are told by the clock")]

use std::time::{Duration, Instant};

use diesel::connection::{
    AnsiTransactionManager, Connection, SimpleConnection, TransactionManager,
};
use diesel::r2d2::Pool;
use diesel_peers::{Balance, PeerState};
use support::backend::{PATIENCE, links, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

#[test]
fn a_fresh_manager_says_what_it_assumes() {
    let server = Server::start();
    let before = Instant::now();
    let manager = manager_of::<ScriptedConnection>([server.url()]).weight("peer0", 3).build();
    let status = manager.expect("right settings").peers().snapshot().peers.swap_remove(0);
    assert_eq!((status.name.as_str(), status.weight), ("peer0", 3));
    assert_eq!((status.state, status.reason), (PeerState::Up, None), "up until shown otherwise");
    assert_eq!((status.connections, status.in_use), (0, 0));
    assert_eq!((status.connects, status.connect_failures), (0, 0));
    let interval = Duration::from_secs(30);
    let due = status.next_check - before;
    assert!(due >= interval, "checked after the default interval of 30 s: {due:?}");
    assert!(status.next_check <= Instant::now() + interval.mul_f64(1.1), "and a tenth: {due:?}");
}

#[test]
fn connections_in_use_are_counted() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        for is_tested in [true, false] {
            let server = Server::start();
            let builder = manager_of::<ScriptedConnection>([server.url()]).balance(balance);
            let manager = builder.build().expect("the settings are right");
            let peers = manager.peers();
            let pool = Pool::builder().max_size(3).test_on_check_out(is_tested);
            let pool = pool.build(manager).expect("the peer lives");
            let in_use = || peers.snapshot().peers[0].in_use;
            let what = format!("{balance:?}, tested: {is_tested}");
            assert_eq!((in_use(), links(&peers)[0]), (0, 3), "{what}: all idle");
            let mut two = [pool.get().expect("there are three"), pool.get().expect("there are")];
            for conn in &mut two {
                conn.batch_execute("SELECT 1").expect("it serves");
            }
            // Without a test at checkout a connection that stays in its slot is not seen to leave.
            let seen = is_tested || balance == Balance::PerCheckout;
            assert_eq!(in_use(), if seen { 2 } else { 0 }, "{what}: two are out");
            drop(two);
            assert_eq!(in_use(), 0, "{what}: all are back");
            server.cut_off();
            let mut conn = pool.get().expect("another is made");
            conn.batch_execute("SELECT 1").ok();
            drop(conn);
            assert_eq!(in_use(), 0, "{what}: a lost one is not counted either");
        }
    }
}

#[test]
fn a_ping_is_no_query() {
    let server = Server::start();
    // Without a socket to look at each checkout pings.
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    conn.batch_execute("SELECT 1").expect("it serves");
    drop(conn);
    server.cut_off();
    drop(pool.get().expect("another connection is made"));
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!(status.connects, 2, "the ping found it out");
    assert_eq!((status.queries, status.queries_lost), (1, 0), "and is none of the application's");
}

#[test]
fn a_test_transaction_at_rest_is_not_in_use() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    conn.begin_test_transaction().expect("it begins");
    assert_eq!(peers.snapshot().peers[0].in_use, 1, "it is out");
    drop(conn);
    assert_eq!(peers.snapshot().peers[0].in_use, 0, "it is back");
}

#[test]
fn what_fails_is_counted_for_connects_and_for_checks() {
    let server = Server::start();
    server.crash();
    let builder = manager_of::<ScriptedConnection>([server.url()]);
    let manager = builder.check_interval(Duration::from_millis(50)).build();
    let manager = manager.expect("the settings are right");
    let failures = || manager.peers().snapshot().peers[0].connect_failures;
    diesel::r2d2::ManageConnection::connect(&manager).expect_err("it is down");
    let after_connect = failures();
    assert!(after_connect >= 1, "a failed connect counts");
    wait_until("failed checks count", PATIENCE, || failures() >= after_connect + 2);
    assert_eq!(manager.peers().snapshot().peers[0].connects, 0);
}

#[test]
fn a_transaction_that_was_left_open_does_not_go_back() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    AnsiTransactionManager::begin_transaction(&mut **conn).expect("it begins");
    drop(conn);
    let mut conn = pool.get().expect("the peer lives");
    let status = AnsiTransactionManager::transaction_manager_status_mut(&mut **conn);
    assert_eq!(status.transaction_depth(), Ok(None), "another connection");
    assert_eq!(peers.snapshot().peers[0].connects, 2, "as with diesel's own manager");
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "which is no fault of the peer's");
}

#[test]
fn check_outs_are_counted_where_they_were_served() {
    for is_tested in [true, false] {
        let server = Server::start();
        let manager = manager_of::<ScriptedConnection>([server.url()]).ping_idle(Duration::ZERO);
        let manager = manager.build().expect("the settings are right");
        let peers = manager.peers();
        let pool = Pool::builder().max_size(2).test_on_check_out(is_tested);
        let pool = pool.build(manager).expect("the peer lives");
        for _ in 0..3 {
            pool.get().expect("it serves").batch_execute("SELECT 1").expect("it serves");
        }
        if is_tested {
            // Both are found dead by their pings, and another one is made.
            server.cut_off();
            drop(pool.get().expect("it serves"));
        }
        let expected = if is_tested { 4 } else { 3 };
        assert_eq!(peers.snapshot().peers[0].checkouts, expected, "tested: {is_tested}");
    }
}
