//! A peer that accepts connections and says nothing, or does not even accept, keeps nobody waiting
//! for longer than `connect_timeout`, and no other peer from being used and checked.

use std::sync::Arc;
use std::time::Duration;

use diesel_peers::{PeerState, Recovery};
use support::backend::{PATIENCE, SOON, links, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

const TIMEOUT: Duration = Duration::from_millis(300);

fn two_servers() -> [Arc<Server>; 2] {
    [Server::start(), Server::start()]
}

#[test]
fn a_pool_comes_up_with_those_that_answer() {
    let servers = two_servers();
    servers[0].hold_logins(true);
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let builder = builder.check_interval(SOON).connect_timeout(TIMEOUT);
    let (pool, peers) = pool_of(builder, 6);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 6]);
    wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    let reason = peers.snapshot().peers.swap_remove(0).reason.expect("with a reason");
    assert!(reason.contains("no answer to a login within 300ms"), "with the reason: {reason}");
    servers[0].hold_logins(false);
    wait_until("it is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    wait_until("it has its share", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [3, 3]
    });
}

#[test]
fn the_others_are_checked_and_it_is_checked_again() {
    let servers = two_servers();
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let (_pool, peers) = pool_of(builder.check_interval(SOON).connect_timeout(TIMEOUT), 2);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [1, 1]);
    servers[0].hold_logins(true);
    let logins = servers[0].logins();
    wait_until("a check of it hangs", PATIENCE, || servers[0].logins() > logins);
    servers[1].accept(false);
    wait_until("the other is checked meanwhile", PATIENCE, || {
        state(&peers, "peer1") == PeerState::Down
    });
    wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    // Each check hangs, and the next one is made all the same.
    let logins = servers[0].logins();
    wait_until("it is tried again", PATIENCE, || servers[0].logins() >= logins + 3);
    servers[0].hold_logins(false);
    wait_until("it is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

#[test]
fn connections_that_work_are_not_given_up_for_it() {
    let servers = two_servers();
    servers[0].crash();
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()))
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .rebalance_interval(Duration::ZERO);
    let (pool, peers) = pool_of(builder, 12);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 12]);
    servers[0].accept(true);
    wait_until("it passes a check", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    servers[0].hold_logins(true);
    // While the first login there is under way no other connection is closed.
    within(Duration::from_secs(1), || {
        drop(pool.get());
        false
    });
    assert!(links(&peers)[1] >= 10, "they stay: {:?}", links(&peers));
    servers[0].hold_logins(false);
}

/// The next peer is tried beside one that takes long, and the first that answers is used.
#[test]
fn nobody_waits_for_it_while_another_answers() {
    let servers = two_servers();
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()));
    let manager = builder.connect_timeout(PATIENCE).build().expect("the settings are right");
    let peers = manager.peers();
    servers[0].hold_logins(true);
    let connect = || diesel::r2d2::ManageConnection::connect(&manager).expect("one answers");
    let conns = [connect(), connect()];
    assert!(conns.iter().all(|conn| conn.peer() == "peer1"), "the one that answers");
    assert!(servers[0].logins() >= 1, "the other was asked");
    servers[0].hold_logins(false);
    wait_until("what comes too late is closed", PATIENCE, || {
        let status = peers.snapshot().peers.swap_remove(0);
        servers[0].most_open() >= 1 && servers[0].open() == 0 && status.connections == 0
    });
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!(
        (status.state, status.connect_failures),
        (PeerState::Up, 0),
        "and counts as no failure"
    );
    assert_eq!(status.connects, 0, "nor as a connection of the pool");
}

/// One `connect()` ends in time, however many peers hang.
#[test]
fn all_logins_together_are_bounded() {
    let servers: Vec<_> = (0..4).map(|_| Server::start()).collect();
    for server in &servers {
        server.hold_logins(true);
    }
    let builder = manager_of::<ScriptedConnection>(servers.iter().map(|server| server.url()))
        .connect_deadline(TIMEOUT);
    let manager = builder.build().expect("the settings are right");
    let story = diesel::r2d2::ManageConnection::connect(&manager).expect_err("none answers");
    assert!(story.to_string().contains("no answer yet"), "{story}");
    for server in &servers {
        server.hold_logins(false);
    }
}

/// What hangs is dialed by the checker alone, however many ask.
#[test]
fn it_is_not_dialed_again_and_again() {
    let server = Server::start();
    server.hold_logins(true);
    let builder = manager_of::<ScriptedConnection>([server.url()])
        .connect_timeout(TIMEOUT)
        .all_down_wait(Duration::ZERO);
    let manager = builder.build().expect("the settings are right");
    let connect = || diesel::r2d2::ManageConnection::connect(&manager);
    connect().expect_err("no answer");
    for _ in 0..5 {
        let story = connect().expect_err("it is not even tried").to_string();
        assert!(story.contains("skipped, marked down (no answer"), "{story}");
    }
    assert_eq!(server.logins(), 1, "one login is left behind");
    server.hold_logins(false);
    wait_until("it is tried again when that has ended", PATIENCE, || connect().is_ok());
}

/// Not even with marks that are cleared unasked.
#[test]
fn nor_when_marks_are_cleared_unasked() {
    let server = Server::start();
    server.hold_logins(true);
    let builder = manager_of::<ScriptedConnection>([server.url()])
        .recovery(Recovery::AfterInterval)
        .check_interval(SOON)
        .connect_timeout(TIMEOUT);
    let manager = builder.build().expect("the settings are right");
    let peers = manager.peers();
    wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    within(5 * SOON, || {
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "nothing is known to have changed");
        false
    });
    server.hold_logins(false);
    wait_until("it is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

#[cfg(feature = "mysql")]
mod real_servers {
    use super::{TIMEOUT, manager_of, pool_of};
    use support::backend::fill;
    use support::mariadb::{self, MariaDb};
    use support::network::{FullBacklog, Silent};

    fn beside_one_that_hangs(port: u16) {
        let servers = [MariaDb::start(), MariaDb::start()];
        let urls = [servers[0].url(), mariadb::url(port), servers[1].url()];
        let builder = manager_of::<diesel::MysqlConnection>(urls).connect_timeout(10 * TIMEOUT);
        let (pool, peers) = pool_of(builder, 6);
        fill(&pool, &peers, &[3, 0, 3]);
        pool.get().expect("two peers live");
    }

    #[test]
    fn a_port_that_accepts_and_says_nothing() {
        let silent = Silent::start();
        beside_one_that_hangs(silent.port());
    }

    #[test]
    fn a_port_that_does_not_even_accept() {
        let full = FullBacklog::start();
        beside_one_that_hangs(full.port());
    }
}
