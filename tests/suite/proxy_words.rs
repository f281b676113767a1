//! What a proxy such as ProxySQL says of the servers behind it, through a server that says any text.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel_peers::{Fault, PeerState};
use support::backend::{PATIENCE, SOON, links, manager_of, pool_of, state, status};
use support::mysql_words::MySqlWords;
use support::{wait_until, within};

/// The readers behind the proxy are gone. A login whose first SELECT fails must not count, or the peer would have
/// connections whose socket is unknown and whose pings have no deadline.
#[test]
fn peer_whose_readers_are_gone_stays_down() {
    let servers = [(); 2].map(|()| MySqlWords::start());
    let text = "Max connect timeout reached while reaching hostgroup 1 after 3000ms";
    servers[0].say("SELECT", "9001", text);
    let builder = manager_of::<MysqlConnection>(servers.iter().map(MySqlWords::url));
    let (pool, peers) = pool_of(builder.check_interval(SOON), 4);
    wait_until("the pool has its connections", PATIENCE, || links(&peers) == [0, 4]);
    assert_eq!(status(&peers, "peer0").fault, Some(Fault::PeerNotReady));
    let since = status(&peers, "peer0").since;
    // Several checks later.
    assert!(
        !within(SOON * 8, || status(&peers, "peer0").since != since),
        "it is never up meanwhile"
    );
    servers[0].say_nothing_more();
    wait_until("the peer is back", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [2, 2]
    });
}

/// A proxy accepts logins itself, and reports the refusal of a server with the first query.
#[test]
fn refusals_of_the_server_behind_a_proxy_are_understood() {
    for (number, text, fault) in [
        ("1045", "Access denied for user 'app'@'%' (using password: YES)", Fault::Misconfigured),
        ("1044", "Access denied for user 'app'@'%' to database 'nothing'", Fault::Misconfigured),
        ("9001", "Max connect failure while reaching hostgroup 0", Fault::PeerNotReady),
    ] {
        let servers = [(); 2].map(|()| MySqlWords::start());
        servers[0].say("BEGIN", number, text);
        let builder = manager_of::<MysqlConnection>(servers.iter().map(MySqlWords::url));
        let (_pool, peers) = pool_of(builder.check_interval(SOON), 2);
        wait_until("the peer is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        assert_eq!(status(&peers, "peer0").fault, Some(fault), "{text}");
    }
    let servers = [(); 2].map(|()| MySqlWords::start());
    servers[0].say("BEGIN", "1040", "Too many connections");
    let builder = manager_of::<MysqlConnection>(servers.iter().map(MySqlWords::url));
    let (_pool, peers) = pool_of(builder.check_interval(SOON), 2);
    wait_until("the peer is full", PATIENCE, || status(&peers, "peer0").is_full);
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "and not down");
}

/// One connection between the proxy and its server was dead already.
#[test]
fn session_that_is_lost_during_a_check_marks_no_peer_down() {
    let server = MySqlWords::start();
    let builder = manager_of::<MysqlConnection>([server.url()]).check_interval(PATIENCE);
    let (pool, peers) = pool_of(builder, 1);
    drop(pool.get().expect("the server answers"));
    let is_down = || state(&peers, "peer0").is_marked_down();
    let check_and_lose = |sessions: usize| {
        let before = server.logins();
        server.end_sessions(sessions);
        peers.check_now("peer0").expect("it exists");
        wait_until("the login is repeated", PATIENCE, || server.logins() >= before + 2);
    };
    check_and_lose(1);
    assert!(!within(SOON, is_down), "the second login decides");
    check_and_lose(2);
    wait_until("a session was lost twice", PATIENCE, is_down);
}

/// ProxySQL passes on the errors of its own client library. MariaDB's library takes them for broken packets.
#[test]
fn error_under_a_number_of_the_client_library_is_a_lost_connection() {
    let server = MySqlWords::start();
    let (pool, _peers) = pool_of(manager_of::<MysqlConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the server answers");
    server.say("SELECT 7", "2013", "Lost connection to server during query");
    let error = conn.batch_execute("SELECT 7").expect_err("the server says so");
    assert_eq!(Fault::of(&error), Fault::ConnectionLost, "{error}");
    drop(conn);
    server.say_nothing_more();
    pool.get().expect("it was pinged").batch_execute("SELECT 7").expect("the server answers");
}
