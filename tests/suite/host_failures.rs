//! Logins that fail because of this host mark no peer down and end no session. The error of the pool says what
//! this host lacks.

use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{AnsiTransactionManager, TransactionManager};
use diesel_peers::PeerState;
use support::backend::{PATIENCE, SOON, fill, links, pool_of, state, status};
use support::scripted::Servers;
use support::wait_until;

/// The size of the pools, and the connections of each of three peers when one connection is missing.
const CONNECTIONS: u32 = 7;

#[expect(clippy::disallowed_methods, reason = "the failure lasts for some time")]
fn host_fails(errors: [&'static str; 3], reason: &str) {
    let servers = Servers::start(3);
    let (pool, peers) = pool_of(servers.builder(), CONNECTIONS);
    wait_until("the pool is full", PATIENCE, || links(&peers).iter().sum::<usize>() == 7);
    for (server, error) in servers.iter().zip(errors) {
        server.fail_logins_with(error);
    }
    // A connection with an open transaction is closed, and cannot be replaced.
    let mut conn = pool.get().expect("the pool is full");
    AnsiTransactionManager::begin_transaction(&mut **conn).expect("the server works");
    drop(conn);
    let logins = || servers.iter().map(|server| server.logins()).sum::<usize>();
    thread::sleep(Duration::from_secs(1));
    let (before, began) = (logins(), Instant::now());
    let held: Vec<_> = (0..6).map(|_| pool.get().expect("six connections are left")).collect();
    let error =
        pool.get_timeout(Duration::from_secs(1)).map(|_| ()).expect_err("no seventh can be opened");
    assert!(error.to_string().contains(reason), "{error}");
    thread::sleep(Duration::from_secs(1));
    let tries = logins() - before;
    let rounds = began.elapsed().as_millis() / 250 + 1;
    assert!(tries as u128 <= 3 * rounds, "{tries} logins in {rounds} intervals of 250 ms");
    for index in 0..3 {
        let status = status(&peers, &format!("peer{index}"));
        assert_eq!(status.state, PeerState::Up, "{:?}", status.reason);
    }
    assert!(peers.snapshot().events.is_empty(), "{:?}", peers.snapshot().events);
    assert_eq!(links(&peers).iter().sum::<usize>(), 6, "no session ends");
    servers.iter().for_each(|server| server.accept(true));
    pool.get().expect("the seventh is opened when this host can do so again");
    drop(held);
}

#[test]
fn host_without_descriptors_blames_no_peer() {
    const NO_DESCRIPTORS: &str = "Can't create TCP/IP socket (24)";
    host_fails(
        [NO_DESCRIPTORS; 3],
        "this process has no file descriptors left (EMFILE or ENFILE): Can't create TCP/IP socket",
    );
}

#[test]
fn host_that_resolves_no_name_blames_no_peer() {
    host_fails(
        [
            "Unknown server host 'db0.invalid' (-3)",
            "Unknown server host 'db1.invalid' (-3)",
            "Unknown MySQL server host 'db2.invalid' (-2)",
        ],
        "this host cannot resolve the name of any peer: ",
    );
}

#[test]
fn host_without_a_network_blames_no_peer() {
    host_fails(
        ["Can't connect to server on '10.0.0.1' (101)"; 3],
        "this host has no route to the network of any peer (ENETUNREACH): ",
    );
}

#[test]
fn one_name_that_cannot_be_resolved_is_the_peers_failure() {
    let servers = Servers::start(3);
    let (pool, peers) = pool_of(servers.builder().check_interval(SOON), 6);
    fill(&pool, &peers, &[2, 2, 2]);
    servers[0].fail_logins_with("Unknown server host 'db0.invalid' (-2)");
    wait_until("the peer is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    wait_until("others replace its connections", PATIENCE, || links(&peers)[0] == 0);
    servers[1].fail_logins_with("Unknown server host 'db1.invalid' (-2)");
    wait_until("the second peer is down", PATIENCE, || state(&peers, "peer1").is_marked_down());
    servers.iter().for_each(|server| server.accept(true));
    wait_until("all are up", PATIENCE, || {
        (0..3).all(|index| state(&peers, &format!("peer{index}")) == PeerState::Up)
    });
}
