//! The effect of each fault of one of three peers on an application with eight busy threads, on real servers:
//! how long the peer still gets new work, which queries fail, and how soon the peer has its share again.
//! Prints the table in `docs/performance.md`.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench faults --features mysql
//! cargo bench -p diesel-peers-tests --bench faults --features mysql -- --rounds 5
//! ```
//!
//! The times and the errors of each round go to standard error. The benchmark sets no limit for the times, but
//! fails if an expected state is not reached within a minute, or if a `pool.get()` fails.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

mod rounds;

use std::collections::BTreeMap;
use std::env;
use std::thread;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Peers};
use rounds::median;
use support::backend::{self, PATIENCE, links, manager_of, manager_over, pool_of, state};
use support::galera::{Cluster, Node};
use support::haproxy::HaProxy;
use support::load::Load;
use support::mariadb::MariaDb;
use support::one_of_three::{
    CONNECTIONS, PEERS, SHARES, THREADS, comes_back, full_pool, leaves, serves_its_share,
    wait_for_more,
};
use support::{APP, how_long, wait_until};

const ROUNDS: usize = 3;
/// The check interval. The other settings have their defaults.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const FROZEN: Duration = Duration::from_secs(10);
/// Longer than the time from one check of a peer to the next.
const NEXT_CHECK: Duration = Duration::from_millis(1500);

/// The peer that fails.
const FAILING: &str = PEERS[0];

/// A query that hardly uses a processor. (If a session is killed while it sleeps, MariaDB may take two seconds
/// to end it, during which the query gets no answer. The same happens without a pool.)
const QUERY: &str = "SELECT SLEEP(0.001)";
/// A query that reads a table: a Galera node that takes no work refuses it.
const TABLE_QUERY: &str = "SELECT SLEEP(0.001) FROM t";
const WRITE: &str = "INSERT INTO marks (mark) SELECT IF(SLEEP(0.002), '', 'written')";

/// The promised time until a peer has its share again: a check after 1.0 to 1.1 s, and then three connections
/// at 0.2 s each.
const BACK: &str = "1.7 s";

/// In place of a time that a fault does not have: the peer stays in service.
const NOT_APPLICABLE: &str = "not applicable";

type MysqlPool = Pool<PeerManager<MysqlConnection>>;

fn main() {
    let mut arguments = env::args().skip_while(|argument| argument != "--rounds").skip(1);
    let rounds = arguments.next().map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let mut table = Table::default();
    on_mariadb(&mut table, rounds);
    behind_haproxy(&mut table, rounds);
    on_galera(&mut table, rounds);
    table.print(rounds);
}

/// Causes and repairs a fault in one round, and returns the times at which the peer left and came back.
type Scenario<T> = fn(&mut T, &Scene<'_>) -> Times;

/// A fault of `T`: one row of the table.
struct Fault<T> {
    name: &'static str,
    query: &'static str,
    scenario: Scenario<T>,
    promised: Promised,
}

fn on_mariadb(table: &mut Table, rounds: usize) {
    let mut servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let faults = [
        Fault {
            name: "MariaDB killed, restarted",
            query: QUERY,
            scenario: killed,
            promised: Promised { back: BACK, ..Promised::default() },
        },
        Fault {
            name: "MariaDB frozen for 10 s",
            query: QUERY,
            scenario: frozen,
            promised: Promised { left: "0.1 s", longest: "4 s", back: BACK },
        },
        Fault {
            name: "MariaDB shut down cleanly, started",
            query: QUERY,
            scenario: stopped,
            promised: Promised { back: BACK, ..Promised::default() },
        },
        Fault {
            name: "Its sessions killed (`KILL USER`)",
            query: QUERY,
            scenario: sessions_killed,
            promised: Promised { left: NOT_APPLICABLE, ..Promised::default() },
        },
    ];
    let (pool, peers) = full_pool(tuned(manager_over(&servers)));
    for _ in 0..rounds {
        for fault in &faults {
            table.add(fault, &peers, &pool, &mut servers[0]);
        }
    }
    drop(pool);

    // The server is full before the pool is built: a limit below the open sessions has no effect on these.
    let fault = Fault {
        name: "Full (one session of three), then with free connections",
        query: QUERY,
        scenario: has_room_again,
        promised: Promised { left: NOT_APPLICABLE, longest: "", back: "1.4 s" },
    };
    for _ in 0..rounds {
        limit_sessions(&servers[0], 1);
        let (pool, peers) = pool_of(tuned(manager_over(&servers)), CONNECTIONS);
        wait_until(
            "the other peers have the connections that the full peer does not accept",
            PATIENCE,
            || {
                drop(pool.try_get());
                links(&peers) == [1, 4, 4]
            },
        );
        table.add(&fault, &peers, &pool, &mut servers[0]);
    }
}

fn killed(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.kill();
    let left = scene.left(FAILING, fault);
    server.restart();
    Times::new(left, scene.back(FAILING))
}

fn frozen(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.freeze();
    let left = scene.left(FAILING, fault);
    thread::sleep(FROZEN.saturating_sub(fault.elapsed()));
    server.thaw();
    Times::new(left, scene.back(FAILING))
}

fn stopped(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.stop();
    let left = scene.left(FAILING, fault);
    server.restart();
    Times::new(left, scene.back(FAILING))
}

/// The server goes on, so its peer must stay in service.
fn sessions_killed(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let status = || backend::status(scene.peers, FAILING);
    let before = status();
    server.sql(&format!("KILL USER {APP}"));
    let back = how_long("the three connections were replaced", PATIENCE, || {
        status().connects >= before.connects + 3 && links(scene.peers) == SHARES
    });
    serves_its_share(FAILING, scene.load);
    thread::sleep(NEXT_CHECK);
    assert_eq!(status().since, before.since, "the peer stays up: {:?}", status().reason);
    Times { left: Vec::new(), back: vec![back] }
}

/// Limits the number of sessions of the application's user. 0 removes the limit.
fn limit_sessions(server: &MariaDb, sessions: u32) {
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS {sessions}"));
}

/// The full peer keeps serving on the session that it has.
fn has_room_again(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    thread::sleep(NEXT_CHECK);
    let status = backend::status(scene.peers, FAILING);
    assert!(status.is_full && status.connections == 1, "the peer is full");
    assert_eq!(status.state, PeerState::Up, "a full peer is not down");
    wait_for_more(scene.load, &PEERS);
    limit_sessions(server, 0);
    Times { left: Vec::new(), back: vec![scene.back(FAILING)] }
}

fn behind_haproxy(table: &mut Table, rounds: usize) {
    let servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let mut proxies = servers.each_ref().map(|server| HaProxy::in_front_of(server.port()));
    let (pool, peers) = full_pool(tuned(manager_of(proxies.iter().map(HaProxy::mysql_url))));
    let fault = Fault {
        name: "HAProxy before it paused, resumed",
        query: QUERY,
        scenario: paused,
        promised: Promised { left: "1.1 s", longest: "", back: BACK },
    };
    for _ in 0..rounds {
        table.add(&fault, &peers, &pool, &mut proxies[0]);
    }
}

/// Measures the time until the last session of the proxy has ended. Then the proxy can be stopped unnoticed.
fn paused(proxy: &mut HaProxy, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    proxy.refuse();
    wait_until("the proxy has no session left", PATIENCE, || proxy.sessions() == 0);
    let left = fault.elapsed();
    scene.left(FAILING, fault);
    proxy.accept();
    Times::new(left, scene.back(FAILING))
}

fn on_galera(table: &mut Table, rounds: usize) {
    let mut cluster = Cluster::with_table();
    cluster.nodes[0].sql(
        "CREATE TABLE app.marks (id CHAR(36) PRIMARY KEY DEFAULT UUID(), mark VARCHAR(20) NOT NULL)",
    );
    cluster.wait_synced();
    let back = Promised { back: BACK, ..Promised::default() };
    let faults: [Fault<Cluster>; 5] = [
        Fault {
            name: "Galera node killed, back by IST",
            query: TABLE_QUERY,
            scenario: node_killed,
            promised: back,
        },
        Fault {
            name: "Galera node cut off, joined again",
            query: TABLE_QUERY,
            scenario: node_cut_off,
            promised: back,
        },
        Fault {
            name: "Galera node rejects queries, then accepts them",
            query: TABLE_QUERY,
            scenario: node_rejects,
            promised: back,
        },
        Fault {
            name: "Galera node shut down cleanly, started",
            query: TABLE_QUERY,
            scenario: node_stopped,
            promised: back,
        },
        Fault {
            name: "All three Galera nodes restarted in turn, under writes",
            query: WRITE,
            scenario: all_nodes_restarted,
            promised: back,
        },
    ];
    let (pool, peers) = full_pool(tuned(manager_of(cluster.urls())));
    for _ in 0..rounds {
        for fault in &faults {
            table.add(fault, &peers, &pool, &mut cluster);
            cluster.wait_synced();
        }
    }
}

fn node_killed(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let log = cluster.nodes[0].log().len();
    let fault = Instant::now();
    cluster.nodes[0].kill();
    let left = scene.left(FAILING, fault);
    cluster.nodes[1].sql("UPDATE app.t SET v = v + 1");
    start(&mut cluster.nodes[0]);
    let back = scene.back(FAILING);
    let log = cluster.nodes[0].log().split_off(log);
    assert!(log.contains("IST received"), "the node got the missing changes by IST: {log}");
    Times::new(left, back)
}

/// The node takes work until its own timeouts have shown it that it is cut off.
fn node_cut_off(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let node = &cluster.nodes[0];
    node.partition();
    let noticed = || scene.load.failed() > 0 || state(scene.peers, FAILING) == PeerState::Down;
    wait_until("the node takes no more work", PATIENCE, noticed);
    let fault = scene.load.first_failed().unwrap_or_else(Instant::now);
    let left = scene.left(FAILING, fault);
    node.heal();
    node.wait_synced();
    Times::new(left, scene.back(FAILING))
}

fn node_rejects(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let node = &cluster.nodes[0];
    let fault = Instant::now();
    node.reject_queries(true);
    let left = scene.left(FAILING, fault);
    node.reject_queries(false);
    Times::new(left, scene.back(FAILING))
}

fn node_stopped(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    stop_and_start(&mut cluster.nodes[0], FAILING, scene)
}

fn all_nodes_restarted(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let mut all = Times::default();
    for (index, name) in PEERS.into_iter().enumerate() {
        let times = stop_and_start(&mut cluster.nodes[index], name, scene);
        cluster.wait_synced();
        all.left.extend(times.left);
        all.back.extend(times.back);
    }
    all
}

fn stop_and_start(node: &mut Node, name: &str, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    node.stop();
    let left = scene.left(name, fault);
    start(node);
    Times::new(left, scene.back(name))
}

/// Starts a node, and waits until it can serve: it accepts logins before it takes work.
fn start(node: &mut Node) {
    node.restart();
    node.wait_synced();
}

fn tuned(builder: PeerManagerBuilder<MysqlConnection>) -> PeerManagerBuilder<MysqlConnection> {
    builder.check_interval(CHECK_INTERVAL)
}

/// The peers of a pool, and the threads that use the pool.
struct Scene<'a> {
    peers: &'a Peers,
    load: &'a Load,
}

impl Scene<'_> {
    /// Waits until the peer has left service and the others serve. Returns how long after the fault the last
    /// query of the peer began.
    fn left(&self, name: &str, fault: Instant) -> Duration {
        leaves(self.peers, name);
        let others: Vec<&str> = PEERS.into_iter().filter(|peer| *peer != name).collect();
        wait_for_more(self.load, &others);
        let last = self.load.last_begun(name).expect("the peer has served");
        last.saturating_duration_since(fault)
    }

    /// Waits until the peer serves its third again. Returns how long it took until the peer had its connections.
    fn back(&self, name: &str) -> Duration {
        comes_back(self.peers, name, self.load)
    }
}

/// The times of one round. Several peers that fail in turn have one time each.
#[derive(Default)]
struct Times {
    /// How long after the fault the last query of the peer began. Empty if the peer stays in service.
    left: Vec<Duration>,
    /// How long it took from when the peer could serve again until it had its share of the connections.
    back: Vec<Duration>,
}

impl Times {
    fn new(left: Duration, back: Duration) -> Self {
        Self { left: vec![left], back: vec![back] }
    }
}

/// The times that `docs/performance.md` promises. Empty where nothing is promised.
#[derive(Clone, Copy, Default)]
struct Promised {
    left: &'static str,
    longest: &'static str,
    back: &'static str,
}

/// The results of all rounds, by fault.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

/// The results of all rounds of one fault.
struct Row {
    name: &'static str,
    promised: Promised,
    left: Vec<Duration>,
    back: Vec<Duration>,
    /// The number of failed queries of each round.
    errors: Vec<usize>,
    /// The longest query or `pool.get()` of each round.
    longest: Vec<Duration>,
    /// The errors of `pool.get()`.
    refused: Vec<String>,
}

impl Table {
    /// Runs one round of a fault while all threads are busy, and adds its results.
    fn add<T>(&mut self, fault: &Fault<T>, peers: &Peers, pool: &MysqlPool, target: &mut T) {
        let mut times = Times::default();
        let seen = Load::run(pool, THREADS, fault.query, |load| {
            wait_for_more(load, &PEERS);
            times = (fault.scenario)(target, &Scene { peers, load });
        });
        let longest = seen.longest_get.max(seen.longest_query);
        let mut errors: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (peer, error) in &seen.failed {
            *errors.entry((peer, error)).or_default() += 1;
        }
        eprintln!(
            "{}: left {:?}, back {:?}, longest get {:?}, query {:?}, errors {errors:?}, refused {:?}",
            fault.name, times.left, times.back, seen.longest_get, seen.longest_query, seen.refused
        );
        let row = self.row(fault.name, fault.promised);
        row.left.extend(times.left);
        row.back.extend(times.back);
        row.errors.push(seen.failed.len());
        row.longest.push(longest);
        row.refused.extend(seen.refused);
    }

    fn row(&mut self, name: &'static str, promised: Promised) -> &mut Row {
        let existing = self.rows.iter().position(|row| row.name == name);
        let index = existing.unwrap_or_else(|| {
            self.rows.push(Row {
                name,
                promised,
                left: Vec::new(),
                back: Vec::new(),
                errors: Vec::new(),
                longest: Vec::new(),
                refused: Vec::new(),
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    fn print(&self, rounds: usize) {
        println!(
            "{THREADS} threads, {CONNECTIONS} connections, three peers; median (and range) of \
             {rounds} rounds; after a slash the promised time\n"
        );
        println!(
            "| fault of one peer | last query sent to it, after the fault | errors | longest query or wait | \
             has its share again after |\n|---|---|---|---|---|"
        );
        for row in &self.rows {
            let left =
                if row.left.is_empty() { NOT_APPLICABLE.to_owned() } else { times(&row.left) };
            #[expect(clippy::cast_precision_loss, reason = "a few errors")]
            let errors = row.errors.iter().map(|errors| *errors as f64).collect();
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                with_promise(left, row.promised.left),
                spread(errors, 0, ""),
                with_promise(times(&row.longest), row.promised.longest),
                with_promise(times(&row.back), row.promised.back),
            );
        }
        for row in &self.rows {
            assert!(
                row.refused.is_empty(),
                "{}: a `pool.get()` failed: {:?}",
                row.name,
                row.refused
            );
        }
    }
}

fn with_promise(measured: String, promised: &str) -> String {
    if promised.is_empty() || promised == measured {
        measured
    } else {
        format!("{measured} / {promised}")
    }
}

/// Formats times in the unit that suits their median.
fn times(times: &[Duration]) -> String {
    let seconds = || times.iter().map(Duration::as_secs_f64);
    if median(seconds()) < 0.1 {
        spread(seconds().map(|time| 1000.0 * time).collect(), 0, " ms")
    } else {
        spread(seconds().collect(), 2, " s")
    }
}

/// Formats the median and the range of some values.
fn spread(values: Vec<f64>, digits: usize, unit: &str) -> String {
    let text = |value: f64| format!("{value:.digits$}");
    let least = text(values.iter().copied().fold(f64::INFINITY, f64::min));
    let most = text(values.iter().copied().fold(0.0, f64::max));
    let median = text(median(values.into_iter()));
    if least == most {
        format!("{median}{unit}")
    } else {
        format!("{median}{unit} ({least}–{most})")
    }
}
