//! Eight busy threads over three peers, one of which is killed: errors only for what was in flight
//! on it, none from `pool.get()`, and it serves again when it is back.

#![cfg(any(feature = "mysql", feature = "postgres"))]

use diesel_peers::PeerState;
use support::backend::{Backend, PATIENCE, SOON, links, manager_over, pool_of, state};
use support::load::Load;
use support::wait_until;

fn a_peer_is_killed_under_load<B: Backend>() {
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 8);
    wait_until("the pool is full", PATIENCE, || links(&peers).iter().sum::<usize>() == 8);

    let seen = Load::run(&pool, 8, "SELECT 1", |load| {
        wait_until("every peer serves", PATIENCE, || {
            ["peer0", "peer1", "peer2"].iter().all(|peer| load.served_by(peer) > 50)
        });
        servers[0].kill();
        wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        wait_until("its connections are gone", PATIENCE, || links(&peers)[0] == 0);
        let before = load.served();
        wait_until("the others serve", PATIENCE, || load.served() > before + 200);

        let before = load.served_by("peer0");
        servers[0].restart();
        wait_until("it is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("it has its share again", PATIENCE, || links(&peers)[0] >= 2);
        wait_until("it serves again", PATIENCE, || load.served_by("peer0") > before + 50);
        wait_until("it serves its share of some thousand queries", PATIENCE, || {
            let (all, own) = (load.served(), load.served_by("peer0"));
            wait_until("a thousand more are served", PATIENCE, || load.served() >= all + 1000);
            let share = 100 * (load.served_by("peer0") - own) / (load.served() - all);
            (23..=43).contains(&share)
        });
    });

    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    let only_killed = seen.failed.iter().all(|(peer, _)| peer == "peer0");
    assert!(only_killed, "only the killed peer's queries fail: {:?}", seen.failed);
    assert!(seen.failed.len() <= 3, "only one on each of its connections: {:?}", seen.failed);
}

#[cfg(feature = "mysql")]
#[test]
fn mariadb() {
    a_peer_is_killed_under_load::<support::mariadb::MariaDb>();
}

#[cfg(feature = "postgres")]
#[test]
fn postgres() {
    a_peer_is_killed_under_load::<support::postgres::Postgres>();
}
