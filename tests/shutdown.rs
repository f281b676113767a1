//! Dropping the last pool ends our threads and our connections, wherever the drop happens. In a
//! file of its own, and one test after the other, as threads are the whole process's.

#![cfg(target_os = "linux")]
#![allow(clippy::disallowed_methods, reason = "what happens at a certain moment is at issue")]

#[cfg(feature = "mysql")]
use std::{thread, time::Duration};

use diesel_peers::Peers;
use support::backend::{Backend, PATIENCE, SOON, fill, links, manager_of, manager_over, pool_of};
use support::process::our_threads;
use support::resolver::Script;
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

#[track_caller]
fn is_gone(peers: &Peers) {
    wait_until("the handle says closed", PATIENCE, || peers.snapshot().closed);
    wait_until("no thread of ours is left", PATIENCE, || our_threads().is_empty());
}

fn a_pool_is_dropped<B: Backend>(open: impl Fn(&B) -> usize) {
    let servers = B::start(2);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    assert!(!our_threads().is_empty(), "there is something to end");
    drop(pool);
    is_gone(&peers);
    assert_eq!(links(&peers), [0, 0], "no connection is counted");
    wait_until("the server has no session left", PATIENCE, || {
        servers.iter().all(|server| open(server) == 0)
    });
}

fn a_pool_is_dropped_during_a_connect() {
    let server = Server::start();
    server.hold_logins(true);
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    wait_until("two logins are under way", PATIENCE, || server.logins() == 2);
    drop(pool);
    // r2d2's workers hold the pool while they connect, so the manager is dropped by one of them.
    assert!(!peers.snapshot().closed, "the connects are still under way");
    server.hold_logins(false);
    is_gone(&peers);
    wait_until("the server has no session left", PATIENCE, || server.open() == 0);
}

fn a_pool_is_dropped_during_a_check() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    drop(pool.get().expect("the peer is up"));
    server.hold_logins(true);
    let mut conn = pool.get().expect("there is a connection");
    server.cut_off();
    diesel::connection::SimpleConnection::batch_execute(&mut conn, "SELECT 1")
        .expect_err("the session was cut off");
    wait_until("its peer is checked", PATIENCE, || server.logins() == 2);
    // The connection goes back first: it holds the pool.
    drop(conn);
    drop(pool);
    server.hold_logins(false);
    is_gone(&peers);
    wait_until("the server has no session left", PATIENCE, || server.open() == 0);
}

/// Whatever a check is doing just then: looking for the sockets that there are, or waiting.
#[cfg(feature = "mysql")]
fn a_manager_is_dropped_as_a_check_begins() {
    let silent = support::network::Silent::start();
    let url = support::mariadb::url(silent.port());
    for number in 0..100 {
        let builder = manager_of::<diesel::MysqlConnection>([&url]);
        let manager = builder.check_interval(Duration::from_millis(10)).connect_timeout(PATIENCE);
        let manager = manager.build().expect("the settings are right");
        thread::sleep(Duration::from_micros(10_000 + number * 25));
        drop(manager);
    }
    wait_until("no thread of ours is left", PATIENCE / 2, || our_threads().is_empty());
}

fn a_manager_is_dropped_without_a_pool() {
    let manager = manager_of::<ScriptedConnection>([Server::start().url()]).build();
    let manager = manager.expect("the settings are right");
    let peers = manager.peers();
    drop(manager);
    is_gone(&peers);
}

fn the_pool_lives_as_long_as_its_last_connection() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let conn = pool.get().expect("the peer is up");
    drop(pool);
    assert!(!peers.snapshot().closed, "a connection that is checked out keeps its pool");
    drop(conn);
    is_gone(&peers);
}

/// Whatever it is doing just then: waiting until it is time, or for an answer.
fn a_manager_is_dropped_that_resolves() {
    for hangs in [false, true] {
        let script = Script::of(&["127.0.0.1"]);
        script.hold(hangs);
        let builder = manager_of::<ScriptedConnection>(["scripted://db"]);
        let builder = builder.resolve_interval(PATIENCE).resolver(script.resolver());
        let manager = builder.build().expect("the settings are right");
        let peers = manager.peers();
        drop(manager);
        wait_until("the handle says closed", PATIENCE, || peers.snapshot().closed);
        wait_until("only a lookup is left", PATIENCE, || our_threads().len() == usize::from(hangs));
        script.hold(false);
        is_gone(&peers);
        let name = if hangs { "peer0" } else { "peer0/127.0.0.1" };
        assert_eq!(status(&peers, "peer0").name, name, "what comes too late is not heard");
    }
}

#[test]
fn nothing_of_ours_is_left() {
    a_manager_is_dropped_that_resolves();
    a_manager_is_dropped_without_a_pool();
    the_pool_lives_as_long_as_its_last_connection();
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
