//! A scrape by Prometheus shows exactly the metrics in the table of `docs/observing.md`, with the right values.
//! A process has only one recorder, so each test has its own pool name.

#![cfg(all(target_os = "linux", feature = "metrics", feature = "mysql"))]
#![allow(clippy::disallowed_methods, reason = "scrapes are some time apart")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::metrics::BUCKETS;
use diesel_peers::{PeerConfig, PeerManager, PeerManagerBuilder, PeerState, Peers, Snapshot};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use support::backend::{PATIENCE, SOON, fill, manager_of, manager_over, pool_of, state, status};
use support::http::Client;
use support::mariadb::MariaDb;
use support::port::{Port, free_port};
use support::scripted::{ScriptedConnection, Server, Servers};
use support::{APP_PASSWORD, wait_until};

const OBSERVING: &str = include_str!("../docs/observing.md");
const OPERATING: &str = include_str!("../docs/operating.md");

/// The name of the pool at whose metrics the recorder panics.
const PANICS_AT: &str = "panics";

/// Whether the recorder panics, and how many times it has panicked.
static PANICS: AtomicBool = AtomicBool::new(false);
static PANICKED: AtomicUsize = AtomicUsize::new(0);

/// Prometheus's recorder, which panics at the metrics of [`PANICS_AT`] while [`PANICS`] is set.
struct PanickingRecorder(PrometheusRecorder);

impl Recorder for PanickingRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_counter(name, unit, description);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_gauge(name, unit, description);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_histogram(name, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.0.register_counter(key, metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let panics = key.labels().any(|label| label.value() == PANICS_AT);
        if panics && PANICS.load(Ordering::SeqCst) {
            PANICKED.fetch_add(1, Ordering::SeqCst);
            panic!("this recorder panics");
        }
        self.0.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(key, metadata)
    }
}

/// Prometheus's exporter on a free port. The exporter adds the units and `_total` to names that lack them.
static SITE: LazyLock<(Client, Port)> = LazyLock::new(|| {
    let port = free_port();
    let prefix = Matcher::Prefix("diesel_peers_".to_owned());
    let builder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .with_http_listener((Ipv4Addr::LOCALHOST, port.number()));
    let builder = builder.set_buckets_for_metric(prefix, &BUCKETS).expect("there are buckets");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("an exporter's runtime");
    let (recorder, exporter) = {
        let _inside = runtime.enter();
        builder.build().expect("the port is free")
    };
    metrics::set_global_recorder(PanickingRecorder(recorder))
        .expect("this process has no other recorder");
    thread::spawn(move || runtime.block_on(exporter));
    (Client::of(&format!("http://127.0.0.1:{}", port.number())), port)
});

/// The metrics of one pool in one scrape.
#[derive(Debug)]
struct Scrape {
    text: String,
    /// The values by name and labels, without the label of the pool: `up{peer="db0"}`.
    values: BTreeMap<String, String>,
}

impl Scrape {
    fn of(pool: &str) -> Self {
        let text = SITE.0.get("/metrics").body;
        let label = format!("pool=\"{pool}\"");
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(&label));
        let value = |line: &str| {
            let (key, value) = line.rsplit_once(' ').expect("a value");
            let key = key.replace(&format!("{label},"), "").replace(&format!("{{{label}}}"), "");
            (key.replace("diesel_peers_", ""), value.to_owned())
        };
        Self { values: lines.map(value).collect(), text }
    }

    #[track_caller]
    fn get(&self, key: &str) -> u64 {
        let value =
            self.values.get(key).unwrap_or_else(|| panic!("no {key} in {:#?}", self.values));
        value.parse().unwrap_or_else(|_| panic!("{key} is {value}"))
    }

    #[track_caller]
    fn of_peer(&self, name: &str, peer: &str) -> u64 {
        self.get(&format!("{name}{{peer=\"{peer}\"}}"))
    }

    /// The sum of all values with this name whose labels contain `part`.
    fn sum(&self, name: &str, part: &str) -> u64 {
        let of_name = |key: &str| key.split('{').next() == Some(name) && key.contains(part);
        self.values.keys().filter(|key| of_name(key)).map(|key| self.get(key)).sum()
    }
}

/// Scrapes until the metrics of the pool are as expected, and returns that scrape.
#[track_caller]
fn wait_for_scrape(what: &str, pool: &str, is_expected: impl Fn(&Scrape) -> bool) -> Scrape {
    let mut scrape = Scrape::of(pool);
    wait_until(&format!("the scrape shows that {what}"), PATIENCE, || {
        thread::sleep(Duration::from_millis(50));
        scrape = Scrape::of(pool);
        is_expected(&scrape)
    });
    scrape
}

/// The table of `docs/observing.md`: the type, the labels and the meaning of each metric.
fn documented_metrics()
-> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>, &'static str)> {
    let rows = OBSERVING.lines().filter(|line| line.starts_with("| `diesel_peers_"));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    rows.filter(|row| row.len() == 7)
        .map(|row| {
            let name = row[1].trim_matches('`');
            let labels = row[3].split(", ").map(|label| label.trim_matches('`')).collect();
            let unit = if name.ends_with("_seconds") { "seconds" } else { "" };
            assert_eq!(row[4], unit, "{name}: the unit is part of the name");
            assert_eq!(name.ends_with("_total"), row[2] == "counter", "{name} is a {}", row[2]);
            (name, (row[2], labels, row[5]))
        })
        .collect()
}

/// Every name in a scrape with its labels. The three names of a histogram count as one.
fn names(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut names = BTreeMap::<_, BTreeSet<_>>::new();
    let lines = text.lines().filter(|line| line.starts_with("diesel_peers_"));
    for line in lines {
        let (name, rest) = line.split_once('{').expect("each has labels");
        let parts = ["_bucket", "_sum", "_count"];
        let name = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let labels = rest.rsplit_once('}').expect("labels end").0;
        let labels = labels.split("\",").map(|label| label.split_once('=').expect("a label").0);
        names.entry(name).or_default().extend(labels.filter(|label| *label != "le"));
    }
    names
}

#[track_caller]
fn assert_documented(scrape: &Scrape) {
    let documented = documented_metrics();
    assert!(documented.len() > 20, "the table was found: {documented:?}");
    let shown = names(&scrape.text);
    let labels: BTreeMap<_, _> =
        documented.iter().map(|(name, (_, labels, _))| (*name, labels.clone())).collect();
    assert_eq!(shown, labels, "exactly the documented metrics with the documented labels");
    for (name, (kind, _, meaning)) in documented {
        let lines = [format!("# TYPE {name} {kind}"), format!("# HELP {name} {meaning}")];
        for line in lines {
            assert!(scrape.text.lines().any(|other| other == line), "{line} is missing");
        }
    }
}

/// Whether the values of a scrape are those of a snapshot.
fn agrees(scrape: &Scrape, snapshot: &Snapshot) -> bool {
    snapshot.peers.iter().all(|peer| {
        let counts = [
            ("checkouts_total", peer.checkouts),
            ("queries_total", peer.queries),
            ("query_duration_seconds_count", peer.queries),
            ("queries_lost_total", peer.queries_lost),
            ("connects_total", peer.connects),
            ("connect_duration_seconds_count", peer.connects),
            ("connect_failures_total", peer.connect_failures),
            ("weight", peer.weight.into()),
            ("full", peer.is_full.into()),
            ("up", u64::from(peer.state == PeerState::Up || peer.reason.is_none())),
        ];
        let gauges = [
            ("connections", peer.connections),
            ("in_use", peer.in_use),
            ("connecting", peer.connecting),
            ("stuck_logins", peer.stuck_logins),
        ];
        let gauges = gauges.map(|(name, number)| (name, number as u64));
        counts.iter().chain(&gauges).all(|(name, count)| scrape.of_peer(name, &peer.name) == *count)
    })
}

/// Runs `times` queries, each in a checkout of its own, and returns how many each peer has served.
fn run_queries<C>(pool: &Pool<PeerManager<C>>, times: usize) -> BTreeMap<String, u64>
where
    C: R2D2Connection + Send + 'static,
{
    let mut served = BTreeMap::new();
    for _ in 0..times {
        let mut conn = pool.get().expect("a peer is up");
        conn.batch_execute("SELECT 1").expect("the query succeeds");
        *served.entry(conn.peer().to_owned()).or_default() += 1;
    }
    served
}

/// Builds a pool with this pool name whose metrics the recorder gets.
fn measured_pool<C: R2D2Connection + Send + 'static>(
    pool: &str,
    builder: PeerManagerBuilder<C>,
    size: u32,
) -> (Pool<PeerManager<C>>, Peers) {
    LazyLock::force(&SITE);
    pool_of(builder.pool_name(pool).check_interval(SOON), size)
}

#[test]
fn scrape_shows_exactly_the_documented_metrics_with_the_right_values() {
    let mut servers: Vec<MariaDb> = (0..3).map(|_| MariaDb::start()).collect();
    let (pool, peers) = measured_pool::<MysqlConnection>("shop", manager_over(&servers), 6);
    fill(&pool, &peers, &[2, 2, 2]);

    let served = run_queries(&pool, 300);
    let agree = |scrape: &Scrape| agrees(scrape, &peers.snapshot());
    let scrape = wait_for_scrape("the queries have ended", "shop", agree);
    assert_documented(&scrape);
    for (peer, served) in &served {
        assert_eq!(
            scrape.of_peer("queries_total", peer),
            *served,
            "{peer}: each query is counted once"
        );
        let buckets =
            scrape.sum("query_duration_seconds_bucket", &format!("peer=\"{peer}\",le=\"+Inf"));
        assert_eq!(buckets, *served, "{peer}: the duration of each query is counted");
        let sum = &scrape.values[&format!("query_duration_seconds_sum{{peer=\"{peer}\"}}")];
        let sum: f64 = sum.parse().expect("seconds");
        let took = status(&peers, peer).query_time.as_secs_f64();
        assert!(
            (sum - took).abs() < 1e-5,
            "{peer}: the queries took {took} s, and {sum} s is shown"
        );
    }
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 3));

    // A server is killed while its connections are in use.
    let mut in_use: Vec<_> = (0..6).map(|_| pool.get().expect("the pool has six")).collect();
    let scrape = wait_for_scrape("all connections are in use", "shop", |scrape| {
        scrape.sum("in_use", "") == 6
    });
    assert_eq!(scrape.sum("connections", ""), 6);
    servers[1].kill();
    let lost = in_use.iter_mut().filter_map(|conn| conn.batch_execute("SELECT 1").err()).count();
    assert_eq!(lost, 2, "both connections to the server are lost");
    drop(in_use);
    let scrape =
        wait_for_scrape("peer1 is down", "shop", |scrape| scrape.of_peer("up", "peer1") == 0);
    assert_eq!(scrape.of_peer("downs_total", "peer1"), 1);
    assert_eq!(scrape.of_peer("queries_lost_total", "peer1"), 2);
    assert_eq!(scrape.of_peer("in_service", "peer1"), 1, "no operator has drained the peer");
    assert!(scrape.of_peer("connect_failures_total", "peer1") > 0, "checks have failed");
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 2));
    wait_for_scrape("the connections to peer1 are closed", "shop", |scrape| {
        drop(pool.try_get());
        let closed = scrape.sum("connections_closed_total", "peer=\"peer1\"");
        scrape.of_peer("connections", "peer1") == 0 && closed == 2
    });

    // Another peer is drained.
    let drain = peers.drain("peer2").expect("the peer exists");
    assert!(drain.wait(PATIENCE), "no connection is in use");
    run_queries(&pool, 10);
    let scrape = wait_for_scrape("peer2 has no connections", "shop", |scrape| {
        drop(pool.try_get());
        scrape.of_peer("connections", "peer2") == 0
    });
    assert_eq!((scrape.of_peer("up", "peer2"), scrape.of_peer("in_service", "peer2")), (1, 0));
    let drained = scrape.sum("connections_closed_total", "peer=\"peer2\",reason=\"drained\"");
    assert!(drained >= 2, "{drained} connections were closed because of the drain");
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 1));

    servers[1].restart();
    let scrape =
        wait_for_scrape("peer1 is up", "shop", |scrape| scrape.of_peer("up", "peer1") == 1);
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 2));
    assert_documented(&scrape);

    drop(pool);
    let scrape = wait_for_scrape("the pool is closed", "shop", |scrape| scrape.get("peers") == 0);
    for name in ["peers_available", "up", "in_service", "connections", "in_use", "weight"] {
        assert_eq!(scrape.sum(name, ""), 0, "{name}: a closed pool has none");
    }
    let connects = scrape.sum("connects_total", "");
    assert_eq!(scrape.sum("connections_closed_total", ""), connects, "each connection was closed");
    assert!(
        scrape.sum("connections_closed_total", "by_pool") > 0,
        "some connections were closed with the pool"
    );
    assert!(!scrape.text.contains(APP_PASSWORD), "no secret is shown");
    assert!(!scrape.text.contains("mysql://"), "no part of a URL is shown");
}

#[test]
fn metrics_in_the_operations_guide_exist() {
    let documented = documented_metrics();
    let is_in_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = OPERATING.split(|letter: char| !is_in_name(letter));
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("diesel_peers_")).collect();
    assert!(names.len() > 5, "the guide names metrics: {names:?}");
    for name in names {
        assert!(documented.contains_key(name), "{name} is in the table of `docs/observing.md`");
    }
}

#[test]
fn counters_of_a_peer_continue_when_it_is_added_again() {
    let servers = Servers::start(2);
    let (pool, peers) = measured_pool("again", servers.builder(), 2);
    let count = |scrape: &Scrape| scrape.sum("queries_total", "peer=\"peer1\"");
    let mut served_in_all = 0;
    for round in 1..=3 {
        fill(&pool, &peers, &[1, 1]);
        // A new connection is counted shortly before it is used.
        wait_until("the peer serves", PATIENCE, || {
            let served = run_queries(&pool, 10).remove("peer1").unwrap_or_default();
            served_in_all += served;
            served > 0
        });
        let scrape = wait_for_scrape("all queries are counted", "again", |scrape| {
            count(scrape) == served_in_all
        });
        assert_eq!(scrape.of_peer("up", "peer1"), 1, "round {round}");
        let drain = peers.remove("peer1").expect("the peer exists");
        wait_until("its connections are closed", PATIENCE, || {
            drop(pool.try_get());
            drain.wait(Duration::ZERO)
        });
        let scrape =
            wait_for_scrape("the peer is removed", "again", |scrape| scrape.get("peers") == 1);
        for gauge in ["up", "in_service", "weight", "connections"] {
            assert_eq!(scrape.of_peer(gauge, "peer1"), 0, "round {round}: {gauge}");
        }
        assert_eq!(count(&scrape), served_in_all, "round {round}: the counter stays");
        peers.add(PeerConfig::new("peer1", servers[1].url())).expect("the name is free");
    }
    assert!(served_in_all >= 10, "the peer was used: {served_in_all} queries");
}

#[test]
fn panicking_recorder_harms_no_pool_and_gets_the_metrics_later() {
    let server = Server::start();
    PANICS.store(true, Ordering::SeqCst);
    let builder = manager_of::<ScriptedConnection>([server.url()]);
    let (pool, peers) = measured_pool(PANICS_AT, builder, 1);
    run_queries(&pool, 10);
    wait_until("the recorder is called again after a panic", PATIENCE, || {
        PANICKED.load(Ordering::SeqCst) >= 2
    });
    assert_eq!(Scrape::of(PANICS_AT).values.get("peers"), None, "the recorder has panicked");
    server.crash();
    wait_until("the peer is checked", PATIENCE, || state(&peers, "peer0").is_marked_down());
    server.accept(true);
    wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    run_queries(&pool, 10);
    PANICS.store(false, Ordering::SeqCst);
    wait_for_scrape("the recorder got the metrics", PANICS_AT, |scrape| {
        scrape.values.get("queries_total{peer=\"peer0\"}") == Some(&"20".to_owned())
    });
}
