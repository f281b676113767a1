//! New connections are spread evenly over the peers. Between peers with equally many connections the
//! choice is random.

use std::collections::HashMap;

use diesel::r2d2::ManageConnection;
use support::backend::{Backend, PATIENCE, build, links, manager_over, pool_of};
use support::scripted::Servers;
use support::wait_until;

support::on_every_backend!(full_pool_has_as_many_connections_to_each_peer);

fn full_pool_has_as_many_connections_to_each_peer<B: Backend>() {
    let servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers), 9);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 9);
    assert_eq!(links(&peers), [3, 3, 3], "nine connections are spread over three peers");
}

/// The peers that a manager with this seed connects to, in order.
fn chosen_peers(servers: &Servers, seed: u64, connections: usize) -> Vec<String> {
    let manager = build(servers.builder().rng_seed(seed));
    let kept: Vec<_> =
        (0..connections).map(|_| manager.connect().expect("all peers are up")).collect();
    kept.iter().map(|conn| conn.peer().to_owned()).collect()
}

#[test]
fn each_round_of_connects_visits_every_peer_once_in_random_order() {
    let servers = Servers::start(3);
    let mut first: HashMap<String, usize> = HashMap::new();
    for seed in 0..300 {
        let order = chosen_peers(&servers, seed, 6);
        for round in order.chunks(3) {
            let mut names = round.to_vec();
            names.sort();
            assert_eq!(names, ["peer0", "peer1", "peer2"], "seed {seed}: each peer once a round");
        }
        let again = chosen_peers(&servers, seed, 6);
        assert_eq!(order, again, "seed {seed}: the same seed gives the same order");
        *first.entry(order[0].clone()).or_default() += 1;
    }
    // These three counts depend on the seeds above and on the generator's stream.
    let first = ["peer0", "peer1", "peer2"].map(|name| first[name]);
    assert_eq!(first.iter().sum::<usize>(), 300);
    assert!(first.iter().all(|count| (80..=120).contains(count)), "no peer is favored: {first:?}");
}

#[test]
fn pool_never_opens_more_sessions_than_its_size() {
    let servers = Servers::start(3);
    let (pool, peers) = pool_of(servers.builder(), 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    for server in servers.iter() {
        assert_eq!((server.open(), server.most_open()), (3, 3), "sessions now, and at most");
    }
    drop(pool);
    let all_closed = || servers.iter().all(|server| server.open() == 0);
    wait_until("the sessions end with the pool", PATIENCE, all_closed);
}
