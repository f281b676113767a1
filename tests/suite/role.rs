//! A read-only peer is not used by a pool that requires writable peers, and the other way round.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::time::Duration;

use diesel::connection::{Connection, SimpleConnection};
use diesel_peers::{Fault, PeerState, Peers, Role};
use support::backend::{
    PATIENCE, RealServer, SOON, fill, links, manager_of, manager_over, pool_of, state, status,
};
use support::haproxy::HaProxy;
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::{wait_until, within};

/// A server that can be made read-only, and writable again.
trait Demote: RealServer {
    fn set_read_only(&self, read_only: bool);
}

impl Demote for MariaDb {
    fn set_read_only(&self, read_only: bool) {
        self.sql(&format!("SET GLOBAL read_only = {read_only}"));
    }
}

impl Demote for Postgres {
    fn set_read_only(&self, read_only: bool) {
        self.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {read_only}"));
        self.sql("SELECT pg_reload_conf()");
        wait_until("the server has reloaded its configuration", PATIENCE, || {
            let shown = self.sql("SHOW default_transaction_read_only");
            (shown.trim() == "on") == read_only
        });
    }
}

#[track_caller]
fn has_the_wrong_role(peers: &Peers, name: &str) {
    let status = status(peers, name);
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::WrongRole)));
}

fn read_only_peer_is_unused_where_writable_peers_are_required<B: Demote>() {
    let servers = B::start(2);
    servers[0].set_read_only(true);
    let builder = manager_over(&servers).require(Role::ReadWrite).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 4);
    wait_until("no connection leads to the read-only peer", PATIENCE, || links(&peers) == [0, 4]);
    has_the_wrong_role(&peers, "peer0");
    servers[0].set_read_only(false);
    wait_until("the peer is used once it is writable again", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 2]
    });
    servers[1].set_read_only(true);
    wait_until("a check finds that the other peer is read-only", PATIENCE, || {
        state(&peers, "peer1").is_marked_down()
    });
    has_the_wrong_role(&peers, "peer1");
}

/// The check interval is longer than the test, so only the refused write can cause the check.
fn peer_that_refuses_a_write_is_checked_at_once<B: Demote>() {
    let servers = B::start(2);
    let builder = manager_over(&servers).require(Role::ReadWrite).check_interval(PATIENCE * 10);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    pool.get()
        .expect("both peers are up")
        .batch_execute("CREATE TABLE t (a INT)")
        .expect("the peer is writable");
    let demoted = pool.get().expect("both peers are up").peer().to_owned();
    servers[usize::from(demoted == "peer1")].set_read_only(true);
    wait_until("a refused write causes a check", PATIENCE, || {
        let mut conn = pool.get().expect("both peers are up");
        let _ = conn.batch_execute("CREATE TABLE IF NOT EXISTS u (a INT)");
        state(&peers, &demoted).is_marked_down()
    });
    has_the_wrong_role(&peers, &demoted);
}

fn writable_peer_is_unused_where_read_only_peers_are_required<B: Demote>() {
    let servers = B::start(2);
    servers[1].set_read_only(true);
    let builder = manager_over(&servers).require(Role::ReadOnly).check_interval(SOON);
    let (_pool, peers) = pool_of(builder, 2);
    wait_until("no connection leads to the writable peer", PATIENCE, || links(&peers) == [0, 2]);
    has_the_wrong_role(&peers, "peer0");
}

fn read_only_and_writable_peers_are_used_by_default<B: Demote>() {
    let servers = B::start(2);
    servers[0].set_read_only(true);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    fill(&pool, &peers, &[2, 2]);
}

/// The application's own transactions are read-only. The server is not, and is asked itself, once a second.
fn read_only_transactions_cost_no_check<B: Demote>() {
    let servers = B::start(1);
    let builder = manager_over(&servers).require(Role::ReadWrite).check_interval(PATIENCE * 10);
    let (pool, peers) = pool_of(builder, 1);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("CREATE TABLE t (a INT)").expect("the peer is writable");
    drop(conn);
    let next_check = status(&peers, "peer0").next_check;
    let mut refused = 0;
    within(Duration::from_millis(2500), || {
        let mut conn = pool.get().expect("the peer is up");
        conn.batch_execute("START TRANSACTION READ ONLY").expect("the peer is up");
        conn.batch_execute("INSERT INTO t VALUES (1)").expect_err("the transaction is read-only");
        conn.batch_execute("ROLLBACK").expect("the peer is up");
        refused += 1;
        false
    });
    let status = status(&peers, "peer0");
    assert!(refused > 10, "{refused} statements were refused");
    assert_eq!((status.state, status.connects), (PeerState::Up, 1));
    assert_eq!(status.next_check, next_check, "the peer was not checked");
}

/// The address of a peer leads to another server after a failover. The old server is read-only, and keeps its
/// sessions.
fn sessions_with_the_old_server_behind_an_address_are_replaced<B: Demote>(
    url: fn(&HaProxy) -> String,
) {
    const CONNECTIONS: u32 = 4;
    let servers = B::start(2);
    let [old, new] = [servers[0].port(), servers[1].port()];
    let proxy = HaProxy::balancing(&[old, new]);
    proxy.ask(&format!("set server back/s{new} state maint"));
    let builder = manager_of::<B::Connection>([url(&proxy)]).require(Role::ReadWrite);
    let (pool, peers) = pool_of(builder.check_interval(PATIENCE * 10), CONNECTIONS);
    fill(&pool, &peers, &[CONNECTIONS as usize]);
    for server in &servers {
        let url = server.url();
        let mut conn = B::Connection::establish(&url).expect("the server is up");
        conn.batch_execute("CREATE TABLE t (a INT)").expect("the server is writable");
    }
    servers[0].set_read_only(true);
    proxy.ask(&format!("set server back/s{new} state ready"));
    proxy.ask(&format!("set server back/s{old} state drain"));
    let mut failed = 0;
    let mut in_a_row = 0;
    wait_until("all connections lead to the new server", PATIENCE, || {
        let mut conn = pool.get().expect("the peer is up");
        let written = conn.batch_execute("INSERT INTO t VALUES (1)").is_ok();
        failed += u32::from(!written);
        in_a_row = if written { in_a_row + 1 } else { 0 };
        in_a_row == 5 * CONNECTIONS
    });
    let status = status(&peers, "peer0");
    assert!(failed <= CONNECTIONS, "{failed} statements were refused");
    assert_eq!(status.state, PeerState::Up);
    // A few more if a slot is closed while a new connection for it is being opened.
    let new = status.connects - u64::from(CONNECTIONS);
    assert!((4..=7).contains(&new), "{new} connections were opened");
}

/// A proxy runs the queries of a transaction on one server. Outside of it, the parts of the state could be those of
/// several servers.
#[test]
fn state_of_a_server_is_read_in_one_transaction() {
    let server = MariaDb::start();
    server.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = ON");
    let servers = [server];
    let (pool, _peers) = pool_of(manager_over(&servers), 1);
    drop(pool.get().expect("the server runs"));
    servers[0].sql("SET GLOBAL general_log = OFF");
    let log = servers[0].sql(
        "SELECT argument FROM mysql.general_log WHERE user_host LIKE 'app%' \
         AND argument REGEXP '^(BEGIN|SHOW|ROLLBACK)' ORDER BY event_time",
    );
    let at = |text: &str| {
        let found = log.lines().position(|line| line.starts_with(text));
        found.unwrap_or_else(|| panic!("{text} is not in {log}"))
    };
    assert!(at("BEGIN") < at("SHOW") && at("SHOW") < at("ROLLBACK"), "{log}");
}

macro_rules! on_servers {
    ($($suite:ident),+ $(,)?) => {
        mod mariadb { $(#[test] fn $suite() { super::$suite::<super::MariaDb>(); })+ }
        mod postgres { $(#[test] fn $suite() { super::$suite::<super::Postgres>(); })+ }
    };
}

on_servers!(
    read_only_peer_is_unused_where_writable_peers_are_required,
    peer_that_refuses_a_write_is_checked_at_once,
    writable_peer_is_unused_where_read_only_peers_are_required,
    read_only_and_writable_peers_are_used_by_default,
    read_only_transactions_cost_no_check,
);

#[test]
fn sessions_with_the_old_mariadb_behind_an_address_are_replaced() {
    sessions_with_the_old_server_behind_an_address_are_replaced::<MariaDb>(HaProxy::mysql_url);
}

#[test]
fn sessions_with_the_old_postgres_behind_an_address_are_replaced() {
    sessions_with_the_old_server_behind_an_address_are_replaced::<Postgres>(HaProxy::postgres_url);
}
