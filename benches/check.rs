//! What it costs to check a connection at checkout, on real connections to MariaDB: diesel's own
//! manager without and with its test, which is a round trip to the server, and this crate's over
//! three peers, which looks at the connection's socket.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench check --features mysql
//! ```

mod rounds;

use diesel::MysqlConnection;
use diesel::r2d2::ConnectionManager;
use rounds::{checkouts, median};
use support::backend::manager_over;
use support::mariadb::MariaDb;

const ROUNDS: usize = 61;
const CONNECTIONS: u32 = 16;
const CHECKOUTS: usize = 2000;
/// A round trip takes so much longer that fewer will do.
const ROUND_TRIPS: usize = 100;

fn main() {
    let servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let single = || ConnectionManager::<MysqlConnection>::new(servers[0].url());
    let untested = rounds::pool(single(), CONNECTIONS, false);
    let tested = rounds::pool(single(), CONNECTIONS, true);
    let manager = manager_over(&servers).build().expect("the settings are right");
    let balanced = rounds::pool(manager, CONNECTIONS, true);

    println!("{CONNECTIONS} connections to MariaDB; median of {ROUNDS} rounds, time a checkout");
    println!(
        "{:>7} | {:>12} {:>12} {:>12} | {:>14} {:>14}",
        "threads", "untested", "pinged", "PeerManager", "/ untested one", "under the ping"
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
        let dearer = median(times.iter().map(|[untested, _, balanced]| balanced / untested));
        let cheaper = median(times.iter().map(|[_, tested, balanced]| tested / balanced));
        println!(
            "{threads:>7} | {untested:>9.0} ns {tested:>9.0} ns {balanced:>9.0} ns | {dearer:>12.2} x {cheaper:>12.1} x"
        );
    }
}
