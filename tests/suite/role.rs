//! A peer that only reads is not used where it should write, and the other way round.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use diesel::connection::SimpleConnection;
use diesel_peers::{Fault, PeerState, Peers, Role};
use support::backend::{PATIENCE, RealServer, SOON, fill, links, manager_over, pool_of, state};
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::wait_until;

/// Makes a server one that only reads, or that writes again.
trait Demoted: RealServer {
    fn demote(&self, only_reads: bool);
}

impl Demoted for MariaDb {
    fn demote(&self, only_reads: bool) {
        self.sql(&format!("SET GLOBAL read_only = {only_reads}"));
    }
}

impl Demoted for Postgres {
    fn demote(&self, only_reads: bool) {
        self.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {only_reads}"));
        self.sql("SELECT pg_reload_conf()");
        let is_it = || self.sql("SHOW default_transaction_read_only").trim() == "on";
        wait_until("it has heard of it", PATIENCE, || is_it() == only_reads);
    }
}

#[track_caller]
fn is_out(peers: &Peers, peer: usize) {
    let status = peers.snapshot().peers.swap_remove(peer);
    assert_eq!((status.state, status.fault), (PeerState::Down, Some(Fault::WrongRole)));
}

fn writable_peers_are_required<B: Demoted>() {
    let servers = B::start(2);
    servers[0].demote(true);
    let builder = manager_over(&servers).require(Role::ReadWrite).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 4);
    wait_until("none goes to the one that only reads", PATIENCE, || links(&peers) == [0, 4]);
    is_out(&peers, 0);
    servers[0].demote(false);
    wait_until("it is used when it writes again", PATIENCE, || {
        drop(pool.try_get());
        links(&peers) == [2, 2]
    });
    servers[1].demote(true);
    wait_until("a check finds the other one", PATIENCE, || {
        state(&peers, "peer1") == PeerState::Down
    });
    is_out(&peers, 1);
}

/// Not only at the next check.
fn a_refused_write_has_its_peer_checked<B: Demoted>() {
    let servers = B::start(2);
    let builder = manager_over(&servers).require(Role::ReadWrite).check_interval(PATIENCE * 10);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    pool.get().expect("both live").batch_execute("CREATE TABLE t (a INT)").expect("it writes");
    let first = usize::from(pool.get().expect("both live").peer() == "peer1");
    servers[first].demote(true);
    wait_until("a write there has it checked", PATIENCE, || {
        let mut conn = pool.get().expect("both live");
        let _ = conn.batch_execute("CREATE TABLE IF NOT EXISTS u (a INT)");
        state(&peers, &format!("peer{first}")) == PeerState::Down
    });
    is_out(&peers, first);
}

fn only_readers_are_required<B: Demoted>() {
    let servers = B::start(2);
    servers[1].demote(true);
    let builder = manager_over(&servers).require(Role::ReadOnly).check_interval(SOON);
    let (_pool, peers) = pool_of(builder, 2);
    wait_until("none goes to the one that writes", PATIENCE, || links(&peers) == [0, 2]);
    is_out(&peers, 0);
}

fn by_default_both_are_used<B: Demoted>() {
    let servers = B::start(2);
    servers[0].demote(true);
    let (pool, peers) = pool_of(manager_over(&servers), 4);
    fill(&pool, &peers, &[2, 2]);
}

macro_rules! on_servers {
    ($($suite:ident),+ $(,)?) => {
        mod mariadb { $(#[test] fn $suite() { super::$suite::<super::MariaDb>(); })+ }
        mod postgres { $(#[test] fn $suite() { super::$suite::<super::Postgres>(); })+ }
    };
}

on_servers!(
    writable_peers_are_required,
    a_refused_write_has_its_peer_checked,
    only_readers_are_required,
    by_default_both_are_used,
);
