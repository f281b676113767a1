//! The work of a peer that answers, and slowly, shifts to the other peers until it is fast again.

#![cfg(feature = "mysql")]

use std::sync::{Arc, Mutex};

use diesel::MysqlConnection;
use diesel_peers::EventKind;
use support::backend::{Backend, PATIENCE, links, manager_over, status};
use support::load::Load;
use support::mariadb::MariaDb;
use support::one_of_three::{CONNECTIONS, SHARES, full_pool, serves_its_share};
use support::wait_until;

/// As many threads as connections, so that the other peers have an idle one only after connections have moved.
const THREADS: usize = CONNECTIONS as usize;

#[test]
fn slow_peer_is_relieved_until_it_is_fast_again() {
    let servers = <MariaDb as Backend>::start(3);
    for server in &servers {
        server.sql("CREATE TABLE app.delay (seconds DOUBLE) SELECT 0.002 AS seconds");
    }
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = events.clone();
    let builder = manager_over(&servers)
        .event_handler(move |event| seen.lock().expect("no panic").push(event.clone()));
    let (pool, peers) = full_pool::<MysqlConnection>(builder);
    let slow = || status(&peers, "peer1").slow_since.is_some();
    let observed = Load::run(&pool, THREADS, "SELECT SLEEP(seconds) FROM delay", |load| {
        wait_until("the pool serves", PATIENCE, || load.served() > 500);
        assert!(!slow(), "equal peers are not slow");
        servers[1].sql("UPDATE app.delay SET seconds = 0.05");
        wait_until("the peer is slow", PATIENCE, slow);
        wait_until("its connections have moved, except for one at most", PATIENCE, || {
            links(&peers)[1] <= 1 && links(&peers).iter().sum::<usize>() == CONNECTIONS as usize
        });
        let (all, own) = (load.served(), load.served_by("peer1"));
        wait_until("the others serve", PATIENCE, || load.served() >= all + 1000);
        let trials = load.served_by("peer1") - own;
        assert!(trials <= 50, "the slow peer has served {trials} of a thousand queries");
        wait_until("the slow peer is tried", PATIENCE, || load.served_by("peer1") >= own + 2);
        assert!(slow(), "the peer is still slow");
        servers[1].sql("UPDATE app.delay SET seconds = 0.002");
        wait_until("the peer is not slow any more", PATIENCE, || !slow());
        wait_until("it has its connections again", PATIENCE, || links(&peers) == SHARES);
        serves_its_share("peer1", load);
    });
    assert!(observed.failed.is_empty() && observed.refused.is_empty(), "{observed:?}");
    let events = events.lock().expect("no panic");
    let kinds: Vec<_> = events
        .iter()
        .filter(|event| {
            matches!(event.kind, EventKind::Slow { .. } | EventKind::NoLongerSlow { .. })
        })
        .map(|event| (&*event.peer, event.kind.as_str()))
        .collect();
    assert_eq!(kinds, [("peer1", "slow"), ("peer1", "no_longer_slow")]);
    let text = events.iter().map(ToString::to_string).find(|text| text.contains("outlier"));
    let text = text.expect("the event is there");
    assert!(text.starts_with("peer peer1 is slow, an outlier: a checkout spends "), "{text}");
    assert!(text.ends_with("; its work goes to these"), "{text}");
}
