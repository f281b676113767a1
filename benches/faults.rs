//! What an application with eight busy threads notices of each fault of one of its three peers, on
//! real servers: how long it was given new work, what failed, and how soon it has its share again.
//! Prints the table in the README.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench faults --features mysql
//! cargo bench -p diesel-peers-tests --bench faults --features mysql -- --rounds 5
//! ```
//!
//! What each round saw, and what its errors said, goes to the standard error output. No time is too
//! long here; but it fails if something did not come to pass in a minute, or a `pool.get()` failed.

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
use support::backend::{PATIENCE, links, manager_of, manager_over, pool_of, state};
use support::galera::{Cluster, Node};
use support::haproxy::HaProxy;
use support::load::Load;
use support::mariadb::MariaDb;
use support::story::{
    CONNECTIONS, PEERS, SHARES, THREADS, comes_back, full_pool, leaves, serves_its_share,
    wait_for_more,
};
use support::{APP, how_long, wait_until};

const ROUNDS: usize = 3;
/// How soon a peer is checked; the other settings are what they are by default.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const FROZEN: Duration = Duration::from_secs(10);
/// More than the time from one check of a peer to the next.
const A_CHECK: Duration = Duration::from_millis(1500);

/// The peer that fails.
const FAILING: &str = PEERS[0];

/// One that hardly needs a processor. (If a session is killed just while it sleeps, MariaDB may take
/// two seconds for it, during which the query is not answered: without any pool, too.)
const QUERY: &str = "SELECT SLEEP(0.001)";
/// A query that a Galera node refuses that takes no work.
const OF_A_TABLE: &str = "SELECT SLEEP(0.001) FROM t";
const WRITE: &str = "INSERT INTO marks (mark) SELECT IF(SLEEP(0.002), '', 'written')";

/// Checked after 1.0 to 1.1 s, then three connections at 0.2 s each.
const BACK: &str = "1.7 s";

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

/// What is done about a fault in one round, and when the peer was what.
type Act<T> = fn(&mut T, &Scene<'_>) -> Times;

/// A fault of `T`, and how it is told.
struct Fault<T> {
    name: &'static str,
    query: &'static str,
    act: Act<T>,
    promised: Promised,
}

fn on_mariadb(table: &mut Table, rounds: usize) {
    let mut servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let faults = [
        Fault {
            name: "MariaDB killed, restarted",
            query: QUERY,
            act: killed,
            promised: Promised { back: BACK, ..Promised::default() },
        },
        Fault {
            name: "MariaDB frozen for 10 s",
            query: QUERY,
            act: frozen,
            promised: Promised { left: "0.1 s", longest: "4 s", back: BACK },
        },
        Fault {
            name: "MariaDB stopped in good order, started",
            query: QUERY,
            act: stopped,
            promised: Promised { back: BACK, ..Promised::default() },
        },
        Fault {
            name: "Its sessions killed (`KILL USER`)",
            query: QUERY,
            act: sessions_killed,
            promised: Promised { left: "stays", ..Promised::default() },
        },
    ];
    let (pool, peers) = full_pool(tuned(manager_over(&servers)));
    for _ in 0..rounds {
        for fault in &faults {
            table.add(fault, &peers, &pool, &mut servers[0]);
        }
    }
    drop(pool);

    // Full from the start: as long as it has room for those that it has nothing happens.
    let fault = Fault {
        name: "Full (one session of three), with room again",
        query: QUERY,
        act: has_room_again,
        promised: Promised { left: "stays", longest: "", back: "1.4 s" },
    };
    for _ in 0..rounds {
        limit(&servers[0], 1);
        let (pool, peers) = pool_of(tuned(manager_over(&servers)), CONNECTIONS);
        wait_until("the others get what it does not take", PATIENCE, || {
            drop(pool.try_get());
            links(&peers) == [1, 4, 4]
        });
        table.add(&fault, &peers, &pool, &mut servers[0]);
    }
}

fn killed(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.kill();
    let left = scene.left(FAILING, fault);
    server.restart();
    Times::of(left, scene.back(FAILING))
}

fn frozen(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.freeze();
    let left = scene.left(FAILING, fault);
    thread::sleep(FROZEN.saturating_sub(fault.elapsed()));
    server.thaw();
    Times::of(left, scene.back(FAILING))
}

fn stopped(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    server.stop();
    let left = scene.left(FAILING, fault);
    server.restart();
    Times::of(left, scene.back(FAILING))
}

/// The server is fine, and its peer is to stay in service.
fn sessions_killed(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    let status = || scene.status(&peers, "peer0");
    let before = status();
    server.sql(&format!("KILL USER {APP}"));
    let back = how_long("all three were replaced", PATIENCE, || {
        status().connects >= before.connects + 3 && links(scene.peers) == SHARES
    });
    serves_its_share(FAILING, scene.load);
    thread::sleep(A_CHECK);
    assert_eq!(status().since, before.since, "it was marked down: {:?}", status().reason);
    Times { left: Vec::new(), back: vec![back] }
}

/// How many sessions the application's user may have. 0 is no limit.
fn limit(server: &MariaDb, sessions: u32) {
    server.sql(&format!("ALTER USER {APP} WITH MAX_USER_CONNECTIONS {sessions}"));
}

/// What it has given goes on being used.
fn has_room_again(server: &mut MariaDb, scene: &Scene<'_>) -> Times {
    thread::sleep(A_CHECK);
    let status = scene.status(&peers, "peer0");
    assert!(status.is_full && status.connections == 1, "it is full");
    assert_eq!(status.state, PeerState::Up, "and not down");
    wait_for_more(scene.load, &PEERS);
    limit(server, 0);
    Times { left: Vec::new(), back: vec![scene.back(FAILING)] }
}

fn behind_haproxy(table: &mut Table, rounds: usize) {
    let servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let mut proxies = servers.each_ref().map(|server| HaProxy::in_front_of(server.port()));
    let (pool, peers) = full_pool(tuned(manager_of(proxies.iter().map(HaProxy::mysql_url))));
    let fault = Fault {
        name: "HAProxy before it paused, resumed",
        query: QUERY,
        act: paused,
        promised: Promised { left: "1.1 s", longest: "", back: BACK },
    };
    for _ in 0..rounds {
        table.add(&fault, &peers, &pool, &mut proxies[0]);
    }
}

/// Until its last session is gone: after that it can be stopped, and nobody notices.
fn paused(proxy: &mut HaProxy, scene: &Scene<'_>) -> Times {
    let fault = Instant::now();
    proxy.refuse();
    wait_until("the peer is drained", PATIENCE, || proxy.sessions() == 0);
    let left = fault.elapsed();
    scene.left(FAILING, fault);
    proxy.accept();
    Times::of(left, scene.back(FAILING))
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
            query: OF_A_TABLE,
            act: node_killed,
            promised: back,
        },
        Fault {
            name: "Galera node cut off, joined again",
            query: OF_A_TABLE,
            act: node_cut_off,
            promised: back,
        },
        Fault {
            name: "Galera node rejects queries, and no more",
            query: OF_A_TABLE,
            act: node_rejects,
            promised: back,
        },
        Fault {
            name: "Galera node stopped in good order, started",
            query: OF_A_TABLE,
            act: node_stopped,
            promised: back,
        },
        Fault {
            name: "All three Galera nodes restarted in turn, under writes",
            query: WRITE,
            act: all_nodes_restarted,
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
    assert!(log.contains("IST received"), "it was sent what it missed: {log}");
    Times::of(left, back)
}

/// It takes work until it has noticed, which its own timeouts decide.
fn node_cut_off(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let node = &cluster.nodes[0];
    node.partition();
    let noticed = || scene.load.failed() > 0 || state(scene.peers, FAILING) == PeerState::Down;
    wait_until("it takes no more work", PATIENCE, noticed);
    let fault = scene.load.first_failed().unwrap_or_else(Instant::now);
    let left = scene.left(FAILING, fault);
    node.heal();
    node.wait_synced();
    Times::of(left, scene.back(FAILING))
}

fn node_rejects(cluster: &mut Cluster, scene: &Scene<'_>) -> Times {
    let node = &cluster.nodes[0];
    let fault = Instant::now();
    node.reject_queries(true);
    let left = scene.left(FAILING, fault);
    node.reject_queries(false);
    Times::of(left, scene.back(FAILING))
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
    Times::of(left, scene.back(name))
}

/// Until it can serve: it lets clients in before it takes work.
fn start(node: &mut Node) {
    node.restart();
    node.wait_synced();
}

fn tuned(builder: PeerManagerBuilder<MysqlConnection>) -> PeerManagerBuilder<MysqlConnection> {
    builder.check_interval(CHECK_INTERVAL)
}

/// The peers of a pool, and the threads that use it.
struct Scene<'a> {
    peers: &'a Peers,
    load: &'a Load,
}

impl Scene<'_> {
    /// Waits until the peer has left service and the others serve. Tells how long after the fault the
    /// last query began that it was given.
    fn left(&self, name: &str, fault: Instant) -> Duration {
        leaves(self.peers, name);
        let others: Vec<&str> = PEERS.into_iter().filter(|peer| *peer != name).collect();
        wait_for_more(self.load, &others);
        let last = self.load.last_begun(name).expect("it has served");
        last.saturating_duration_since(fault)
    }

    /// Waits until the peer serves its third again. Tells how long it took until it had its
    /// connections.
    fn back(&self, name: &str) -> Duration {
        comes_back(self.peers, name, self.load)
    }
}

/// When the peers were what, in one round: more than once if several fail in turn.
#[derive(Default)]
struct Times {
    /// How long after the fault the last query began there; nothing if the peer stays in service.
    left: Vec<Duration>,
    /// How long it took from when it could serve again until it had its share of the connections.
    back: Vec<Duration>,
}

impl Times {
    fn of(left: Duration, back: Duration) -> Self {
        Self { left: vec![left], back: vec![back] }
    }
}

/// What the README promises of these, where it promises something.
#[derive(Clone, Copy, Default)]
struct Promised {
    left: &'static str,
    longest: &'static str,
    back: &'static str,
}

/// What the rounds have told, by fault.
#[derive(Default)]
struct Table {
    rows: Vec<Row>,
}

/// What the rounds have told of one fault.
struct Row {
    name: &'static str,
    promised: Promised,
    left: Vec<Duration>,
    back: Vec<Duration>,
    /// In each round, queries that failed, and what took longest: a query, or a `pool.get()`.
    errors: Vec<usize>,
    longest: Vec<Duration>,
    /// What the `pool.get()`s that failed said.
    refused: Vec<String>,
}

impl Table {
    /// Tells one round of a fault while all threads are busy.
    fn add<T>(&mut self, fault: &Fault<T>, peers: &Peers, pool: &MysqlPool, on: &mut T) {
        let mut times = Times::default();
        let seen = Load::run(pool, THREADS, fault.query, |load| {
            wait_for_more(load, &PEERS);
            times = (fault.act)(on, &Scene { peers, load });
        });
        let longest = seen.longest_get.max(seen.longest_query);
        let mut said: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (peer, error) in &seen.failed {
            *said.entry((peer, error)).or_default() += 1;
        }
        eprintln!(
            "{}: left {:?}, back {:?}, longest get {:?}, query {:?}, errors {said:?}, refused {:?}",
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
        let known = self.rows.iter().position(|row| row.name == name);
        let index = known.unwrap_or_else(|| {
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
             {rounds} rounds; after a slash what is promised\n"
        );
        println!(
            "| fault of one peer | its last query began after | errors | longest query or wait | \
             has its share again after |\n|---|---|---|---|---|"
        );
        for row in &self.rows {
            let left = if row.left.is_empty() { "stays".to_owned() } else { times(&row.left) };
            #[expect(clippy::cast_precision_loss, reason = "a few errors")]
            let errors = row.errors.iter().map(|errors| *errors as f64).collect();
            println!(
                "| {} | {} | {} | {} | {} |",
                row.name,
                beside(left, row.promised.left),
                spread(errors, 0, ""),
                beside(times(&row.longest), row.promised.longest),
                beside(times(&row.back), row.promised.back),
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

fn beside(measured: String, promised: &str) -> String {
    if promised.is_empty() || promised == measured {
        measured
    } else {
        format!("{measured} / {promised}")
    }
}

/// In the unit that suits the one in the middle.
fn times(times: &[Duration]) -> String {
    let seconds = || times.iter().map(Duration::as_secs_f64);
    if median(seconds()) < 0.1 {
        spread(seconds().map(|time| 1000.0 * time).collect(), 0, " ms")
    } else {
        spread(seconds().collect(), 2, " s")
    }
}

/// The value in the middle, and from which to which they are.
fn spread(values: Vec<f64>, digits: usize, unit: &str) -> String {
    let text = |value: f64| format!("{value:.digits$}");
    let least = text(values.iter().copied().fold(f64::INFINITY, f64::min));
    let most = text(values.iter().copied().fold(0.0, f64::max));
    let middle = text(median(values.into_iter()));
    if least == most {
        format!("{middle}{unit}")
    } else {
        format!("{middle}{unit} ({least}–{most})")
    }
}
