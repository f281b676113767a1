//! The cost of a checkout and a checkin, compared with diesel's own manager, and how the cost grows with the
//! number of peers.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench checkout
//! ```
//!
//! The connection answers a ping at once, so only the pool and the manager are measured. `check.rs` measures
//! the validation at checkout on connections with a socket.

mod rounds;

use diesel::r2d2::ConnectionManager;
use rounds::{checkouts, median};
use support::backend::build;
use support::scripted::{ScriptedConnection, Servers};

const ROUNDS: usize = 61;
const CHECKOUTS: usize = 2000;
const CONNECTIONS: u32 = 16;

fn main() {
    println!(
        "{CONNECTIONS} connections; median of {ROUNDS} rounds of {CHECKOUTS} checkouts per thread"
    );
    println!(
        "{:>7} {:>5} | {:>12} {:>12} {:>12} | {:>14}",
        "threads", "peers", "untested", "tested", "PeerManager", "/ untested"
    );
    for threads in [1, 8] {
        for peers in [3, 30, 300] {
            compare(threads, peers);
        }
    }
}

fn compare(threads: usize, peers: usize) {
    let servers = Servers::start(peers);
    let single = || ConnectionManager::<ScriptedConnection>::new(servers[0].url());
    let untested = rounds::pool(single(), CONNECTIONS, false);
    let tested = rounds::pool(single(), CONNECTIONS, true);
    let balanced = rounds::pool(build(servers.builder()), CONNECTIONS, true);

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
