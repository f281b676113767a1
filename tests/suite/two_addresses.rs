//! A peer whose name has two addresses, of which the first accepts connections and never answers, serves by the
//! second.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

use std::env;
use std::io::Write;
use std::net::{Ipv6Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use support::account::is_root;
use support::backend::{PATIENCE, RealServer, links, manager_of, pool_of};
use support::wait_until;

/// The name in the test's own table of hosts. The system's resolver prefers IPv6 on loopback.
const NAME: &str = "two.test";
const HOSTS: &str = "::1 two.test\n127.0.0.1 two.test\n127.0.0.1 localhost\n";
const IS_INSIDE: &str = "DIESEL_PEERS_TEST_HAS_HOSTS";

/// Runs the test of this name again, in a process that sees the test's own table of hosts.
fn with_hosts(test: &str, inside: impl FnOnce()) {
    if env::var_os(IS_INSIDE).is_some() {
        return inside();
    }
    if !is_root() {
        eprintln!("skipped: only root may mount a table of hosts");
        return;
    }
    let mut hosts = tempfile::NamedTempFile::new().expect("a file can be created");
    hosts.write_all(HOSTS.as_bytes()).expect("the file is open");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$1\" --exact \"$2\"";
    let status = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(hosts.path())
        .arg(env::current_exe().expect("the test has a path"))
        .arg(test)
        .env(IS_INSIDE, "1")
        .status();
    assert!(status.expect("util-linux is installed").success(), "the test succeeds inside");
}

fn second_address_serves<S: RealServer>() {
    let server = S::start(1).remove(0);
    let _silent = TcpListener::bind((Ipv6Addr::LOCALHOST, server.port())).expect("IPv6 works");
    let builder = manager_of::<S::Client>([S::url_at(NAME, server.port())]);
    let (pool, peers) = pool_of(builder.connect_timeout(Duration::from_secs(1)), 2);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [2]);
    drop(pool.get().expect("the second address answers"));
}

#[cfg(feature = "mysql")]
#[test]
fn mariadb_at_the_second_address_serves() {
    with_hosts("two_addresses::mariadb_at_the_second_address_serves", || {
        second_address_serves::<support::mariadb::MariaDb>();
    });
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_at_the_second_address_serves() {
    with_hosts("two_addresses::postgres_at_the_second_address_serves", || {
        second_address_serves::<support::postgres::Postgres>();
    });
}
