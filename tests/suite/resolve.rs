//! A peer whose URL has a host name becomes one peer for each address of the name, as addresses appear and
//! disappear. Nothing fails meanwhile, and no change of an operator is undone.

#![allow(clippy::disallowed_methods, reason = "the tests wait for a time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_peers::{PeerConfig, PeerManager, PeerManagerBuilder, PeerState, Peers};
use support::backend::{PATIENCE, SOON, build, fill, links, pool_of, state, status};
use support::load::Load;
use support::resolver::{Answer, Script};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

const TICK: Duration = Duration::from_millis(20);

/// More answers in a row than it takes to add or remove an address.
const MANY: usize = 5;

/// Twice the time for which `build()` waits for the first answers: the machine may be busy.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";

/// The URL of a server of one test.
fn url(test: &str, host: &str) -> String {
    format!("scripted://{test}:s3cret@{host}:3306/app")
}

/// Starts servers at these hosts. Scripted servers run until the process ends.
fn servers<const N: usize>(test: &str, hosts: [&str; N]) -> [Arc<Server>; N] {
    hosts.map(|host| Server::start_at(url(test, host)))
}

/// Starts building a manager whose only peer `db` is resolved by a script.
fn builder(test: &str, script: &Arc<Script>) -> PeerManagerBuilder<ScriptedConnection> {
    let builder = PeerManager::builder().peer("db", url(test, "db"));
    builder.resolve_interval(TICK).resolver(script.resolver()).rebalance_interval(Duration::ZERO)
}

fn names(peers: &Peers) -> Vec<String> {
    peers.snapshot().peers.into_iter().map(|peer| peer.name).collect()
}

/// The events so far, oldest first: the peer, and the kind of the event.
fn events(peers: &Peers) -> Vec<(String, &'static str)> {
    let events = peers.snapshot().events;
    events.into_iter().map(|event| (event.peer, event.kind.as_str())).collect()
}

fn events_of(peers: &Peers, name: &str) -> Vec<&'static str> {
    events(peers).into_iter().filter(|(peer, _)| peer == name).map(|(_, kind)| kind).collect()
}

/// Waits until the names of the peers are these.
#[track_caller]
fn wait_for_peers(peers: &Peers, expected: &[&str]) {
    let what = format!("the peers are {expected:?}");
    wait_until(&what, PATIENCE, || names(peers) == expected);
}

#[test]
fn host_name_is_resolved_to_its_addresses_by_build() {
    let test = "becomes";
    servers(test, [A, B, C, "[::1]", "[2001:db8::1]"]);
    let script = Script::of(&[B, "2001:db8::1", A, A]);
    let builder = builder(test, &script)
        .peer("v4", url(test, C))
        .peer("v6", url(test, "[::1]"))
        .weight("db", 3)
        .tier("db", 1)
        .weight("v4", 2);
    let manager = build(builder);
    let peers = manager.peers();
    let expected = ["v4", "v6", "db/10.0.0.1", "db/10.0.0.2", "db/2001:db8::1"];
    assert_eq!(names(&peers), expected, "each address once, in the order of addresses");
    let weights: Vec<_> =
        peers.snapshot().peers.iter().map(|peer| (peer.weight, peer.tier)).collect();
    assert_eq!(
        weights,
        [(2, 0), (1, 0), (3, 1), (3, 1), (3, 1)],
        "an address has the weight and tier of its name"
    );
    script.wait_for_answers(MANY);
    let expected = [
        ("db/10.0.0.1", "added"),
        ("db/10.0.0.2", "added"),
        ("db/2001:db8::1", "added"),
        ("db", "draining"),
        ("db", "drained"),
        ("db", "removed"),
    ];
    let events = events(&peers);
    let events: Vec<_> = events.iter().map(|(peer, kind)| (peer.as_str(), *kind)).collect();
    assert_eq!(events, expected, "the name is resolved once, and peers given by address stay");
}

#[test]
fn host_name_is_not_resolved_without_an_interval() {
    let script = Script::of(&[A]);
    let peers = build(builder("without", &script).resolve_interval(None)).peers();
    assert_eq!((names(&peers), script.lookups()), (vec!["db".to_owned()], 0));
}

#[test]
fn addresses_serve_in_place_of_the_host_name() {
    let test = "serve";
    let [db, a, b] = servers(test, ["db", A, B]);
    let script = Script::of(&[A, B]);
    let (pool, peers) = pool_of(builder(test, &script), 4);
    fill(&pool, &peers, &[2, 2]);
    assert_eq!([db.logins(), a.open(), b.open()], [0, 2, 2]);
    drop(pool);
}

#[test]
fn unresolved_host_name_is_a_peer_until_it_is_resolved() {
    let test = "until";
    let [db, a, _b] = servers(test, ["db", A, B]);
    let script = Script::new(Answer::Error("the name server is down"));
    let start = Instant::now();
    let (pool, peers) = pool_of(builder(test, &script), 8);
    assert!(start.elapsed() < FIRST_ANSWERS, "`build()` returns without an answer");
    fill(&pool, &peers, &[8]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        wait_until("the unresolved peer serves", PATIENCE, || load.served_by("db") > 100);
        script.wait_for_answers(MANY);
        assert_eq!(names(&peers), ["db"]);
        script.set_answer(Answer::of(&[A, B]));
        wait_for_peers(&peers, &["db/10.0.0.1", "db/10.0.0.2"]);
        wait_until("the addresses have its connections", PATIENCE, || links(&peers) == [4, 4]);
        wait_until("both addresses serve", PATIENCE, || {
            load.served_by("db/10.0.0.1") > 100 && load.served_by("db/10.0.0.2") > 100
        });
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    assert_eq!((db.open(), a.open()), (0, 4));
}

#[test]
fn addresses_of_a_drained_or_removed_host_name_are_drained_or_not_added() {
    let test = "operator";
    servers(test, ["db", A, C]);
    let failing = || Script::new(Answer::Error("the name server is down"));
    let script = failing();
    let manager = build(builder(test, &script).peer("v4", url(test, C)));
    let peers = manager.peers();
    peers.set_weight("db", 7).expect("the peer exists");
    assert!(peers.drain("db").expect("the peer exists").wait(PATIENCE));
    script.set_answer(Answer::of(&[A]));
    wait_for_peers(&peers, &["v4", "db/10.0.0.1"]);
    wait_until("the peer is drained", PATIENCE, || {
        state(&peers, "db/10.0.0.1") == PeerState::Drained
    });
    assert_eq!(status(&peers, "db/10.0.0.1").weight, 7);

    let script = failing();
    let manager = build(builder(test, &script).peer("v4", url(test, C)));
    let peers = manager.peers();
    assert!(peers.remove("db").expect("the peer exists").wait(PATIENCE));
    script.set_answer(Answer::of(&[A]));
    script.wait_for_answers(0);
    let asked = script.lookups();
    assert!(!within(SOON, || script.lookups() > asked), "a removed name is not resolved any more");
    assert_eq!(names(&peers), ["v4"], "a removed name stays removed");
}

#[test]
fn address_is_removed_once_it_is_missing_from_two_answers_in_a_row() {
    let test = "rotation";
    let all = ["db/10.0.0.1", "db/10.0.0.2", "db/10.0.0.3"];
    servers(test, [A, B, C]);
    let script = Script::of(&[A, B, C]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    let pairs = [[A, B], [B, C], [C, A], [A, B], [C, B], [A, C]];
    script.set_answers(pairs.iter().map(|pair| Answer::of(pair)).chain([Answer::of(&[A, B, C])]));
    script.wait_for_answers(pairs.len() + 1);
    assert_eq!(names(&peers), all, "no address is missing from two answers in a row");
    assert_eq!(events(&peers).len(), 6, "no event after those of the start");
    script.set_answer(Answer::of(&[A, C]));
    wait_for_peers(&peers, &[all[0], all[2]]);
    assert_eq!(events_of(&peers, all[1]), ["added", "draining", "drained", "removed"]);
}

#[test]
fn addresses_that_no_server_has_are_ignored_and_others_are_used_once() {
    let test = "unusable";
    servers(test, [A, B]);
    let script = Script::of(&["::ffff:0.0.0.0", "255.255.255.255", "::ffff:10.0.0.1", B, A]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["db/10.0.0.1", "db/10.0.0.2"]);
}

/// The addresses that are known already stay, whatever else is in the answer.
#[test]
fn number_of_addresses_of_a_name_is_bounded() {
    const MOST: usize = 256;
    let test = "bounded";
    let all: Vec<String> =
        (0..2 * MOST).map(|number| format!("10.1.{}.{}", number / MOST, number % MOST)).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let high = all[2 * MOST - 1];
    let script = Script::of(&[high]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    script.wait_for_answers(0);
    let known = format!("db/{high}");
    assert_eq!(names(&peers), [&*known]);
    script.set_answer(Answer::of(&all));
    script.wait_for_answers(MANY);
    let used = names(&peers);
    assert_eq!(used.len(), MOST);
    assert!(used.contains(&known), "a known address stays: {used:?}");
}

#[test]
fn empty_answer_error_and_panic_of_the_resolver_change_nothing() {
    servers("useless", [A, B]);
    let script = Script::of(&[A, B]);
    let manager = build(builder("useless", &script));
    let peers = manager.peers();
    let both = ["db/10.0.0.1", "db/10.0.0.2"];
    for answer in [Answer::of(&[]), Answer::Error("down"), Answer::Panic] {
        script.set_answer(answer.clone());
        script.wait_for_answers(MANY);
        assert_eq!(names(&peers), both, "{answer:?}");
    }
    script.set_answer(Answer::of(&[B]));
    wait_for_peers(&peers, &both[1..]);
}

#[test]
fn hung_resolver_delays_neither_build_nor_checks_nor_checkouts() {
    let test = "hangs";
    let [db, _a] = servers(test, ["db", A]);
    let script = Script::of(&[A]);
    script.hold(true);
    let start = Instant::now();
    let (pool, peers) = pool_of(builder(test, &script).check_interval(SOON), 2);
    assert!(start.elapsed() < PATIENCE / 2, "`build()` returns without the first answer");
    fill(&pool, &peers, &[2]);
    let logins = db.logins();
    wait_until("the peer is checked meanwhile", PATIENCE, || db.logins() > logins + 2);
    script.hold(false);
    wait_until("the name is replaced by its address while the pool is used", PATIENCE, || {
        drop(pool.get().expect("both peers are up"));
        names(&peers) == ["db/10.0.0.1"]
    });
}

#[test]
fn changes_of_an_operator_are_not_undone_by_answers() {
    let test = "set";
    servers(test, [A, B, C, "10.0.0.4", "10.0.0.9"]);
    let script = Script::of(&[A, B, C]);
    let manager = build(builder(test, &script).peer("v4", url(test, "10.0.0.9")));
    let peers = manager.peers();
    let [a, b, c] = ["db/10.0.0.1", "db/10.0.0.2", "db/10.0.0.3"];
    assert!(peers.drain(a).expect("the peer exists").wait(PATIENCE));
    peers.set_weight(b, 5).expect("the peer exists");
    assert!(peers.remove(c).expect("the peer exists").wait(PATIENCE));
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["v4", a, b], "an answer does not add a removed address again");
    assert_eq!(state(&peers, a), PeerState::Drained);
    assert_eq!(status(&peers, b).weight, 5);

    // Peers that the operator adds, with names that the resolver would give to addresses.
    for own in [c, "db/10.0.0.4"] {
        peers.add(PeerConfig::new(own, url(test, C))).expect("the name is free");
    }
    script.set_answer(Answer::of(&[A, B, C, "10.0.0.4"]));
    script.wait_for_answers(MANY);
    script.set_answer(Answer::of(&[B]));
    wait_for_peers(&peers, &["v4", b, c, "db/10.0.0.4"]);
    script.wait_for_answers(MANY);
    assert_eq!(
        names(&peers),
        ["v4", b, c, "db/10.0.0.4"],
        "an answer does not remove a peer that an operator has added"
    );

    for own in [c, "db/10.0.0.4"] {
        assert!(peers.remove(own).expect("the peer exists").wait(PATIENCE));
    }
    script.set_answer(Answer::of(&[A, B, C]));
    wait_for_peers(&peers, &["v4", b, a, c]);
    assert_eq!(state(&peers, a), PeerState::Up, "an address that returns is a new peer");
}

#[test]
fn last_address_with_a_weight_stays_although_it_is_missing_from_answers() {
    let test = "last";
    servers(test, [A, B]);
    let script = Script::of(&[A, B]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    let [a, b] = ["db/10.0.0.1", "db/10.0.0.2"];
    peers.set_weight(b, 0).expect("the other peer has a weight");
    script.set_answer(Answer::of(&[B]));
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), [a, b], "without it, no peer would serve");
    peers.set_weight(b, 1).expect("the peer exists");
    wait_for_peers(&peers, &[b]);
}

#[test]
fn host_names_given_to_replace_are_resolved() {
    let test = "replace";
    servers(test, ["db", "other", A, B, C]);
    let script = Script::of(&[A, B]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    let [a, b] = ["db/10.0.0.1", "db/10.0.0.2"];
    let config = |name: &str, host: &str| PeerConfig::new(name, url(test, host));
    assert!(peers.drain(a).expect("the peer exists").wait(PATIENCE));
    peers.set_weight(b, 5).expect("the peer exists");
    let before = events(&peers);
    peers.replace([config("db", "db")]).expect("the list is valid");
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), [a, b]);
    assert_eq!(state(&peers, a), PeerState::Drained, "a drained address stays drained");
    assert_eq!(events(&peers), before, "the same name again is not a change");

    peers.replace([config("db", "db").weight(3), config("v4", C)]).expect("the list is valid");
    wait_for_peers(&peers, &[a, b, "v4"]);
    assert_eq!(status(&peers, b).weight, 3);
    script.set_answer(Answer::of(&[A, B, C]));
    wait_for_peers(&peers, &[a, b, "v4", "db/10.0.0.3"]);
    assert_eq!(status(&peers, "db/10.0.0.3").weight, 3);

    assert!(peers.remove(a).expect("the peer exists").wait(PATIENCE));
    script.wait_for_answers(MANY);
    assert_eq!(
        names(&peers),
        [b, "v4", "db/10.0.0.3"],
        "an answer does not add a removed address again"
    );
    peers.replace([config("db", "db"), config("v4", C)]).expect("the list is valid");
    wait_for_peers(&peers, &[b, "v4", "db/10.0.0.3", a]);

    peers
        .replace([config("v4", C), config("other", "other"), config(a, A)])
        .expect("the list is valid");
    wait_for_peers(&peers, &["v4", a, "other/10.0.0.1", "other/10.0.0.2", "other/10.0.0.3"]);
    script.set_answer(Answer::of(&[C]));
    wait_for_peers(&peers, &["v4", a, "other/10.0.0.3"]);
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["v4", a, "other/10.0.0.3"], "{a} is a peer of the operator's now");

    peers.replace([config("v4", C)]).expect("the list is valid");
    wait_for_peers(&peers, &["v4"]);
    assert!(!within(SOON, || names(&peers) != ["v4"]), "no host name is left to resolve");
    peers.replace([config("db", "db")]).expect("the list is valid");
    wait_for_peers(&peers, &["db/10.0.0.3"]);
}

/// `build()` returns the same error.
#[test]
fn replace_refuses_a_mysql_url_that_verifies_the_host_name_while_names_are_resolved() {
    let test = "verify";
    servers(test, [A]);
    let script = Script::of(&[A]);
    let manager = build(builder(test, &script));
    let url = "mysql://app@db/shop?ssl_mode=verify_identity";
    let error = manager
        .peers()
        .replace([PeerConfig::new("db", url)])
        .expect_err("the name of an address cannot be verified");
    assert!(error.to_string().contains("`resolve_interval` replaces the name"), "{error}");
}

/// `add` adds exactly the given peer.
#[test]
fn host_name_given_to_add_is_not_resolved() {
    let test = "by-hand";
    servers(test, ["db1", A]);
    let script = Script::of(&[A]);
    let manager = build(builder(test, &script));
    let peers = manager.peers();
    peers.add(PeerConfig::new("db1", url(test, "db1"))).expect("the name is free");
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["db/10.0.0.1", "db1"]);
}

/// With real servers, because these tests depend on how the client libraries use the URL of an address.
#[cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]
mod real {
    use std::net::Ipv4Addr;

    use super::*;
    use support::backend::RealServer;
    use support::mariadb::MariaDb;
    use support::port::free_port_at;
    use support::postgres::Postgres;

    const ADDRESSES: [Ipv4Addr; 3] =
        [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];

    /// A host name that only the script resolves.
    const HOST: &str = "db.invalid";

    fn addresses_appear_and_disappear_under_load<B: RealServer>() {
        let mut servers = free_port_at(ADDRESSES).map(B::start_on);
        let script = Script::of(&["127.0.0.1", "127.0.0.2"]);
        let builder = PeerManager::<B::Connection>::builder()
            .peer("db", B::url_at(HOST, servers[0].port()))
            .resolve_interval(TICK)
            .resolver(script.resolver());
        let (pool, peers) = pool_of(builder, 6);
        assert_eq!(names(&peers), ["db/127.0.0.1", "db/127.0.0.2"]);
        fill(&pool, &peers, &[3, 3]);
        let seen = Load::run(&pool, 5, "SELECT 1", |load| {
            let all = ["db/127.0.0.1", "db/127.0.0.2", "db/127.0.0.3"];
            script.set_answer(Answer::of(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]));
            wait_for_peers(&peers, &all);
            wait_until("the new address has its share of the connections", PATIENCE, || {
                links(&peers) == [2, 2, 2]
            });
            wait_until("the new address serves", PATIENCE, || load.served_by(all[2]) > 100);
            script.set_answer(Answer::of(&["127.0.0.1", "127.0.0.3"]));
            wait_for_peers(&peers, &[all[0], all[2]]);
            // The server is killed after its address was drained, so no query fails.
            servers[1].kill();
            let served = load.served_by(all[1]);
            wait_until("the other addresses have its share of the connections", PATIENCE, || {
                links(&peers) == [3, 3]
            });
            let before = load.rounds();
            wait_until("all threads go on", PATIENCE, || load.all_came_back(&before, 20));
            assert_eq!(load.served_by(all[1]), served, "a removed address gets no work");
        });
        assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
        assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    }

    #[test]
    fn mariadb_addresses_appear_and_disappear_under_load() {
        addresses_appear_and_disappear_under_load::<MariaDb>();
    }

    #[test]
    fn postgres_addresses_appear_and_disappear_under_load() {
        addresses_appear_and_disappear_under_load::<Postgres>();
    }

    /// A conninfo string with several hosts is not resolved: libpq itself tries one after the other.
    #[test]
    fn postgres_conninfo_string_with_one_host_is_resolved() {
        use diesel::PgConnection;
        use support::{APP, APP_PASSWORD};

        let server = Postgres::start();
        let script = Script::of(&["127.0.0.1"]);
        let url = |host: &str| {
            let port = server.port();
            format!("host={host} port={port} user={APP} password='{APP_PASSWORD}' dbname={APP}")
        };
        let several = url("127.0.0.1,127.0.0.2").replace("port=", "port='");
        let builder = PeerManager::<PgConnection>::builder()
            .peer("db", url(HOST))
            .peer("several", several.replace(" user=", "' user="))
            .resolve_interval(TICK)
            .resolver(script.resolver());
        let (pool, peers) = pool_of(builder, 2);
        assert_eq!(names(&peers), ["several", "db/127.0.0.1"]);
        fill(&pool, &peers, &[1, 1]);
    }

    /// The certificate is verified against the host name, although the connection leads to an address.
    #[test]
    fn postgres_certificate_is_verified_against_the_host_name() {
        use diesel::PgConnection;

        let server = Postgres::start_with_tls();
        let ca = server.folder().join("certificate.pem");
        let script = Script::of(&["127.0.0.1"]);
        let peers_at = |host: &str| {
            let url = support::postgres::url_at(host, server.port());
            let url = format!("{url}?sslmode=verify-full&sslrootcert={}", ca.display());
            let builder = PeerManager::<PgConnection>::builder()
                .peer("db", url)
                .resolve_interval(PATIENCE)
                .resolver(script.resolver());
            pool_of(builder, 1)
        };
        let (pool, peers) = peers_at("db.example");
        fill(&pool, &peers, &[1]);
        assert_eq!(names(&peers), ["db/127.0.0.1"]);
        let (_pool, peers) = peers_at("other.example");
        wait_until("the certificate does not match the other name", PATIENCE, || {
            state(&peers, "db/127.0.0.1").is_marked_down()
        });
        let reason = status(&peers, "db/127.0.0.1").reason.expect("the peer is down");
        assert!(reason.contains("other.example"), "{reason}");
    }
}
