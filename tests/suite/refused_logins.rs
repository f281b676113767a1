//! Logins fail, and sessions work: a password was changed, a directory service or a name server is down, new
//! connections are dropped. A failed login decides about new connections only. No pool has fewer usable
//! connections than diesel's own manager would have.

#![cfg(all(target_os = "linux", feature = "mysql"))]
#![allow(clippy::disallowed_methods, reason = "the tests wait for a time")]

use std::time::Duration;

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, ManageConnection, NopErrorHandler, Pool};
use diesel_peers::{Balance, PeerManager, PeerState, Peers};
use support::backend::{PATIENCE, SOON, build, links, manager_of, manager_over};
use support::mariadb::MariaDb;
use support::network::{DroppedPackets, Drops};
use support::wait_until;

/// The size of the pools.
const CONNECTIONS: u32 = 9;

fn pool_of<M: ManageConnection>(manager: M) -> Pool<M> {
    Pool::builder()
        .max_size(CONNECTIONS)
        .connection_timeout(Duration::from_secs(5))
        .error_handler(Box::new(NopErrorHandler))
        .build(manager)
        .expect("the servers are running")
}

fn pool_over(servers: &[MariaDb], balance: Balance) -> (Pool<PeerManager<MysqlConnection>>, Peers) {
    let builder = manager_over(servers)
        .balance(balance)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(1));
    let manager = build(builder);
    let peers = manager.peers();
    let pool = pool_of(manager);
    wait_until("the connections are spread", PATIENCE, || links(&peers) == [3, 3, 3]);
    (pool, peers)
}

/// Takes all connections out of the pool at once, and returns how many of them work.
fn usable<M>(pool: &Pool<M>) -> usize
where
    M: ManageConnection,
    M::Connection: SimpleConnection,
{
    let all: Vec<_> = (0..CONNECTIONS).map_while(|_| pool.get().ok()).collect();
    all.into_iter().filter_map(|mut conn| conn.batch_execute("SELECT 1").ok()).count()
}

fn all_are_down(peers: &Peers) -> bool {
    peers.snapshot().peers.iter().all(|peer| peer.state.is_marked_down())
}

#[test]
fn changed_password_costs_no_connection() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        let servers = [(); 3].map(|()| MariaDb::start());
        let (pool, peers) = pool_over(&servers, balance);
        let own = pool_of(ConnectionManager::<MysqlConnection>::new(servers[0].url()));
        for server in &servers {
            server.sql("ALTER USER app@'%' IDENTIFIED BY 'another'");
        }
        wait_until("all peers are down", PATIENCE, || all_are_down(&peers));
        assert_eq!((usable(&pool), usable(&own)), (9, 9), "{balance:?}");
        let states = peers.snapshot().peers.into_iter().map(|peer| peer.state);
        assert_eq!(states.collect::<Vec<_>>(), [PeerState::Degraded; 3], "{balance:?}");
    }
}

#[test]
fn dropped_new_connections_cost_no_connection() {
    let servers = [(); 3].map(|()| MariaDb::start());
    let (pool, peers) = pool_over(&servers, Balance::PerCheckout);
    let own = pool_of(ConnectionManager::<MysqlConnection>::new(servers[0].url()));
    let dropped: Vec<_> = servers
        .iter()
        .map(|server| DroppedPackets::to_port(server.port(), Drops::NewOnly))
        .collect();
    wait_until("all peers are down", PATIENCE, || all_are_down(&peers));
    assert_eq!((usable(&pool), usable(&own)), (9, 9));
    drop(dropped);
}

/// One peer refuses, the others do not: its connections are replaced, also while nobody uses the pool.
#[test]
fn connections_to_a_peer_that_refuses_are_replaced_one_by_one() {
    let servers = [(); 3].map(|()| MariaDb::start());
    let (pool, peers) = pool_over(&servers, Balance::PerCheckout);
    servers[0].sql("ALTER USER app@'%' IDENTIFIED BY 'another'");
    // A login that is slow is hedged by another one, whose connection is closed if it is not needed.
    wait_until("the connections are replaced", PATIENCE, || {
        let links = links(&peers);
        links[0] == 0 && links.iter().sum::<usize>() == 9
    });
    assert_eq!(servers[0].sessions(), 0);
    assert_eq!(usable(&pool), 9);
}

/// The ping of a peer that hangs uses up the time of a checkout. The links of the others are not lost for that.
#[test]
fn frozen_peer_costs_no_connection_to_peers_that_refuse_logins() {
    for balance in [Balance::PerCheckout, Balance::PerConnection] {
        let mut servers = [(); 3].map(|()| MariaDb::start());
        let (pool, peers) = pool_over(&servers, balance);
        for server in &servers[1..] {
            server.sql("ALTER USER app@'%' IDENTIFIED BY 'another'");
        }
        servers[0].freeze();
        wait_until("all peers are down", PATIENCE, || all_are_down(&peers));
        // No query has shown for a while that the sessions work.
        wait_until("the proof of the last query is too old", PATIENCE, || {
            peers.snapshot().peers.iter().all(|peer| peer.since.elapsed() > 2 * SOON)
        });
        for _ in 0..4 {
            let mut conn = pool.get().expect("sessions of two peers work");
            conn.batch_execute("SELECT 1").expect("the connection was pinged");
        }
        assert_eq!(&links(&peers)[1..], [3, 3], "{balance:?}");
        servers[0].thaw();
    }
}

/// A health check that consists of `pool.get()` must not stay green.
#[test]
fn frozen_servers_give_no_connection() {
    let mut servers = [(); 3].map(|()| MariaDb::start());
    let (pool, peers) = pool_over(&servers, Balance::PerCheckout);
    for server in &mut servers {
        server.freeze();
    }
    wait_until("all peers are down", PATIENCE, || all_are_down(&peers));
    let get = || pool.get_timeout(Duration::from_secs(2));
    wait_until("no connection is lent", PATIENCE, || get().is_err());
    assert!(get().is_err(), "and none after that");
    let states = peers.snapshot().peers.into_iter().map(|peer| peer.state);
    assert_eq!(
        states.collect::<Vec<_>>(),
        [PeerState::Down; 3],
        "no session has shown that it works"
    );
    for server in &mut servers {
        server.thaw();
    }
    wait_until("the pool serves again", PATIENCE, || usable(&pool) == 9);
}

/// A server quotes the name of the user, and a terminal obeys what is in it. (`MariaDB` escapes most control characters.)
#[test]
fn text_of_a_server_is_printable_wherever_it_is_shown() {
    let server = MariaDb::start();
    let hidden = "no%0Dbo%E2%80%AEdy%E2%80%8B";
    let url = server.url().replacen("app", hidden, 1);
    let manager = build(manager_of::<MysqlConnection>([url]));
    let peers = manager.peers();
    let error = manager.connect().map(drop).expect_err("no such user").to_string();
    let snapshot = peers.snapshot();
    let reason = snapshot.peers[0].reason.clone().expect("the peer is down");
    assert!(reason.contains("'no\u{fffd}bo\u{fffd}dy\u{fffd}'"), "{reason:?}");
    let events = snapshot.events.iter().map(ToString::to_string);
    for shown in events.chain([error, reason, snapshot.to_string()]) {
        let is_hidden = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{200b}".contains(c);
        assert!(!shown.contains(is_hidden), "{shown:?}");
    }
}
