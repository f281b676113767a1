//! After an outage of every peer a pool serves as soon as one of them is back, with r2d2's own settings
//! too, which let a slot sleep for up to 15 seconds between two tries.
//!
//! `DIESEL_PEERS_TEST_SECONDS` says how long the longest outage lasts. From 40 on there are many
//! outages, side by side, of 20 seconds and more.

#![allow(clippy::disallowed_methods, reason = "outages and delays are measured by the clock")]

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::Pool;
use support::backend::manager_of;
use support::scripted::{ScriptedConnection, Server};

/// The sizes of pools.
const SIZES: [u32; 6] = [2, 3, 4, 6, 10, 16];

/// How long each outage lasts. r2d2 alone tries again 0.4, 1.2, 2.8, 6 and 12.4 seconds after the
/// first try, so it would be late by almost three seconds, and by six.
const LENGTHS: [Duration; 2] = [Duration::from_millis(3100), Duration::from_millis(6400)];

/// Far more than a check and a login take, and less than r2d2's next try.
const LATE: Duration = Duration::from_millis(2500);

/// How many long outages there are for each size, and how long the shortest of them is.
const LONG_ONES: u32 = 8;
const SHORTEST_LONG_ONE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
struct Outage {
    max_size: u32,
    length: Duration,
    /// Whether there is one before the pool is built, or its connections are lost by it.
    is_first: bool,
}

impl Outage {
    /// How long after the return of one peer of two the pool has served a query.
    fn delay(self) -> Duration {
        let servers = Servers::start(2);
        let break_all = || servers.iter().for_each(|server| server.crash());
        let manager = servers.builder();
        let manager = manager.build().expect("the settings are right");
        let pool = || Pool::builder().max_size(self.max_size);
        let pool = if self.is_first {
            break_all();
            pool().build_unchecked(manager)
        } else {
            let pool = pool().build(manager).expect("both peers are up");
            break_all();
            pool
        };
        thread::scope(|scope| {
            let application = scope.spawn(|| {
                loop {
                    if let Ok(mut conn) = pool.get() {
                        conn.batch_execute("SELECT 1").expect("it was tested");
                        return Instant::now();
                    }
                }
            });
            thread::sleep(self.length);
            assert!(!application.is_finished(), "every peer is down");
            let back = Instant::now();
            servers[0].accept(true);
            let served = application.join().expect("the application has not failed");
            served.duration_since(back)
        })
    }
}

fn outages() -> Vec<Outage> {
    let longest = env::var("DIESEL_PEERS_TEST_SECONDS").ok();
    let longest = longest.map(|text| text.parse().expect("a number of seconds"));
    let longest =
        longest.map(Duration::from_secs).filter(|longest| *longest > 2 * SHORTEST_LONG_ONE);
    let outage =
        |max_size, length, number: u32| Outage { max_size, length, is_first: number % 2 == 0 };
    match longest {
        None => {
            let of_size = |size: u32| {
                let lengths = (size / 2..).zip(LENGTHS);
                lengths.map(move |(number, length)| outage(size, length, number))
            };
            SIZES.into_iter().flat_map(of_size).collect()
        }
        // No two of the same length.
        Some(longest) => {
            let sizes: Vec<u32> = [1].into_iter().chain(SIZES).collect();
            let count = LONG_ONES * u32::try_from(sizes.len()).expect("a few") - 1;
            let step = longest.saturating_sub(SHORTEST_LONG_ONE) / count;
            let lengths = (0..=count).map(|number| SHORTEST_LONG_ONE + number * step);
            let numbers = 0..;
            numbers
                .zip(lengths)
                .zip(sizes.into_iter().cycle())
                .map(|((number, length), size)| outage(size, length, number / 7))
                .collect()
        }
    }
}

#[test]
fn the_pool_serves_as_soon_as_a_peer_is_back() {
    let outages = outages();
    let mut delays = BTreeMap::<u32, Vec<(Outage, Duration)>>::new();
    thread::scope(|scope| {
        let stories: Vec<_> =
            outages.iter().map(|outage| (outage, scope.spawn(|| outage.delay()))).collect();
        for (outage, story) in stories {
            let delay = story.join().expect("it comes to an end");
            delays.entry(outage.max_size).or_default().push((*outage, delay));
        }
    });
    for (size, delays) in &mut delays {
        delays.sort_by_key(|(_, delay)| *delay);
        let delays: Vec<_> = delays
            .iter()
            .map(|(outage, delay)| format!("{delay:.0?} after {:.1?}", outage.length))
            .collect();
        println!("max_size {size}: {}", delays.join(", "));
    }
    // With one connection there is nobody who waits while that sleeps.
    for (outage, delay) in delays.range(2..).flat_map(|(_, delays)| delays) {
        assert!(*delay < LATE, "{delay:?} late: {outage:?}");
    }
}
