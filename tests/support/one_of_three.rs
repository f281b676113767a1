//! Common steps of tests in which one of three peers fails under load: the peer leaves service, and it
//! comes back.

use std::time::Duration;

use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Peers};

use super::backend::{PATIENCE, fill, links, pool_of, state};
use super::load::Load;
use super::{how_long, wait_until};

pub const PEERS: [&str; 3] = ["peer0", "peer1", "peer2"];

/// The number of busy threads.
pub const THREADS: usize = 8;
/// The number of the pool's connections: one more than threads, so that each peer has three.
pub const CONNECTIONS: u32 = 9;
/// The number of connections to each peer.
pub const SHARES: [usize; 3] = [3, 3, 3];

/// Builds a pool and waits until each peer has its share of the connections.
#[track_caller]
pub fn full_pool<C>(builder: PeerManagerBuilder<C>) -> (Pool<PeerManager<C>>, Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    fill(&pool, &peers, &SHARES);
    (pool, peers)
}

/// Waits until the peer has left service, and returns how long that took.
#[track_caller]
pub fn leaves(peers: &Peers, name: &str) -> Duration {
    let noticed = || state(peers, name).is_marked_down();
    let idle = || peers.snapshot().peer(name).is_some_and(|peer| peer.in_use == 0);
    how_long("the peer is marked down", PATIENCE, noticed)
        + how_long("no connection to the peer is in use", PATIENCE, idle)
        + how_long("the connections to the peer are closed", PATIENCE, || {
            peers.snapshot().peer(name).is_some_and(|peer| peer.connections == 0)
        })
}

/// Waits until the peer is up, has its connections and serves its third of the queries. Returns how long it
/// took until the peer had its connections.
#[track_caller]
pub fn comes_back(peers: &Peers, name: &str, load: &Load) -> Duration {
    let took = how_long("the peer is up again", PATIENCE, || state(peers, name) == PeerState::Up)
        + how_long("each peer has its connections again", PATIENCE, || links(peers) == SHARES);
    serves_its_share(name, load);
    took
}

/// Waits until the peer serves about a third of the queries.
#[track_caller]
pub fn serves_its_share(name: &str, load: &Load) {
    wait_until("the peer serves its share of some thousand queries", PATIENCE, || {
        let (all, own) = (load.served(), load.served_by(name));
        wait_until("a thousand more queries succeed", PATIENCE, || load.served() >= all + 1000);
        let share = 100 * (load.served_by(name) - own) / (load.served() - all);
        (23..=43).contains(&share)
    });
}

/// Waits until each of these peers has served a hundred more queries.
#[track_caller]
pub fn wait_for_more(load: &Load, peers: &[&str]) {
    let before: Vec<_> = peers.iter().map(|peer| load.served_by(peer)).collect();
    wait_until(&format!("{peers:?} serve"), PATIENCE, || {
        peers.iter().zip(&before).all(|(peer, before)| load.served_by(peer) > before + 100)
    });
}
