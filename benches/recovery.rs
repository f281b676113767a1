//! The share of each server in the queries while one of three MariaDB servers is killed and restarted.
//! Compares this crate with diesel's own manager behind HAProxy. Prints the shares, and draws the chart in
//! `README.md`, as a file and as a definition for the crate's documentation.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench recovery --features mysql
//! ```

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::cast_precision_loss, reason = "shares of a few thousand queries")]
#![allow(missing_docs, reason = "a benchmark has no public interface")]

use std::fmt::Write;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, ManageConnection, Pool, R2D2Connection};
use diesel_peers::PeerManager;
use support::backend::build;
use support::figure;
use support::haproxy::HaProxy;
use support::mariadb::MariaDb;

const THREADS: usize = 6;
const CONNECTIONS: u32 = 9;
const LENGTH: Duration = Duration::from_secs(40);
const KILLED: Duration = Duration::from_secs(8);
const RESTARTED: Duration = Duration::from_secs(16);
const STEP: Duration = Duration::from_millis(500);
const STEPS: usize = (LENGTH.as_millis() / STEP.as_millis()) as usize;

/// The queries of each server in each step of time, and the number of all failed queries.
struct Timeline {
    served: Vec<[usize; 3]>,
    failed: usize,
}

fn main() {
    let ours = timeline(|servers| {
        let builder = servers
            .iter()
            .enumerate()
            .fold(PeerManager::<MysqlConnection>::builder(), |builder, (index, server)| {
                builder.peer(format!("db{index}"), server.url())
            });
        let builder = builder.check_interval(Duration::from_secs(1));
        (build(builder), ())
    });
    let theirs = timeline(|servers| {
        let proxy = HaProxy::balancing(&servers.each_ref().map(|server| server.port()));
        (ConnectionManager::<MysqlConnection>::new(proxy.mysql_url()), proxy)
    });
    let charts =
        [("diesel-peers", &ours), ("diesel's own manager behind HAProxy (leastconn)", &theirs)];
    for (title, timeline) in charts {
        println!("{title}: {} failed queries", timeline.failed);
        for (step, served) in timeline.served.iter().enumerate().step_by(4) {
            let share = percentages(served);
            let seconds = STEP.as_secs_f64() * step as f64;
            println!(
                "  {seconds:>5.1} s  {:>5.1} %  {:>5.1} %  {:>5.1} %",
                share[0], share[1], share[2]
            );
        }
    }
    let svg = drawing(&charts);
    let definition = figure::definition("recovery", svg.as_bytes());
    for (file, content) in [("benches/recovery.svg", svg), ("src/guide/figure.md", definition)] {
        let path = format!("{}/../{file}", env!("CARGO_MANIFEST_DIR"));
        fs::write(path, content).expect("the folder of the file is writable");
        println!("wrote {file}");
    }
}

/// Runs queries over three servers, and kills and restarts the first of them.
fn timeline<M, Held>(manager: impl FnOnce(&[MariaDb; 3]) -> (M, Held)) -> Timeline
where
    M: ManageConnection,
    M::Connection: R2D2Connection<Backend = Mysql> + diesel::connection::LoadConnection,
{
    #[derive(QueryableByName)]
    struct Port {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        port: i64,
    }

    let mut servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let ports = servers.each_ref().map(|server| i64::from(server.port()));
    let (manager, _held) = manager(&servers);
    let pool =
        Pool::builder().max_size(CONNECTIONS).build(manager).expect("all servers are running");
    let timeline = Mutex::new(Timeline { served: vec![[0; 3]; STEPS], failed: 0 });
    let done = AtomicBool::new(false);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let port =
                        pool.get().map_err(|error| error.to_string()).and_then(|mut conn| {
                            let query = diesel::sql_query("SELECT CAST(@@port AS SIGNED) AS port");
                            query.get_result::<Port>(&mut conn).map_err(|error| error.to_string())
                        });
                    let step = start.elapsed().as_millis() / STEP.as_millis();
                    let step = usize::try_from(step).expect("a short time").min(STEPS - 1);
                    let mut timeline = timeline.lock().expect("no thread panics");
                    match port {
                        Ok(Port { port }) => {
                            let server = ports.iter().position(|known| *known == port);
                            timeline.served[step][server.expect("the port is one of the three")] +=
                                1;
                        }
                        Err(_) => timeline.failed += 1,
                    }
                    drop(timeline);
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        thread::sleep(KILLED.saturating_sub(start.elapsed()));
        servers[0].kill();
        thread::sleep(RESTARTED.saturating_sub(start.elapsed()));
        servers[0].restart();
        thread::sleep(LENGTH.saturating_sub(start.elapsed()));
        done.store(true, Ordering::Relaxed);
    });
    timeline.into_inner().expect("no thread panicked")
}

fn percentages(served: &[usize; 3]) -> [f64; 3] {
    let all = served.iter().sum::<usize>().max(1) as f64;
    served.map(|served| 100.0 * served as f64 / all)
}

/// One stacked area chart for each contender, one above the other.
fn drawing(charts: &[(&str, &Timeline)]) -> String {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 150.0;
    const LEFT: f64 = 50.0;
    const TOP: f64 = 40.0;
    const COLORS: [&str; 3] = ["#e08214", "#5e9bd1", "#2c5f8a"];
    const NAMES: [&str; 3] = ["db0, killed and restarted", "db1", "db2"];

    let full_height = (HEIGHT + 2.0 * TOP) * charts.len() as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 {full_height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"800\" height=\"{full_height}\" fill=\"#ffffff\"/>\n"
    );
    let x = |time: Duration| LEFT + WIDTH * time.as_secs_f64() / LENGTH.as_secs_f64();
    for (at, (title, timeline)) in charts.iter().enumerate() {
        let top = TOP + (HEIGHT + 2.0 * TOP) * at as f64;
        let y = |percent: f64| top + HEIGHT * (1.0 - percent / 100.0);
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" font-size=\"15\" font-weight=\"bold\">{title}</text>",
            top - 12.0
        );
        let mut below = vec![0.0; STEPS];
        for (server, color) in COLORS.iter().enumerate() {
            let above: Vec<f64> = timeline
                .served
                .iter()
                .zip(&below)
                .map(|(served, below)| below + percentages(served)[server])
                .collect();
            let middle = |step: usize| x(STEP * u32::try_from(step).expect("few steps") + STEP / 2);
            let upper = above.iter().enumerate().map(|(step, share)| (middle(step), y(*share)));
            let lower = below.iter().enumerate().map(|(step, share)| (middle(step), y(*share)));
            let points: Vec<String> =
                upper.chain(lower.rev()).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(svg, "<polygon points=\"{}\" fill=\"{color}\"/>", points.join(" "));
            below = above;
        }
        for (time, what) in [(KILLED, "killed"), (RESTARTED, "restarted")] {
            let _ = writeln!(
                svg,
                "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#000000\" \
                 stroke-dasharray=\"4 3\"/>\n<text x=\"{3:.1}\" y=\"{4}\" fill=\"#ffffff\">{what}</text>",
                x(time),
                top,
                top + HEIGHT,
                x(time) + 4.0,
                top + 14.0
            );
        }
        for percent in [0, 33, 67, 100] {
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>",
                LEFT - 6.0,
                y(f64::from(percent)) + 4.0
            );
        }
        for second in (0..=LENGTH.as_secs()).step_by(8) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
                x(Duration::from_secs(second)),
                top + HEIGHT + 18.0
            );
        }
    }
    for (server, name) in NAMES.iter().enumerate() {
        let left = LEFT + 200.0 * server as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{0}\" width=\"12\" height=\"12\" fill=\"{1}\"/>\n\
             <text x=\"{2}\" y=\"{3}\">{name}</text>",
            full_height - 26.0,
            COLORS[server],
            left + 18.0,
            full_height - 15.0
        );
    }
    svg + "</svg>\n"
}
