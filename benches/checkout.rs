//! What a check-out and check-in costs, beside diesel's own manager.
//!
//! ```sh
//! cargo bench --bench checkout
//! ```
//!
//! The connection answers a ping at once, so that what is left is the pool and the manager. The
//! contenders take turns in many short rounds of one process, and the ratio is taken round by
//! round: on a machine that is busy with other things single times mean little. (That is why it
//! does not use criterion, which measures one contender after the other.)

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "times of a few seconds")]

#[allow(dead_code, unreachable_pub, reason = "the benchmark uses a part of it")]
#[path = "../tests/support/scripted.rs"]
mod scripted;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use diesel::r2d2::{ConnectionManager, ManageConnection, Pool, R2D2Connection};
use diesel_peers::PeerManager;
use scripted::{ScriptedConnection, Server};

const ROUNDS: usize = 61;
const CHECKOUTS: usize = 2000;
const CONNECTIONS: u32 = 16;

fn main() {
    println!(
        "{CONNECTIONS} connections; median of {ROUNDS} rounds of {CHECKOUTS} check-outs a thread"
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
    let untested = pool(ConnectionManager::<ScriptedConnection>::new(servers[0].url()), false);
    let tested = pool(ConnectionManager::<ScriptedConnection>::new(servers[0].url()), true);
    let builder = servers
        .iter()
        .enumerate()
        .fold(PeerManager::<ScriptedConnection>::builder(), |builder, (index, server)| {
            builder.peer(format!("peer{index}"), server.url())
        });
    let balanced = pool(builder.build().expect("the settings are right"), true);

    let mut rounds: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| [round(&untested, threads), round(&tested, threads), round(&balanced, threads)])
        .collect();
    // The first rounds warm up.
    rounds.drain(..ROUNDS / 10);
    let times = [0, 1, 2].map(|at| median(rounds.iter().map(|round| round[at])));
    let ratio = median(rounds.iter().map(|[untested, _, balanced]| balanced / untested));
    let [untested, tested, balanced] = times;
    println!(
        "{threads:>7} {peers:>5} | {untested:>10.0} ns {tested:>10.0} ns {balanced:>10.0} ns | {ratio:>12.2} x"
    );
}

fn pool<M>(manager: M, test_on_check_out: bool) -> Pool<M>
where
    M: ManageConnection,
    M::Connection: R2D2Connection,
{
    let pool = Pool::builder().max_size(CONNECTIONS).test_on_check_out(test_on_check_out);
    pool.build(manager).expect("the scripted servers live")
}

/// Nanoseconds of a thread's time for each check-out and check-in.
fn round<M: ManageConnection>(pool: &Pool<M>, threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let work = || {
        start.wait();
        let begin = Instant::now();
        for _ in 0..CHECKOUTS {
            drop(pool.get().expect("there are more connections than threads"));
        }
        begin.elapsed().as_nanos() as f64 / CHECKOUTS as f64
    };
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    times.iter().sum::<f64>() / times.len() as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
