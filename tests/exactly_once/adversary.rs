//! The adversary between the clients and one server: proxies freeze, are cut off, close their connections, and cut
//! single connections at their COMMIT; and sometimes the server is restarted. At any time one proxy does no more than
//! cut. What happens follows from the seed; whom it meets does not.

use std::env;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::process::Server;

/// Returns a generator, and prints its seed.
pub(crate) fn rng() -> SmallRng {
    let seed = env::var("DIESEL_PEERS_TEST_SEED").ok();
    let seed = seed.map_or_else(
        || rand::make_rng::<SmallRng>().random(),
        |text| text.parse().expect("a number"),
    );
    println!("DIESEL_PEERS_TEST_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

/// Cuts the connection of the next `COMMIT` on one of the proxies, and then waits for a moment, which it returns.
pub(crate) fn cut_at_commit(proxies: &[CuttingProxy; 3], rng: &mut SmallRng) -> Duration {
    let cut = match rng.random_range(0..4) {
        0 => Cut::BeforeServer,
        1 => Cut::BeforeAnswer,
        2 => Cut::InsideAnswer,
        _ => Cut::Delayed,
    };
    let proxy = &proxies[rng.random_range(0..3)];
    proxy.cut_at("COMMIT", cut);
    let pause = Duration::from_millis(rng.random_range(10..200));
    thread::sleep(pause);
    proxy.release();
    pause
}

/// Does one thing to one or two of the proxies for a while, and cuts connections at their COMMITs meanwhile. Sometimes
/// the server is restarted instead.
pub(crate) fn strike(proxies: &[CuttingProxy; 3], server: &mut Server, rng: &mut SmallRng) {
    if rng.random_ratio(1, 20) {
        server.restart();
        return;
    }
    let first = rng.random_range(0..3);
    let count = if rng.random_ratio(1, 3) { 2 } else { 1 };
    let victims: Vec<_> = (first..first + count).map(|at| &proxies[at % 3]).collect();
    for proxy in &victims {
        match rng.random_range(0..4) {
            0 | 1 => proxy.freeze(),
            2 => proxy.cut_off(),
            _ => {
                proxy.refuse_connections();
                proxy.close_connections();
            }
        }
    }
    // Half of the faults are over before a query on a frozen peer is aborted.
    let lasts = if rng.random() { rng.random_range(10..300) } else { rng.random_range(600..1500) };
    let mut lasted = Duration::ZERO;
    while lasted < Duration::from_millis(lasts) {
        lasted += cut_at_commit(proxies, rng);
    }
    for proxy in victims {
        proxy.resume();
        proxy.accept_connections();
        if rng.random_ratio(1, 3) {
            proxy.close_connections();
        }
    }
}
