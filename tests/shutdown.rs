//! Dropping the last pool ends the crate's threads and connections, at whatever moment the pool is dropped.
//! The test counts the threads of the whole process, so it has a file of its own and runs its cases in turn.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "managers are dropped at certain moments")]

#[cfg(feature = "mysql")]
use std::{thread, time::Duration};

use diesel_peers::Peers;
use support::backend::{
    Backend, PATIENCE, SOON, build, fill, links, manager_of, manager_over, pool_of,
};
use support::process::our_threads;
use support::resolver::Script;
use support::scripted::{ScriptedConnection, Server, Servers};
use support::wait_until;

#[track_caller]
fn wait_until_closed(peers: &Peers) {
    wait_until("the snapshot shows a closed pool", PATIENCE, || peers.snapshot().closed);
    wait_until("no thread of the crate is left", PATIENCE, || our_threads().is_empty());
}

fn a_pool_is_dropped<B: Backend>(open: impl Fn(&B) -> usize) {
    let servers = B::start(2);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    assert!(!our_threads().is_empty(), "the crate has threads");
    drop(pool);
    wait_until_closed(&peers);
    assert_eq!(links(&peers), [0, 0], "no connection is counted");
    wait_until("the server has no session left", PATIENCE, || {
        servers.iter().all(|server| open(server) == 0)
    });
}

fn a_pool_is_dropped_during_a_connect() {
    let server = Server::start();
    server.hold_logins(true);
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    wait_until("two logins are in progress", PATIENCE, || server.logins() == 2);
    drop(pool);
    // r2d2's workers hold the pool while they connect, so one of them drops the manager.
    assert!(!peers.snapshot().closed, "the logins are still in progress");
    server.hold_logins(false);
    wait_until_closed(&peers);
    wait_until("the server has no session left", PATIENCE, || server.open() == 0);
}

fn a_pool_is_dropped_during_a_check() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    drop(pool.get().expect("the peer is up"));
    server.hold_logins(true);
    let mut conn = pool.get().expect("the pool has a connection");
    server.cut_off();
    diesel::connection::SimpleConnection::batch_execute(&mut conn, "SELECT 1")
        .expect_err("the session was cut off");
    wait_until("the peer is checked", PATIENCE, || server.logins() == 2);
    // The connection is dropped first, because it holds the pool.
    drop(conn);
    drop(pool);
    server.hold_logins(false);
    wait_until_closed(&peers);
    wait_until("the server has no session left", PATIENCE, || server.open() == 0);
}

/// The moment of the drop varies: the check lists the sockets of the process, or waits for an answer.
#[cfg(feature = "mysql")]
fn a_manager_is_dropped_as_a_check_begins() {
    let silent = support::network::Silent::start();
    let url = support::mariadb::url(silent.port());
    for number in 0..100 {
        let builder = manager_of::<diesel::MysqlConnection>([&url]);
        let builder = builder.check_interval(Duration::from_millis(10));
        let manager = build(builder.connect_timeout(PATIENCE));
        thread::sleep(Duration::from_micros(10_000 + number * 25));
        drop(manager);
    }
    wait_until("no thread of the crate is left", PATIENCE / 2, || our_threads().is_empty());
}

fn a_manager_is_dropped_without_a_pool() {
    let manager = build(Servers::start(1).builder());
    let peers = manager.peers();
    drop(manager);
    wait_until_closed(&peers);
}

fn a_pool_is_dropped_before_its_last_connection() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let conn = pool.get().expect("the peer is up");
    drop(pool);
    assert!(!peers.snapshot().closed, "a connection that is checked out keeps its pool");
    drop(conn);
    wait_until_closed(&peers);
}

/// The resolver thread waits for the next lookup, or for the answer of one.
fn a_manager_that_resolves_host_names_is_dropped() {
    for hangs in [false, true] {
        let script = Script::of(&["127.0.0.1"]);
        script.hold(hangs);
        let builder = manager_of::<ScriptedConnection>(["scripted://db"]);
        let builder = builder.resolve_interval(PATIENCE).resolver(script.resolver());
        let manager = build(builder);
        let peers = manager.peers();
        drop(manager);
        wait_until("the snapshot shows a closed pool", PATIENCE, || peers.snapshot().closed);
        wait_until("only a hung lookup has a thread left", PATIENCE, || {
            our_threads().len() == usize::from(hangs)
        });
        script.hold(false);
        wait_until_closed(&peers);
        let name = if hangs { "peer0" } else { "peer0/127.0.0.1" };
        assert_eq!(peers.snapshot().peers[0].name, name, "a late answer is ignored");
    }
}

#[test]
fn dropped_pools_and_managers_leave_no_thread_and_no_session() {
    a_manager_that_resolves_host_names_is_dropped();
    a_manager_is_dropped_without_a_pool();
    a_pool_is_dropped_before_its_last_connection();
    a_pool_is_dropped_during_a_connect();
    a_pool_is_dropped_during_a_check();
    #[cfg(feature = "mysql")]
    a_manager_is_dropped_as_a_check_begins();
    a_pool_is_dropped::<support::backend::SqlitePath>(|_| 0);
    #[cfg(feature = "mysql")]
    a_pool_is_dropped::<support::mariadb::MariaDb>(support::mariadb::MariaDb::sessions);
    #[cfg(feature = "postgres")]
    a_pool_is_dropped::<support::postgres::Postgres>(support::postgres::Postgres::sessions);
}
