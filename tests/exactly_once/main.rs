//! A bank: sixteen threads transfer money between accounts with a ledger, while their connections are cut at each
//! COMMIT, while proxies freeze and are cut off and the server is restarted, while a primary is killed and its standby
//! promoted, and while the nodes of a Galera cluster are killed. Afterwards every transfer that was called
//! committed is there exactly once, none that was called aborted is there, the sum is unchanged, no outcome is
//! unknown, and no thread has seen an error. While tokens are deleted at once, and with transaction ids in place of a
//! table, an outcome may be unknown, but is never wrong.
//!
//! `DIESEL_PEERS_TEST_SECONDS` sets the duration of each test in seconds (3 by default), `DIESEL_PEERS_TEST_SEED` the
//! seed. Each run prints its seed, and how much there was to do.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]
#![allow(clippy::disallowed_methods, reason = "the test's length is measured by the clock")]

mod adversary;
mod bank;
mod failover;
mod nodes;

use std::time::Duration;

use bank::Records;
use diesel_peers::{PeerManagerBuilder, Role};
use failover::Pair;
use support::backend::{RealServer, manager_of};
use support::cutting_proxy::CuttingProxy;
use support::galera::Cluster;
use support::mariadb::MariaDb;
use support::postgres::Postgres;

/// Three proxies before a server, with a bank, and the builder of a pool over them.
fn behind_proxies<S: RealServer>(server: &S) -> ([CuttingProxy; 3], PeerManagerBuilder<S::Client>) {
    bank::create::<S::Client>(&server.url());
    let proxies = [(); 3].map(|()| CuttingProxy::start(server.port()));
    let urls = proxies.each_ref().map(|proxy| S::url_at("127.0.0.1", proxy.port()));
    (proxies, manager_of::<S::Client>(urls))
}

/// Every few milliseconds, a connection is cut at its COMMIT.
#[test]
fn bank_whose_tokens_are_deleted_at_once() {
    let server = Postgres::start();
    let (proxies, builder) = behind_proxies(&server);
    let mut rng = adversary::rng();
    let said = bank::run(builder, Records::DeletedTable, || {
        adversary::cut_at_commit(&proxies, &mut rng);
    });
    bank::audit(&said, |sql| server.sql_in("app", sql));
}

/// The proxies and the server fail in all the ways of the adversary.
fn bank_behind_failing_proxies<S: RealServer>(records: Records, list: impl Fn(&S, &str) -> String) {
    let mut server = S::start(1).pop().expect("one server was started");
    let (proxies, builder) = behind_proxies(&server);
    let mut rng = adversary::rng();
    // A frozen proxy costs a second.
    let builder = builder
        .stall_after(Duration::from_millis(200))
        .check_timeout(Duration::from_millis(200))
        .check_interval(Duration::from_millis(300))
        .connect_timeout(Duration::from_secs(1));
    let said = bank::run(builder, records, || adversary::strike(&proxies, &mut server, &mut rng));
    bank::audit(&said, |sql| list(&server, sql));
}

#[test]
fn bank_on_mariadb_behind_failing_proxies() {
    let list = |server: &MariaDb, sql: &str| server.sql(&format!("USE app; {sql}"));
    bank_behind_failing_proxies(Records::Table, list);
}

#[test]
fn bank_on_postgres_behind_failing_proxies() {
    let list = |server: &Postgres, sql: &str| server.sql_in("app", sql);
    bank_behind_failing_proxies(Records::Table, list);
}

#[test]
fn bank_of_ids_on_postgres_behind_failing_proxies() {
    let list = |server: &Postgres, sql: &str| server.sql_in("app", sql);
    bank_behind_failing_proxies(Records::Ids, list);
}

fn bank_whose_standby_is_promoted(records: Records) {
    let mut pair = Pair::start();
    bank::create::<diesel::PgConnection>(&pair.primary.url());
    let mut rng = adversary::rng();
    let builder = manager_of([pair.primary.url(), pair.standby.url()])
        .require(Role::ReadWrite)
        .check_interval(Duration::from_millis(300));
    let said = bank::run::<diesel::PgConnection>(builder, records, || pair.fail_over(&mut rng));
    bank::audit(&said, |sql| pair.primary.sql_in("app", sql));
}

#[test]
fn bank_on_postgres_whose_standby_is_promoted() {
    bank_whose_standby_is_promoted(Records::Table);
}

#[test]
fn bank_of_ids_on_postgres_whose_standby_is_promoted() {
    bank_whose_standby_is_promoted(Records::Ids);
}

#[test]
fn bank_on_galera_whose_nodes_fail() {
    let mut cluster = Cluster::start();
    bank::create::<diesel::MysqlConnection>(&cluster.nodes[0].url());
    let mut rng = adversary::rng();
    let builder = manager_of::<diesel::MysqlConnection>(cluster.urls())
        .check_interval(Duration::from_secs(1));
    let said = bank::run(builder, Records::Table, || nodes::fail_one(&mut cluster, &mut rng));
    cluster.wait_synced();
    for node in &cluster.nodes {
        bank::audit(&said, |sql| node.sql(&format!("USE app; {sql}")));
    }
}
