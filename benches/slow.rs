//! The effect on an application when the queries of one of three MariaDB servers take 10 or 100 times as long
//! for ten seconds: with 1, 4 and 16 threads, with `slow_peers` off and with its default. Everything is
//! compared with two healthy peers in the same run. Prints the figures, and draws the picture of
//! `docs/slow-peers.md`, as a file and as a definition for the crate's documentation.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench slow --features mysql         # takes seven minutes
//! cargo bench -p diesel-peers-tests --bench slow --features mysql -- 8    # connections instead of 16
//! ```
//!
//! A value that misses its bound is marked with `!`.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "times and numbers of some thousand queries")]
#![allow(missing_docs, reason = "a benchmark has no public interface")]

use std::env;
use std::fmt::Write;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel_peers::SlowPeers;
use support::backend::{Backend, PATIENCE, links, manager_over, pool_of};
use support::figure;
use support::mariadb::MariaDb;
use support::wait_until;

/// A query during which the server sleeps. So the throughput depends on the number of working threads, and not
/// on the processors, which all servers share.
const QUERY: &str = "SELECT SLEEP(seconds) FROM delay";
const USUAL: Duration = Duration::from_millis(2);
const WARM_UP: Duration = Duration::from_secs(1);
const TWO_PEERS: Duration = Duration::from_secs(3);
/// The times after the begin of the measurement at which the server becomes slow and fast again.
const FAULT: Duration = Duration::from_secs(3);
const CURE: Duration = Duration::from_secs(13);
/// The time after the fault from which the slow peer has to be relieved.
const NOTICED: Duration = Duration::from_secs(3);
/// The time during which the share of the cured peer is measured.
const SHARE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(250);

/// A query that has succeeded.
#[derive(Clone, Copy)]
struct Served {
    peer: usize,
    /// When it ended, after the begin of the measurement.
    ended: Duration,
    took: Duration,
}

/// The queries of a time.
struct Rates {
    /// Queries per second.
    rate: f64,
    p99: Duration,
    /// The share of the second peer in percent.
    share: f64,
}

struct Run {
    threads: usize,
    mode: SlowPeers,
    two_peers: Rates,
    length: Duration,
    served: Vec<Served>,
}

fn main() {
    let connections = env::args().find_map(|argument| argument.parse().ok()).unwrap_or(16);
    let servers = <MariaDb as Backend>::start(3);
    for server in &servers {
        server.sql("CREATE TABLE app.delay (seconds DOUBLE) SELECT 0.002 AS seconds");
    }
    println!(
        "queries of 2 ms, {connections} connections; of one of three peers 10 or 100 times as long for 10 s\n\
         bounds with `shift`, from 3 s after the fault on: 99 % of the queries take at most 1.5 times as long as with two healthy \
         peers, and there are at least 95 % as many (90 % with one thread and 100 times); 10 s after the cure (15 s after 100 times) \
         the share is 33 +- 3 %"
    );
    println!(
        "{:>6} {:>7} {:>5} | {:>9} {:>9} | {:>9} {:>9} {:>9} | {:>9}",
        "factor", "threads", "mode", "2 peers/s", "p99", "queries", "p99", "share", "cured"
    );
    let mut runs = Vec::new();
    for factor in [10, 100] {
        for threads in [1, 4, 16] {
            for mode in [SlowPeers::Off, SlowPeers::Shift] {
                let run = measure(&servers, connections, threads, mode, factor);
                report(&run, factor);
                if factor == 10 {
                    runs.push(run);
                }
            }
        }
    }
    let svg = drawing(&runs);
    let definition = figure::definition("slow figure", svg.as_bytes());
    for (file, content) in [("docs/slow-peers.svg", svg), ("src/guide/slow_figure.md", definition)]
    {
        let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
        fs::write(path, content).expect("the folder of the file is writable");
        println!("wrote {file}");
    }
}

fn measure(
    servers: &[MariaDb],
    connections: u32,
    threads: usize,
    mode: SlowPeers,
    factor: u32,
) -> Run {
    let set_delay = |time: Duration| {
        servers[1].sql(&format!("UPDATE app.delay SET seconds = {}", time.as_secs_f64()));
    };
    set_delay(USUAL);
    let (pool, peers) = pool_of(manager_over(servers).slow_peers(mode), connections);
    let cured = CURE + Duration::from_secs(if factor == 10 { 10 } else { 15 });
    let length = cured + SHARE;
    let (served, done) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let measurement = Mutex::new(Instant::now());
    let two_peers = thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let mut conn = pool.get().expect("all servers are running");
                    conn.batch_execute(QUERY).expect("all servers are running");
                    let peer = usize::from(conn.peer() == "peer1");
                    drop(conn);
                    let start = *measurement.lock().expect("no thread panics");
                    let ended = start.elapsed();
                    let took = begun.elapsed();
                    served.lock().expect("no thread panics").push(Served { peer, ended, took });
                }
            });
        }
        let restart = || {
            let mut measurement = measurement.lock().expect("no thread panics");
            *measurement = Instant::now();
            served.lock().expect("no thread panics").clear();
        };
        assert!(peers.drain("peer1").expect("there is such a peer").wait(PATIENCE));
        thread::sleep(WARM_UP);
        restart();
        thread::sleep(TWO_PEERS);
        let served = served.lock().expect("no thread panics").clone();
        let two_peers = rates(&served, Duration::ZERO, TWO_PEERS);
        peers.resume("peer1").expect("there is such a peer");
        wait_until("the peers have their shares", PATIENCE, || {
            let links: Vec<_> = links(&peers);
            links.iter().all(|own| own.abs_diff(links[0]) <= 1)
        });
        thread::sleep(WARM_UP);
        restart();
        let start = *measurement.lock().expect("no thread panics");
        let wait_for = |at: Duration| thread::sleep(at.saturating_sub(start.elapsed()));
        wait_for(FAULT);
        set_delay(USUAL * factor);
        wait_for(CURE);
        set_delay(USUAL);
        wait_for(length);
        done.store(true, Ordering::Relaxed);
        two_peers
    });
    let served = served.into_inner().expect("no thread panicked");
    Run { threads, mode, two_peers, length, served }
}

/// Returns the rates of the queries that have ended between two times.
fn rates(served: &[Served], from: Duration, until: Duration) -> Rates {
    let within: Vec<_> =
        served.iter().filter(|one| one.ended >= from && one.ended < until).collect();
    let mut times: Vec<Duration> = within.iter().map(|one| one.took).collect();
    times.sort_unstable();
    let own = within.iter().filter(|one| one.peer == 1).count();
    Rates {
        rate: within.len() as f64 / until.saturating_sub(from).as_secs_f64(),
        p99: times.get(times.len() * 99 / 100).copied().unwrap_or_default(),
        share: 100.0 * own as f64 / within.len().max(1) as f64,
    }
}

fn report(run: &Run, factor: u32) {
    let Run { threads, mode, two_peers, length, served } = run;
    let relieved = rates(served, FAULT + NOTICED, CURE);
    let cured = rates(served, length.saturating_sub(SHARE), *length);
    let part = 100.0 * relieved.rate / two_peers.rate;
    let times = relieved.p99.as_secs_f64() / two_peers.p99.as_secs_f64();
    let least = if *threads == 1 && factor == 100 { 90.0 } else { 95.0 };
    let is_bound = *mode == SlowPeers::Shift;
    let mark = |holds: bool| if is_bound && !holds { '!' } else { ' ' };
    println!(
        "{factor:>6} {threads:>7} {mode:>5} | {:>9.0} {:>6.1} ms | {part:>7.0} %{} {times:>8.2}{} {:>7.1} %  | {:>7.1} %{}",
        two_peers.rate,
        two_peers.p99.as_secs_f64() * 1000.0,
        mark(part >= least),
        mark(times <= 1.5),
        relieved.share,
        cured.share,
        mark((cured.share - 100.0 / 3.0).abs() <= 3.0),
    );
}

/// One chart for each number of threads: the queries per second over time, in percent of two healthy peers.
fn drawing(runs: &[Run]) -> String {
    const WIDTH: f64 = 700.0;
    const HEIGHT: f64 = 130.0;
    const LEFT: f64 = 60.0;
    const TOP: f64 = 40.0;
    const MOST: f64 = 170.0;
    const COLORS: [&str; 2] = ["#e08214", "#2c5f8a"];
    const NAMES: [&str; 2] = ["slow_peers = off", "slow_peers = shift"];

    let charts: Vec<&[Run]> = runs.chunks(2).collect();
    let length = runs[0].length;
    let full_height = (HEIGHT + 1.8 * TOP) * charts.len() as f64 + 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {full_height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"800\" height=\"{full_height}\" fill=\"#ffffff\"/>\n"
    );
    let x = |time: Duration| LEFT + WIDTH * time.as_secs_f64() / length.as_secs_f64();
    for (at, chart) in charts.iter().enumerate() {
        let top = TOP + (HEIGHT + 1.8 * TOP) * at as f64;
        let y = |percent: f64| top + HEIGHT * (1.0 - percent.min(MOST) / MOST);
        let threads = chart[0].threads;
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"15\" font-weight=\"bold\">{threads} thread{}: queries per \
             second, in percent of two healthy peers</text>\n\
             <rect x=\"{:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#eeeeee\"/>\n\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#555555\">one of three peers takes 10 times as long</text>",
            top - 12.0,
            if threads == 1 { "" } else { "s" },
            x(FAULT),
            x(CURE) - x(FAULT),
            x(FAULT) + 4.0,
            top + 14.0,
        );
        for percent in [0, 50, 100, 150] {
            let height = y(f64::from(percent));
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{height:.1}\" y2=\"{height:.1}\" stroke=\"#cccccc\"/>\n\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
                LEFT + WIDTH,
                LEFT - 6.0,
                height + 4.0,
            );
        }
        for (run, color) in chart.iter().zip(COLORS) {
            let steps = (length.as_millis() / STEP.as_millis()).try_into().unwrap_or(0);
            let points: Vec<String> = (0..steps)
                .map(|step: u32| {
                    let rates = rates(&run.served, STEP * step, STEP * (step + 1));
                    let percent = 100.0 * rates.rate / run.two_peers.rate;
                    format!("{:.1},{:.1}", x(STEP * step + STEP / 2), y(percent))
                })
                .collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                points.join(" ")
            );
        }
        for second in (0..=length.as_secs()).step_by(5) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
                x(Duration::from_secs(second)),
                top + HEIGHT + 16.0
            );
        }
    }
    for (at, name) in NAMES.iter().enumerate() {
        let left = LEFT + 220.0 * at as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{0}\" width=\"12\" height=\"12\" fill=\"{1}\"/>\n\
             <text x=\"{2}\" y=\"{3}\">{name}</text>",
            full_height - 26.0,
            COLORS[at],
            left + 18.0,
            full_height - 15.0
        );
    }
    svg + "</svg>\n"
}
