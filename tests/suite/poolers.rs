//! PgBouncer and pgpool-II as peers.

#![cfg(all(target_os = "linux", feature = "postgres"))]

use std::time::Duration;

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel_peers::{Fault, PeerManagerBuilder, PeerState, StatementCache};
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state, status};
use support::load::Load;
use support::pgbouncer::PgBouncer;
use support::pgpool::Pgpool;
use support::postgres::Postgres;
use support::postgres_words::PostgresWords;
use support::{APP, APP_PASSWORD, how_long, wait_until, within};

/// How long poolers are paused. Many times the time after which queries on a peer that is frozen are aborted.
const PAUSE: Duration = Duration::from_secs(6);

/// The time within which a peer is up after its pooler has gone on. The next check may be due in ten seconds.
const RESUMED_WITHIN: Duration = Duration::from_secs(5);

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

/// A pool through poolers, with short deadlines. `all_down_interval` is short, so that checks that are repeated at
/// the usual pace are many.
fn impatient(urls: impl IntoIterator<Item = String>) -> PeerManagerBuilder<PgConnection> {
    const SHORT: Duration = Duration::from_millis(300);
    manager_of(urls)
        .check_interval(Duration::from_secs(1))
        .connect_timeout(SHORT)
        .stall_after(SHORT)
        .check_timeout(SHORT)
        .all_down_interval(SHORT / 6)
}

fn order(poolers: &[PgBouncer], command: &str) {
    for pooler in poolers {
        pooler.order(command);
    }
}

/// A pooler that is paused accepts logins and holds their queries until `RESUME`, on purpose.
#[test]
fn queries_that_a_paused_pgbouncer_holds_are_not_aborted() {
    let server = Postgres::start();
    let poolers = [(); 2].map(|()| PgBouncer::in_front_of(server.port(), &[]));
    let (pool, peers) = pool_of(impatient(poolers.iter().map(PgBouncer::url)), 6);
    fill(&pool, &peers, &[3, 3]);
    // Returns how many more clients there are at its end than in its middle.
    let within_a_pause = |load: &Load| {
        let clients = || poolers.each_ref().map(PgBouncer::clients);
        let [middle, end] = [(); 2].map(|()| {
            assert!(!within(PAUSE / 2, || load.failed() > 0));
            clients()
        });
        [0, 1].map(|pooler| end[pooler].saturating_sub(middle[pooler]))
    };
    let is_down = |name: &str| state(&peers, name).is_marked_down();
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        poolers[0].order("PAUSE");
        wait_until("the peer is marked down", PATIENCE, || is_down("peer0"));
        let before = load.served_by("peer0");
        let clients = within_a_pause(load);
        assert!(is_down("peer0"));
        assert_eq!(load.served_by("peer0"), before, "it serves nothing");
        assert!(clients[0] <= 2, "a client too many is there after each check: {clients:?}");
        let rounds = load.rounds();
        poolers[0].order("RESUME");
        wait_until("the peer is up", RESUMED_WITHIN, || !is_down("peer0"));
        wait_until("each query has ended", PATIENCE, || load.all_came_back(&rounds, 1));
        wait_until("the checks have gone", PATIENCE, || poolers[0].clients() <= 4);

        // Nobody else answers.
        order(&poolers, "PAUSE");
        let rounds = load.rounds();
        let clients = within_a_pause(load);
        assert!(clients.iter().all(|more| *more <= 4), "{clients:?} more clients");
        order(&poolers, "RESUME");
        wait_until("both peers are up", RESUMED_WITHIN, || !is_down("peer0") && !is_down("peer1"));
        wait_until("each query has ended", PATIENCE, || load.all_came_back(&rounds, 2));
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "nothing failed: {seen:?}");
}

#[test]
fn queries_that_a_paused_pgbouncer_holds_are_aborted_after_pooler_wait() {
    let server = Postgres::start();
    let poolers = [(); 2].map(|()| PgBouncer::in_front_of(server.port(), &[]));
    let pooler_wait = Duration::from_secs(2);
    let (pool, peers) =
        pool_of(impatient(poolers.iter().map(PgBouncer::url)).pooler_wait(pooler_wait), 6);
    fill(&pool, &peers, &[3, 3]);
    let seen = Load::run(&pool, 4, "SELECT 1", |load| {
        poolers[0].order("PAUSE");
        let rounds = load.rounds();
        wait_until("no thread waits", PATIENCE, || load.all_came_back(&rounds, 10));
    });
    assert!(!seen.failed.is_empty(), "a query was held");
    assert!(seen.failed.iter().all(|(peer, _)| peer == "peer0"), "{seen:?}");
    assert!(seen.longest_query >= pooler_wait, "{:?}", seen.longest_query);
    poolers[0].order("RESUME");
    wait_until("the peer is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

/// All queries and logins wait in turn for the one connection that the pooler has to its server.
#[test]
fn pgbouncer_whose_connections_are_in_use_is_full_and_not_down() {
    let server = Postgres::start();
    let poolers = [["default_pool_size = 1"], ["default_pool_size = 20"]]
        .map(|settings| PgBouncer::in_front_of(server.port(), &settings));
    let (pool, peers) = pool_of(impatient(poolers.iter().map(PgBouncer::url)), 8);
    fill(&pool, &peers, &[4, 4]);
    let seen = Load::run(&pool, 8, "SELECT pg_sleep(0.1)", |_| {
        wait_until("the peer is full", PATIENCE, || status(&peers, "peer0").is_full);
        let is_down = || state(&peers, "peer0").is_marked_down();
        assert!(!within(Duration::from_secs(3), is_down), "{:?}", status(&peers, "peer0"));
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "nothing failed: {seen:?}");
    wait_until("it has room", PATIENCE, || !status(&peers, "peer0").is_full);
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
    // It never gets all of its connections, so it goes on to try.
    let builder = manager_of::<PgConnection>([pooler.url()]).check_interval(SOON);
    let (_pool, peers) = pool_of(builder, 8);
    wait_until("the peer is full", PATIENCE, || status(&peers, "peer0").is_full);
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

/// The server behind a pooler is gone. PgBouncer refuses logins, and holds the queries that wait already. Whether any
/// waits is a matter of chance, so a server stands for PgBouncer that says the same.
#[test]
fn queries_that_wait_for_a_server_that_is_gone_are_aborted_after_pooler_wait() {
    let servers = [(); 2].map(|()| PostgresWords::start());
    let builder = impatient(servers.iter().map(PostgresWords::url));
    let pooler_wait = Duration::from_secs(1);
    let (pool, peers) = pool_of(builder.pooler_wait(pooler_wait), 2);
    fill(&pool, &peers, &[1, 1]);
    let conns = [pool.get(), pool.get()].map(|conn| conn.expect("the pool is full"));
    let mut conn = conns.into_iter().find(|conn| conn.peer() == "peer0").expect("one is to it");
    servers[0].hold("SELECT 7");
    let text = "server login has been failing, try again later (server_login_retry)";
    servers[0].refuse_logins("08P01", text);
    let took = how_long("the query ends", PATIENCE, || conn.batch_execute("SELECT 7").is_err());
    assert!(took >= pooler_wait && took < PATIENCE / 4, "{took:?}");
    assert_eq!(status(&peers, "peer0").fault, Some(Fault::PeerNotReady));
}
