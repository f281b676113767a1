//! A peer that has as many connections as it takes is not down: what it has given goes on being used,
//! others get the new ones, and it is asked again soon.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use diesel::connection::Connection;
use diesel_peers::{Fault, PeerState, Peers};
use support::APP;
use support::backend::{PATIENCE, RealServer, links, manager_over, pool_of, state};
use support::load::Load;
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::wait_until;

/// How many sessions the application's user may have. 0 is no limit.
trait Limited: RealServer {
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
    peers.snapshot().peers[0].is_full
}

fn goes_on_being_used<B: Limited>() {
    let servers = B::start(2);
    servers[0].limit(2);
    let (pool, peers) = pool_of(manager_over(&servers), 8);
    wait_until("the other one gets what this one does not take", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 6]
    });
    let seen = Load::run(&pool, 8, "SELECT 1", |load| {
        wait_until("both serve", PATIENCE, || {
            ["peer0", "peer1"].iter().all(|peer| load.served_by(peer) > 200)
        });
    });
    assert_eq!((seen.failed, seen.refused), (vec![], vec![]), "nobody notices");
    assert!(is_full(&peers), "that is known");
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "it is not down");
    assert_eq!(links(&peers), [2, 6], "and keeps what it has given");

    servers[0].limit(0);
    wait_until("it takes connections again", PATIENCE, || !is_full(&peers));
    wait_until("and gets its share", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [4, 4]
    });
}

#[test]
fn mariadb() {
    goes_on_being_used::<MariaDb>();
}

#[test]
fn postgres() {
    goes_on_being_used::<Postgres>();
}

/// With nobody else to ask it is asked all the same.
#[test]
fn when_all_are_full() {
    let servers = [MariaDb::start()];
    servers[0].limit(2);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    wait_until("it gives what it has", PATIENCE, || links(&peers) == [2] && is_full(&peers));
    assert!(pool.get().is_ok(), "which is used");
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!((status.state, status.fault, status.reason), (PeerState::Up, None, None));
    servers[0].limit(0);
    wait_until("the pool fills up", PATIENCE, || links(&peers) == [4]);
}

/// The whole server is full, and not only for this user.
#[test]
fn too_many_connections() {
    let servers = [MariaDb::start(), MariaDb::start()];
    // The least that can be set.
    servers[0].sql("SET GLOBAL max_connections = 10");
    let strangers: Vec<_> =
        std::iter::from_fn(|| diesel::MysqlConnection::establish(&servers[0].url()).ok()).collect();
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    wait_until("the other one gets all", PATIENCE, || links(&peers) == [0, 4]);
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "it is only full");
    assert!(is_full(&peers));
    drop(strangers);
    wait_until("it has room again", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 2]
    });
}

/// What an operator has to mend.
#[test]
fn a_wrong_password_is_no_full_peer() {
    let servers = [MariaDb::start(), MariaDb::start()];
    servers[0].sql(&format!("ALTER USER {APP} IDENTIFIED BY 'another'"));
    let (_pool, peers) = pool_of(manager_over(&servers), 2);
    wait_until("the other one gets all", PATIENCE, || links(&peers) == [0, 2]);
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::Misconfigured)));
}
