//! Each change of state is logged as one line, in order and outside every lock. A logger that panics or is
//! slow does no harm. This test has a file of its own, because a process has only one logger.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, Once};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use diesel_peers::{Credentials, PeerManager, PeerState, Peers};
use log::{Level, LevelFilter, Log, Metadata, Record};
#[cfg(all(target_os = "linux", feature = "mysql"))]
use support::backend::links;
use support::backend::{PATIENCE, SOON, build, manager_of, pool_of, state, status};
use support::resolver::{Answer, Script};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());
/// A channel of messages.
type Gate = (Sender<()>, Receiver<()>);
/// The logger waits for a message from one of these channels at each line about the peer of that name.
static GATES: LazyLock<[(&str, Gate); 2]> =
    LazyLock::new(|| ["slow", "frozen"].map(|peer| (peer, bounded(0))));
static PEERS: Mutex<Option<Peers>> = Mutex::new(None);
static PANICS: AtomicBool = AtomicBool::new(false);

/// A line of the log and its key-value pairs.
#[derive(Debug, Clone)]
struct Line {
    level: Level,
    target: String,
    text: String,
    peer: Option<String>,
    event: Option<String>,
    reason: Option<String>,
}

/// The lines about this peer.
fn lines(peer: &str) -> Vec<Line> {
    let lines = LINES.lock().unwrap();
    lines.iter().filter(|line| line.peer.as_deref() == Some(peer)).cloned().collect()
}

fn gate(peer: &str) -> Option<&'static Gate> {
    GATES.iter().find(|(name, _)| *name == peer).map(|(_, gate)| gate)
}

fn set_logger() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&SnapshottingLogger).expect("this process has no other logger");
        log::set_max_level(LevelFilter::Trace);
    });
}

/// Takes a snapshot of the peers for each line, as the logger of an application might.
struct SnapshottingLogger;

impl Log for SnapshottingLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("diesel_peers")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let peers = PEERS.lock().unwrap().clone();
            drop(peers.map(|peers| peers.snapshot()));
            let value = |key| {
                record.key_values().get(log::kv::Key::from_str(key)).map(|value| value.to_string())
            };
            let line = Line {
                level: record.level(),
                target: record.target().to_owned(),
                text: record.args().to_string(),
                peer: value("peer"),
                event: value("event"),
                reason: value("reason"),
            };
            let gate = line.peer.as_deref().and_then(gate);
            LINES.lock().unwrap().push(line);
            if let Some((_, messages)) = gate {
                let _ = messages.recv_timeout(PATIENCE);
            } else {
                assert!(!PANICS.load(Ordering::SeqCst), "this logger panics");
            }
        }
    }

    fn flush(&self) {}
}

#[test]
fn each_change_of_state_is_logged_once() {
    set_logger();
    let server = Server::start();
    let builder = manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 2);
    *PEERS.lock().unwrap() = Some(peers.clone());
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);

    for panics in [false, true] {
        PANICS.store(panics, Ordering::SeqCst);
        LINES.lock().unwrap().retain(|line| line.peer.as_deref() != Some("peer0"));
        server.crash();
        wait_until("the peer is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        let failures = || status(&peers, "peer0").connect_failures;
        let so_far = failures();
        wait_until("further checks fail", PATIENCE, || failures() >= so_far + 3);
        server.accept(true);
        wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("the pool serves", PATIENCE, || pool.get().is_ok());
        wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);

        let lines = lines("peer0");
        let [down, up] = &lines[..] else {
            panic!("there is one line for down and one for up: {lines:?}");
        };
        assert_eq!((down.level, up.level), (Level::Warn, Level::Info));
        assert_eq!((&*down.target, &*up.target), ("diesel_peers", "diesel_peers"));
        assert!(down.text.starts_with("peer peer0 is down: refused by "), "{down:?}");
        assert!(up.text.starts_with("peer peer0 is up after "), "{up:?}");
        assert_eq!((down.event.as_deref(), up.event.as_deref()), (Some("down"), Some("up")));
        let reason = down.reason.as_deref().expect("there is a reason");
        assert!(reason.starts_with("refused by ") && !reason.contains("s3cret"), "{reason}");
        assert_eq!(up.reason, None);
    }
}

/// The error of a resolver may contain a secret.
#[test]
fn failed_and_recovered_host_name_resolution_is_logged_once_each() {
    set_logger();
    let url = |host: &str| format!("scripted://app:s3cret@{host}");
    for host in ["10.0.0.1", "10.0.0.2"] {
        Server::start_at(url(host));
    }
    let script = Script::of(&["10.0.0.1"]);
    let builder = PeerManager::<ScriptedConnection>::builder()
        .peer("named", url("db"))
        .resolve_interval(Duration::from_millis(20))
        .resolver(script.resolver());
    let manager = build(builder);
    LINES.lock().unwrap().retain(|line| line.peer.as_deref() != Some("named"));
    for answer in [Answer::Error("no answer to s3cret"), Answer::of(&[]), Answer::Panic] {
        script.set_answer(answer);
        script.wait_for_answers(3);
    }
    script.set_answer(Answer::of(&["10.0.0.1"]));
    script.wait_for_answers(3);
    let logged = lines("named");
    let [failed, recovered] = &logged[..] else { panic!("there is one line each: {logged:?}") };
    assert_eq!((failed.level, recovered.level), (Level::Warn, Level::Info));
    assert_eq!((&*failed.target, &*recovered.target), ("diesel_peers", "diesel_peers"));
    let texts = (&*failed.text, &*recovered.text);
    let expected = (
        "cannot resolve the host of peer named: no answer to ***; keeping the known addresses",
        "the host of peer named is resolved again",
    );
    assert_eq!(texts, expected);
    assert_eq!(failed.reason.as_deref(), Some("no answer to ***"));
    let events = (failed.event.as_deref(), recovered.event.as_deref());
    assert_eq!(events, (Some("unresolved"), Some("resolved")));

    LINES.lock().unwrap().retain(|line| line.peer.as_deref() != Some("named"));
    let many: Vec<String> =
        (1..=2).flat_map(|a| (0..=199).map(move |b| format!("10.0.{a}.{b}"))).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["10.0.0.1"]).collect();
    script.set_answer(Answer::of(&many));
    script.wait_for_answers(5);
    script.set_answer(Answer::of(&["10.0.0.1"]));
    script.wait_for_answers(5);
    let logged = lines("named");
    let [ignored, fits] = &logged[..] else { panic!("there is one line each: {logged:?}") };
    assert_eq!((ignored.level, fits.level), (Level::Warn, Level::Info));
    let texts = (&*ignored.text, &*fits.text);
    let expected = (
        "the host of peer named has too many addresses: 145 are ignored, as at most 256 are used",
        "no address of the host of peer named is ignored any more",
    );
    assert_eq!(texts, expected);
    let events = (ignored.event.as_deref(), fits.event.as_deref());
    assert_eq!(events, (Some("addresses_ignored"), Some("addresses_used")));

    script.set_answer(Answer::of(&["10.0.0.1", "10.0.0.2"]));
    script.wait_for_answers(2);
    drop(manager);
    let logged = lines("named/10.0.0.2");
    assert_eq!(logged.first().map(|line| &*line.text), Some("peer named/10.0.0.2 was added"));
}

#[test]
fn skipped_check_is_logged_with_its_peer_and_reason() {
    set_logger();
    let server = Server::start();
    let builder = PeerManager::<ScriptedConnection>::builder()
        .peer("skipped", server.url())
        .check_interval(SOON)
        .credentials(|_peer| Err::<Credentials, _>("the vault is closed"));
    let _manager = build(builder);
    wait_until("a check is skipped", PATIENCE, || !lines("skipped").is_empty());
    let line = &lines("skipped")[0];
    assert_eq!((line.level, &*line.target), (Level::Warn, "diesel_peers"));
    assert_eq!(line.event.as_deref(), Some("check_skipped"));
    let reason = line.reason.as_deref().expect("there is a reason");
    assert!(reason.contains("the vault is closed"), "{reason}");
    let expected = format!("cannot check peer skipped: {reason}; its state stays unchanged");
    assert_eq!(line.text, expected);
}

#[test]
fn slow_logger_delays_no_other_thread_and_gets_lines_in_order() {
    set_logger();
    let server = Server::start();
    let manager = build(PeerManager::<ScriptedConnection>::builder().peer("slow", server.url()));
    let peers = manager.peers();
    let logged = || {
        let lines = lines("slow");
        lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    let expected = [(2, 1), (3, 2), (4, 3)];
    let expected =
        expected.map(|(to, from)| format!("weight of peer slow changed from {from} to {to}"));
    thread::scope(|scope| {
        scope.spawn(|| peers.set_weight("slow", 2).expect("the peer exists"));
        wait_until("the logger has the first line", PATIENCE, || logged().len() == 1);
        for weight in [3, 4] {
            peers.set_weight("slow", weight).expect("the change does not wait for the logger");
        }
        let events = peers.snapshot().events;
        let events: Vec<_> = events.iter().map(ToString::to_string).collect();
        assert_eq!(events, expected, "the snapshot has all events already");
        for _ in &expected {
            let (send, _) = gate("slow").expect("there is a gate");
            send.send_timeout((), PATIENCE).expect("the logger waits for a message");
        }
    });
    assert_eq!(logged(), expected);
}

/// Otherwise a hung query could end, and the next one be aborted, while the logger takes its time.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn hung_queries_are_aborted_before_anything_is_logged() {
    use diesel::MysqlConnection;
    use diesel::connection::SimpleConnection;
    use support::mariadb::MariaDb;

    set_logger();
    let mut servers = [MariaDb::start(), MariaDb::start()];
    let builder = PeerManager::<MysqlConnection>::builder()
        .peer("frozen", servers[0].url())
        .peer("other", servers[1].url())
        .stall_after(Duration::from_millis(500))
        .check_timeout(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 2);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [1, 1]);
    let mut conns = [pool.get(), pool.get()].map(|conn| conn.expect("the pool is full"));
    let conn = conns.iter_mut().find(|conn| conn.peer() == "frozen").expect("one is to this peer");
    servers[0].freeze();
    thread::scope(|scope| {
        let query = scope.spawn(|| conn.batch_execute("DO 1"));
        wait_until("the logger has a line", PATIENCE, || !lines("frozen").is_empty());
        let is_aborted = || query.is_finished();
        wait_until("the query is aborted while the logger has the line", PATIENCE / 4, is_aborted);
        query.join().expect("no panic").expect_err("the query is aborted");
    });
    servers[0].thaw();
}

/// A pooler with transaction pooling that does not track prepared statements fails queries at random, and each is
/// an error of the query alone. So one line says what they have in common, and what to do.
#[cfg(all(target_os = "linux", feature = "postgres"))]
#[test]
fn statements_that_a_pooler_loses_are_logged_once_with_the_remedy() {
    use diesel::prelude::*;
    use diesel::sql_types::Integer;
    use support::pgbouncer::PgBouncer;
    use support::postgres::Postgres;

    set_logger();
    let server = Postgres::start();
    let settings: Vec<_> =
        ["default_pool_size = 1"].into_iter().chain(PgBouncer::without_statements()).collect();
    let pooler = PgBouncer::in_front_of(server.port(), &settings);
    let builder = PeerManager::<PgConnection>::builder().peer("pooler", pooler.url());
    let (pool, _peers) = pool_of(builder, 2);
    let mut conns = [pool.get(), pool.get()].map(|conn| conn.expect("the pooler runs"));
    // Both prepare statements with the same names in the one session of the server.
    let [prepares, collides] = conns.each_mut().map(|conn| {
        let one = diesel::select(1.into_sql::<Integer>()).execute(conn);
        let two = diesel::select((1.into_sql::<Integer>(), 2.into_sql::<Integer>())).execute(conn);
        [one, two]
    });
    assert_eq!(prepares, [Ok(1), Ok(1)]);
    assert!(collides.iter().all(Result::is_err), "{collides:?}");
    let logged = lines("pooler");
    let of_statements = |line: &&Line| line.event.as_deref() == Some("prepared_statement_lost");
    let logged: Vec<_> = logged.iter().filter(of_statements).collect();
    let [line] = &logged[..] else { panic!("there is one line: {logged:?}") };
    assert_eq!((line.level, &*line.target), (Level::Error, "diesel_peers"));
    let reason = line.reason.as_deref().expect("there is a reason");
    assert!(reason.starts_with("prepared statement \"__diesel_stmt_"), "{reason}");
    for remedy in ["set `statement_cache` to \"disabled\"", "max_prepared_statements"] {
        assert!(line.text.contains(remedy), "{}", line.text);
    }
}
