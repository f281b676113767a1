//! Databases whose servers are all the same, as peers: what `CockroachDB` and `TiDB` say, and how they drain. Servers
//! that say any text stand for them.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::ops::Deref;

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel::{MysqlConnection, PgConnection};
use diesel_peers::Fault;
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state, status};
use support::load::Load;
use support::mysql_words::MySqlWords;
use support::postgres_words::PostgresWords;
use support::wait_until;
use support::words::Script;

fn errors_have_faults<C>(server: &Script, url: String, errors: &[(&str, &str, Fault)])
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, _peers) = pool_of(manager_of::<C>([url]).check_interval(SOON), 1);
    for (code, text, fault) in errors {
        let mut conn = pool.get().expect("the server answers");
        server.say("SELECT 7", code, text);
        let error = conn.batch_execute("SELECT 7").expect_err("the server says so");
        assert_eq!(Fault::of(&error), *fault, "{code} {error}");
        server.say_nothing_more();
    }
}

#[test]
fn errors_of_cockroachdb_are_understood() {
    use Fault::{OutOfResources, PeerNotReady, Query, Retryable};
    let server = PostgresWords::start();
    let errors = [
        (
            "40001",
            "restart transaction: TransactionRetryWithProtoRefreshError: WriteTooOldError",
            Retryable,
        ),
        // Nothing against the server. Whether the statement was executed is not known.
        ("40003", "result is ambiguous: error=rpc error [exhausted]", Query),
        ("XXA00", "transaction committed but schema change aborted with error: (23505)", Query),
        (
            "58C00",
            "replica unavailable: (n1,s1):1 unable to serve request to r7:/Table: lost quorum",
            OutOfResources,
        ),
        ("58C01", "inbox communication error: rpc error: code = Canceled", OutOfResources),
        ("57P01", "server is shutting down", PeerNotReady),
    ];
    errors_have_faults::<PgConnection>(&server, server.url(), &errors);
}

#[test]
fn errors_of_tidb_are_understood() {
    use Fault::{OutOfResources, PeerNotReady, Query, Retryable};
    let server = MySqlWords::start();
    let errors = [
        (
            "9007",
            "Write conflict, txnStartTS=1, conflictStartTS=2, key={tableID=58, handle=2} [try again later]",
            Retryable,
        ),
        (
            "8028",
            "Information schema is changed during the execution of the statement. [try again later]",
            Retryable,
        ),
        ("9001", "PD server timeout: start timestamp", OutOfResources),
        ("9002", "TiKV server timeout", OutOfResources),
        ("9003", "TiKV server is busy", OutOfResources),
        ("9005", "Region is unavailable", OutOfResources),
        ("1053", "Server shutdown in progress", PeerNotReady),
        ("1105", "Please try again later", Query),
    ];
    errors_have_faults::<MysqlConnection>(&server, server.url(), &errors);
}

/// A server refuses logins, and ends its sessions: first after the pool has had the time to notice, then at once.
fn drain_costs_only_queries_in_flight<C, S>(
    servers: &[S; 3],
    url: impl Fn(&S) -> String,
    refuse_logins: impl Fn(&Script),
    end_sessions: impl Fn(&Script),
) where
    C: R2D2Connection + Send + 'static,
    S: Deref<Target = Script>,
{
    const THREADS: usize = 3;
    let (pool, peers) = pool_of(manager_of::<C>(servers.iter().map(url)).check_interval(SOON), 6);
    let is_down = || state(&peers, "peer0").is_marked_down();
    fill(&pool, &peers, &[2, 2, 2]);
    let seen = Load::run(&pool, THREADS, "SELECT 1", |load| {
        refuse_logins(&servers[0]);
        wait_until("the connections have moved", PATIENCE, || is_down() && links(&peers)[0] == 0);
        end_sessions(&servers[0]);
        assert_eq!(load.failed(), 0, "no query was in flight");
        servers[0].say_nothing_more();
        servers[0].close_port(false);
        wait_until("the server is back", PATIENCE, || links(&peers) == [2, 2, 2]);

        refuse_logins(&servers[0]);
        end_sessions(&servers[0]);
        wait_until("the peer is down", PATIENCE, is_down);
        let rounds = load.rounds();
        wait_until("others serve", PATIENCE, || load.all_came_back(&rounds, 100));
    });
    let reason = || status(&peers, "peer0").reason;
    assert!(seen.refused.is_empty() && seen.failed.len() <= THREADS, "{seen:?} {:?}", reason());
}

#[test]
fn drain_of_cockroachdb_costs_only_queries_in_flight() {
    let refused = "server is not accepting clients, try another node";
    drain_costs_only_queries_in_flight::<PgConnection, _>(
        &[(); 3].map(|()| PostgresWords::start()),
        PostgresWords::url,
        |server| server.refuse_logins("57P01", refused),
        |server| {
            server.say_at_last("SELECT 1", "57P01", "server is shutting down");
            server.end_all_sessions();
        },
    );
}

/// `TiDB` closes its port first.
#[test]
fn drain_of_tidb_costs_only_queries_in_flight() {
    drain_costs_only_queries_in_flight::<MysqlConnection, _>(
        &[(); 3].map(|()| MySqlWords::start()),
        MySqlWords::url,
        |server| server.close_port(true),
        |server| {
            server.say_at_last("SELECT 1", "1053", "Server shutdown in progress");
            server.end_all_sessions();
        },
    );
}
