//! What Prometheus finds when it scrapes an application: the metrics that the README's table promises, no
//! others, and the right figures. The recorder is the whole process's, so each test has a pool name.

#![cfg(all(target_os = "linux", feature = "metrics", feature = "mysql"))]
#![allow(clippy::disallowed_methods, reason = "nobody can wait for what is not to happen")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::metrics::BUCKETS;
use diesel_peers::{PeerConfig, PeerManager, PeerManagerBuilder, PeerState, Peers, Snapshot};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use support::backend::{PATIENCE, SOON, fill, manager_of, manager_over, pool_of, state};
use support::http::Client;
use support::mariadb::MariaDb;
use support::port::{Port, free_port};
use support::scripted::{ScriptedConnection, Server};
use support::{APP_PASSWORD, wait_until};

const README: &str = include_str!("../README.md");
const OPERATIONS: &str = include_str!("../OPERATIONS.md");

/// The name of the pool whose metrics a [`Fussy`] recorder does not take.
const DREADED: &str = "dreaded";

static PANICS: AtomicBool = AtomicBool::new(false);

/// Prometheus's recorder, which panics at one pool's metrics while it is told to.
struct Fussy(PrometheusRecorder);

impl Recorder for Fussy {
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
        let is_dreaded = key.labels().any(|label| label.value() == DREADED);
        assert!(!is_dreaded || !PANICS.load(Ordering::SeqCst), "this recorder panics");
        self.0.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(key, metadata)
    }
}

/// Prometheus's own exporter, on a port of ours. It adds the units and `_total` to names that lack them.
static SITE: LazyLock<(Client, Port)> = LazyLock::new(|| {
    let port = free_port();
    let ours = Matcher::Prefix("diesel_peers_".to_owned());
    let builder = PrometheusBuilder::new()
        .with_recommended_naming(true)
        .with_http_listener((Ipv4Addr::LOCALHOST, port.number()));
    let builder = builder.set_buckets_for_metric(ours, &BUCKETS).expect("there are buckets");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("an exporter's runtime");
    let (recorder, exporter) = {
        let _inside = runtime.enter();
        builder.build().expect("the port is free")
    };
    metrics::set_global_recorder(Fussy(recorder)).expect("this process has no other");
    thread::spawn(move || runtime.block_on(exporter));
    (Client::of(&format!("http://127.0.0.1:{}", port.number())), port)
});

/// What one scrape shows of one pool.
#[derive(Debug)]
struct Scrape {
    text: String,
    /// By name and labels, the pool's left out: `up{peer="db0"}`.
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

    /// All that is there with this name, whatever the other labels say.
    fn sum(&self, name: &str, part: &str) -> u64 {
        let of_name = |key: &str| key.split('{').next() == Some(name) && key.contains(part);
        self.values.keys().filter(|key| of_name(key)).map(|key| self.get(key)).sum()
    }
}

/// Waits until the scrape is like this.
#[track_caller]
fn scraped(what: &str, pool: &str, is_it: impl Fn(&Scrape) -> bool) -> Scrape {
    let mut scrape = Scrape::of(pool);
    wait_until(&format!("the scrape shows that {what}"), PATIENCE, || {
        thread::sleep(Duration::from_millis(50));
        scrape = Scrape::of(pool);
        is_it(&scrape)
    });
    scrape
}

/// The README's table: of each name its type, its labels, and what it means.
fn promised() -> BTreeMap<&'static str, (&'static str, BTreeSet<&'static str>, &'static str)> {
    let rows = README.lines().filter(|line| line.starts_with("| `diesel_peers_"));
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

/// Every name of a scrape, with the labels that go with it; a histogram's three names are one.
fn names(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut names = BTreeMap::<_, BTreeSet<_>>::new();
    let lines = text.lines().filter(|line| line.starts_with("diesel_peers_"));
    for line in lines {
        let (name, rest) = line.split_once('{').expect("each has labels");
        let parts = ["_bucket", "_sum", "_count"];
        let name = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
        let labels = rest.rsplit_once('}').expect("they end").0;
        let labels = labels.split("\",").map(|label| label.split_once('=').expect("a label").0);
        names.entry(name).or_default().extend(labels.filter(|label| *label != "le"));
    }
    names
}

#[track_caller]
fn shows_what_the_table_promises(scrape: &Scrape) {
    let promised = promised();
    assert!(promised.len() > 20, "the table was found: {promised:?}");
    let shown = names(&scrape.text);
    let labels: BTreeMap<_, _> =
        promised.iter().map(|(name, (_, labels, _))| (*name, labels.clone())).collect();
    assert_eq!(shown, labels, "these metrics with these labels, and no others");
    for (name, (kind, _, meaning)) in promised {
        let lines = [format!("# TYPE {name} {kind}"), format!("# HELP {name} {meaning}")];
        for line in lines {
            assert!(scrape.text.lines().any(|other| other == line), "{line} is missing");
        }
    }
}

/// The figures of a scrape are those of a snapshot, which are those of the last tick by now.
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

/// Runs so many queries, each in a checkout of its own, and says how many each peer has served.
fn queries<C>(pool: &Pool<PeerManager<C>>, times: usize) -> BTreeMap<String, u64>
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

fn over<C: R2D2Connection + Send + 'static>(
    pool: &str,
    builder: PeerManagerBuilder<C>,
    size: u32,
) -> (Pool<PeerManager<C>>, Peers) {
    LazyLock::force(&SITE);
    pool_of(builder.pool_name(pool).check_interval(SOON), size)
}

#[test]
fn prometheus_finds_what_the_table_promises_and_the_right_figures() {
    let mut servers: Vec<MariaDb> = (0..3).map(|_| MariaDb::start()).collect();
    let (pool, peers) = over::<MysqlConnection>("shop", manager_over(&servers), 6);
    fill(&pool, &peers, &[2, 2, 2]);

    let served = queries(&pool, 300);
    let agree = |scrape: &Scrape| agrees(scrape, &peers.snapshot());
    let scrape = scraped("the queries have ended", "shop", agree);
    shows_what_the_table_promises(&scrape);
    for (peer, served) in &served {
        assert_eq!(scrape.of_peer("queries_total", peer), *served, "{peer}: one each");
        let buckets =
            scrape.sum("query_duration_seconds_bucket", &format!("peer=\"{peer}\",le=\"+Inf"));
        assert_eq!(buckets, *served, "{peer}: each took some time");
        let sum = &scrape.values[&format!("query_duration_seconds_sum{{peer=\"{peer}\"}}")];
        let sum: f64 = sum.parse().expect("seconds");
        let took = status(&peers, peer).query_time.as_secs_f64();
        assert!((sum - took).abs() < 1e-5, "{peer}: which was {took} s, and not {sum} s");
    }
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 3));

    // One is killed while it is used.
    let mut held: Vec<_> = (0..6).map(|_| pool.get().expect("there are six")).collect();
    let scrape = scraped("all are in use", "shop", |scrape| scrape.sum("in_use", "") == 6);
    assert_eq!(scrape.sum("connections", ""), 6);
    servers[1].kill();
    let lost = held.iter_mut().filter_map(|conn| conn.batch_execute("SELECT 1").err()).count();
    assert_eq!(lost, 2, "both that it had");
    drop(held);
    let scrape = scraped("it is down", "shop", |scrape| scrape.of_peer("up", "peer1") == 0);
    assert_eq!(scrape.of_peer("downs_total", "peer1"), 1);
    assert_eq!(scrape.of_peer("queries_lost_total", "peer1"), 2);
    assert_eq!(scrape.of_peer("in_service", "peer1"), 1, "which nobody has asked for");
    assert!(scrape.of_peer("connect_failures_total", "peer1") > 0, "checks have shown it");
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 2));
    scraped("its connections are closed", "shop", |scrape| {
        drop(pool.try_get());
        let retired = scrape.sum("connections_closed_total", "peer=\"peer1\"");
        scrape.of_peer("connections", "peer1") == 0 && retired == 2
    });

    // Another one is drained.
    assert!(peers.drain("peer2").expect("there is one").wait(PATIENCE), "nothing is in use");
    queries(&pool, 10);
    let scrape = scraped("it has no connections", "shop", |scrape| {
        drop(pool.try_get());
        scrape.of_peer("connections", "peer2") == 0
    });
    assert_eq!((scrape.of_peer("up", "peer2"), scrape.of_peer("in_service", "peer2")), (1, 0));
    let drained = scrape.sum("connections_closed_total", "peer=\"peer2\",reason=\"drained\"");
    assert!(drained >= 2, "{drained} were closed because of that");
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 1));

    servers[1].restart();
    let scrape = scraped("the other is up", "shop", |scrape| scrape.of_peer("up", "peer1") == 1);
    assert_eq!((scrape.get("peers"), scrape.get("peers_available")), (3, 2));
    shows_what_the_table_promises(&scrape);

    drop(pool);
    let scrape = scraped("the pool is gone", "shop", |scrape| scrape.get("peers") == 0);
    for name in ["peers_available", "up", "in_service", "connections", "in_use", "weight"] {
        assert_eq!(scrape.sum(name, ""), 0, "{name}: nothing is left");
    }
    let connects = scrape.sum("connects_total", "");
    assert_eq!(scrape.sum("connections_closed_total", ""), connects, "each was closed at the end");
    assert!(
        scrape.sum("connections_closed_total", "by_pool") > 0,
        "some of them by the pool's end"
    );
    assert!(!scrape.text.contains(APP_PASSWORD), "no secret is shown");
    assert!(!scrape.text.contains("mysql://"), "nor any other part of a URL");
}

#[test]
fn the_rules_for_operators_name_metrics_that_there_are() {
    let promised = promised();
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = OPERATIONS.split(|letter: char| !is_of_name(letter));
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("diesel_peers_")).collect();
    assert!(names.len() > 5, "there are rules: {names:?}");
    for name in names {
        assert!(promised.contains_key(name), "{name}");
    }
}

#[test]
fn the_counters_of_a_peer_that_comes_again_go_on() {
    let servers = Servers::start(2);
    let urls = || servers.iter().map(|server| server.url());
    let (pool, peers) = over::<ScriptedConnection>("again", manager_of(urls()), 2);
    let count = |scrape: &Scrape| scrape.sum("queries_total", "peer=\"peer1\"");
    let mut made = 0;
    for round in 1..=3 {
        fill(&pool, &peers, &[1, 1]);
        // A connection is counted a moment before it is used.
        wait_until("it serves", PATIENCE, || {
            let served = queries(&pool, 10).remove("peer1").unwrap_or_default();
            made += served;
            served > 0
        });
        let scrape = scraped("all have ended", "again", |scrape| count(scrape) == made);
        assert_eq!(scrape.of_peer("up", "peer1"), 1, "round {round}");
        let drain = peers.remove("peer1").expect("there is one");
        wait_until("its connections have come by", PATIENCE, || {
            drop(pool.try_get());
            drain.wait(Duration::ZERO)
        });
        let scrape = scraped("it is gone", "again", |scrape| scrape.get("peers") == 1);
        for gauge in ["up", "in_service", "weight", "connections"] {
            assert_eq!(scrape.of_peer(gauge, "peer1"), 0, "round {round}: {gauge}");
        }
        assert_eq!(count(&scrape), made, "round {round}: what was counted stays");
        peers.add(PeerConfig::new("peer1", servers[1].url())).expect("there is none");
    }
    assert!(made >= 10, "it was used: {made}");
}

#[test]
fn a_recorder_that_panics_harms_nobody_and_is_told_later() {
    let server = Server::start();
    PANICS.store(true, Ordering::SeqCst);
    let (pool, peers) = over::<ScriptedConnection>(DREADED, manager_of([server.url()]), 1);
    queries(&pool, 10);
    // Until it would have been told at least once.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(Scrape::of(DREADED).values.get("peers"), None, "it does panic");
    server.crash();
    wait_until("the peer is checked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    server.accept(true);
    wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    queries(&pool, 10);
    PANICS.store(false, Ordering::SeqCst);
    scraped("it was told", DREADED, |scrape| {
        scrape.values.get("queries_total{peer=\"peer0\"}") == Some(&"20".to_owned())
    });
}
