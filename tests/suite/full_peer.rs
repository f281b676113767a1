//! A peer that refuses further connections is full, and not down: its connections stay in use, other peers
//! get the new ones, and the full peer is soon tried again.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use diesel::connection::Connection;
use diesel_peers::{Fault, PeerState, Peers};
use support::APP;
use support::backend::{PATIENCE, RealServer, links, manager_over, pool_of, state, status};
use support::load::Load;
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::wait_until;

/// A server on which a test limits the sessions of the application's user.
trait Limited: RealServer {
    /// Sets the limit; 0 removes it.
    fn limit(&self, sessions: u32);
}

impl Limited for MariaDb {
    fn limit(&self, sessions: u32) {
        self.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS {sessions}"));
    }
}

impl Limited for Postgres {
    fn limit(&self, sessions: u32) {
        let limit = if sessions == 0 { "-1".to_owned() } else { sessions.to_string() };
        self.sql(&format!("ALTER ROLE {APP} CONNECTION LIMIT {limit}"));
    }
}

fn is_full(peers: &Peers) -> bool {
    status(peers, "peer0").is_full
}

fn full_peer_keeps_its_connections<B: Limited>() {
    let servers = B::start(2);
    servers[0].limit(2);
    let (pool, peers) = pool_of(manager_over(&servers), 8);
    wait_until("the other peer gets the remaining connections", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 6]
    });
    let seen = Load::run(&pool, 8, "SELECT 1", |load| {
        wait_until("both peers serve", PATIENCE, || {
            ["peer0", "peer1"].iter().all(|peer| load.served_by(peer) > 200)
        });
    });
    assert_eq!((seen.failed, seen.refused), (vec![], vec![]), "no checkout and no query fails");
    assert!(is_full(&peers), "the status shows that the peer is full");
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "a full peer is up");
    assert_eq!(links(&peers), [2, 6], "a full peer keeps its connections");

    servers[0].limit(0);
    wait_until("peer0 is no longer full", PATIENCE, || !is_full(&peers));
    wait_until("peer0 gets its share", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [4, 4]
    });
}

#[test]
fn full_mariadb_keeps_its_connections_and_others_get_the_rest() {
    full_peer_keeps_its_connections::<MariaDb>();
}

#[test]
fn full_postgres_keeps_its_connections_and_others_get_the_rest() {
    full_peer_keeps_its_connections::<Postgres>();
}

/// Without another peer, a full peer is tried for new connections.
#[test]
fn only_peer_is_tried_again_while_it_is_full() {
    let servers = [MariaDb::start()];
    servers[0].limit(2);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    wait_until("the peer accepts two connections and is full", PATIENCE, || {
        links(&peers) == [2] && is_full(&peers)
    });
    assert!(pool.get().is_ok(), "the two connections are in use");
    let status = status(&peers, "peer0");
    assert_eq!((status.state, status.fault, status.reason), (PeerState::Up, None, None));
    servers[0].limit(0);
    wait_until("the pool has all its connections", PATIENCE, || links(&peers) == [4]);
}

/// The limit of the whole server is reached, and not only that of the user.
#[test]
fn server_at_its_connection_limit_is_full_and_up() {
    let servers = [MariaDb::start(), MariaDb::start()];
    // MariaDB's minimum.
    servers[0].sql("SET GLOBAL max_connections = 10");
    let sessions: Vec<_> =
        std::iter::from_fn(|| diesel::MysqlConnection::establish(&servers[0].url()).ok()).collect();
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    wait_until("the other peer gets all connections", PATIENCE, || links(&peers) == [0, 4]);
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "a full peer is up");
    assert!(is_full(&peers));
    drop(sessions);
    wait_until("peer0 gets its share", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 2]
    });
}

/// A wrong password is a misconfiguration, which an operator has to correct.
#[test]
fn peer_with_a_wrong_password_is_down_and_not_full() {
    let servers = [MariaDb::start(), MariaDb::start()];
    servers[0].sql(&format!("ALTER USER {APP} IDENTIFIED BY 'another'"));
    let (_pool, peers) = pool_of(manager_over(&servers), 2);
    wait_until("the other peer gets all connections", PATIENCE, || links(&peers) == [0, 2]);
    let status = status(&peers, "peer0");
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::Misconfigured)));
}
