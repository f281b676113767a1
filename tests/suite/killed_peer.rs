//! One of three peers is killed while eight threads work: only queries in flight on that peer fail, no
//! `pool.get()` fails, and the peer serves again when it is back.

#![cfg(any(feature = "mysql", feature = "postgres"))]

use diesel_peers::PeerState;
use support::backend::{Backend, PATIENCE, SOON, links, manager_over, pool_of, state};
use support::load::Load;
use support::one_of_three::serves_its_share;
use support::wait_until;

fn peer_is_killed_under_load<B: Backend>() {
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 8);
    wait_until("the pool is full", PATIENCE, || links(&peers).iter().sum::<usize>() == 8);

    let seen = Load::run(&pool, 8, "SELECT 1", |load| {
        wait_until("every peer serves", PATIENCE, || {
            ["peer0", "peer1", "peer2"].iter().all(|peer| load.served_by(peer) > 50)
        });
        servers[0].kill();
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_until("the connections to peer0 are closed", PATIENCE, || links(&peers)[0] == 0);
        let before = load.served();
        wait_until("the other peers serve", PATIENCE, || load.served() > before + 200);

        let before = load.served_by("peer0");
        servers[0].restart();
        wait_until("peer0 is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("peer0 has its share of the connections again", PATIENCE, || {
            links(&peers)[0] >= 2
        });
        wait_until("peer0 serves again", PATIENCE, || load.served_by("peer0") > before + 50);
        serves_its_share("peer0", load);
    });

    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    let only_killed = seen.failed.iter().all(|(peer, _)| peer == "peer0");
    assert!(only_killed, "only the killed peer's queries fail: {:?}", seen.failed);
    assert!(
        seen.failed.len() <= 3,
        "at most one query fails on each of its connections: {:?}",
        seen.failed
    );
}

#[cfg(feature = "mysql")]
#[test]
fn killed_mariadb_fails_only_queries_in_flight() {
    peer_is_killed_under_load::<support::mariadb::MariaDb>();
}

#[cfg(feature = "postgres")]
#[test]
fn killed_postgres_fails_only_queries_in_flight() {
    peer_is_killed_under_load::<support::postgres::Postgres>();
}
