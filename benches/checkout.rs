//! What a checkout and checkin costs, beside diesel's own manager, and how it grows with the peers.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench checkout
//! ```
//!
//! The connection answers a ping at once, so that what is left is the pool and the manager. What the
//! check at checkout costs on a connection with a socket is in `check.rs`.

mod rounds;

use std::sync::Arc;

use diesel::r2d2::ConnectionManager;
use diesel_peers::PeerManager;
use rounds::{checkouts, median};
use support::scripted::{ScriptedConnection, Server};

const ROUNDS: usize = 61;
const CHECKOUTS: usize = 2000;
const CONNECTIONS: u32 = 16;

fn main() {
    println!(
        "{CONNECTIONS} connections; median of {ROUNDS} rounds of {CHECKOUTS} checkouts a thread"
    );
    println!(
        "{:>7} {:>5} | {:>12} {:>12} {:>12} | {:>14}",
        "threads", "peers", "ConnectionMan", "tested", "PeerManager", "/ untested one"
    );
    for threads in [1, 8] {
        for peers in [3, 30, 300] {
            compare(threads, peers);
        }
    }
}

fn compare(threads: usize, peers: usize) {
    let servers: Vec<Arc<Server>> = (0..peers).map(|_| Server::start()).collect();
    let single = || ConnectionManager::<ScriptedConnection>::new(servers[0].url());
    let untested = rounds::pool(single(), CONNECTIONS, false);
    let tested = rounds::pool(single(), CONNECTIONS, true);
    let builder = servers
        .iter()
        .enumerate()
        .fold(PeerManager::<ScriptedConnection>::builder(), |builder, (index, server)| {
            builder.peer(format!("peer{index}"), server.url())
        });
    let manager = builder.build().expect("the settings are right");
    let balanced = rounds::pool(manager, CONNECTIONS, true);

    let mut times: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            [
                checkouts(&untested, threads, CHECKOUTS),
                checkouts(&tested, threads, CHECKOUTS),
                checkouts(&balanced, threads, CHECKOUTS),
            ]
        })
        .collect();
    // The first rounds warm up.
    times.drain(..ROUNDS / 10);
    let [untested, tested, balanced] = [0, 1, 2].map(|at| median(times.iter().map(|t| t[at])));
    let ratio = median(times.iter().map(|[untested, _, balanced]| balanced / untested));
    println!(
        "{threads:>7} {peers:>5} | {untested:>10.0} ns {tested:>10.0} ns {balanced:>10.0} ns | {ratio:>12.2} x"
    );
}
