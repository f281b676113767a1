//! What the application notices when one of three MariaDB servers stops for ten seconds without a
//! word: its process is frozen, so that what it is asked is never answered, nor refused. For each
//! strategy, with the default settings and with short ones.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench freeze --features mysql
//! cargo bench -p diesel-peers-tests --bench freeze --features mysql -- 24  # connections, instead of one for each thread
//! ```
//!
//! What two peers give is measured on a pool over the other two, before and after. What misses its
//! bound is marked with `!`.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::env;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Strategy};
use support::backend::{PATIENCE, manager_over, pool_of};
use support::mariadb::MariaDb;
use support::{wait_until, within};

const THREADS: usize = 16;
/// The servers sleep for most of it: what is measured is how many threads are at work, and not the
/// processors, which all servers share here.
const QUERY: &str = "SELECT SLEEP(0.01)";
const WARM_UP: Duration = Duration::from_secs(2);
const TWO_PEERS: Duration = Duration::from_secs(3);
const FROZEN: Duration = Duration::from_secs(10);
/// From when the thawed peer is up again until its share is measured: connections move to it one
/// each `rebalance_interval`.
const SETTLE: Duration = Duration::from_secs(5);
const SHARE: Duration = Duration::from_secs(2);
/// How soon the thawed peer is checked; the other settings are what they are by default.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// What an operation may take besides what the settings say, and the longest time without any.
const LEEWAY: Duration = Duration::from_millis(500);
const GAP: Duration = Duration::from_secs(1);
/// The least throughput, in proportion to what two peers give.
const THROUGHPUT: f64 = 0.9;

fn main() {
    let connections = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(16);
    let settings = [
        ("default", Duration::from_secs(2), Duration::from_secs(1)),
        ("short", Duration::from_millis(500), Duration::from_millis(250)),
    ];
    println!(
        "{THREADS} threads, {connections} connections, queries of 10 ms; one of three frozen for 10 s\n\
         bounds: an operation `stall_after` + 2 x `check_timeout` + 0.5 s; 90 % of two peers; no gap of 1 s"
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
        "of",
        "failed",
        "up after",
        "share"
    );
    println!(
        "{:>8} {:>17} | {:>8} {:>10} {:>7} {:>8} {:>9} {:>6} {:>8} | {:>8} {:>6}",
        "", "", "after", "operation", "", "gap", "1/s", "them", "", "its thaw", "then"
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

/// Operations in a second that a pool over two peers gives.
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

/// What was seen of a freeze.
struct Seen {
    /// Until the peer was marked down.
    down_after: Option<Duration>,
    longest: Duration,
    gap: Duration,
    /// Operations in a second from then until the thaw.
    rate: f64,
    failed: u64,
    /// Until the peer was up again, since its thaw.
    up_after: Option<Duration>,
    /// The thawed peer's share in the end.
    share: f64,
}

/// The first peer, which is `server`, is frozen for a while.
#[expect(clippy::cast_precision_loss, reason = "a few thousand operations")]
fn freeze(
    builder: PeerManagerBuilder<MysqlConnection>,
    connections: u32,
    server: &mut MariaDb,
) -> Seen {
    let (pool, peers) = pool_of(builder, connections);
    let is = |state: PeerState| status(&peers, "peer0").state == state;
    let mut seen = None;
    let meter = Meter::run(&pool, |meter| {
        let open = || peers.snapshot().peers.iter().map(|peer| peer.connections).sum::<usize>();
        wait_until("a full pool", PATIENCE, || open() == connections as usize);
        thread::sleep(WARM_UP);
        meter.forget_records();
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
    let (down_after, rate, up_after, share) = seen.expect("the story was told to its end");
    let [longest, gap] = [&meter.longest, &meter.gap].map(|at| nanos(at.load(Ordering::Relaxed)));
    let failed = meter.failed.load(Ordering::Relaxed);
    Seen { down_after, longest, gap, rate, failed, up_after, share }
}

impl Seen {
    fn print(&self, name: &str, bound: Duration, two_peers: f64) {
        let time = |time: Option<Duration>| {
            time.map_or("never".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
        };
        let missed = |missed: bool| if missed { "!" } else { " " };
        let proportion = self.rate / two_peers;
        println!(
            "{name} | {:>8} {:>9}{} {:>7} {:>7}{} {two_peers:>9.0} {:>4.0}%{} {:>8} | {:>8} {:>5.1}%",
            time(self.down_after),
            time(Some(self.longest)),
            missed(self.longest > bound),
            time(Some(bound)),
            time(Some(self.gap)),
            missed(self.gap >= GAP),
            100.0 * proportion,
            missed(proportion < THROUGHPUT || self.down_after.is_none()),
            self.failed,
            time(self.up_after),
            100.0 * self.share,
        );
    }
}

/// What the threads have done. Times are in nanoseconds.
struct Meter {
    origin: Instant,
    stopped: AtomicBool,
    served: AtomicU64,
    /// Of those, by the first peer.
    served_by_first: AtomicU64,
    failed: AtomicU64,
    longest: AtomicU64,
    /// When an operation succeeded last, since the origin, and the longest time without one.
    last: AtomicU64,
    gap: AtomicU64,
}

/// How many operations had succeeded at a moment.
#[derive(Clone, Copy)]
struct Reading {
    at: Instant,
    served: u64,
}

impl Meter {
    /// Keeps the pool busy while `story` goes on.
    fn run(pool: &Pool<PeerManager<MysqlConnection>>, story: impl FnOnce(&Self)) -> Self {
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
            story(&meter);
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

    /// Whatever took long so far does not count.
    fn forget_records(&self) {
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
        u64::try_from(self.origin.elapsed().as_nanos()).expect("a short story")
    }
}

impl Reading {
    /// Operations in a second.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand operations")]
    fn rate_since(self, begin: Self) -> f64 {
        (self.served - begin.served) as f64 / (self.at - begin.at).as_secs_f64()
    }
}

fn nanos(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}
