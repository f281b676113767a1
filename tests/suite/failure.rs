//! A peer that fails to connect is marked and left alone; it comes back after the interval.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel::r2d2::{ManageConnection, Pool};
use diesel_peers::{AllDown, Failure, Fault, PeerManager, PeerState, Recovery};
use support::backend::{Backend, PATIENCE, SOON, fill, links, manager_over, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

support::on_every_backend!(
    one_peer_down_at_the_start,
    all_peers_down,
    a_peer_comes_back_after_the_interval,
    some_peers_come_back,
);

fn one_peer_down_at_the_start<B: Backend>() {
    let mut servers = B::start(3);
    servers[1].kill();
    let (pool, peers) = pool_of(manager_over(&servers), 6);
    fill(&pool, &peers, &[3, 0, 3]);
    let dead = peers.snapshot().peers.swap_remove(1);
    assert_eq!(dead.state, PeerState::Down, "the dead one is marked");
    assert!(dead.reason.is_some_and(|reason| !reason.is_empty()), "with a reason");
    assert!(dead.connect_failures >= 1 && dead.connects == 0, "and its failures are counted");
    for _ in 0..20 {
        let mut conn = pool.get().expect("two peers live");
        conn.batch_execute("SELECT 1").expect("this one does");
        assert_ne!(conn.peer(), "peer1", "no query goes to the dead peer");
    }
}

fn all_peers_down<B: Backend>() {
    let mut servers = B::start(2);
    servers.iter_mut().for_each(Backend::kill);
    let manager = manager_over(&servers).build().expect("nothing is connected to yet");
    let peers = manager.peers();
    let error = Pool::builder()
        .max_size(2)
        .connection_timeout(Duration::from_secs(2))
        .build(manager)
        .expect_err("no peer lives");
    let story = error.to_string();
    for told in ["peer0: ", "peer1: ", "next check in "] {
        assert!(story.contains(told), "the error tells the story of each peer: {story}");
    }
    for server in &servers {
        assert!(!story.contains(&server.url()), "but not its URL: {story}");
    }
    assert!(peers.snapshot().peers.iter().all(|peer| peer.state == PeerState::Down), "{peers:?}");
    servers[0].restart();
    wait_until("the pool's last try ends", PATIENCE, || peers.snapshot().closed);
}

fn a_peer_comes_back_after_the_interval<B: Backend>() {
    let mut servers = B::start(3);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 6);
    fill(&pool, &peers, &[2, 2, 2]);
    servers[0].kill();
    wait_until("the checker notices", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    // A connection is looked at when it is checked out and when it comes back.
    let check_out_all = || (0..6).map_while(|_| pool.try_get()).collect::<Vec<_>>();
    wait_until("its connections move to the others", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [0, 3, 3]
    });
    servers[0].restart();
    wait_until("a check finds it up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    wait_until("it has its share again", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [2, 2, 2]
    });
    wait_until("it serves", PATIENCE, || {
        let mut all = check_out_all();
        let conn = all.iter_mut().find(|conn| conn.peer() == "peer0");
        conn.is_some_and(|conn| conn.batch_execute("SELECT 1").is_ok())
    });
}

fn some_peers_come_back<B: Backend>() {
    let mut servers = B::start(3);
    servers.iter_mut().for_each(Backend::kill);
    let (pool, peers) = pool_of(manager_over(&servers).check_interval(SOON), 4);
    for name in ["peer0", "peer1", "peer2"] {
        wait_until("all are marked", PATIENCE, || state(&peers, name) == PeerState::Down);
    }
    servers[2].restart();
    wait_until("a connection is there", PATIENCE, || pool.get().is_ok());
    fill(&pool, &peers, &[0, 0, 4]);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "the others stay down");
}

/// The mark is cleared unasked: the next connection finds out.
#[test]
fn marks_can_be_cleared_without_a_check() {
    let servers = [Server::start(), Server::start()];
    servers[0].crash();
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let (pool, peers) = pool_of(builder.recovery(Recovery::AfterInterval).check_interval(SOON), 4);
    fill(&pool, &peers, &[0, 4]);
    wait_until("the mark is set", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    let logins = servers[0].logins();
    wait_until("the mark is cleared", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    assert_eq!(servers[0].logins(), logins, "nobody asked");
}

/// A node that takes logins but refuses work (a Galera node that is not ready) stays down.
#[test]
fn a_login_alone_does_not_bring_a_peer_back() {
    let server = Server::start();
    server.crash();
    let builder = support::backend::manager_of::<ScriptedConnection>([server.url()]);
    let (pool, peers) = pool_of(builder.check_interval(SOON), 1);
    wait_until("it is down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    server.work(false);
    server.accept(true);
    let begins = server.begins();
    wait_until("it is tried and checked", PATIENCE, || server.begins() >= begins + 3);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "it refuses all work");
    assert!(pool.try_get().is_none(), "so no connection to it is handed out");
    server.work(true);
    wait_until("it is up when it works", PATIENCE, || pool.get().is_ok());
    wait_until("nothing is left in a transaction", PATIENCE, || {
        // Those that were refused never began.
        server.rollbacks() > 0 && server.begins() >= server.rollbacks()
    });
}

/// A connection that was tried while its peer was down comes out of the test's transaction.
#[test]
fn a_connection_that_brought_its_peer_back_is_in_no_transaction() {
    let server = Server::start();
    server.crash();
    let builder = support::backend::manager_of::<ScriptedConnection>([server.url()]);
    let manager = builder.all_down_interval(PATIENCE).build().expect("the settings are right");
    ManageConnection::connect(&manager).expect_err("it is down");
    // The checker looks once, at once, and not again for long.
    let failures = || manager.peers().snapshot().peers[0].connect_failures;
    wait_until("it is checked", PATIENCE, || failures() == 2);
    server.accept(true);
    let conn = ManageConnection::connect(&manager).expect("it is tried");
    assert_eq!((server.begins(), server.rollbacks()), (1, 1), "tested, and rolled back");
    assert_eq!(state(&manager.peers(), "peer0"), PeerState::Up, "it is back");
    drop(conn);
}

/// A node that takes no work takes logins all the same: each one has to pass a check's test.
#[test]
fn a_node_that_refuses_work_gets_no_connection() {
    let servers = [Server::start(), Server::start()];
    servers[0].work(false);
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[0, 4]);
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::PeerNotReady)));
    assert_eq!(servers[0].open(), 0, "nothing is left there");
}

/// A node that stops taking work is checked at once, and not only when its next check is due.
#[test]
fn a_node_that_refuses_work_is_checked_at_once() {
    let servers = [Server::start(), Server::start()];
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    servers[0].work(false);
    wait_until("a transaction there marks it", PATIENCE, || {
        let mut conn = pool.get().expect("pings are answered");
        let outcome = conn.transaction(|_| Ok::<_, diesel::result::Error>(()));
        assert!(outcome.is_ok() || conn.peer() == "peer0", "the other one works");
        state(&peers, "peer0") == PeerState::Down
    });
}

#[test]
fn when_all_are_down_nothing_is_dialed_if_so_told() {
    for (all_down, dialed) in [(AllDown::Try, true), (AllDown::Fail, false)] {
        let server = Server::start();
        server.crash();
        let manager = PeerManager::<ScriptedConnection>::builder()
            .peer("only", server.url())
            .all_down(all_down)
            .all_down_wait(Duration::ZERO)
            // No check is counted.
            .all_down_interval(Duration::from_secs(30))
            .build()
            .expect("the settings are right");
        let connect = || ManageConnection::connect(&manager).expect_err("it is down");
        connect();
        let logins = server.logins();
        let story = connect().to_string();
        assert_eq!(server.logins() > logins, dialed, "{all_down:?}: whether it is tried");
        assert!(story.contains("only: ") && story.contains("refused by"), "{all_down:?}: {story}");
    }
}

/// None could be opened in the place of one that is closed.
#[test]
fn old_connections_are_kept_while_no_peer_takes_work() {
    let servers = [Server::start(), Server::start()];
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let (pool, peers) = pool_of(builder.check_interval(SOON).connection_max_age(5 * SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    for server in &servers {
        server.accept(false);
    }
    let all_are = |expected| ["peer0", "peer1"].iter().all(|name| state(&peers, name) == expected);
    wait_until("all are down", PATIENCE, || all_are(PeerState::Down));
    assert!(!within(6 * SOON, || false), "they grow old");
    for _ in 0..20 {
        let mut conn = pool.get_timeout(SOON).expect("those from before go on being used");
        conn.batch_execute("SELECT 1").expect("sessions go on");
    }
    for server in &servers {
        server.accept(true);
    }
    wait_until("all are up", PATIENCE, || all_are(PeerState::Up));
    let connects = || peers.snapshot().peers.iter().map(|peer| peer.connects).sum::<u64>();
    let before = connects();
    wait_until("the old ones are replaced", PATIENCE, || {
        drop(pool.get().expect("peers live"));
        connects() >= before + 4
    });
}

/// Its own word on a query is worth a mark and a check, also where marks are cleared unasked: or it would
/// soon get all the work again.
#[test]
fn a_node_that_refuses_work_is_not_cleared_unasked_at_once() {
    let servers = [Server::start(), Server::start()];
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let (pool, peers) = pool_of(builder.recovery(Recovery::AfterInterval), 4);
    fill(&pool, &peers, &[2, 2]);
    servers[0].work(false);
    let refused = || {
        let mut conn = pool.get().expect("pings are answered");
        conn.transaction(|_| Ok::<_, diesel::result::Error>(())).is_err()
    };
    wait_until("a transaction there is refused", PATIENCE, refused);
    let failures = || peers.snapshot().peers[0].connect_failures;
    wait_until("it is checked", PATIENCE, || failures() > 0);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "and stays down");
    assert_eq!((0..100).filter(|_| refused()).count(), 0, "nobody meets it");
}

/// The application has a test of its own, which each login and each check has to pass.
#[test]
fn a_peer_that_fails_the_application_s_test_is_down() {
    let servers = [Server::start(), Server::start()];
    let unfit = Arc::new(AtomicBool::new(true));
    let (asked, first) = (unfit.clone(), servers[0].url().to_owned());
    let builder =
        support::backend::manager_of::<ScriptedConnection>(servers.iter().map(|s| s.url()));
    let builder = builder.check_interval(SOON).health_check(move |conn| {
        if conn.url() == first && asked.load(Ordering::SeqCst) {
            return Err(diesel::result::Error::NotFound);
        }
        Ok(())
    });
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[0, 2]);
    assert_eq!(state(&peers, "peer0"), PeerState::Down, "it has not passed");
    unfit.store(false, Ordering::SeqCst);
    wait_until("it passes, and is used", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [1, 1]
    });
}

/// One that is full is up, and has not been down.
#[test]
fn who_finds_all_peers_full_is_told_so() {
    let server = Server::start();
    server.accept(false);
    let manager = PeerManager::<ScriptedConnection>::builder()
        .peer("only", server.url())
        .classify(|failed| matches!(failed, Failure::Login(_)).then_some(Fault::PeerFull))
        .build()
        .expect("the settings are right");
    let story = ManageConnection::connect(&manager).expect_err("it is full").to_string();
    assert!(story.contains("only: refused by") && story.contains(", next check in "), "{story}");
}
