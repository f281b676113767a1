//! The processor time that an idle application spends on its peers: health checks, and nothing else.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench idle
//! cargo bench -p diesel-peers-tests --bench idle -- 4000 3600 # so many peers, and how many are down
//! ```
//!
//! The servers answer at once and in the same process, so the figures contain a thread for each check, but no
//! network and no client library.

#![allow(clippy::disallowed_methods, reason = "a benchmark waits")]
#![allow(clippy::cast_precision_loss, reason = "some seconds in hundredths")]

use std::time::{Duration, Instant};
use std::{env, fs, thread};

use support::backend::pool_of;
use support::scripted::Servers;
use support::wait_until;

/// The default `check_interval`, and a time in which each peer is checked once.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(34);
const CONNECTIONS: u32 = 10;

/// How many times a second Linux counts processor time, in `/proc/self/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() {
    println!("{IDLE:?} of idling, check_interval {CHECK_INTERVAL:?}, {CONNECTIONS} connections");
    println!(
        "{:>6} {:>6} | {:>14} {:>10} {:>12}",
        "peers", "down", "of a processor", "checks/s", "µs per check"
    );
    let given: Vec<usize> = env::args().filter_map(|argument| argument.parse().ok()).collect();
    match given[..] {
        [peers, down] => idle(peers, down),
        _ => {
            for (peers, down) in [(10, 9), (100, 90), (1000, 900), (1000, 0), (4000, 4000)] {
                idle(peers, down);
            }
        }
    }
}

fn idle(peers: usize, down: usize) {
    let servers = Servers::start(peers);
    servers.iter().take(down).for_each(|server| server.accept(false));
    let logins = || servers.iter().map(|server| server.logins()).sum::<usize>();
    let builder = servers.builder().check_interval(CHECK_INTERVAL);
    let (pool, _peers) = pool_of(builder, CONNECTIONS);
    wait_until("each peer was checked", 4 * CHECK_INTERVAL, || {
        servers.iter().all(|server| server.logins() > 0)
    });

    let (start, time, checks) = (Instant::now(), processor_time(), logins());
    thread::sleep(IDLE);
    let seconds = start.elapsed().as_secs_f64();
    let share = (processor_time() - time) / seconds;
    let checks = (logins() - checks) as f64 / seconds;
    println!(
        "{peers:>6} {down:>6} | {:>12.2} % {checks:>10.1} {:>12.0}",
        100.0 * share,
        1e6 * share / checks
    );
    drop(pool);
}

/// Returns the processor time of this process, in seconds: that of its threads, also of those that have ended.
fn processor_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("this is Linux");
    // The name of the program, in parentheses, may contain spaces.
    let (_, fields) = stat.rsplit_once(") ").expect("the name of the program");
    let fields: Vec<&str> = fields.split(' ').collect();
    let [user, system] = [fields[11], fields[12]].map(|ticks| ticks.parse::<f64>().expect("ticks"));
    (user + system) / TICKS_PER_SECOND
}
