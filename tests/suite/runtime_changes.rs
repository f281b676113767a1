//! Changes at run time, while the pool serves: drain, resume, add, remove, replace, weight, check.

#![allow(clippy::disallowed_methods, reason = "the tests wait for a time")]

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::ManageConnection;
use diesel_peers::{
    Balance, ChangeError, ChangeErrorKind, EventKind, PeerConfig, PeerManager, PeerState, Peers,
};
use support::backend::{
    Backend, PATIENCE, SOON, build, fill, links, manager_of, manager_over, pool_of, state,
};
use support::load::Load;
use support::one_of_three::{PEERS, SHARES, THREADS, full_pool, serves_its_share};
use support::scripted::{ScriptedConnection, Server, Servers};
use support::{wait_until, within};

const NO_TIME: Duration = Duration::ZERO;

/// The events so far, oldest first: the peer, and the kind of the event.
fn events(peers: &Peers) -> Vec<(String, &'static str)> {
    let events = peers.snapshot().events;
    events.into_iter().map(|event| (event.peer, event.kind.as_str())).collect()
}

fn names(peers: &Peers) -> Vec<String> {
    peers.snapshot().peers.into_iter().map(|peer| peer.name).collect()
}

/// Each of three peers in turn is drained and resumed.
fn peers_are_drained_and_resumed_under_load_without_an_error<B: Backend>() {
    let servers = B::start(3);
    let (pool, peers) = full_pool(manager_over(&servers).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT 1", |load| {
        for (index, name) in PEERS.into_iter().enumerate() {
            let drain = peers.drain(name).expect("the peer exists");
            assert!(drain.wait(PATIENCE), "{name} is drained");
            assert_eq!(state(&peers, name), PeerState::Drained);
            wait_until("the connections of the drained peer are closed", PATIENCE, || {
                links(&peers)[index] == 0
            });
            let (served, several_checks) = (load.served_by(name), SOON * 5);
            assert!(
                !within(several_checks, || state(&peers, name) != PeerState::Drained),
                "checks do not undo a drain"
            );
            assert_eq!(load.served_by(name), served, "a drained peer gets no work");
            peers.resume(name).expect("the peer exists");
            assert_eq!(state(&peers, name), PeerState::Up, "a resumed peer is up at once");
            wait_until("the peer has its share of the connections again", PATIENCE, || {
                links(&peers) == SHARES
            });
            serves_its_share(name, load);
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// The same server is added and removed three times.
fn peer_is_added_and_removed_under_load_without_an_error<B: Backend>() {
    let mut servers = B::start(4);
    let added = servers.pop().expect("there are four servers");
    let (pool, peers) = full_pool(manager_over(&servers).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT 1", |load| {
        for round in 0..3 {
            let name = format!("added{round}");
            peers.add(PeerConfig::new(&name, added.url())).expect("the peer is valid");
            assert_eq!(names(&peers).last(), Some(&name), "a new peer is the last of the list");
            wait_until("the new peer has its share of the connections", PATIENCE, || {
                peers.snapshot().peer(&name).is_some_and(|peer| peer.connections == 2)
            });
            wait_until("the new peer serves", PATIENCE, || load.served_by(&name) > 100);
            let drain = peers.remove(&name).expect("the peer exists");
            assert!(drain.wait(PATIENCE), "the peer is drained before it is removed");
            assert_eq!(names(&peers), PEERS);
            wait_until("the other peers have its share of the connections", PATIENCE, || {
                links(&peers) == SHARES
            });
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// The connection in use keeps its peer draining until it is checked in.
fn transaction_on_a_draining_peer_goes_on_to_its_commit<B: Backend>() {
    let servers = B::start(2);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    fill(&pool, &peers, &[2, 2]);
    let mut conn = pool.get().expect("both peers are up");
    let name = conn.peer().to_owned();
    conn.batch_execute("BEGIN").expect("a transaction begins");
    let drain = peers.drain(&name).expect("the peer exists");
    assert!(!drain.wait(SOON), "{name} has a session in use");
    assert_eq!(state(&peers, &name), PeerState::Draining);
    conn.batch_execute("SELECT 1; COMMIT").expect("the transaction goes on");
    drop(conn);
    // A connection without a socket is closed only at a later checkout or checkin.
    let is_drained = || {
        drop(pool.get().expect("the other peer is up"));
        drain.wait(NO_TIME)
    };
    wait_until("the peer is drained", PATIENCE, is_drained);
    let is_another = || pool.get().expect("the other peer is up").peer() != name;
    assert!((0..20).all(|_| is_another()), "a drained peer gets no work");
}

support::on_every_backend! {
    peers_are_drained_and_resumed_under_load_without_an_error,
    peer_is_added_and_removed_under_load_without_an_error,
    transaction_on_a_draining_peer_goes_on_to_its_commit,
}

/// The pool is not used meanwhile.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn idle_sessions_of_a_drained_peer_end_at_once() {
    use support::mariadb::MariaDb;

    let servers = <MariaDb as Backend>::start(2);
    let (pool, peers) = pool_of(manager_over(&servers), 8);
    fill(&pool, &peers, &[4, 4]);
    let drain = peers.drain("peer0").expect("the peer exists");
    assert!(drain.wait(PATIENCE), "the drain ends without a checkout");
    wait_until("the server has no session", PATIENCE, || servers[0].sessions() == 0);
    let taken = "connections to the other peer have taken their place";
    wait_until(taken, PATIENCE, || links(&peers) == [0, 8]);
    drop(pool);
}

/// A peer whose URL has a new password keeps its sessions too.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn replaced_list_of_peers_keeps_the_sessions_of_peers_that_stay() {
    use support::backend::status;
    use support::mariadb::MariaDb;

    let servers = <MariaDb as Backend>::start(4);
    let (pool, peers) = pool_of(manager_over(&servers[..3]), support::one_of_three::CONNECTIONS);
    fill(&pool, &peers, &SHARES);
    let sessions = |server: &MariaDb| {
        server.sql("SELECT id FROM information_schema.processlist WHERE user = 'app' ORDER BY id")
    };
    let before = sessions(&servers[1]);
    assert!(peers.drain("peer2").expect("the peer exists").wait(PATIENCE));
    peers.set_weight("peer1", 3).expect("the peer exists");

    servers[1].sql("SET PASSWORD FOR app = PASSWORD('another')");
    let url = servers[1].url().replace(support::APP_PASSWORD, "another");
    let configs = [
        PeerConfig::new("peer1", url),
        PeerConfig::new("peer2", servers[2].url()),
        PeerConfig::new("peer3", servers[3].url()).weight(3),
        // Another server with the name of a removed peer.
        PeerConfig::new("peer0", servers[3].url()).weight(0),
    ];
    peers.replace(configs).expect("the new list is valid");
    let after = sessions(&servers[1]);
    assert!(after.starts_with(&before), "the sessions of a peer that stays are kept: {after}");
    assert_eq!(state(&peers, "peer2"), PeerState::Drained, "a drained peer stays drained");
    let weights = ["peer1", "peer2", "peer3"].map(|name| status(&peers, name).weight);
    assert_eq!(weights, [3, 1, 3]);
    wait_until(
        "the old peer0 is removed and peer3 has its share of the connections",
        PATIENCE,
        || {
            drop(pool.get().expect("the peers are up"));
            names(&peers) == ["peer1", "peer2", "peer3", "peer0"] && links(&peers)[2] >= 4
        },
    );
    wait_until("the sessions of the old peer0 have ended", PATIENCE, || servers[0].sessions() == 0);
    wait_until("logins use the new password", PATIENCE, || {
        peers.check_now("peer1").expect("the peer exists");
        let peer = status(&peers, "peer1");
        peer.connect_failures == 0 && peer.reason.is_none()
    });
}

/// Connections that stay in their slots are closed at their next checkout or checkin.
#[test]
fn peer_is_drained_with_balance_per_connection() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder.balance(Balance::PerConnection), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        let drain = peers.drain("peer0").expect("the peer exists");
        assert!(drain.wait(PATIENCE), "all its connections are checked in");
        wait_until("the server of peer0 has no session left", PATIENCE, || servers[0].open() == 0);
        let served = load.served_by("peer0");
        wait_until("peer1 serves", PATIENCE, || load.served_by("peer1") > 1000);
        assert_eq!(load.served_by("peer0"), served, "a drained peer gets no work");
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "nothing failed: {seen:?}");
}

/// The connection of a login that was in progress when its peer was drained is not used.
#[test]
fn login_that_succeeds_after_a_drain_is_closed() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    servers[0].hold_logins(true);
    let (pool, peers) = pool_of(builder, 2);
    wait_until("a login begins", PATIENCE, || servers[0].logins() > 0);
    let drain = peers.drain("peer0").expect("the peer exists");
    assert!(!drain.wait(SOON), "a login is in progress");
    servers[0].hold_logins(false);
    wait_until("the peer is drained", PATIENCE, || {
        drop(pool.get().expect("the other peer is up"));
        drain.wait(NO_TIME)
    });
    wait_until("the server of peer0 has no session left", PATIENCE, || servers[0].open() == 0);
}

/// A login hangs at the old peer; the new one with its name is tried nevertheless.
#[test]
fn peer_with_the_name_of_a_hung_peer_serves() {
    let servers = Servers::start(2);
    servers[0].hold_logins(true);
    let builder = manager_of::<ScriptedConnection>([servers[0].url()]);
    let builder = builder.connect_timeout(2 * PATIENCE).connect_deadline(2 * PATIENCE);
    let (pool, peers) = pool_of(builder, 1);
    wait_until("a login begins", PATIENCE, || servers[0].logins() > 0);
    peers.replace([PeerConfig::new("peer0", servers[1].url())]).expect("the new list is valid");
    drop(pool.get_timeout(PATIENCE).expect("the new peer is up"));
    let ids: Vec<u64> = peers.snapshot().peers.iter().map(|peer| peer.id).collect();
    assert_eq!(
        names(&peers),
        ["peer0", "peer0"],
        "the old peer stays while its login is in progress"
    );
    assert_ne!(ids[0], ids[1], "their ids differ");
    servers[0].hold_logins(false);
}

#[test]
fn changed_weight_moves_connections() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder.rebalance_interval(NO_TIME), 8);
    fill(&pool, &peers, &[4, 4]);
    peers.set_weight("peer0", 3).expect("the peer exists");
    fill(&pool, &peers, &[6, 2]);
    peers.set_weight("peer1", 0).expect("the peer exists");
    fill(&pool, &peers, &[8, 0]);
    peers.set_weight("peer1", 0).expect("the weight stays the same");
    let is_change = |(_, kind): &(String, _)| *kind == "weight_changed";
    let changes = events(&peers).into_iter().filter(is_change).count();
    assert_eq!(changes, 2, "each change is one event");
}

#[test]
fn impossible_change_is_an_error_and_changes_nothing() {
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
            "remove the last peer",
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
            "add a name twice",
            |peers, url| peers.add(PeerConfig::new("peer1", url)),
            K::NameTaken,
            "a peer with the name \"peer1\" exists already",
        ),
        (
            "add a URL as a name",
            |peers, url| peers.add(PeerConfig::new(url, "db")),
            K::InvalidPeer,
            "is a URL",
        ),
        (
            "add an empty URL",
            |peers, _| peers.add(PeerConfig::new("db7", " ")),
            K::InvalidPeer,
            "the URL of peer \"db7\" is empty",
        ),
        ("replace by none", |peers, _| peers.replace([]), K::NoPeerLeft, "no peer is configured"),
        (
            "replace by peers without weight",
            |peers, url| {
                peers
                    .replace([PeerConfig::new("peer1", url), PeerConfig::new("db7", url).weight(0)])
            },
            K::NoPeerLeft,
            "every peer has weight 0",
        ),
    ];
    for (case, change, kind, expected) in cases {
        let error = change(&peers, url).expect_err(case);
        assert_eq!(error.kind(), kind, "{case}: {error}");
        assert!(error.to_string().contains(expected), "{case}: {error}");
        assert_eq!(format!("{error:?}"), error.to_string(), "{case}: `Debug` and `Display` agree");
        assert!(!error.to_string().contains("s3cret"), "{case}: {error}");
        assert_eq!(names(&peers), before, "{case}: no peer has changed");
    }
    assert_eq!(events(&peers), [], "a failed change is not an event");
}

/// The setting takes precedence, so the one in the URL would have no effect.
#[test]
fn user_or_password_that_a_setting_overrules_is_an_error() {
    let builder = PeerManager::<ScriptedConnection>::builder()
        .peer("peer0", "x://app:old@db0")
        .user("app")
        .password("s3cret");
    let manager = build(builder);
    let peers = manager.peers();
    let replace = |url: &str| peers.replace([PeerConfig::new("peer0", url)]);
    for (url, setting) in [("x://app:s3cret2@db0", "password"), ("x://other@db0", "user")] {
        let errors = [
            replace(url).expect_err("the URL and the setting differ"),
            peers.add(PeerConfig::new("peer1", url)).expect_err("the URL and the setting differ"),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains(&format!("another {setting} than the setting")), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
    for url in ["x://db0", "x://app@db0", "x://app:s3cret@db0"] {
        replace(url).expect("the URL and the setting do not differ");
    }
    assert_eq!(names(&peers), ["peer0"]);
}

#[test]
fn events_are_in_the_order_of_the_changes() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let drain = peers.drain("peer0").expect("the peer exists");
    peers.drain("peer0").expect("the second drain has no effect");
    wait_until("the peer is drained", PATIENCE, || {
        drop(pool.get().expect("the other peer is up"));
        drain.wait(NO_TIME)
    });
    servers[0].crash();
    peers.check_now("peer0").expect("the peer exists");
    wait_until("the check fails", PATIENCE, || {
        peers.snapshot().peer("peer0").is_some_and(|peer| peer.reason.is_some())
    });
    assert_eq!(
        state(&peers, "peer0"),
        PeerState::Drained,
        "a failed check does not change the administrative state"
    );
    let shown = peers.snapshot().to_string();
    assert!(shown.contains("the last check failed: refused by"), "{shown}");
    peers.resume("peer0").expect("the peer exists");
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "the failed check counts after `resume`");
    assert!(!drain.wait(PATIENCE), "the drain was canceled by `resume`");
    servers[0].accept(true);
    peers.check_now("peer0").expect("the peer exists");
    wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    assert!(
        peers.remove("peer1").expect("the other peer serves").wait(NO_TIME) || {
            wait_until("peer1 is removed", PATIENCE, || {
                drop(pool.get().expect("the other peer is up"));
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
    let events = events(&peers);
    let events: Vec<_> = events.iter().map(|(peer, kind)| (peer.as_str(), *kind)).collect();
    assert_eq!(events, expected);
    let in_service: Vec<_> = peers.snapshot().events.iter().map(|event| event.in_service).collect();
    assert_eq!(
        in_service[..5],
        [false, false, false, true, true],
        "a drained peer that is down is not in service"
    );
}

#[test]
fn check_now_finds_a_server_that_refuses_logins() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    drop(pool.get().expect("the peer is up"));
    server.accept(false);
    peers.check_now("peer0").expect("the peer exists");
    wait_until("the peer is marked down long before its scheduled check", PATIENCE, || {
        state(&peers, "peer0").is_marked_down()
    });
}

/// An operator has taken both peers out of service, and neither was ever down.
#[test]
fn connect_error_names_drained_peers_and_peers_of_weight_0_as_such() {
    let servers = Servers::start(2);
    let manager = build(servers.builder().all_down_wait(Duration::ZERO));
    let peers = manager.peers();
    peers.set_weight("peer0", 0).expect("the other peer has a weight");
    drop(peers.drain("peer1").expect("the peer exists"));
    let error = manager.connect().map(drop).expect_err("no peer is left").to_string();
    assert!(error.contains("peer0: skipped, its weight is 0"), "{error}");
    assert!(error.contains("peer1: skipped, not in service (draining or drained)"), "{error}");
}

#[test]
fn pool_of_drained_peers_fails_until_one_is_resumed() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    fill(&pool, &peers, &[2]);
    peers.drain("peer0").expect("the peer exists");
    let error = pool.get_timeout(Duration::from_secs(1)).expect_err("every peer is drained");
    assert!(error.to_string().contains("skipped, not in service (draining or drained)"), "{error}");
    peers.resume("peer0").expect("the peer exists");
    drop(pool.get().expect("the peer serves again"));
}

#[test]
fn drain_of_a_closed_pool_ends_at_once() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    fill(&pool, &peers, &[2]);
    drop(pool);
    wait_until("the pool is closed", PATIENCE, || peers.snapshot().closed);
    wait_until("its connections are closed", PATIENCE, || server.open() == 0);
    let drain = peers.drain("peer0").expect("the peer exists");
    assert!(drain.wait(PATIENCE), "a closed pool has no sessions");
    let shown = peers.snapshot().to_string();
    assert!(shown.ends_with("The pool is closed; this is its last known state.\n"), "{shown}");
}

#[test]
fn snapshot_is_displayed_as_a_table() {
    let servers = Servers::start(2);
    let builder = servers.builder().weight("peer1", 20).pool_name("shop");
    let (pool, peers) = pool_of(builder, 2);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);
    servers[0].crash();
    peers.check_now("peer0").expect("the peer exists");
    wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    assert_eq!(peers.snapshot().pool_name, "shop");
    let shown = peers.snapshot().to_string();
    let lines: Vec<&str> = shown.lines().collect();
    let headings: Vec<&str> =
        lines[0].split("  ").map(str::trim).filter(|heading| !heading.is_empty()).collect();
    assert_eq!(headings, ["peer", "state", "for", "weight", "connections", "in use", "next check"]);
    assert!(lines[1].starts_with("peer0  down   ") && lines[1].contains("refused by"), "{shown}");
    assert!(lines[2].starts_with("peer1  up     ") && lines[2].contains("      20  "), "{shown}");
    let down = peers.snapshot().events.pop().expect("there is an event");
    assert!(matches!(down.kind, EventKind::Down { .. }), "{down}");
}
