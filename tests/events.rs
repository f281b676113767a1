//! What an event handler is told: everything, in order, on a thread of its own, and whatever it does there
//! harms nobody.

#![allow(clippy::disallowed_methods, reason = "threads that hold on to something are at issue")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use std::{slice, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::{
    Event, EventHandler, EventKind, Failed, Fault, PeerConfig, PeerConnection, PeerManager,
    PeerManagerBuilder, PeerState, Peers, Retired,
};
use support::backend::{PATIENCE, SOON, fill, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// What a handler was told: by which of its methods, on which thread, and what.
#[derive(Debug)]
struct Told {
    method: &'static str,
    thread: String,
    event: Event,
}

/// Sends on what it is told.
struct Scribe(Sender<Told>);

/// The methods of a handler, each of which calls `$told` with its name and the event.
macro_rules! every_method {
    ($told:ident: $($method:ident = $kind:literal),+ $(,)?) => {
        $(fn $method(&self, event: &Event) { self.$told($kind, event); })+
    };
    ($told:ident) => {
        every_method! {
            $told:
            peer_down = "down",
            peer_up = "up",
            peer_full = "full",
            peer_has_room = "has_room",
            peer_misconfigured = "misconfigured",
            peer_draining = "draining",
            peer_drained = "drained",
            peer_resumed = "resumed",
            peer_weighted = "weighted",
            peer_added = "added",
            peer_removed = "removed",
            connect_failed = "connect_failed",
            link_retired = "link_retired",
            links_aborted = "links_aborted",
        }
    };
}

impl Scribe {
    fn told(&self, method: &'static str, event: &Event) {
        let thread = thread::current().name().unwrap_or_default().to_owned();
        let _ = self.0.send(Told { method, thread, event: event.clone() });
    }
}

impl EventHandler for Scribe {
    every_method!(told);
}

/// A handler that does this at each event.
struct Does<F>(F);

impl<F: Fn(&Event)> Does<F> {
    fn told(&self, _: &'static str, event: &Event) {
        (self.0)(event);
    }
}

impl<F: Fn(&Event) + Send + 'static> EventHandler for Does<F> {
    every_method!(told);
}

/// What a [`Scribe`] was told.
struct Story(Receiver<Told>);

impl Story {
    /// A handler, and what it will have been told.
    fn begin() -> (Scribe, Self) {
        let (tell, told) = unbounded();
        (Scribe(tell), Self(told))
    }

    /// The next event of this peer that is like this. Those before it are passed over, but are what they
    /// should be.
    #[track_caller]
    fn next(&self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        let end = Instant::now() + PATIENCE;
        loop {
            let told = self.0.recv_deadline(end);
            let Told { method, thread, event } =
                told.unwrap_or_else(|_| panic!("waited in vain to be told: {what}"));
            assert_eq!(method, event.kind.as_str(), "each kind has its method");
            assert_eq!(thread, "peers-herald", "{event}: neither the checker nor an application's");
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
            event.peer == peer && !["connect_failed", "link_retired"].contains(&event.kind.as_str())
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
    fn retires(&self, peer: &str, reason: Retired) {
        let is_it = |event: &Event| {
            event.peer == peer
                && matches!(event.kind, EventKind::LinkRetired { why, .. } if why == reason)
        };
        self.next(reason.as_str(), is_it);
    }
}

/// Servers whose failed logins mean what a test says.
struct Meaning(Arc<Mutex<Option<Fault>>>);

impl Meaning {
    fn of<C>(builder: PeerManagerBuilder<C>) -> (PeerManagerBuilder<C>, Self) {
        let fault = Arc::new(Mutex::new(None));
        let meaning = Self(fault.clone());
        let classify = move |failed: Failed<'_>| match failed {
            Failed::Login(_) => *fault.lock().unwrap(),
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
    let (scribe, story) = Story::begin();
    let (builder, meaning) = Meaning::of(manager_over(&servers).event_handler(scribe));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);

    meaning.set(Fault::PeerDown);
    servers[0].accept(false);
    let told = story.goes_on("peer0", &["down"]);
    let EventKind::Down { why, fault, next_check, .. } = &told[0].kind else { panic!("{told:?}") };
    assert!(why.starts_with("refused by "), "the reason is told: {why}");
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
    let told = story.goes_on("peer0", &["resumed", "weighted"]);
    assert!(matches!(told[1].kind, EventKind::Weighted { from: 1, to: 3, .. }), "{told:?}");

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
    let (scribe, story) = Story::begin();
    let builder = manager_over(&servers).event_handler(scribe).link_max_age(PATIENCE);
    let (pool, peers) = pool_of(builder.rebalance_pace(Duration::ZERO), 2);
    fill(&pool, &peers, &[1, 1]);

    // A connection is cut off, and its server lives.
    servers[0].cut_off();
    wait_until("it is found out", PATIENCE, || {
        let mut both: Vec<_> = (0..2).filter_map(|_| pool.try_get()).collect();
        both.iter_mut().any(|conn| conn.batch_execute("SELECT 1").is_err())
            || peers.snapshot().peers[0].connects > 1
    });
    story.retires("peer0", Retired::Broken);
    fill(&pool, &peers, &[1, 1]);

    // A peer that is paused: its sessions live, and are given up all the same.
    servers[0].accept(false);
    wait_until("it is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    wait_until("the other has both", PATIENCE, || {
        drop(pool.try_get());
        peers.snapshot().peers[1].links == 2
    });
    story.retires("peer0", Retired::PeerDown);
    servers[0].accept(true);
    fill(&pool, &peers, &[1, 1]);
    story.retires("peer1", Retired::Rebalanced);

    let drain = peers.drain("peer1").expect("there is one");
    wait_until("its connections come by", PATIENCE, || {
        drop(pool.try_get());
        drain.wait(Duration::ZERO)
    });
    story.retires("peer1", Retired::Drained);

    // While all are down r2d2's tries are logins for the pool, and fail.
    servers[0].crash();
    wait_until("it is down", PATIENCE, || {
        drop(pool.try_get());
        state(&peers, "peer0") == PeerState::Down
    });
    let failed = story.next("a login fails", |event| {
        matches!(event.kind, EventKind::ConnectFailed { .. }) && event.peer == "peer0"
    });
    let EventKind::ConnectFailed { why, fault, .. } = failed.kind else { panic!("{failed:?}") };
    assert!(why.starts_with("refused by ") && fault == Fault::PeerDown, "{why}: {fault:?}");
    let kept = peers.snapshot().events;
    assert!(kept.iter().all(|event| !matches!(
        event.kind,
        EventKind::ConnectFailed { .. } | EventKind::LinkRetired { .. }
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

    let (scribe, story) = Story::begin();
    let builder = manager_over(&[Server::start()]).event_handler(scribe);
    let manager = builder.link_max_age(Duration::from_millis(1)).build();
    let pool = Pool::builder().max_size(1).connection_customizer(Box::<Picky>::default());
    let pool = pool.build(manager.expect("the settings are right")).expect("the peer lives");
    story.retires("peer0", Retired::ByPool);
    thread::sleep(Duration::from_millis(2));
    drop(pool.get().expect("the peer lives"));
    story.retires("peer0", Retired::TooOld);
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
    let (pool, peers) = pool_of(manager_over(&servers).event_handler(Does(handler)), 4);
    fill(&pool, &peers, &[2, 2]);
    let _ = shared.set((pool.clone(), peers.clone()));
    servers[0].crash();
    let mut told = Vec::new();
    while !told.contains(&"drained") {
        let (kind, seen, served) = is_done.recv_timeout(PATIENCE).expect("no deadlock");
        assert!(seen || kind == "connect_failed" || kind == "link_retired", "{kind} is kept");
        assert_eq!(served.as_deref(), Some("peer1"), "{kind}: the other one serves");
        told.push(kind);
    }
    told.retain(|kind| !["connect_failed", "link_retired"].contains(kind));
    assert_eq!(told, ["down", "draining", "weighted", "drained"]);
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
    let builder = manager_over(slice::from_ref(&server)).event_handler(Does(handler));
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
        peers.snapshot().closed && server.open() == 0 && peers.snapshot().peers[0].links == 0
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
    let builder = manager_over(slice::from_ref(&server)).event_handler(Does(handler));
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
    struct Last(Sender<&'static str>, Receiver<()>);
    impl EventHandler for Last {
        fn peer_weighted(&self, _: &Event) {
            let _ = self.0.send("weighted");
            // At the first one it waits until the pool has ended.
            let _ = self.1.recv();
        }
    }
    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.0.send("dropped");
        }
    }

    let (tell, told) = unbounded();
    let (hold, held) = bounded(0);
    let manager = manager_over(&[Server::start()]).event_handler(Last(tell, held)).build();
    let manager = manager.expect("the settings are right");
    for weight in 2..=9 {
        manager.peers().set_weight("peer0", weight).expect("there is one");
    }
    assert_eq!(told.recv_timeout(PATIENCE), Ok("weighted"));
    drop(manager);
    drop(hold);
    let rest: Vec<_> = (0..8).map(|_| told.recv_timeout(PATIENCE)).collect();
    assert_eq!(rest[..7], [Ok("weighted"); 7], "all that had happened");
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
                EventKind::Weighted { from, to, .. } => (from, to),
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
    let (scribe, story) = Story::begin();
    let builder = support::backend::manager_over(&servers)
        .event_handler(scribe)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .stall_after(Duration::from_millis(500))
        .probe_timeout(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let mut both = [pool.get().expect("both live"), pool.get().expect("both live")];
    servers[0].freeze();
    thread::scope(|scope| {
        let conn = both.iter_mut().find(|conn| conn.peer() == "peer0").expect("one leads there");
        scope.spawn(|| {
            conn.batch_execute("SELECT 1").expect_err("it is cut off");
        });
        let told = story.goes_on("peer0", &["down", "links_aborted"]);
        assert_eq!(told[1].to_string(), "peer peer0: 1 of 1 queries that hang were cut off");
        let is_all = matches!(told[1].kind, EventKind::LinksAborted { hung: 1, cut_off: 1, .. });
        assert!(is_all, "{told:?}");
    });
    servers[0].thaw();
    story.goes_on("peer0", &["up"]);
}
