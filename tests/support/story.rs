//! What the stories of three peers have in common, of which one fails while all threads work: how it
//! leaves service, and how it comes back.

use std::time::Duration;

use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Peers};

use super::backend::{PATIENCE, fill, links, pool_of, state};
use super::load::Load;
use super::{how_long, wait_until};

pub const PEERS: [&str; 3] = ["peer0", "peer1", "peer2"];

/// Busy threads, and a connection more, so that each peer has three.
pub const THREADS: usize = 8;
pub const CONNECTIONS: u32 = 9;
pub const SHARES: [usize; 3] = [3, 3, 3];

/// A full pool over all peers.
#[track_caller]
pub fn full_pool<C>(builder: PeerManagerBuilder<C>) -> (Pool<PeerManager<C>>, Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    fill(&pool, &peers, &SHARES);
    (pool, peers)
}

/// Waits until the peer has left service, and tells how long it took.
#[track_caller]
pub fn leaves(peers: &Peers, name: &str) -> Duration {
    let noticed = || state(peers, name) == PeerState::Down;
    let idle = || peers.snapshot().peer(name).is_some_and(|peer| peer.in_use == 0);
    how_long("it is noticed", PATIENCE, noticed)
        + how_long("nobody is there any more", PATIENCE, idle)
        + how_long("its connections are gone", PATIENCE, || {
            peers.snapshot().peer(name).is_some_and(|peer| peer.connections == 0)
        })
}

/// Waits until the peer is up, has its connections and serves its third of the work, and tells how
/// long it took until it had the connections.
#[track_caller]
pub fn comes_back(peers: &Peers, name: &str, load: &Load) -> Duration {
    let took = how_long("it is up again", PATIENCE, || state(peers, name) == PeerState::Up)
        + how_long("it has its share again", PATIENCE, || links(peers) == SHARES);
    serves_its_share(name, load);
    took
}

/// Waits until the peer serves its third of the work.
#[track_caller]
pub fn serves_its_share(name: &str, load: &Load) {
    wait_until("it serves its share of some thousand queries", PATIENCE, || {
        let (all, own) = (load.served(), load.served_by(name));
        wait_until("a thousand more are served", PATIENCE, || load.served() >= all + 1000);
        let share = 100 * (load.served_by(name) - own) / (load.served() - all);
        (23..=43).contains(&share)
    });
}

/// Waits until each of these peers has served a hundred queries more.
#[track_caller]
pub fn wait_for_more(load: &Load, peers: &[&str]) {
    let before: Vec<_> = peers.iter().map(|peer| load.served_by(peer)).collect();
    wait_until("these serve", PATIENCE, || {
        peers.iter().zip(&before).all(|(peer, before)| load.served_by(peer) > before + 100)
    });
}
