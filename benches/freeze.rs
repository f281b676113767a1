//! The effect on an application when one of three MariaDB servers is frozen for ten seconds: the server
//! neither answers nor refuses anything. Measured for each strategy, with the default timeouts and with short
//! ones.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench freeze --features mysql
//! cargo bench -p diesel-peers-tests --bench freeze --features mysql -- 24  # connections instead of 16
//! ```
//!
//! The throughput of two peers is measured on a pool over the other two, before and after. A value that
//! misses its bound is marked with `!`.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Strategy};
use support::backend::{PATIENCE, links, manager_over, pool_of, state};
use support::mariadb::MariaDb;
use support::{wait_until, within};

const THREADS: usize = 16;
/// A query during which the server mostly sleeps. So the throughput depends on the number of working threads,
/// and not on the processors, which all servers share.
const QUERY: &str = "SELECT SLEEP(0.01)";
const WARM_UP: Duration = Duration::from_secs(2);
const TWO_PEERS: Duration = Duration::from_secs(3);
const FROZEN: Duration = Duration::from_secs(10);
/// The time from the return of the thawed peer until its share is measured. Meanwhile, one connection moves to
/// the peer each `rebalance_interval`.
const SETTLE: Duration = Duration::from_secs(5);
const SHARE: Duration = Duration::from_secs(2);
/// The check interval. The other settings have their defaults.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The time that an operation may take in addition to the timeouts.
const LEEWAY: Duration = Duration::from_millis(500);
/// The limit of the longest time in which no operation succeeds.
const GAP: Duration = Duration::from_secs(1);
/// The lower limit of the throughput, as a part of the throughput of two peers.
const THROUGHPUT: f64 = 0.9;

fn main() {
    let connections = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(16);
    let settings = [
        ("default", Duration::from_secs(2), Duration::from_secs(1)),
        ("short", Duration::from_millis(500), Duration::from_millis(250)),
    ];
    println!(
        "{THREADS} threads, {connections} connections, queries of 10 ms; one of three frozen for 10 s\n\
         bounds: operation time `stall_after` + 2 x `check_timeout` + 0.5 s; throughput 90 % of two peers; no gap of 1 s"
    );
    println!(
        "{:>8} {:>17} | {:>8} {:>10} {:>7} {:>8} {:>9} {:>6} {:>8} | {:>8} {:>6}",
        "settings",
        "strategy",
        "down",
        "longest",
        "bound",
        "longest",
        "2 peers",
        "part",
        "failed",
        "up after",
        "share"
    );
    println!(
        "{:>8} {:>17} | {:>8} {:>10} {:>7} {:>8} {:>9} {:>6} {:>8} | {:>8} {:>6}",
        "", "", "after", "operation", "", "gap", "1/s", "of it", "", "thaw", "then"
    );
    for (name, stall_after, check_timeout) in settings {
        for strategy in [Strategy::LeastConnections, Strategy::Random, Strategy::RoundRobin] {
            let mut servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
            let tuned = |builder: PeerManagerBuilder<MysqlConnection>| {
                let builder = builder.stall_after(stall_after).check_timeout(check_timeout);
                builder.strategy(strategy).check_interval(CHECK_INTERVAL)
            };
            let before = two_peers(tuned(manager_over(&servers[1..])), connections);
            let seen = freeze(tuned(manager_over(&servers)), connections, &mut servers[0]);
            let after = two_peers(tuned(manager_over(&servers[1..])), connections);
            let bound = stall_after + 2 * check_timeout + LEEWAY;
            seen.print(&format!("{name:>8} {strategy:>17?}"), bound, f64::midpoint(before, after));
        }
    }
}

/// Operations per second of a pool over two peers.
fn two_peers(builder: PeerManagerBuilder<MysqlConnection>, connections: u32) -> f64 {
    let (pool, _) = pool_of(builder, connections);
    let mut rate = 0.0;
    Meter::run(&pool, |meter| {
        thread::sleep(WARM_UP / 2);
        let begin = meter.reading();
        thread::sleep(TWO_PEERS);
        rate = meter.reading().rate_since(begin);
    });
    rate
}

/// The measurements of one freeze.
struct Seen {
    /// The time from the freeze until the peer was marked down.
    down_after: Option<Duration>,
    /// The longest operation.
    longest: Duration,
    /// The longest time in which no operation succeeded.
    gap: Duration,
    /// Operations per second from the mark until the thaw.
    rate: f64,
    failed: u64,
    /// The time from the thaw until the peer was up again.
    up_after: Option<Duration>,
    /// The final share of the thawed peer in the operations.
    share: f64,
}

/// Freezes the first peer, which is `server`, for [`FROZEN`].
#[expect(clippy::cast_precision_loss, reason = "a few thousand operations")]
fn freeze(
    builder: PeerManagerBuilder<MysqlConnection>,
    connections: u32,
    server: &mut MariaDb,
) -> Seen {
    let (pool, peers) = pool_of(builder, connections);
    let is = |expected: PeerState| state(&peers, "peer0") == expected;
    let mut seen = None;
    let meter = Meter::run(&pool, |meter| {
        let is_full = || links(&peers).iter().sum::<usize>() == connections as usize;
        wait_until("the pool is full", PATIENCE, is_full);
        thread::sleep(WARM_UP);
        meter.reset_extremes();
        let frozen = Instant::now();
        server.freeze();
        let is_down = within(FROZEN, || is(PeerState::Down));
        let down_after = is_down.then(|| frozen.elapsed());
        let begin = meter.reading();
        thread::sleep(FROZEN.saturating_sub(frozen.elapsed()));
        let rate = meter.reading().rate_since(begin);
        let thawed = Instant::now();
        server.thaw();
        let up_after = within(PATIENCE, || is(PeerState::Up)).then(|| thawed.elapsed());
        thread::sleep(SETTLE);
        let (begin, begin_first) = (meter.reading(), meter.served_by_first());
        thread::sleep(SHARE);
        let all = meter.reading().served - begin.served;
        let share = (meter.served_by_first() - begin_first) as f64 / all as f64;
        seen = Some((down_after, rate, up_after, share));
    });
    let (down_after, rate, up_after, share) = seen.expect("the scenario has ended");
    let [longest, gap] = [&meter.longest, &meter.gap]
        .map(|nanos| Duration::from_nanos(nanos.load(Ordering::Relaxed)));
    let failed = meter.failed.load(Ordering::Relaxed);
    Seen { down_after, longest, gap, rate, failed, up_after, share }
}

impl Seen {
    fn print(&self, name: &str, bound: Duration, two_peers: f64) {
        let time = |time: Option<Duration>| {
            time.map_or("never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        let mark = |is_missed: bool| if is_missed { "!" } else { " " };
        let part = self.rate / two_peers;
        println!(
            "{name} | {:>8} {:>9}{} {:>7} {:>7}{} {two_peers:>9.0} {:>4.0}%{} {:>8} | {:>8} {:>5.1}%",
            time(self.down_after),
            time(Some(self.longest)),
            mark(self.longest > bound),
            time(Some(bound)),
            time(Some(self.gap)),
            mark(self.gap >= GAP),
            100.0 * part,
            mark(part < THROUGHPUT || self.down_after.is_none()),
            self.failed,
            time(self.up_after),
            100.0 * self.share,
        );
    }
}

/// Counters of the operations of all threads. Times are in nanoseconds.
struct Meter {
    origin: Instant,
    stopped: AtomicBool,
    served: AtomicU64,
    /// The operations that the first peer has served.
    served_by_first: AtomicU64,
    failed: AtomicU64,
    longest: AtomicU64,
    /// When the last operation succeeded, since the origin.
    last: AtomicU64,
    /// The longest time in which no operation succeeded.
    gap: AtomicU64,
}

/// The number of operations that had succeeded at a moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    served: u64,
}

impl Meter {
    /// Keeps the pool busy while `scenario` runs.
    fn run(pool: &Pool<PeerManager<MysqlConnection>>, scenario: impl FnOnce(&Self)) -> Self {
        let meter = Self {
            origin: Instant::now(),
            stopped: AtomicBool::new(false),
            served: AtomicU64::new(0),
            served_by_first: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            last: AtomicU64::new(0),
            gap: AtomicU64::new(0),
        };
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while !meter.stopped.load(Ordering::Relaxed) {
                        meter.one_operation(pool);
                    }
                });
            }
            scenario(&meter);
            meter.stopped.store(true, Ordering::Relaxed);
        });
        meter
    }

    /// A checkout, a query and a checkin.
    fn one_operation(&self, pool: &Pool<PeerManager<MysqlConnection>>) {
        let begin = self.now();
        let outcome = pool.get().ok().and_then(|mut conn| {
            let outcome = diesel::sql_query(QUERY).execute(&mut conn);
            outcome.ok().map(|_| conn.peer() == "peer0")
        });
        let now = self.now();
        self.longest.fetch_max(now - begin, Ordering::Relaxed);
        if let Some(is_first) = outcome {
            self.served.fetch_add(1, Ordering::Relaxed);
            self.served_by_first.fetch_add(u64::from(is_first), Ordering::Relaxed);
            let last = self.last.fetch_max(now, Ordering::Relaxed);
            self.gap.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets the longest operation and the longest gap so far.
    fn reset_extremes(&self) {
        self.longest.store(0, Ordering::Relaxed);
        self.gap.store(0, Ordering::Relaxed);
    }

    fn reading(&self) -> Reading {
        Reading { at: Instant::now(), served: self.served.load(Ordering::Relaxed) }
    }

    fn served_by_first(&self) -> u64 {
        self.served_by_first.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).expect("a short time")
    }
}

impl Reading {
    /// Operations per second since `begin`.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand operations")]
    fn rate_since(self, begin: Self) -> f64 {
        (self.served - begin.served) as f64 / (self.at - begin.at).as_secs_f64()
    }
}
