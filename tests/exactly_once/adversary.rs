//! The adversary between the clients and one server: it freezes, cuts off and closes the proxies, and sometimes restarts
//! the server. One proxy is spared at any time. All of it follows from the seed, except for what meets it.

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

/// Cuts the connection of the next `COMMIT` on one of the proxies.
pub(crate) fn cut_at_commit(proxies: &[CuttingProxy; 3], rng: &mut SmallRng) {
    let cut = match rng.random_range(0..3) {
        0 => Cut::BeforeServer,
        1 => Cut::BeforeAnswer,
        _ => Cut::InsideAnswer,
    };
    proxies[rng.random_range(0..3)].cut_at("COMMIT", cut);
    thread::sleep(Duration::from_millis(rng.random_range(10..200)));
}

/// Does one thing to one or two of the proxies, or restarts the server, and ends it.
pub(crate) fn strike(proxies: &[CuttingProxy; 3], server: &mut Server, rng: &mut SmallRng) {
    if rng.random_ratio(1, 20) {
        server.restart();
        return;
    }
    let spared = rng.random_range(0..3);
    let both = rng.random_ratio(1, 3);
    let victims = (1..=1 + usize::from(both)).map(|step| &proxies[(spared + step) % 3]);
    let victims: Vec<_> = victims.collect();
    // Half of the faults are over before a query on a frozen peer is aborted.
    let lasts = if rng.random() { rng.random_range(10..300) } else { rng.random_range(600..1500) };
    for proxy in &victims {
        match rng.random_range(0..6) {
            0 => proxy.cut_at("COMMIT", Cut::BeforeAnswer),
            1 => proxy.cut_at("COMMIT", Cut::Delayed),
            2 | 3 => proxy.freeze(),
            4 => proxy.cut_off(),
            _ => {
                proxy.refuse_connections();
                proxy.close_connections();
            }
        }
    }
    thread::sleep(Duration::from_millis(lasts));
    for proxy in victims {
        proxy.release();
        proxy.resume();
        proxy.accept_connections();
        // What was frozen and is forwarded now, is followed by the end of its connection.
        if rng.random_ratio(1, 3) {
            proxy.close_connections();
        }
    }
}
