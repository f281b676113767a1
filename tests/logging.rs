//! One line for each change of state, outside every lock and in order; and a logger that panics or takes
//! its time breaks nothing. In a file of its own, as the logger is the whole process's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, Once};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use diesel_peers::{PeerManager, PeerState, Peers};
use log::{Level, LevelFilter, Log, Metadata, Record};
use support::backend::{PATIENCE, SOON, manager_of, pool_of, state};
use support::resolver::{Answer, Script};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());
/// Where the logger waits at the lines of the peer `slow`, and what lets it go on.
static GATE: LazyLock<(Sender<()>, Receiver<()>)> = LazyLock::new(|| bounded(0));
static PEERS: Mutex<Option<Peers>> = Mutex::new(None);
static PANICS: AtomicBool = AtomicBool::new(false);

/// What was logged, and under which keys.
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

fn set_logger() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Curious).expect("this process has no other");
        log::set_max_level(LevelFilter::Trace);
    });
}

/// A logger as an application might have one: it looks at the peers while it is at it.
struct Curious;

impl Log for Curious {
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
            let is_slow = line.peer.as_deref() == Some("slow");
            LINES.lock().unwrap().push(line);
            if is_slow {
                let _ = GATE.1.recv_timeout(PATIENCE);
            } else {
                assert!(!PANICS.load(Ordering::SeqCst), "this logger panics");
            }
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_line_for_each_change() {
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
        wait_until("the peer is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        let failures = || status(&peers, "peer0").connect_failures;
        let so_far = failures();
        wait_until("it fails again", PATIENCE, || failures() >= so_far + 3);
        server.accept(true);
        wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("it serves", PATIENCE, || pool.get().is_ok());
        wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);

        let lines = lines("peer0");
        let [down, up] = &lines[..] else {
            panic!("one line down, one up: {lines:?}");
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

/// A resolver's own words may hold anything.
#[test]
fn a_line_when_a_name_is_not_resolved_and_when_it_is_again() {
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
    let manager = builder.build().expect("the settings are right");
    LINES.lock().unwrap().retain(|line| line.peer.as_deref() != Some("named"));
    for answer in [Answer::Error("no answer to s3cret"), Answer::of(&[]), Answer::Panic] {
        script.say(answer);
        script.wait_for_answers(3);
    }
    script.say(Answer::of(&["10.0.0.1"]));
    script.wait_for_answers(3);
    let said = lines("named");
    let [unknown, known] = &said[..] else { panic!("one line each: {said:?}") };
    assert_eq!((unknown.level, known.level), (Level::Warn, Level::Info));
    assert_eq!((&*unknown.target, &*known.target), ("diesel_peers", "diesel_peers"));
    let texts = (&*unknown.text, &*known.text);
    let expected = (
        "the host of peer named is not resolved: no answer to ***; what is known stays",
        "the host of peer named is resolved again",
    );
    assert_eq!(texts, expected);
    assert_eq!(unknown.reason.as_deref(), Some("no answer to ***"));
    let events = (unknown.event.as_deref(), known.event.as_deref());
    assert_eq!(events, (Some("unresolved"), Some("resolved")));

    script.say(Answer::of(&["10.0.0.1", "10.0.0.2"]));
    script.wait_for_answers(2);
    drop(manager);
    let said = lines("named/10.0.0.2");
    assert_eq!(said.first().map(|line| &*line.text), Some("peer named/10.0.0.2 was added"));
}

#[test]
fn a_slow_logger_keeps_nobody_else_and_its_lines_are_in_order() {
    set_logger();
    let server = Server::start();
    let manager = PeerManager::<ScriptedConnection>::builder().peer("slow", server.url()).build();
    let manager = manager.expect("the settings are right");
    let peers = manager.peers();
    let weights = || {
        let lines = lines("slow");
        lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
    };
    let expected = [(2, 1), (3, 2), (4, 3)];
    let expected =
        expected.map(|(to, from)| format!("weight of peer slow changed from {from} to {to}"));
    thread::scope(|scope| {
        scope.spawn(|| peers.set_weight("slow", 2).expect("there is one"));
        wait_until("the logger is at it", PATIENCE, || weights().len() == 1);
        for weight in [3, 4] {
            peers.set_weight("slow", weight).expect("which does not wait for the logger");
        }
        let kept = peers.snapshot().events;
        let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
        assert_eq!(kept, expected, "all is known already");
        for _ in &expected {
            GATE.0.send_timeout((), PATIENCE).expect("the logger waits");
        }
    });
    assert_eq!(weights(), expected);
}
