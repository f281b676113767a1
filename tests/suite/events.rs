//! An event handler is called for every event, in order, on a thread of its own, and cannot harm the pool,
//! whatever it does.

#![allow(clippy::disallowed_methods, reason = "connections have to grow old")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::{
    CloseReason, Event, EventKind, Failure, Fault, PeerConfig, PeerConnection, PeerManager,
    PeerManagerBuilder, PeerState, Peers,
};
use support::backend::{PATIENCE, SOON, build, fill, pool_of, state, status};
use support::scripted::{ScriptedConnection, Servers};
use support::wait_until;

/// An event that a handler was called with, and the thread that called the handler.
#[derive(Debug)]
struct Call {
    thread: ThreadId,
    event: Event,
}

/// The calls of a handler.
struct Calls(Receiver<Call>);

impl Calls {
    /// Returns a handler that records its calls, and the receiver of these.
    fn record() -> (impl Fn(&Event) + Send + 'static, Self) {
        let (sender, receiver) = unbounded();
        let handler = move |event: &Event| {
            // The test may have ended.
            let _ = sender.send(Call { thread: thread::current().id(), event: event.clone() });
        };
        (handler, Self(receiver))
    }

    /// Waits for the next event that `matches`, and skips the events before it. Asserts that no skipped
    /// event shows a secret.
    #[track_caller]
    fn next(&self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        self.next_call(what, matches).event
    }

    /// Does the same as [`next`](Self::next), and returns the thread as well.
    #[track_caller]
    fn next_call(&self, what: &str, matches: impl Fn(&Event) -> bool) -> Call {
        let end = Instant::now() + PATIENCE;
        loop {
            let call = self.0.recv_deadline(end);
            let call = call.unwrap_or_else(|_| panic!("the handler was not called: {what}"));
            let event = &call.event;
            let shown = format!("{event} {event:?}");
            assert!(!shown.contains("s3cret"), "a secret is shown: {shown}");
            if matches(event) {
                return call;
            }
        }
    }

    /// Asserts that the next changes of this peer are of these kinds, and returns their events.
    #[track_caller]
    fn assert_next(&self, peer: &str, kinds: &[&str]) -> Vec<Event> {
        let is_one = |event: &Event| {
            event.peer == peer
                && !["connect_failed", "connection_closed"].contains(&event.kind.as_str())
        };
        let next = |kind: &&str| {
            let event = self.next(kind, is_one);
            assert_eq!(event.kind.as_str(), *kind, "{event}, of {kinds:?}");
            event
        };
        kinds.iter().map(next).collect()
    }

    /// Waits until a connection of this peer is closed for this reason, and skips all events before.
    #[track_caller]
    fn wait_for_close(&self, peer: &str, expected: CloseReason) {
        let matches = |event: &Event| {
            event.peer == peer
                && matches!(event.kind, EventKind::ConnectionClosed { reason, .. } if reason == expected)
        };
        self.next(expected.as_str(), matches);
    }
}

/// The fault of failed logins, which a test sets.
struct LoginFault(Arc<Mutex<Option<Fault>>>);

impl LoginFault {
    fn classify<C>(builder: PeerManagerBuilder<C>) -> (PeerManagerBuilder<C>, Self) {
        let fault = Arc::new(Mutex::new(None));
        let login_fault = Self(fault.clone());
        let classify = move |failed: Failure<'_>| match failed {
            Failure::Login(_) => *fault.lock().unwrap(),
            _ => None,
        };
        (builder.classify(classify), login_fault)
    }

    fn set(&self, fault: Fault) {
        *self.0.lock().unwrap() = Some(fault);
    }
}

fn builder_over(servers: &Servers) -> PeerManagerBuilder<ScriptedConnection> {
    servers.builder().check_interval(SOON)
}

/// Events that different threads cause reach the handler on the same thread, which is neither that of the
/// application nor one that checks peers or opens connections. The checker's own thread runs no code of the
/// application; the test of a handler that never returns shows that the checker is another thread.
#[test]
fn handler_runs_on_a_thread_of_its_own() {
    let servers = Servers::start(1);
    let (sender, receiver) = unbounded();
    let (handler, calls) = Calls::record();
    let builder = builder_over(&servers).event_handler(handler).health_check(move |_| {
        let _ = sender.send(thread::current().id());
        Ok(())
    });
    let (pool, peers) = pool_of(builder, 1);
    fill(&pool, &peers, &[1]);
    peers.set_weight("peer0", 2).expect("the peer is in the set");
    servers[0].accept(false);
    let weighted =
        calls.next_call("weight_changed", |event| event.kind.as_str() == "weight_changed");
    let down = calls.next_call("down", |event| event.kind.as_str() == "down");
    servers[0].accept(true);
    let up = calls.next_call("up", |event| event.kind.as_str() == "up");
    let handlers = [weighted.thread, down.thread, up.thread];
    assert_eq!(handlers, [handlers[0]; 3], "all calls are on the same thread");
    assert_ne!(handlers[0], thread::current().id(), "the thread is not the application's");
    let checking: Vec<_> = receiver.try_iter().collect();
    assert!(!checking.is_empty(), "the peer was checked");
    assert!(!checking.contains(&handlers[0]), "the thread does not check peers");
}

#[test]
fn handler_gets_each_change_of_a_peer_in_order() {
    let servers = Servers::start(2);
    let (handler, calls) = Calls::record();
    let (builder, login_fault) =
        LoginFault::classify(builder_over(&servers).event_handler(handler));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);

    login_fault.set(Fault::PeerDown);
    servers[0].accept(false);
    let events = calls.assert_next("peer0", &["down"]);
    let EventKind::Down { reason, fault, next_check, .. } = &events[0].kind else {
        panic!("{events:?}")
    };
    assert!(reason.starts_with("refused by "), "the event has the reason: {reason}");
    assert_eq!(*fault, Fault::PeerDown);
    assert!(*next_check <= SOON * 2, "the event has the time to the next check: {next_check:?}");
    assert!(events[0].in_service, "a peer that is down stays in service");
    login_fault.set(Fault::Misconfigured);
    calls.assert_next("peer0", &["misconfigured"]);
    servers[0].accept(true);
    calls.assert_next("peer0", &["up"]);

    login_fault.set(Fault::PeerFull);
    servers[0].accept(false);
    calls.assert_next("peer0", &["full"]);
    servers[0].accept(true);
    calls.assert_next("peer0", &["has_room"]);

    let drain = peers.drain("peer0").expect("the peer is in the set");
    wait_until("the connections come back and are closed", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    let events = calls.assert_next("peer0", &["draining", "drained"]);
    assert!(
        events.iter().all(|event| !event.in_service),
        "a drained peer is out of service: {events:?}"
    );
    login_fault.set(Fault::PeerDown);
    servers[0].accept(false);
    let events = calls.assert_next("peer0", &["down"]);
    assert!(!events[0].in_service, "a drained peer that is down is out of service");
    servers[0].accept(true);
    calls.assert_next("peer0", &["up"]);
    peers.resume("peer0").expect("the peer is in the set");
    peers.set_weight("peer0", 3).expect("the peer is in the set");
    peers.set_weight("peer0", 3).expect("the peer is in the set");
    let events = calls.assert_next("peer0", &["resumed", "weight_changed"]);
    assert!(
        matches!(events[1].kind, EventKind::WeightChanged { from: 1, to: 3, .. }),
        "{events:?}"
    );

    peers.add(PeerConfig::new("peer2", servers[1].url())).expect("the name is unused");
    let drain = peers.remove("peer2").expect("the peer is in the set");
    wait_until("peer2 is removed", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    calls.assert_next("peer2", &["added", "draining", "drained", "removed"]);
}

#[test]
fn failed_logins_and_closed_connections_reach_the_handler_but_not_the_event_log() {
    let servers = Servers::start(2);
    let (handler, calls) = Calls::record();
    let builder = builder_over(&servers).event_handler(handler).connection_max_age(PATIENCE);
    let (pool, peers) = pool_of(builder.rebalance_interval(Duration::ZERO), 2);
    fill(&pool, &peers, &[1, 1]);

    // The connections are cut off, and the server still accepts new ones.
    servers[0].cut_off();
    wait_until("the dead connection is detected", PATIENCE, || {
        let mut both: Vec<_> = (0..2).filter_map(|_| pool.try_get()).collect();
        both.iter_mut().any(|conn| conn.batch_execute("SELECT 1").is_err())
            || status(&peers, "peer0").connects > 1
    });
    calls.wait_for_close("peer0", CloseReason::Broken);
    fill(&pool, &peers, &[1, 1]);

    // The peer is paused: its sessions still work, and are closed all the same.
    servers[0].accept(false);
    wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    wait_until("peer1 has both connections", PATIENCE, || {
        drop(pool.try_get());
        status(&peers, "peer1").connections == 2
    });
    calls.wait_for_close("peer0", CloseReason::PeerDown);
    servers[0].accept(true);
    fill(&pool, &peers, &[1, 1]);
    calls.wait_for_close("peer1", CloseReason::Rebalanced);

    let drain = peers.drain("peer1").expect("the peer is in the set");
    wait_until("the connections come back and are closed", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    calls.wait_for_close("peer1", CloseReason::Drained);

    // While all peers are down, the logins for r2d2 are attempted and fail.
    servers[0].crash();
    wait_until("peer0 is down", PATIENCE, || {
        drop(pool.try_get());
        state(&peers, "peer0").is_marked_down()
    });
    // A login that had begun before the crash may fail with a lost connection first.
    let failed = calls.next("a login is refused", |event| {
        let EventKind::ConnectFailed { reason, .. } = &event.kind else { return false };
        event.peer == "peer0" && reason.starts_with("refused by ")
    });
    let EventKind::ConnectFailed { fault, .. } = failed.kind else { panic!("{failed:?}") };
    assert_eq!(fault, Fault::PeerDown);
    let kept = peers.snapshot().events;
    assert!(kept.iter().all(|event| !matches!(
        event.kind,
        EventKind::ConnectFailed { .. } | EventKind::ConnectionClosed { .. }
    )));
}

#[test]
fn close_reasons_by_pool_and_too_old_reach_the_handler() {
    /// A customizer that rejects the first connection.
    #[derive(Debug, Default)]
    struct RejectsFirst(AtomicUsize);
    impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for RejectsFirst {
        fn on_acquire(&self, _: &mut PeerConnection<ScriptedConnection>) -> Result<(), Error> {
            let is_first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
            let rejection = || diesel::ConnectionError::BadConnection("rejected".to_owned());
            if is_first { Err(Error::ConnectionError(rejection())) } else { Ok(()) }
        }
    }

    let (handler, calls) = Calls::record();
    let builder = builder_over(&Servers::start(1)).event_handler(handler);
    let manager = build(builder.connection_max_age(Duration::from_millis(1)));
    let pool = Pool::builder().max_size(1).connection_customizer(Box::<RejectsFirst>::default());
    let pool = pool.build(manager).expect("the peer is up");
    calls.wait_for_close("peer0", CloseReason::ByPool);
    thread::sleep(Duration::from_millis(2));
    drop(pool.get().expect("the peer is up"));
    calls.wait_for_close("peer0", CloseReason::TooOld);
}

/// A value that a handler uses, and that is set after the handler was built.
type Shared<T> = Arc<OnceLock<T>>;

#[test]
fn handler_can_take_snapshots_change_peers_and_use_the_pool() {
    let servers = Servers::start(2);
    let shared: Shared<(Pool<PeerManager<ScriptedConnection>>, Peers)> = Arc::default();
    let (sender, receiver) = unbounded();
    let handler = {
        let shared = shared.clone();
        move |event: &Event| {
            let Some((pool, peers)) = shared.get() else { return };
            let logged = peers.snapshot().events.iter().any(|logged| logged.at == event.at);
            if matches!(event.kind, EventKind::Down { .. }) {
                peers.drain(&event.peer).expect("the peer is in the set");
                peers.set_weight(&event.peer, 2).expect("the peer is in the set");
            }
            let served = pool.get().map(|conn| conn.peer().to_owned());
            let _ = sender.send((event.kind.as_str(), logged, served.ok()));
        }
    };
    let (pool, peers) = pool_of(builder_over(&servers).event_handler(handler), 4);
    fill(&pool, &peers, &[2, 2]);
    let _ = shared.set((pool.clone(), peers.clone()));
    servers[0].crash();
    let mut kinds = Vec::new();
    while !kinds.contains(&"drained") {
        let (kind, logged, served) =
            receiver.recv_timeout(PATIENCE).expect("the handler does not deadlock");
        let is_frequent = kind == "connect_failed" || kind == "connection_closed";
        assert!(logged || is_frequent, "{kind} is in the event log");
        assert_eq!(served.as_deref(), Some("peer1"), "{kind}: the other peer serves");
        kinds.push(kind);
    }
    kinds.retain(|kind| !["connect_failed", "connection_closed"].contains(kind));
    assert_eq!(kinds, ["down", "draining", "weight_changed", "drained"]);
    assert_eq!(state(&peers, "peer0"), PeerState::Drained);
}

#[test]
fn handler_that_never_returns_blocks_neither_checks_nor_the_pool() {
    let servers = Servers::start(1);
    let (_release, released) = bounded::<()>(0);
    let (entered, is_inside) = bounded(1);
    let handler = move |_: &Event| {
        let _ = entered.try_send(());
        let _ = released.recv();
    };
    let builder = builder_over(&servers).event_handler(handler);
    let (pool, peers) = pool_of(builder, 1);
    drop(pool.get().expect("the peer is up"));
    let weigh = |times: u32| {
        for weight in 1..=times {
            peers.set_weight("peer0", weight % 7 + 1).expect("the peer is in the set");
        }
    };
    weigh(1);
    is_inside.recv_timeout(PATIENCE).expect("the handler is called");
    assert_eq!(peers.snapshot().events_dropped, 0, "no event is dropped before the queue is full");
    weigh(5000);
    let dropped = peers.snapshot().events_dropped;
    assert!(
        (800..=1000).contains(&dropped),
        "events beyond the queue's capacity are dropped: {dropped}"
    );
    servers[0].crash();
    wait_until("a check marks the peer down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    servers[0].accept(true);
    wait_until("a check finds the peer up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    let mut conn = pool.get().expect("the pool serves");
    conn.batch_execute("SELECT 1").expect("the connection works");
    drop(conn);
    assert!(peers.snapshot().events_dropped > dropped, "all dropped events are counted");
    let last = peers.snapshot().events.pop().expect("dropped events are still in the event log");
    assert_eq!(last.kind.as_str(), "up");
    drop(pool);
    wait_until("the pool has ended", PATIENCE, || {
        peers.snapshot().closed
            && servers[0].open() == 0
            && status(&peers, "peer0").connections == 0
    });
}

#[test]
fn events_after_the_end_of_the_pool_do_not_count_as_dropped() {
    let servers = Servers::start(1);
    let (handler, events) = bounded(1);
    let manager = build(servers.builder().event_handler(move |_| {
        let _ = &handler;
    }));
    let peers = manager.peers();
    drop(manager);
    // The handler, and its end of the channel, are dropped when its thread ends.
    let ended: Result<(), _> = events.recv_timeout(PATIENCE);
    assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
    peers.set_weight("peer0", 2).expect("the peer exists");
    let snapshot = peers.snapshot();
    assert_eq!(snapshot.events.len(), 1, "the snapshot has the event");
    assert_eq!(snapshot.events_dropped, 0, "no handler has missed it");
}

#[test]
fn handler_that_panics_gets_the_next_event() {
    let servers = Servers::start(1);
    let (sender, receiver) = unbounded();
    let handler = move |event: &Event| {
        let _ = sender.send(event.kind.as_str());
        panic!("this handler panics");
    };
    let builder = builder_over(&servers).event_handler(handler);
    let (pool, _peers) = pool_of(builder, 1);
    drop(pool.get().expect("the peer is up"));
    servers[0].accept(false);
    let next = || receiver.recv_timeout(PATIENCE).expect("the handler is called");
    assert_eq!(next(), "down");
    servers[0].accept(true);
    assert_eq!(next(), "up");
}

#[test]
fn handler_gets_all_pending_events_and_is_dropped_after_the_pool() {
    /// A part of the handler that reports when it is dropped.
    struct Last(Sender<&'static str>);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    let (sender, receiver) = unbounded();
    let (release, released) = bounded::<()>(0);
    let last = Last(sender);
    let handler = move |event: &Event| {
        let _ = last.0.send(event.kind.as_str());
        // The first call blocks until the pool has ended.
        let _ = released.recv();
    };
    let manager = build(builder_over(&Servers::start(1)).event_handler(handler));
    for weight in 2..=9 {
        manager.peers().set_weight("peer0", weight).expect("the peer is in the set");
    }
    assert_eq!(receiver.recv_timeout(PATIENCE), Ok("weight_changed"));
    drop(manager);
    drop(release);
    let rest: Vec<_> = (0..8).map(|_| receiver.recv_timeout(PATIENCE)).collect();
    assert_eq!(rest[..7], [Ok("weight_changed"); 7], "the handler gets all pending events");
    assert_eq!(rest[7], Ok("dropped"));
    assert_eq!(receiver.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn event_log_is_bounded_and_in_order() {
    let manager = build(builder_over(&Servers::start(2)));
    let peers = manager.peers();
    let began = SystemTime::now();
    thread::scope(|scope| {
        for peer in ["peer0", "peer1"] {
            let peers = &peers;
            scope.spawn(move || {
                for weight in 2..=200 {
                    peers.set_weight(peer, weight).expect("the peer is in the set");
                }
            });
        }
    });
    let events = peers.snapshot().events;
    assert_eq!(events.len(), 100, "the event log keeps 100 events");
    for peer in ["peer0", "peer1"] {
        let of_peer = events.iter().filter(|event| event.peer == peer);
        let weights: Vec<_> = of_peer
            .map(|event| match event.kind {
                EventKind::WeightChanged { from, to, .. } => (from, to),
                _ => panic!("{event}"),
            })
            .collect();
        assert!(weights.windows(2).all(|two| two[0].1 == two[1].0), "{peer}: {weights:?}");
        assert!(
            weights.is_empty() || weights.last() == Some(&(199, 200)),
            "the newest events are kept"
        );
    }
    assert!(events.iter().all(|event| event.at >= began && event.in_service));
    assert!(
        manager.peers().snapshot().events_dropped == 0,
        "without a handler no event is dropped"
    );
}

/// The queries hang on a frozen server.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn aborted_queries_reach_the_handler() {
    use support::mariadb::MariaDb;

    let mut servers = [MariaDb::start(), MariaDb::start()];
    let (handler, calls) = Calls::record();
    let builder = support::backend::manager_over(&servers)
        .event_handler(handler)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .stall_after(Duration::from_millis(500))
        .check_timeout(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let mut both = [(); 2].map(|()| pool.get().expect("both peers are up"));
    servers[0].freeze();
    thread::scope(|scope| {
        let conn = both
            .iter_mut()
            .find(|conn| conn.peer() == "peer0")
            .expect("one connection leads to peer0");
        scope.spawn(|| {
            conn.batch_execute("SELECT 1").expect_err("the query is aborted");
        });
        let events = calls.assert_next("peer0", &["down", "queries_aborted"]);
        assert_eq!(events[1].to_string(), "peer peer0 is stalled: aborted 1 of 1 hung queries");
        let is_all =
            matches!(events[1].kind, EventKind::QueriesAborted { hung: 1, aborted: 1, .. });
        assert!(is_all, "{events:?}");
    });
    servers[0].thaw();
    calls.assert_next("peer0", &["up"]);
}
