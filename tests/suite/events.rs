//! What an event handler is told: everything, in order, on a thread of its own, and whatever it does there
//! harms nobody.

#![allow(clippy::disallowed_methods, reason = "threads that hold on to something are at issue")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use std::{slice, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::{
    CloseReason, Event, EventKind, Failure, Fault, PeerConfig, PeerConnection, PeerManager,
    PeerManagerBuilder, PeerState, Peers,
};
use support::backend::{PATIENCE, SOON, fill, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// An event that a handler was called with, and the thread that called it.
#[derive(Debug)]
struct Told {
    thread: String,
    event: Event,
}

/// What a handler was called with.
struct Story(Receiver<Told>);

impl Story {
    /// A handler, and what it will have been told.
    fn begin() -> (impl Fn(&Event) + Send + 'static, Self) {
        let (tell, told) = unbounded();
        let handler = move |event: &Event| {
            let thread = thread::current().name().unwrap_or_default().to_owned();
            // The test may have ended.
            let _ = tell.send(Told { thread, event: event.clone() });
        };
        (handler, Self(told))
    }

    /// The next event of this peer that is like this. Those before it are passed over, but are what they
    /// should be.
    #[track_caller]
    fn next(&self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.0.recv_deadline(end);
            let Told { thread, event } =
                told.unwrap_or_else(|_| panic!("waited in vain to be told: {what}"));
            assert_eq!(thread, "peers-events", "{event}: neither the checker nor an application's");
            let shown = format!("{event} {event:?}");
            assert!(!shown.contains("s3cret"), "a secret is shown: {shown}");
            if is_it(&event) {
                return event;
            }
        }
    }

    /// Of this peer the next changes of state are these, and no others.
    #[track_caller]
    fn goes_on(&self, peer: &str, kinds: &[&str]) -> Vec<Event> {
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

    /// A connection of this peer is closed next for this reason, whatever else is told before.
    #[track_caller]
    fn retires(&self, peer: &str, expected: CloseReason) {
        let is_it = |event: &Event| {
            event.peer == peer
                && matches!(event.kind, EventKind::ConnectionClosed { reason, .. } if reason == expected)
        };
        self.next(expected.as_str(), is_it);
    }
}

/// Servers whose failed logins mean what a test says.
struct Meaning(Arc<Mutex<Option<Fault>>>);

impl Meaning {
    fn of<C>(builder: PeerManagerBuilder<C>) -> (PeerManagerBuilder<C>, Self) {
        let fault = Arc::new(Mutex::new(None));
        let meaning = Self(fault.clone());
        let classify = move |failed: Failure<'_>| match failed {
            Failure::Login(_) => *fault.lock().unwrap(),
            _ => None,
        };
        (builder.classify(classify), meaning)
    }

    fn set(&self, fault: Fault) {
        *self.0.lock().unwrap() = Some(fault);
    }
}

fn manager_over(servers: &[Arc<Server>]) -> PeerManagerBuilder<ScriptedConnection> {
    manager_of(servers.iter().map(|server| server.url())).check_interval(SOON)
}

fn two_servers() -> [Arc<Server>; 2] {
    [Server::start(), Server::start()]
}

#[test]
fn each_change_of_a_peer_is_told_in_order() {
    let servers = two_servers();
    let (handler, story) = Story::begin();
    let (builder, meaning) = Meaning::of(manager_over(&servers).event_handler(handler));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);

    meaning.set(Fault::PeerDown);
    servers[0].accept(false);
    let told = story.goes_on("peer0", &["down"]);
    let EventKind::Down { reason, fault, next_check, .. } = &told[0].kind else {
        panic!("{told:?}")
    };
    assert!(reason.starts_with("refused by "), "the reason is told: {reason}");
    assert_eq!(*fault, Fault::PeerDown);
    assert!(*next_check <= SOON * 2, "and when it is checked next: {next_check:?}");
    assert!(told[0].in_service, "nobody wanted that");
    meaning.set(Fault::Misconfigured);
    story.goes_on("peer0", &["misconfigured"]);
    servers[0].accept(true);
    story.goes_on("peer0", &["up"]);

    meaning.set(Fault::PeerFull);
    servers[0].accept(false);
    story.goes_on("peer0", &["full"]);
    servers[0].accept(true);
    story.goes_on("peer0", &["has_room"]);

    let drain = peers.drain("peer0").expect("there is one");
    wait_until("its connections come by", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    let told = story.goes_on("peer0", &["draining", "drained"]);
    assert!(told.iter().all(|event| !event.in_service), "it is not: {told:?}");
    meaning.set(Fault::PeerDown);
    servers[0].accept(false);
    let told = story.goes_on("peer0", &["down"]);
    assert!(!told[0].in_service, "which wakes nobody");
    servers[0].accept(true);
    story.goes_on("peer0", &["up"]);
    peers.resume("peer0").expect("there is one");
    peers.set_weight("peer0", 3).expect("there is one");
    peers.set_weight("peer0", 3).expect("which is no news");
    let told = story.goes_on("peer0", &["resumed", "weight_changed"]);
    assert!(matches!(told[1].kind, EventKind::WeightChanged { from: 1, to: 3, .. }), "{told:?}");

    peers.add(PeerConfig::new("peer2", servers[1].url())).expect("there is none");
    let drain = peers.remove("peer2").expect("there is one");
    wait_until("it is gone", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    story.goes_on("peer2", &["added", "draining", "drained", "removed"]);
}

#[test]
fn what_happens_often_is_told_and_not_kept() {
    let servers = two_servers();
    let (handler, story) = Story::begin();
    let builder = manager_over(&servers).event_handler(handler).connection_max_age(PATIENCE);
    let (pool, peers) = pool_of(builder.rebalance_interval(Duration::ZERO), 2);
    fill(&pool, &peers, &[1, 1]);

    // A connection is cut off, and its server lives.
    servers[0].cut_off();
    wait_until("it is found out", PATIENCE, || {
        let mut both: Vec<_> = (0..2).filter_map(|_| pool.try_get()).collect();
        both.iter_mut().any(|conn| conn.batch_execute("SELECT 1").is_err())
            || peers.snapshot().peers[0].connects > 1
    });
    story.retires("peer0", CloseReason::Broken);
    fill(&pool, &peers, &[1, 1]);

    // A peer that is paused: its sessions live, and are given up all the same.
    servers[0].accept(false);
    wait_until("it is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    wait_until("the other has both", PATIENCE, || {
        drop(pool.try_get());
        peers.snapshot().peers[1].connections == 2
    });
    story.retires("peer0", CloseReason::PeerDown);
    servers[0].accept(true);
    fill(&pool, &peers, &[1, 1]);
    story.retires("peer1", CloseReason::Rebalanced);

    let drain = peers.drain("peer1").expect("there is one");
    wait_until("its connections come by", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    story.retires("peer1", CloseReason::Drained);

    // While all are down r2d2's tries are logins for the pool, and fail.
    servers[0].crash();
    wait_until("it is down", PATIENCE, || {
        drop(pool.try_get());
        state(&peers, "peer0") == PeerState::Down
    });
    let failed = story.next("a login fails", |event| {
        matches!(event.kind, EventKind::ConnectFailed { .. }) && event.peer == "peer0"
    });
    let EventKind::ConnectFailed { reason, fault, .. } = failed.kind else { panic!("{failed:?}") };
    assert!(reason.starts_with("refused by ") && fault == Fault::PeerDown, "{reason}: {fault:?}");
    let kept = peers.snapshot().events;
    assert!(kept.iter().all(|event| !matches!(
        event.kind,
        EventKind::ConnectFailed { .. } | EventKind::ConnectionClosed { .. }
    )));
}

#[test]
fn connections_that_are_too_old_and_those_that_the_pool_closes() {
    /// Turns the first connection away.
    #[derive(Debug, Default)]
    struct Picky(AtomicUsize);
    impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for Picky {
        fn on_acquire(&self, _: &mut PeerConnection<ScriptedConnection>) -> Result<(), Error> {
            let is_first = self.0.fetch_add(1, Ordering::SeqCst) == 0;
            let refusal = || diesel::ConnectionError::BadConnection("not this one".to_owned());
            if is_first { Err(Error::ConnectionError(refusal())) } else { Ok(()) }
        }
    }

    let (handler, story) = Story::begin();
    let builder = manager_over(&[Server::start()]).event_handler(handler);
    let manager = builder.connection_max_age(Duration::from_millis(1)).build();
    let pool = Pool::builder().max_size(1).connection_customizer(Box::<Picky>::default());
    let pool = pool.build(manager.expect("the settings are right")).expect("the peer lives");
    story.retires("peer0", CloseReason::ByPool);
    thread::sleep(Duration::from_millis(2));
    drop(pool.get().expect("the peer lives"));
    story.retires("peer0", CloseReason::TooOld);
}

/// What the handler of a test looks at, which it must not keep alive.
type Shared<T> = Arc<OnceLock<T>>;

#[test]
fn a_handler_may_look_and_change_and_use_the_pool() {
    let servers = two_servers();
    let shared: Shared<(Pool<PeerManager<ScriptedConnection>>, Peers)> = Arc::default();
    let (done, is_done) = unbounded();
    let handler = {
        let shared = shared.clone();
        move |event: &Event| {
            let Some((pool, peers)) = shared.get() else { return };
            let seen = peers.snapshot().events.iter().any(|kept| kept.at == event.at);
            if matches!(event.kind, EventKind::Down { .. }) {
                peers.drain(&event.peer).expect("there is one");
                peers.set_weight(&event.peer, 2).expect("there is one");
            }
            let served = pool.get().map(|conn| conn.peer().to_owned());
            let _ = done.send((event.kind.as_str(), seen, served.ok()));
        }
    };
    let (pool, peers) = pool_of(manager_over(&servers).event_handler(handler), 4);
    fill(&pool, &peers, &[2, 2]);
    let _ = shared.set((pool.clone(), peers.clone()));
    servers[0].crash();
    let mut told = Vec::new();
    while !told.contains(&"drained") {
        let (kind, seen, served) = is_done.recv_timeout(PATIENCE).expect("no deadlock");
        assert!(seen || kind == "connect_failed" || kind == "connection_closed", "{kind} is kept");
        assert_eq!(served.as_deref(), Some("peer1"), "{kind}: the other one serves");
        told.push(kind);
    }
    told.retain(|kind| !["connect_failed", "connection_closed"].contains(kind));
    assert_eq!(told, ["down", "draining", "weight_changed", "drained"]);
    assert_eq!(state(&peers, "peer0"), PeerState::Drained);
}

#[test]
fn a_handler_that_never_returns_stops_nobody() {
    let server = Server::start();
    let (_hold, held) = bounded::<()>(0);
    let (entered, is_inside) = bounded(1);
    let handler = move |_: &Event| {
        let _ = entered.try_send(());
        let _ = held.recv();
    };
    let builder = manager_over(slice::from_ref(&server)).event_handler(handler);
    let (pool, peers) = pool_of(builder, 1);
    drop(pool.get().expect("the peer lives"));
    let weigh = |times: u32| {
        for weight in 1..=times {
            peers.set_weight("peer0", weight % 7 + 1).expect("there is one");
        }
    };
    weigh(1);
    is_inside.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!(peers.snapshot().events_dropped, 0, "there is room for more");
    weigh(5000);
    let dropped = peers.snapshot().events_dropped;
    assert!((800..=1000).contains(&dropped), "what finds no room any more: {dropped}");
    server.crash();
    wait_until("checks go on", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    server.accept(true);
    wait_until("and on", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    let mut conn = pool.get().expect("the pool serves");
    conn.batch_execute("SELECT 1").expect("its peer too");
    drop(conn);
    assert!(peers.snapshot().events_dropped > dropped, "all that is not told");
    let last = peers.snapshot().events.pop().expect("it is kept all the same");
    assert_eq!(last.kind.as_str(), "up");
    drop(pool);
    wait_until("the pool has ended", PATIENCE, || {
        peers.snapshot().closed && server.open() == 0 && peers.snapshot().peers[0].connections == 0
    });
}

#[test]
fn a_handler_that_panics_is_told_the_next_event() {
    let server = Server::start();
    let (tell, told) = unbounded();
    let handler = move |event: &Event| {
        let _ = tell.send(event.kind.as_str());
        panic!("this handler panics");
    };
    let builder = manager_over(slice::from_ref(&server)).event_handler(handler);
    let (pool, _peers) = pool_of(builder, 1);
    drop(pool.get().expect("the peer lives"));
    server.accept(false);
    let next = || told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!(next(), "down");
    server.accept(true);
    assert_eq!(next(), "up");
}

#[test]
fn a_handler_is_dropped_when_the_pool_has_ended_and_was_told_what_came_before() {
    /// Tells when it is dropped, as a part of the handler.
    struct Last(Sender<&'static str>);
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    let (tell, told) = unbounded();
    let (hold, held) = bounded::<()>(0);
    let last = Last(tell);
    let handler = move |event: &Event| {
        let _ = last.0.send(event.kind.as_str());
        // At the first one it waits until the pool has ended.
        let _ = held.recv();
    };
    let manager = manager_over(&[Server::start()]).event_handler(handler).build();
    let manager = manager.expect("the settings are right");
    for weight in 2..=9 {
        manager.peers().set_weight("peer0", weight).expect("there is one");
    }
    assert_eq!(told.recv_timeout(PATIENCE), Ok("weight_changed"));
    drop(manager);
    drop(hold);
    let rest: Vec<_> = (0..8).map(|_| told.recv_timeout(PATIENCE)).collect();
    assert_eq!(rest[..7], [Ok("weight_changed"); 7], "all that had happened");
    assert_eq!(rest[7], Ok("dropped"));
    assert_eq!(told.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn the_history_is_short_and_in_order() {
    let manager = manager_over(&two_servers()).build().expect("the settings are right");
    let peers = manager.peers();
    let began = SystemTime::now();
    thread::scope(|scope| {
        for peer in ["peer0", "peer1"] {
            let peers = &peers;
            scope.spawn(move || {
                for weight in 2..=200 {
                    peers.set_weight(peer, weight).expect("there is one");
                }
            });
        }
    });
    let events = peers.snapshot().events;
    assert_eq!(events.len(), 100, "no more than that");
    for peer in ["peer0", "peer1"] {
        let of_peer = events.iter().filter(|event| event.peer == peer);
        let weights: Vec<_> = of_peer
            .map(|event| match event.kind {
                EventKind::WeightChanged { from, to, .. } => (from, to),
                _ => panic!("{event}"),
            })
            .collect();
        assert!(weights.windows(2).all(|two| two[0].1 == two[1].0), "{peer}: {weights:?}");
        assert!(weights.is_empty() || weights.last() == Some(&(199, 200)), "the newest are kept");
    }
    assert!(events.iter().all(|event| event.at >= began && event.in_service));
    assert!(manager.peers().snapshot().events_dropped == 0, "nobody is told");
}

/// Queries that hang on a server that is frozen.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn queries_that_are_cut_off_are_told() {
    use support::mariadb::MariaDb;

    let mut servers = [MariaDb::start(), MariaDb::start()];
    let (handler, story) = Story::begin();
    let builder = support::backend::manager_over(&servers)
        .event_handler(handler)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .stall_after(Duration::from_millis(500))
        .check_timeout(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let mut both = [pool.get().expect("both live"), pool.get().expect("both live")];
    servers[0].freeze();
    thread::scope(|scope| {
        let conn = both.iter_mut().find(|conn| conn.peer() == "peer0").expect("one leads there");
        scope.spawn(|| {
            conn.batch_execute("SELECT 1").expect_err("it is cut off");
        });
        let told = story.goes_on("peer0", &["down", "queries_aborted"]);
        assert_eq!(told[1].to_string(), "peer peer0 is unresponsive: aborted 1 of 1 hung queries");
        let is_all = matches!(told[1].kind, EventKind::QueriesAborted { hung: 1, aborted: 1, .. });
        assert!(is_all, "{told:?}");
    });
    servers[0].thaw();
    story.goes_on("peer0", &["up"]);
}
