//! PgBouncer and pgpool-II as peers.

#![cfg(all(target_os = "linux", feature = "postgres"))]

use diesel::PgConnection;
use diesel_peers::{Fault, PeerState, StatementCache};
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state, status};
use support::load::Load;
use support::pgbouncer::PgBouncer;
use support::pgpool::Pgpool;
use support::postgres::Postgres;
use support::{APP, APP_PASSWORD, wait_until};

/// `DISABLE` is how an operator of PgBouncer drains it: it refuses logins, and sessions continue.
#[test]
fn disabled_pgbouncer_is_drained_without_an_error() {
    let server = Postgres::start();
    let poolers = [(); 3].map(|()| PgBouncer::in_front_of(server.port(), &[]));
    let urls = poolers.iter().map(PgBouncer::url);
    let (pool, peers) = pool_of(manager_of::<PgConnection>(urls).check_interval(SOON), 9);
    fill(&pool, &peers, &[3, 3, 3]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        poolers[0].order(&format!("DISABLE {APP}"));
        wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_until("its connections have moved", PATIENCE, || {
            // Each is closed when another is there.
            assert!(links(&peers).iter().sum::<usize>() >= 9, "{:?}", links(&peers));
            links(&peers)[0] == 0
        });
        assert_eq!(status(&peers, "peer0").fault, Some(Fault::PeerNotReady));
        wait_until("the pooler has no client", PATIENCE, || poolers[0].clients() == 0);
        poolers[0].order(&format!("ENABLE {APP}"));
        wait_until("the peer is back", PATIENCE, || links(&peers) == [3, 3, 3]);
        let before = load.served();
        wait_until("it serves", PATIENCE, || load.served() > before + 100);
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "nothing failed: {seen:?}");
}

/// What a pooler says of a login decides what the peer is.
#[test]
fn refusals_of_poolers_are_understood() {
    let server = Postgres::start();
    let pooler = PgBouncer::in_front_of(server.port(), &["max_client_conn = 2"]);
    let pgpool = Pgpool::in_front_of(server.port(), &[]);
    let of = |url: String, from: &str, to: &str| {
        assert!(url.contains(from));
        url.replace(from, to)
    };
    let user = format!("//{APP}:");
    for (url, fault) in [
        (of(pooler.url(), APP_PASSWORD, "wrong"), Fault::Misconfigured),
        (of(pooler.url(), &user, "//nobody:"), Fault::Misconfigured),
        (format!("{}nothing", pooler.url()), Fault::Misconfigured),
        (format!("{}?options=-c%20statement_timeout%3D9", pooler.url()), Fault::Misconfigured),
        (of(pgpool.url(), APP_PASSWORD, "wrong"), Fault::Misconfigured),
        (format!("{}nothing", pgpool.url()), Fault::Misconfigured),
    ] {
        let builder = manager_of::<PgConnection>([&url, &pooler.url()]).check_interval(SOON);
        let (_pool, peers) = pool_of(builder, 1);
        wait_until("the peer is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        let status = status(&peers, "peer0");
        assert_eq!(status.fault, Some(fault), "{url}: {:?}", status.reason);
    }
    let urls = [pooler.url(), pgpool.url()];
    let (pool, peers) = pool_of(manager_of::<PgConnection>(urls).check_interval(SOON), 8);
    wait_until("the pool has its connections", PATIENCE, || pool.state().connections == 8);
    assert!(status(&peers, "peer0").is_full, "{:?}", status(&peers, "peer0"));
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "a peer that is full is not down");
}

/// Without `max_prepared_statements`, which came with PgBouncer 1.21, a pooler with transaction pooling does not
/// know which session of the server has prepared a statement.
#[test]
fn statements_that_are_not_kept_work_through_transaction_pooling() {
    use diesel::prelude::*;

    let server = Postgres::start();
    let settings: Vec<_> =
        ["default_pool_size = 2"].into_iter().chain(PgBouncer::without_statements()).collect();
    let pooler = PgBouncer::in_front_of(server.port(), &settings);
    let failures = |cache| {
        let builder = manager_of::<PgConnection>([pooler.url()]).statement_cache(cache);
        let (pool, peers) = pool_of(builder, 4);
        fill(&pool, &peers, &[4]);
        let failures = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut conn = pool.get().expect("the pooler runs");
                        let answer = diesel::select(1.into_sql::<diesel::sql_types::Integer>())
                            .get_result::<i32>(&mut conn);
                        if answer.is_err() {
                            failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        failures.into_inner()
    };
    assert!(failures(StatementCache::Unbounded) > 0, "statements are found lost");
    assert_eq!(failures(StatementCache::Disabled), 0);
}
