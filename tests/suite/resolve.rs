//! A peer that is given by a name is one for each address of that, as these come and go: nothing fails,
//! and nothing that an operator has set is undone.

#![allow(clippy::disallowed_methods, reason = "the tests wait by the clock")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel_peers::{PeerConfig, PeerManager, PeerManagerBuilder, PeerState, Peers};
use support::backend::{PATIENCE, SOON, fill, links, pool_of, state};
use support::load::Load;
use support::resolver::{Answer, Script};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

const TICK: Duration = Duration::from_millis(20);

/// So many answers leave no doubt.
const MANY: usize = 5;

/// For how long `build()` waits for the first answers, and as much again for a busy machine.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";

/// The URL of a server of one test.
fn url(test: &str, host: &str) -> String {
    format!("scripted://{test}:s3cret@{host}:3306/app")
}

/// Servers at these hosts. They stay, as all scripted ones do.
fn servers<const N: usize>(test: &str, hosts: [&str; N]) -> [Arc<Server>; N] {
    hosts.map(|host| Server::start_at(url(test, host)))
}

/// A manager whose one peer `db` is resolved by a script.
fn resolved(test: &str, script: &Arc<Script>) -> PeerManagerBuilder<ScriptedConnection> {
    let builder = PeerManager::builder().peer("db", url(test, "db"));
    builder.resolve_interval(TICK).resolver(script.resolver()).rebalance_interval(Duration::ZERO)
}

fn names(peers: &Peers) -> Vec<String> {
    peers.snapshot().peers.into_iter().map(|peer| peer.name).collect()
}

/// What has happened, in order: the peer, and what.
fn events(peers: &Peers) -> Vec<(String, &'static str)> {
    let events = peers.snapshot().events;
    events.into_iter().map(|event| (event.peer, event.kind.as_str())).collect()
}

fn events_of(peers: &Peers, name: &str) -> Vec<&'static str> {
    events(peers).into_iter().filter(|(peer, _)| peer == name).map(|(_, what)| what).collect()
}

#[track_caller]
fn becomes(peers: &Peers, expected: &[&str]) {
    let what = format!("the peers are {expected:?}");
    wait_until(&what, PATIENCE, || names(peers) == expected);
}

#[test]
fn a_name_becomes_its_addresses_before_anything_connects() {
    let test = "becomes";
    servers(test, [A, B, C, "[::1]", "[2001:db8::1]"]);
    let script = Script::of(&[B, "2001:db8::1", A, A]);
    let builder = resolved(test, &script)
        .peer("v4", url(test, C))
        .peer("v6", url(test, "[::1]"))
        .weight("db", 3)
        .tier("db", 1)
        .weight("v4", 2);
    let manager = builder.build().expect("the settings are right");
    let peers = manager.peers();
    let given = ["v4", "v6", "db/10.0.0.1", "db/10.0.0.2", "db/2001:db8::1"];
    assert_eq!(names(&peers), given, "in an order of their own, each once");
    let weights: Vec<_> =
        peers.snapshot().peers.iter().map(|peer| (peer.weight, peer.tier)).collect();
    assert_eq!(weights, [(2, 0), (1, 0), (3, 1), (3, 1), (3, 1)], "as the name has them");
    script.wait_for_answers(MANY);
    let expected = [
        ("db/10.0.0.1", "added"),
        ("db/10.0.0.2", "added"),
        ("db/2001:db8::1", "added"),
        ("db", "draining"),
        ("db", "drained"),
        ("db", "removed"),
    ];
    let told = events(&peers);
    let told: Vec<_> = told.iter().map(|(peer, what)| (peer.as_str(), *what)).collect();
    assert_eq!(told, expected, "once, and addresses are left alone");
}

#[test]
fn without_an_interval_nothing_is_resolved() {
    let script = Script::of(&[A]);
    let manager = resolved("without", &script).resolve_interval(None).build();
    let peers = manager.expect("the settings are right").peers();
    assert_eq!((names(&peers), script.asked()), (vec!["db".to_owned()], 0));
}

#[test]
fn the_addresses_serve_and_the_name_does_not() {
    let test = "serve";
    let [db, a, b] = servers(test, ["db", A, B]);
    let script = Script::of(&[A, B]);
    let (pool, peers) = pool_of(resolved(test, &script), 4);
    fill(&pool, &peers, &[2, 2]);
    assert_eq!([db.logins(), a.open(), b.open()], [0, 2, 2]);
    drop(pool);
}

#[test]
fn until_it_is_resolved_a_name_is_a_peer_itself() {
    let test = "until";
    let [db, a, _b] = servers(test, ["db", A, B]);
    let script = Script::new(Answer::Error("the name server is down"));
    let start = Instant::now();
    let (pool, peers) = pool_of(resolved(test, &script), 8);
    assert!(start.elapsed() < FIRST_ANSWERS, "an application starts all the same");
    fill(&pool, &peers, &[8]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        wait_until("it serves", PATIENCE, || load.served_by("db") > 100);
        script.wait_for_answers(MANY);
        assert_eq!(names(&peers), ["db"]);
        script.say(Answer::of(&[A, B]));
        becomes(&peers, &["db/10.0.0.1", "db/10.0.0.2"]);
        wait_until("they have its share", PATIENCE, || links(&peers) == [4, 4]);
        wait_until("both serve", PATIENCE, || {
            load.served_by("db/10.0.0.1") > 100 && load.served_by("db/10.0.0.2") > 100
        });
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    assert_eq!((db.open(), a.open()), (0, 4));
}

/// What was said of the name is said of its addresses.
#[test]
fn what_an_operator_did_with_the_name_holds_for_its_addresses() {
    servers("operator", ["db", A, C]);
    let down = || Script::new(Answer::Error("down"));
    let script = down();
    let other = resolved("operator", &script).peer("v4", url("operator", C));
    let manager = other.build().expect("the settings are right");
    let peers = manager.peers();
    peers.set_weight("db", 7).expect("there is such a peer");
    assert!(peers.drain("db").expect("there is such a peer").wait(PATIENCE));
    script.say(Answer::of(&[A]));
    becomes(&peers, &["v4", "db/10.0.0.1"]);
    wait_until("it is drained", PATIENCE, || state(&peers, "db/10.0.0.1") == PeerState::Drained);
    assert_eq!(peers.snapshot().peer("db/10.0.0.1").expect("it is there").weight, 7);

    let script = down();
    let other = resolved("operator", &script).peer("v4", url("operator", C));
    let manager = other.build().expect("the settings are right");
    let peers = manager.peers();
    assert!(peers.remove("db").expect("there is such a peer").wait(PATIENCE));
    script.say(Answer::of(&[A]));
    script.wait_for_answers(0);
    let asked = script.asked();
    assert!(!within(SOON, || script.asked() > asked), "nobody asks for it any more");
    assert_eq!(names(&peers), ["v4"], "it was removed");
}

#[test]
fn an_address_is_gone_that_is_missing_twice_in_a_row() {
    let test = "rotation";
    let all = ["db/10.0.0.1", "db/10.0.0.2", "db/10.0.0.3"];
    servers(test, [A, B, C]);
    let script = Script::of(&[A, B, C]);
    let manager = resolved(test, &script).build().expect("the settings are right");
    let peers = manager.peers();
    let some = [[A, B], [B, C], [C, A], [A, B], [C, B], [A, C]];
    script.say_each(some.iter().map(|some| Answer::of(some)).chain([Answer::of(&[A, B, C])]));
    script.wait_for_answers(some.len() + 1);
    assert_eq!(names(&peers), all, "none is missing from two of these in a row");
    assert_eq!(events(&peers).len(), 6, "nothing has happened since the start");
    script.say(Answer::of(&[A, C]));
    becomes(&peers, &[all[0], all[2]]);
    assert_eq!(events_of(&peers, all[1]), ["added", "draining", "drained", "removed"]);
}

#[test]
fn an_answer_that_is_of_no_use_changes_nothing() {
    servers("useless", [A, B]);
    let script = Script::of(&[A, B]);
    let manager = resolved("useless", &script).build().expect("the settings are right");
    let peers = manager.peers();
    let both = ["db/10.0.0.1", "db/10.0.0.2"];
    for answer in [Answer::of(&[]), Answer::Error("down"), Answer::Panic] {
        script.say(answer.clone());
        script.wait_for_answers(MANY);
        assert_eq!(names(&peers), both, "{answer:?}");
    }
    script.say(Answer::of(&[B]));
    becomes(&peers, &both[1..]);
}

#[test]
fn a_resolver_that_hangs_keeps_nobody_waiting() {
    let test = "hangs";
    let [db, _a] = servers(test, ["db", A]);
    let script = Script::of(&[A]);
    script.hold(true);
    let start = Instant::now();
    let (pool, peers) = pool_of(resolved(test, &script).check_interval(SOON), 2);
    assert!(start.elapsed() < PATIENCE / 2, "the first answers are not waited for without end");
    fill(&pool, &peers, &[2]);
    let logins = db.logins();
    wait_until("the peer is checked meanwhile", PATIENCE, || db.logins() > logins + 2);
    script.hold(false);
    wait_until("it is replaced as the pool is used", PATIENCE, || {
        drop(pool.get().expect("both live"));
        names(&peers) == ["db/10.0.0.1"]
    });
}

#[test]
fn what_an_operator_has_set_is_not_undone() {
    let test = "set";
    servers(test, [A, B, C, "10.0.0.4", "10.0.0.9"]);
    let script = Script::of(&[A, B, C]);
    let builder = resolved(test, &script).peer("v4", url(test, "10.0.0.9"));
    let manager = builder.build().expect("the settings are right");
    let peers = manager.peers();
    let [a, b, c] = ["db/10.0.0.1", "db/10.0.0.2", "db/10.0.0.3"];
    assert!(peers.drain(a).expect("there is such a peer").wait(PATIENCE));
    peers.set_weight(b, 5).expect("there is such a peer");
    assert!(peers.remove(c).expect("there is such a peer").wait(PATIENCE));
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["v4", a, b], "the one that was removed is not added again");
    assert_eq!(state(&peers, a), PeerState::Drained);
    assert_eq!(peers.snapshot().peer(b).expect("it is there").weight, 5);

    // His own, by a name that the resolver would give.
    for own in [c, "db/10.0.0.4"] {
        peers.add(PeerConfig::new(own, url(test, C))).expect("there is none");
    }
    script.say(Answer::of(&[A, B, C, "10.0.0.4"]));
    script.wait_for_answers(MANY);
    script.say(Answer::of(&[B]));
    becomes(&peers, &["v4", b, c, "db/10.0.0.4"]);
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["v4", b, c, "db/10.0.0.4"], "what was added is left alone");

    for own in [c, "db/10.0.0.4"] {
        assert!(peers.remove(own).expect("there is such a peer").wait(PATIENCE));
    }
    script.say(Answer::of(&[A, B, C]));
    becomes(&peers, &["v4", b, a, c]);
    assert_eq!(state(&peers, a), PeerState::Up, "what was gone is another peer when it is back");
}

#[test]
fn the_last_one_with_a_weight_stays() {
    let test = "last";
    servers(test, [A, B]);
    let script = Script::of(&[A, B]);
    let manager = resolved(test, &script).build().expect("the settings are right");
    let peers = manager.peers();
    let [a, b] = ["db/10.0.0.1", "db/10.0.0.2"];
    peers.set_weight(b, 0).expect("the other has one");
    script.say(Answer::of(&[B]));
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), [a, b], "nobody would serve");
    peers.set_weight(b, 1).expect("there is such a peer");
    becomes(&peers, &[b]);
}

/// Names that are given to `replace` are resolved as those of the start are.
#[test]
fn peers_that_are_replaced_are_resolved_as_well() {
    let test = "replace";
    servers(test, ["db", "other", A, B, C]);
    let script = Script::of(&[A, B]);
    let manager = resolved(test, &script).build().expect("the settings are right");
    let peers = manager.peers();
    let [a, b] = ["db/10.0.0.1", "db/10.0.0.2"];
    let config = |name: &str, host: &str| PeerConfig::new(name, url(test, host));
    assert!(peers.drain(a).expect("there is such a peer").wait(PATIENCE));
    peers.set_weight(b, 5).expect("there is such a peer");
    let (before, now) = (events(&peers).len(), || events(&peers).len());
    peers.replace([config("db", "db")]).expect("it is right");
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), [a, b]);
    assert_eq!(state(&peers, a), PeerState::Drained, "it stays so");
    assert_eq!(now(), before, "nothing has happened: {:?}", events(&peers));

    peers.replace([config("db", "db").weight(3), config("v4", C)]).expect("they are right");
    becomes(&peers, &[a, b, "v4"]);
    assert_eq!(peers.snapshot().peer(b).expect("it is there").weight, 3);
    script.say(Answer::of(&[A, B, C]));
    becomes(&peers, &[a, b, "v4", "db/10.0.0.3"]);
    assert_eq!(peers.snapshot().peer("db/10.0.0.3").expect("it is there").weight, 3);

    assert!(peers.remove(a).expect("there is such a peer").wait(PATIENCE));
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), [b, "v4", "db/10.0.0.3"], "not by an answer");
    peers.replace([config("db", "db"), config("v4", C)]).expect("they are right");
    becomes(&peers, &[b, "v4", "db/10.0.0.3", a]);

    peers.replace([config("v4", C), config("other", "other"), config(a, A)]).expect("right");
    becomes(&peers, &["v4", a, "other/10.0.0.1", "other/10.0.0.2", "other/10.0.0.3"]);
    script.say(Answer::of(&[C]));
    becomes(&peers, &["v4", a, "other/10.0.0.3"]);
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["v4", a, "other/10.0.0.3"], "{a} is the operator's own now");

    peers.replace([config("v4", C)]).expect("it is right");
    becomes(&peers, &["v4"]);
    assert!(!within(SOON, || names(&peers) != ["v4"]), "no name is left");
    peers.replace([config("db", "db")]).expect("it is right");
    becomes(&peers, &["db/10.0.0.3"]);
}

/// As at the start.
#[test]
fn a_certificate_of_a_name_is_not_verified_at_an_address() {
    let test = "verify";
    servers(test, [A]);
    let script = Script::of(&[A]);
    let manager = resolved(test, &script).build().expect("the settings are right");
    let url = "mysql://app@db/shop?ssl_mode=verify_identity";
    let error = manager.peers().replace([PeerConfig::new("db", url)]).expect_err("it cannot be");
    assert!(error.to_string().contains("`resolve_interval` replaces the name"), "{error}");
}

/// `add` gives the peer that was asked for.
#[test]
fn a_name_that_is_added_by_hand_is_left_alone() {
    let test = "by-hand";
    servers(test, ["db1", A]);
    let script = Script::of(&[A]);
    let manager = resolved(test, &script).build().expect("the settings are right");
    let peers = manager.peers();
    peers.add(PeerConfig::new("db1", url(test, "db1"))).expect("there is none");
    script.wait_for_answers(MANY);
    assert_eq!(names(&peers), ["db/10.0.0.1", "db1"]);
}

/// As an example of what the client library is told, which only it can tell.
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

    /// Nobody but the script knows it.
    const HOST: &str = "db.invalid";

    fn an_address_comes_and_another_goes_under_load<B: RealServer>() {
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
            script.say(Answer::of(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]));
            becomes(&peers, &all);
            wait_until("it has its share", PATIENCE, || links(&peers) == [2, 2, 2]);
            wait_until("it serves", PATIENCE, || load.served_by(all[2]) > 100);
            script.say(Answer::of(&["127.0.0.1", "127.0.0.3"]));
            becomes(&peers, &[all[0], all[2]]);
            // It is drained, so nobody misses it.
            servers[1].kill();
            let served = load.served_by(all[1]);
            wait_until("the others have its share", PATIENCE, || links(&peers) == [3, 3]);
            let before = load.rounds();
            wait_until("all go on", PATIENCE, || load.all_came_back(&before, 20));
            assert_eq!(load.served_by(all[1]), served, "it gets no work");
        });
        assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
        assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    }

    #[test]
    fn mariadb() {
        an_address_comes_and_another_goes_under_load::<MariaDb>();
    }

    #[test]
    fn postgres() {
        an_address_comes_and_another_goes_under_load::<Postgres>();
    }

    /// libpq's other form, and its own search for several hosts is left to it.
    #[test]
    fn postgres_by_keywords() {
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

    /// A certificate is the name's, wherever that leads.
    #[test]
    fn postgres_verifies_the_name() {
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
        wait_until("nobody vouches for this one", PATIENCE, || {
            state(&peers, "db/127.0.0.1") == PeerState::Down
        });
        let reason = peers.snapshot().peers[0].reason.clone().expect("it is down");
        assert!(reason.contains("other.example"), "{reason}");
    }
}
