//! The cost of the validation at checkout, on real connections to MariaDB. Compares diesel's own manager
//! without its test, diesel's own manager with its test (a round trip to the server), and this crate over
//! three peers, which inspects the connection's socket.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench check --features mysql
//! ```

mod rounds;

use diesel::MysqlConnection;
use diesel::r2d2::ConnectionManager;
use rounds::{checkouts, median};
use support::backend::{build, manager_over};
use support::mariadb::MariaDb;

const ROUNDS: usize = 61;
const CONNECTIONS: u32 = 16;
const CHECKOUTS: usize = 2000;
/// The number of checkouts with a round trip: these take much longer, so fewer are sufficient.
const ROUND_TRIPS: usize = 100;

fn main() {
    let servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let single = || ConnectionManager::<MysqlConnection>::new(servers[0].url());
    let untested = rounds::pool(single(), CONNECTIONS, false);
    let tested = rounds::pool(single(), CONNECTIONS, true);
    let manager = build(manager_over(&servers));
    let balanced = rounds::pool(manager, CONNECTIONS, true);

    println!("{CONNECTIONS} connections to MariaDB; median of {ROUNDS} rounds, time per checkout");
    println!(
        "{:>7} | {:>12} {:>12} {:>12} | {:>14} {:>14}",
        "threads", "untested", "pinged", "PeerManager", "/ untested", "ping / ours"
    );
    for threads in [1, 8] {
        let mut times: Vec<[f64; 3]> = (0..ROUNDS)
            .map(|_| {
                [
                    checkouts(&untested, threads, CHECKOUTS),
                    checkouts(&tested, threads, ROUND_TRIPS),
                    checkouts(&balanced, threads, CHECKOUTS),
                ]
            })
            .collect();
        // The first rounds warm up.
        times.drain(..ROUNDS / 10);
        let [untested, tested, balanced] = [0, 1, 2].map(|at| median(times.iter().map(|t| t[at])));
        let to_untested = median(times.iter().map(|[untested, _, balanced]| balanced / untested));
        let pinged_to_ours = median(times.iter().map(|[_, tested, balanced]| tested / balanced));
        println!(
            "{threads:>7} | {untested:>9.0} ns {tested:>9.0} ns {balanced:>9.0} ns | {to_untested:>12.2} x {pinged_to_ours:>12.1} x"
        );
    }
}
