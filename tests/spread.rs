//! New connections are spread evenly over the peers, and by chance where they are even.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::r2d2::ManageConnection;
use support::backend::{Backend, PATIENCE, links, manager_of, manager_over, pool_of};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

support::on_every_backend!(a_pool_is_spread_evenly);

fn a_pool_is_spread_evenly<B: Backend>() {
    let servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers), 9);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 9);
    assert_eq!(links(&peers), [3, 3, 3], "nine connections over three peers");
}

/// The peers that one manager with this seed connects to, in turn.
fn chosen(servers: &[Arc<Server>], seed: u64, connections: usize) -> Vec<String> {
    let urls = servers.iter().map(|server| server.url());
    let manager = manager_of::<ScriptedConnection>(urls).rng_seed(seed).build();
    let manager = manager.expect("the settings are right");
    let kept: Vec<_> =
        (0..connections).map(|_| manager.connect().expect("all peers live")).collect();
    kept.iter().map(|conn| conn.peer().to_owned()).collect()
}

#[test]
fn each_round_goes_to_every_peer_once_in_an_order_by_chance() {
    let servers: Vec<_> = (0..3).map(|_| Server::start()).collect();
    let mut first: HashMap<String, usize> = HashMap::new();
    for seed in 0..300 {
        let order = chosen(&servers, seed, 6);
        for round in order.chunks(3) {
            let mut names = round.to_vec();
            names.sort();
            assert_eq!(names, ["peer0", "peer1", "peer2"], "seed {seed}: each peer once a round");
        }
        assert_eq!(order, chosen(&servers, seed, 6), "seed {seed}: the same seed, the same order");
        *first.entry(order[0].clone()).or_default() += 1;
    }
    // With these 300 seeds; a generator that changes its stream changes these three figures.
    let first = ["peer0", "peer1", "peer2"].map(|name| first[name]);
    assert_eq!(first.iter().sum::<usize>(), 300);
    assert!(first.iter().all(|count| (80..=120).contains(count)), "no peer is favored: {first:?}");
}

#[test]
fn no_more_sessions_are_open_than_the_pool_is_large() {
    let servers: Vec<_> = (0..3).map(|_| Server::start()).collect();
    let (pool, peers) =
        pool_of(manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url())), 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    for server in &servers {
        assert_eq!((server.open(), server.most_open()), (3, 3), "sessions, and the most at once");
    }
    drop(pool);
    wait_until("they end with the pool", PATIENCE, || servers.iter().all(|s| s.open() == 0));
}
