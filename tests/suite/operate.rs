//! What an operator does while the pool works: draining, resuming, adding, removing, weighting.

#![allow(clippy::disallowed_methods, reason = "the tests wait by the clock")]

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::ManageConnection;
use diesel_peers::{
    Balance, ChangeError, ChangeErrorKind, EventKind, PeerConfig, PeerManager, PeerState, Peers,
};
use support::backend::{
    Backend, PATIENCE, SOON, fill, links, manager_of, manager_over, pool_of, state,
};
use support::load::Load;
use support::scripted::{ScriptedConnection, Server};
use support::story::{PEERS, SHARES, THREADS, full_pool, serves_its_share};
use support::{wait_until, within};

const NO_TIME: Duration = Duration::ZERO;

/// What has happened, in order: the peer, and what.
fn events(peers: &Peers) -> Vec<(String, &'static str)> {
    let events = peers.snapshot().events;
    events.into_iter().map(|event| (event.peer, event.kind.as_str())).collect()
}

fn names(peers: &Peers) -> Vec<String> {
    peers.snapshot().peers.into_iter().map(|peer| peer.name).collect()
}

/// Each of three peers is drained and resumed, while all threads work, without an error.
fn is_drained_and_resumed_under_load<B: Backend>() {
    let servers = B::start(3);
    let (pool, peers) = full_pool(manager_over(&servers).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT 1", |load| {
        for (index, name) in PEERS.into_iter().enumerate() {
            let drain = peers.drain(name).expect("there is such a peer");
            assert!(drain.wait(PATIENCE), "{name} is drained");
            assert_eq!(state(&peers, name), PeerState::Drained);
            wait_until("its connections are closed", PATIENCE, || links(&peers)[index] == 0);
            let (served, checked) = (load.served_by(name), SOON * 5);
            assert!(
                !within(checked, || state(&peers, name) != PeerState::Drained),
                "what an operator has set is not undone by checks"
            );
            assert_eq!(load.served_by(name), served, "it gets no work");
            peers.resume(name).expect("there is such a peer");
            assert_eq!(state(&peers, name), PeerState::Up, "at once");
            wait_until("it has its share again", PATIENCE, || links(&peers) == SHARES);
            serves_its_share(name, load);
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// A peer is added and gets its share; another is removed, and its place is used again.
fn is_added_and_removed_under_load<B: Backend>() {
    let mut servers = B::start(4);
    let last = servers.pop().expect("there are four");
    let (pool, peers) = full_pool(manager_over(&servers).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT 1", |load| {
        for round in 0..3 {
            let name = format!("more{round}");
            peers.add(PeerConfig::new(&name, last.url())).expect("it is a peer as any");
            assert_eq!(names(&peers).last(), Some(&name), "in the order in which they came");
            wait_until("it has its share", PATIENCE, || {
                peers.snapshot().peer(&name).is_some_and(|peer| peer.connections == 2)
            });
            wait_until("it serves", PATIENCE, || load.served_by(&name) > 100);
            let drain = peers.remove(&name).expect("there is such a peer");
            assert!(drain.wait(PATIENCE), "it is drained, and gone");
            assert_eq!(names(&peers), PEERS);
            wait_until("the others have its share", PATIENCE, || links(&peers) == SHARES);
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// A connection that is in use is left alone, and keeps its peer draining until it comes back.
fn who_works_may_end<B: Backend>() {
    let servers = B::start(2);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    fill(&pool, &peers, &[2, 2]);
    let mut conn = pool.get().expect("both live");
    let name = conn.peer().to_owned();
    conn.batch_execute("BEGIN").expect("it works");
    let drain = peers.drain(&name).expect("there is such a peer");
    assert!(!drain.wait(SOON), "{name} has a session");
    assert_eq!(state(&peers, &name), PeerState::Draining);
    conn.batch_execute("SELECT 1; COMMIT").expect("it goes on");
    drop(conn);
    // Where a connection cannot be ended in its place a slot has to come by.
    let emptied = || {
        drop(pool.get().expect("the other lives"));
        drain.wait(NO_TIME)
    };
    wait_until("it is drained", PATIENCE, emptied);
    let others = || pool.get().expect("the other lives").peer() != name;
    assert!((0..20).all(|_| others()), "it gets no work");
}

support::on_every_backend! {
    is_drained_and_resumed_under_load,
    is_added_and_removed_under_load,
    who_works_may_end,
}

/// Nobody uses the pool, and the sessions end all the same.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn idle_sessions_end_at_once() {
    use support::mariadb::MariaDb;

    let servers = <MariaDb as Backend>::start(2);
    let (pool, peers) = pool_of(manager_over(&servers), 8);
    fill(&pool, &peers, &[4, 4]);
    let drain = peers.drain("peer0").expect("there is such a peer");
    assert!(drain.wait(PATIENCE), "without a checkout");
    wait_until("the server has no session", PATIENCE, || servers[0].sessions() == 0);
    assert_eq!(servers[1].sessions(), 4, "the other's are left alone");
    drop(pool);
}

/// Those that stay keep their sessions, also when another password counts from now on.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn replacing_the_peers_keeps_those_that_stay() {
    use support::mariadb::MariaDb;

    let servers = <MariaDb as Backend>::start(4);
    let (pool, peers) = pool_of(manager_over(&servers[..3]), support::story::CONNECTIONS);
    fill(&pool, &peers, &SHARES);
    let sessions = |server: &MariaDb| {
        server.sql("SELECT id FROM information_schema.processlist WHERE user = 'app' ORDER BY id")
    };
    let before = sessions(&servers[1]);
    peers.drain("peer2").expect("there is such a peer");
    peers.set_weight("peer1", 3).expect("there is such a peer");

    servers[1].sql("SET PASSWORD FOR app = PASSWORD('another')");
    let url = servers[1].url().replace(support::APP_PASSWORD, "another");
    let configs = [
        PeerConfig::new("peer1", url),
        PeerConfig::new("peer2", servers[2].url()),
        PeerConfig::new("peer3", servers[3].url()).weight(3),
        // Another server by the same name.
        PeerConfig::new("peer0", servers[3].url()).weight(0),
    ];
    peers.replace(configs).expect("they are right");
    assert_eq!(sessions(&servers[1]), before, "its sessions are left alone");
    assert_eq!(state(&peers, "peer2"), PeerState::Drained, "it stays drained");
    let weights = |name| peers.snapshot().peer(name).expect("it is there").weight;
    assert_eq!([weights("peer1"), weights("peer2"), weights("peer3")], [3, 1, 3]);
    wait_until("the old one is gone, and the new one has its share", PATIENCE, || {
        drop(pool.get().expect("peers live"));
        names(&peers) == ["peer1", "peer2", "peer3", "peer0"] && links(&peers)[2] >= 4
    });
    wait_until("its sessions have ended", PATIENCE, || servers[0].sessions() == 0);
    wait_until("its log-ins know the new password", PATIENCE, || {
        peers.check_now("peer1").expect("there is such a peer");
        peers
            .snapshot()
            .peer("peer1")
            .is_some_and(|peer| peer.connect_failures == 0 && peer.reason.is_none())
    });
}

/// Connections that stay with their slots leave when they come back, or are to be used again.
#[test]
fn a_peer_is_drained_where_connections_stay_with_their_slots_too() {
    let servers = [Server::start(), Server::start()];
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let (pool, peers) = pool_of(builder.balance(Balance::PerConnection), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        let drain = peers.drain("peer0").expect("there is such a peer");
        assert!(drain.wait(PATIENCE), "all its connections come by");
        wait_until("its server has no session", PATIENCE, || servers[0].open() == 0);
        let served = load.served_by("peer0");
        wait_until("the other serves", PATIENCE, || load.served_by("peer1") > 1000);
        assert_eq!(load.served_by("peer0"), served);
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "nothing failed: {seen:?}");
}

/// A login that is under way when its peer is drained is not used.
#[test]
fn a_login_that_comes_too_late_ends() {
    let servers = [Server::start(), Server::start()];
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    servers[0].hold_logins(true);
    let (pool, peers) = pool_of(builder, 2);
    wait_until("it is dialed", PATIENCE, || servers[0].logins() > 0);
    let drain = peers.drain("peer0").expect("there is such a peer");
    assert!(!drain.wait(SOON), "a login is under way");
    servers[0].hold_logins(false);
    wait_until("it is drained", PATIENCE, || {
        drop(pool.get().expect("the other lives"));
        drain.wait(NO_TIME)
    });
    wait_until("its server has no session", PATIENCE, || servers[0].open() == 0);
}

/// A login hangs at the old one; the new one is tried beside it all the same.
#[test]
fn another_peer_may_have_the_name_of_one_that_hangs() {
    let servers = [Server::start(), Server::start()];
    servers[0].hold_logins(true);
    let builder = manager_of::<ScriptedConnection>([servers[0].url()]);
    let builder = builder.connect_timeout(2 * PATIENCE).connect_deadline(2 * PATIENCE);
    let (pool, peers) = pool_of(builder, 1);
    wait_until("it is dialed", PATIENCE, || servers[0].logins() > 0);
    peers.replace([PeerConfig::new("peer0", servers[1].url())]).expect("it is right");
    drop(pool.get_timeout(PATIENCE).expect("the new one lives"));
    let ids: Vec<u64> = peers.snapshot().peers.iter().map(|peer| peer.id).collect();
    assert_eq!(names(&peers), ["peer0", "peer0"], "the old one has a login under way");
    assert_ne!(ids[0], ids[1], "they can be told apart");
    servers[0].hold_logins(false);
}

#[test]
fn a_weight_moves_the_work() {
    let servers = [Server::start(), Server::start()];
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let (pool, peers) = pool_of(builder.rebalance_interval(NO_TIME), 8);
    fill(&pool, &peers, &[4, 4]);
    peers.set_weight("peer0", 3).expect("there is such a peer");
    fill(&pool, &peers, &[6, 2]);
    peers.set_weight("peer1", 0).expect("there is such a peer");
    fill(&pool, &peers, &[8, 0]);
    peers.set_weight("peer1", 0).expect("that changes nothing");
    let weighted = |(_, what): &(String, _)| *what == "weight_changed";
    assert_eq!(events(&peers).into_iter().filter(weighted).count(), 2, "each change is told");
}

#[test]
fn what_cannot_be_done_is_an_error_and_changes_nothing() {
    use ChangeErrorKind as K;
    type Change = fn(&Peers, &str) -> Result<(), ChangeError>;

    let server = Server::start();
    let url = server.url();
    let builder = manager_of::<ScriptedConnection>([url, url]).weight("peer1", 0);
    let (_pool, peers) = pool_of(builder, 1);
    let before = names(&peers);
    let cases: [(_, Change, _, &str); 12] = [
        (
            "drain",
            |peers, _| peers.drain("db7").map(drop),
            K::UnknownPeer,
            "unknown peer \"db7\": the peers are peer0, peer1",
        ),
        ("resume", |peers, _| peers.resume("db7"), K::UnknownPeer, "unknown peer \"db7\""),
        (
            "remove",
            |peers, _| peers.remove("db7").map(drop),
            K::UnknownPeer,
            "unknown peer \"db7\"",
        ),
        (
            "set_weight",
            |peers, _| peers.set_weight("db7", 1),
            K::UnknownPeer,
            "unknown peer \"db7\"",
        ),
        (
            "check_now",
            |peers, url| peers.check_now(url),
            K::UnknownPeer,
            "unknown peer (name not shown",
        ),
        (
            "the last",
            |peers, _| peers.remove("peer0").map(drop),
            K::NoPeerLeft,
            "cannot be removed",
        ),
        (
            "no weight",
            |peers, _| peers.set_weight("peer0", 0),
            K::NoPeerLeft,
            "every peer has weight 0",
        ),
        (
            "twice",
            |peers, url| peers.add(PeerConfig::new("peer1", url)),
            K::NameTaken,
            "a peer with the name \"peer1\" exists already",
        ),
        ("a name", |peers, url| peers.add(PeerConfig::new(url, "db")), K::InvalidPeer, "is a URL"),
        (
            "a URL",
            |peers, _| peers.add(PeerConfig::new("db7", " ")),
            K::InvalidPeer,
            "the URL of peer \"db7\" is empty",
        ),
        ("none", |peers, _| peers.replace([]), K::NoPeerLeft, "no peer is configured"),
        (
            "no weights",
            |peers, url| {
                peers
                    .replace([PeerConfig::new("peer1", url), PeerConfig::new("db7", url).weight(0)])
            },
            K::NoPeerLeft,
            "every peer has weight 0",
        ),
    ];
    for (what, change, kind, expected) in cases {
        let error = change(&peers, url).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
        assert_eq!(format!("{error:?}"), error.to_string(), "{what}: both tell it");
        assert!(!error.to_string().contains("s3cret"), "{what}: {error}");
        assert_eq!(names(&peers), before, "{what}: nothing has changed");
    }
    assert_eq!(events(&peers), [], "and nothing is told");
}

/// It would count for nothing.
#[test]
fn a_password_that_a_setting_overrules_is_refused() {
    let builder = PeerManager::<ScriptedConnection>::builder()
        .peer("peer0", "x://app:old@db0")
        .user("app")
        .password("s3cret");
    let manager = builder.build().expect("a setting takes the place of what a URL says");
    let peers = manager.peers();
    let replace = |url: &str| peers.replace([PeerConfig::new("peer0", url)]);
    for (url, setting) in [("x://app:s3cret2@db0", "password"), ("x://other@db0", "user")] {
        let errors = [
            replace(url).expect_err("another one is meant"),
            peers.add(PeerConfig::new("peer1", url)).expect_err("another one is meant"),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains(&format!("another {setting} than the setting")), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
    for url in ["x://db0", "x://app@db0", "x://app:s3cret@db0"] {
        replace(url).expect("it says nothing else");
    }
    assert_eq!(names(&peers), ["peer0"]);
}

#[test]
fn what_happens_is_told_in_order() {
    let servers = [Server::start(), Server::start()];
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let drain = peers.drain("peer0").expect("there is such a peer");
    peers.drain("peer0").expect("which changes nothing");
    wait_until("it is drained", PATIENCE, || {
        drop(pool.get().expect("the other lives"));
        drain.wait(NO_TIME)
    });
    servers[0].crash();
    peers.check_now("peer0").expect("there is such a peer");
    wait_until("that is found out", PATIENCE, || {
        peers.snapshot().peer("peer0").is_some_and(|peer| peer.reason.is_some())
    });
    assert_eq!(state(&peers, "peer0"), PeerState::Drained, "an operator's word counts more");
    let shown = peers.snapshot().to_string();
    assert!(shown.contains("the last check failed: refused by"), "{shown}");
    peers.resume("peer0").expect("there is such a peer");
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "as is known");
    assert!(!drain.wait(PATIENCE), "that drain is no more");
    servers[0].accept(true);
    peers.check_now("peer0").expect("there is such a peer");
    wait_until("it is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    assert!(
        peers.remove("peer1").expect("the other serves").wait(NO_TIME) || {
            wait_until("it is gone", PATIENCE, || {
                drop(pool.get().expect("the other lives"));
                names(&peers) == ["peer0"]
            });
            true
        }
    );
    let expected = [
        ("peer0", "draining"),
        ("peer0", "drained"),
        ("peer0", "down"),
        ("peer0", "resumed"),
        ("peer0", "up"),
        ("peer1", "draining"),
        ("peer1", "drained"),
        ("peer1", "removed"),
    ];
    let told = events(&peers);
    let told: Vec<_> = told.iter().map(|(peer, what)| (peer.as_str(), *what)).collect();
    assert_eq!(told, expected);
    let in_service: Vec<_> = peers.snapshot().events.iter().map(|event| event.in_service).collect();
    assert_eq!(in_service[..5], [false, false, false, true, true], "nobody is woken for the third");
}

#[test]
fn a_check_can_be_asked_for() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    drop(pool.get().expect("the peer lives"));
    server.accept(false);
    peers.check_now("peer0").expect("there is such a peer");
    wait_until("it is found down long before it is due", PATIENCE, || {
        state(&peers, "peer0") == PeerState::Down
    });
}

/// Each has been told not to serve, and neither was ever down.
#[test]
fn who_is_not_to_serve_is_not_said_to_have_been_down() {
    let servers = [Server::start(), Server::start()];
    let manager = manager_of::<ScriptedConnection>(servers.iter().map(|it| it.url()))
        .all_down_wait(Duration::ZERO)
        .build()
        .expect("the settings are right");
    let peers = manager.peers();
    peers.set_weight("peer0", 0).expect("the other has one");
    drop(peers.drain("peer1").expect("there is such a peer"));
    let told = manager.connect().map(drop).expect_err("nobody is left").to_string();
    assert!(told.contains("peer0: skipped, its weight is 0"), "{told}");
    assert!(told.contains("peer1: skipped, not in service (draining or drained)"), "{told}");
}

/// With every peer drained nobody serves, and that is what the error says.
#[test]
fn when_all_are_drained_nobody_serves_until_one_is_resumed() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    fill(&pool, &peers, &[2]);
    peers.drain("peer0").expect("there is such a peer");
    let error = pool.get_timeout(Duration::from_secs(1)).expect_err("nobody serves");
    assert!(error.to_string().contains("skipped, not in service (draining or drained)"), "{error}");
    peers.resume("peer0").expect("there is such a peer");
    drop(pool.get().expect("it serves again"));
}

#[test]
fn a_pool_that_is_gone_has_nothing_to_drain() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    fill(&pool, &peers, &[2]);
    drop(pool);
    wait_until("it is closed", PATIENCE, || peers.snapshot().closed);
    wait_until("its connections too", PATIENCE, || server.open() == 0);
    let drain = peers.drain("peer0").expect("the name is known");
    assert!(drain.wait(PATIENCE), "there is no session");
    assert!(
        peers
            .snapshot()
            .to_string()
            .ends_with("The pool is closed; this is its last known state.\n")
    );
}

#[test]
fn a_snapshot_is_a_table() {
    let servers = [Server::start(), Server::start()];
    let urls = servers.iter().map(|server| server.url());
    let builder = manager_of::<ScriptedConnection>(urls).weight("peer1", 20).pool_name("shop");
    let (pool, peers) = pool_of(builder, 2);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);
    servers[0].crash();
    peers.check_now("peer0").expect("there is such a peer");
    wait_until("one is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    assert_eq!(peers.snapshot().pool_name, "shop");
    let shown = peers.snapshot().to_string();
    let lines: Vec<&str> = shown.lines().collect();
    let heads: Vec<&str> =
        lines[0].split("  ").map(str::trim).filter(|it| !it.is_empty()).collect();
    assert_eq!(heads, ["peer", "state", "for", "weight", "connections", "in use", "next check"]);
    assert!(lines[1].starts_with("peer0  down   ") && lines[1].contains("refused by"), "{shown}");
    assert!(lines[2].starts_with("peer1  up     ") && lines[2].contains("      20  "), "{shown}");
    let down = peers.snapshot().events.pop().expect("that is told");
    assert!(matches!(down.kind, EventKind::Down { .. }), "{down}");
}
