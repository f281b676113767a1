//! A peer that accepts connections and never answers, or does not accept them, delays no thread for longer
//! than `connect_timeout`, and does not keep other peers from being used and checked.

use std::time::Duration;

use diesel_peers::{PeerState, Recovery};
use support::backend::{PATIENCE, SOON, build, links, pool_of, state, status};
use support::scripted::Servers;
use support::{wait_until, within};

const TIMEOUT: Duration = Duration::from_millis(300);

#[test]
fn pool_is_filled_from_the_peers_that_answer() {
    let servers = Servers::start(2);
    servers[0].hold_logins(true);
    let builder = servers.builder().check_interval(SOON).connect_timeout(TIMEOUT);
    let (pool, peers) = pool_of(builder, 6);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 6]);
    wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    let reason = status(&peers, "peer0").reason.expect("a peer that is down has a reason");
    assert!(
        reason.contains("no answer to a login within 300ms"),
        "the reason is a timeout: {reason}"
    );
    servers[0].hold_logins(false);
    wait_until("peer0 is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    wait_until("peer0 has its share", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [3, 3]
    });
}

#[test]
fn hung_peer_is_checked_again_and_does_not_delay_other_checks() {
    let servers = Servers::start(2);
    let builder = servers.builder();
    let (_pool, peers) = pool_of(builder.check_interval(SOON).connect_timeout(TIMEOUT), 2);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [1, 1]);
    servers[0].hold_logins(true);
    let logins = servers[0].logins();
    wait_until("a check of peer0 hangs", PATIENCE, || servers[0].logins() > logins);
    servers[1].accept(false);
    wait_until("a check marks peer1 down meanwhile", PATIENCE, || {
        state(&peers, "peer1").is_marked_down()
    });
    wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    // Each check hangs, and the next one still follows.
    let logins = servers[0].logins();
    wait_until("peer0 is checked three more times", PATIENCE, || servers[0].logins() >= logins + 3);
    servers[0].hold_logins(false);
    wait_until("peer0 is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

#[test]
fn working_connections_are_not_closed_in_favor_of_a_hung_peer() {
    let servers = Servers::start(2);
    servers[0].crash();
    let builder = servers
        .builder()
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .rebalance_interval(Duration::ZERO);
    let (pool, peers) = pool_of(builder, 12);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 12]);
    servers[0].accept(true);
    wait_until("peer0 passes a check", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    servers[0].hold_logins(true);
    // While the first login to peer0 is under way, no other connection is closed.
    within(Duration::from_secs(1), || {
        drop(pool.get());
        false
    });
    assert!(links(&peers)[1] >= 10, "the connections to peer1 stay: {:?}", links(&peers));
    servers[0].hold_logins(false);
}

/// With hedged logins a second peer is tried while the first one is slow, and the first answer is used.
#[test]
fn login_does_not_wait_for_a_hung_peer_while_another_answers() {
    let servers = Servers::start(2);
    let manager = build(servers.builder().connect_timeout(PATIENCE));
    let peers = manager.peers();
    servers[0].hold_logins(true);
    let connect = || diesel::r2d2::ManageConnection::connect(&manager).expect("peer1 answers");
    let conns = [connect(), connect()];
    assert!(
        conns.iter().all(|conn| conn.peer() == "peer1"),
        "the connections lead to the peer that answers"
    );
    assert!(servers[0].logins() >= 1, "the hung peer was dialed");
    servers[0].hold_logins(false);
    wait_until("late connections are closed", PATIENCE, || {
        let connections = status(&peers, "peer0").connections;
        servers[0].most_open() >= 1 && servers[0].open() == 0 && connections == 0
    });
    let status = status(&peers, "peer0");
    assert_eq!(
        (status.state, status.connect_failures),
        (PeerState::Up, 0),
        "a late login does not count as a failure"
    );
    assert_eq!(status.connects, 0, "a late login does not count as a connection of the pool");
}

/// One `connect()` ends at its deadline, however many peers hang.
#[test]
fn connect_deadline_bounds_the_logins_to_all_hung_peers() {
    let servers = Servers::start(4);
    for server in servers.iter() {
        server.hold_logins(true);
    }
    let manager = build(servers.builder().connect_deadline(TIMEOUT));
    let error = diesel::r2d2::ManageConnection::connect(&manager).expect_err("no peer answers");
    assert!(error.to_string().contains("no answer yet"), "{error}");
    for server in servers.iter() {
        server.hold_logins(false);
    }
}

/// After the first timeout only the checker dials a hung peer, however many threads need a connection.
#[test]
fn hung_peer_is_dialed_by_the_checker_only() {
    let servers = Servers::start(1);
    let server = &servers[0];
    server.hold_logins(true);
    let builder = servers.builder().connect_timeout(TIMEOUT).all_down_wait(Duration::ZERO);
    let manager = build(builder);
    let connect = || diesel::r2d2::ManageConnection::connect(&manager);
    connect().expect_err("the peer does not answer");
    for _ in 0..5 {
        let error = connect().expect_err("a hung peer is not dialed").to_string();
        assert!(error.contains("skipped, marked down (no answer"), "{error}");
    }
    assert_eq!(server.logins(), 1, "only one login hangs");
    server.hold_logins(false);
    wait_until("the peer is dialed again after the login has ended", PATIENCE, || {
        connect().is_ok()
    });
}

/// The mark of a hung peer is not cleared without a check, although this recovery clears other marks.
#[test]
fn hung_peer_stays_down_with_recovery_after_interval() {
    let servers = Servers::start(1);
    let server = &servers[0];
    server.hold_logins(true);
    let builder = servers
        .builder()
        .recovery(Recovery::AfterInterval)
        .check_interval(SOON)
        .connect_timeout(TIMEOUT);
    let manager = build(builder);
    let peers = manager.peers();
    wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    within(5 * SOON, || {
        assert_eq!(
            state(&peers, "peer0"),
            PeerState::Down,
            "the peer stays down while its login hangs"
        );
        false
    });
    server.hold_logins(false);
    wait_until("peer0 is up when it answers", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

#[cfg(feature = "mysql")]
mod real_servers {
    use super::*;
    use support::backend::{RealServer, fill, manager_of};
    use support::how_long;
    use support::mariadb::{self, MariaDb};
    use support::network::{FullBacklog, Silent};

    fn pool_is_filled_despite_a_hung_port(port: u16) {
        let servers = [MariaDb::start(), MariaDb::start()];
        let urls = [servers[0].url(), mariadb::url(port), servers[1].url()];
        let builder = manager_of::<diesel::MysqlConnection>(urls).connect_timeout(10 * TIMEOUT);
        let (pool, peers) = pool_of(builder, 6);
        fill(&pool, &peers, &[3, 0, 3]);
        pool.get().expect("two peers are up");
    }

    /// A frozen server would count each login that was aborted meanwhile, and block this host after some.
    fn frozen_server_gets_few_logins_and_is_up_as_soon_as_it_goes_on<B: RealServer>() {
        let mut servers = B::start(1);
        let server = &mut servers[0];
        let builder = manager_of::<B::Connection>([server.url()])
            .check_interval(PATIENCE)
            .check_timeout(SOON)
            .connect_timeout(10 * TIMEOUT);
        let (pool, peers) = pool_of(builder, 1);
        fill(&pool, &peers, &[1]);
        server.freeze();
        peers.check_now("peer0").expect("the peer exists");
        wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        within(Duration::from_secs(9), || false);
        let failures = status(&peers, "peer0").connect_failures;
        assert!((2..9).contains(&failures), "the frozen server gets few logins: {failures}");
        server.thaw();
        let up = || state(&peers, "peer0") == PeerState::Up;
        let took = how_long("peer0 is up again", PATIENCE, up);
        assert!(took < Duration::from_secs(3), "the login that waits notices it: {took:?}");
        wait_until("no login waits", PATIENCE, || status(&peers, "peer0").stuck_logins == 0);
        pool.get().expect("the peer is up");
    }

    #[test]
    fn frozen_mariadb_gets_few_logins_and_is_up_as_soon_as_it_goes_on() {
        frozen_server_gets_few_logins_and_is_up_as_soon_as_it_goes_on::<MariaDb>();
    }

    /// libpq ends the login that waits after a timeout of its own.
    #[cfg(feature = "postgres")]
    #[test]
    fn frozen_postgres_gets_few_logins_and_is_up_as_soon_as_it_goes_on() {
        use support::postgres::Postgres;
        frozen_server_gets_few_logins_and_is_up_as_soon_as_it_goes_on::<Postgres>();
    }

    #[test]
    fn pool_is_filled_despite_a_silent_port() {
        let silent = Silent::start();
        pool_is_filled_despite_a_hung_port(silent.port());
    }

    #[test]
    fn pool_is_filled_despite_a_full_backlog() {
        let full = FullBacklog::start();
        pool_is_filled_despite_a_hung_port(full.port());
    }
}
