//! A process that has no file descriptors left for a while keeps its connections, and blames no peer: with each
//! client library it has as many usable connections as with diesel's own manager.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]
#![allow(clippy::disallowed_methods, reason = "the lack lasts for some time")]

use std::fs::File;
use std::process::{self, Command};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, ManageConnection, Pool, PooledConnection};
use diesel_peers::PeerState;
use support::backend::{Backend, PATIENCE, SOON, build, fill, links, manager_over, pool_of};
#[cfg(feature = "mysql")]
use support::mariadb::MariaDb;
#[cfg(feature = "postgres")]
use support::postgres::Postgres;
use support::wait_until;

const CONNECTIONS: u32 = 6;

/// Takes all idle connections of the pool, and returns those that work.
fn usable<M>(pool: &Pool<M>) -> Vec<PooledConnection<M>>
where
    M: ManageConnection<Connection: SimpleConnection>,
{
    let connections = (0..CONNECTIONS).map_while(|_| pool.try_get());
    connections
        .filter_map(|mut conn| conn.batch_execute("SELECT 1").is_ok().then_some(conn))
        .collect()
}

fn lasts_without_descriptors<B: Backend>(servers: &[B]) {
    let (pool, peers) = pool_of(manager_over(servers).check_interval(SOON), CONNECTIONS);
    let own = Pool::builder()
        .max_size(CONNECTIONS)
        .build(ConnectionManager::<B::Connection>::new(servers[0].url()))
        .expect("the server works");
    fill(&pool, &peers, &[2, 2, 2]);
    let unused = build(manager_over(servers));

    let mut held = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    // Many checks fail meanwhile.
    thread::sleep(20 * SOON);
    let (of_own, of_peers) = (usable(&own).len(), usable(&pool).len());
    let snapshot = peers.snapshot();
    let sessions = links(&peers);
    let refused = unused.connect().map(|_| ());
    drop(held);

    assert!(of_peers >= of_own && of_own == CONNECTIONS as usize, "{of_peers} of {of_own} work");
    for peer in &snapshot.peers {
        assert_eq!(peer.state, PeerState::Up, "{:?}", peer.reason);
    }
    assert_eq!(sessions, [2, 2, 2], "no session ends or moves");
    let error = refused.expect_err("no connection can be opened").to_string();
    assert!(
        error.contains("this process has no file descriptors left (EMFILE or ENFILE)"),
        "{error}"
    );
    drop(own);
    wait_until("the pool works as before", PATIENCE, || usable(&pool).len() == 6);
}

#[test]
fn process_without_descriptors_keeps_its_connections() {
    let pid = process::id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=400:"]).status();
    assert!(limited.expect("util-linux is installed").success(), "the limit is set");
    #[cfg(feature = "mysql")]
    lasts_without_descriptors(&[MariaDb::start(), MariaDb::start(), MariaDb::start()]);
    #[cfg(feature = "postgres")]
    lasts_without_descriptors(&[Postgres::start(), Postgres::start(), Postgres::start()]);
}
