//! Every checkout is balanced: each peer gets its exact share at any concurrency, on new pools without
//! warm-up, and the peers together never have more connections than the pool's size.

#![allow(clippy::cast_precision_loss, reason = "shares of a few thousand queries")]
#![allow(clippy::disallowed_methods, reason = "the rebalance interval is measured by the clock")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::{
    Balance, PeerConnection, PeerManager, PeerManagerBuilder, PeerState, Strategy, prime,
};
use support::backend::{PATIENCE, SOON, build, links, pool_of, state, status};
use support::scripted::{ScriptedConnection, Server, Servers};
use support::wait_until;

type ScriptedPool = Pool<PeerManager<ScriptedConnection>>;

fn builder_over(servers: &Servers) -> PeerManagerBuilder<ScriptedConnection> {
    servers.builder().rng_seed(1)
}

fn fresh_pool(builder: PeerManagerBuilder<ScriptedConnection>, max_size: u32) -> ScriptedPool {
    Pool::builder().max_size(max_size).build(build(builder)).expect("all peers are up")
}

/// Returns the percentage of 9,000 queries that each server gets while this number of connections is
/// checked out.
fn shares(pool: &ScriptedPool, servers: &[Arc<Server>], concurrency: usize) -> Vec<f64> {
    const QUERIES: usize = 9000;
    let before: Vec<_> = servers.iter().map(|server| server.queries()).collect();
    let mut held = VecDeque::new();
    for _ in 0..QUERIES {
        if held.len() == concurrency {
            held.pop_front();
        }
        let mut conn = pool.get().expect("a connection is idle");
        conn.batch_execute("a query").expect("all peers are up");
        held.push_back(conn);
    }
    let queries = servers.iter().zip(before).map(|(server, before)| server.queries() - before);
    queries.map(|queries| 100.0 * queries as f64 / QUERIES as f64).collect()
}

#[track_caller]
fn assert_shares(shares: &[f64], fair: &[f64], what: &str) {
    let is_fair = shares.iter().zip(fair).all(|(share, fair)| (share - fair).abs() <= 2.0);
    assert!(
        is_fair,
        "{what}: the shares of the queries are {shares:.1?} %, and must be {fair:.1?} %"
    );
}

const THIRDS: [f64; 3] = [100.0 / 3.0; 3];

/// A customizer that runs a query on each new connection, as most customizers do.
#[derive(Debug)]
struct RunsQuery;

impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for RunsQuery {
    fn on_acquire(&self, conn: &mut PeerConnection<ScriptedConnection>) -> Result<(), Error> {
        conn.batch_execute("SET something").map_err(Error::QueryError)
    }
}

#[test]
fn every_strategy_gives_fair_shares_at_every_concurrency() {
    for strategy in [Strategy::LeastConnections, Strategy::Random, Strategy::RoundRobin] {
        for concurrency in [1, 2, 3, 6, 9] {
            let servers = Servers::start(3);
            let pool = fresh_pool(builder_over(&servers).strategy(strategy), 9);
            let what = format!("{strategy:?} at concurrency {concurrency}");
            assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
            for server in servers.iter() {
                assert_eq!(server.most_open(), 3, "{what}: only the pool's connections are open");
            }
        }
    }
}

#[test]
fn primed_pool_is_balanced_although_its_customizer_runs_queries() {
    for concurrency in [1, 2, 3, 6, 9] {
        let servers = Servers::start(3);
        let manager = build(builder_over(&servers));
        let pool = Pool::builder()
            .max_size(9)
            .connection_customizer(Box::new(RunsQuery))
            .build(manager)
            .expect("all peers are up");
        prime(&pool);
        let what = format!("primed, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn pool_with_on_connect_is_balanced_without_priming() {
    for concurrency in [1, 2, 3, 6, 9] {
        let servers = Servers::start(3);
        let builder = builder_over(&servers)
            .on_connect(|conn: &mut ScriptedConnection| conn.batch_execute("SET something"));
        let pool = fresh_pool(builder, 9);
        let prepared: usize = servers.iter().map(|server| server.queries()).sum();
        assert_eq!(prepared, 9, "on_connect runs once for each connection");
        let what = format!("with on_connect, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn customizer_gets_each_new_connection_once() {
    let servers = Servers::start(3);
    let manager = build(builder_over(&servers));
    let peers = manager.peers();
    let pool = Pool::builder()
        .max_size(9)
        .connection_customizer(Box::new(RunsQuery))
        .build(manager)
        .expect("all peers are up");
    let in_use: usize = peers.snapshot().peers.iter().map(|peer| peer.in_use).sum();
    assert_eq!(in_use, 0, "the use by a customizer does not count as a checkout");
    let customized: Vec<_> = servers.iter().map(|server| server.queries()).collect();
    assert_eq!(customized, [3, 3, 3], "the customizer gets the new connection, not an idle one");
    drop(pool);
}

#[test]
fn shares_are_proportional_to_the_weights() {
    let fair = [100.0 / 6.0, 200.0 / 6.0, 300.0 / 6.0];
    // At other concurrencies, these strategies may pick a peer whose connections are all in use.
    let cases: [(Strategy, &[usize]); 3] = [
        (Strategy::LeastConnections, &[1, 2, 3, 4, 6, 8, 12]),
        (Strategy::Random, &[1, 2, 12]),
        (Strategy::RoundRobin, &[1, 12]),
    ];
    for (strategy, concurrencies) in cases {
        for &concurrency in concurrencies {
            let servers = Servers::start(3);
            let builder = builder_over(&servers).weight("peer1", 2).weight("peer2", 3);
            let pool = fresh_pool(builder.strategy(strategy), 12);
            let what = format!("{strategy:?}, weights 1, 2, 3, at concurrency {concurrency}");
            assert_shares(&shares(&pool, &servers, concurrency), &fair, &what);
        }
    }
}

#[test]
fn checkouts_are_balanced_without_test_on_check_out() {
    for concurrency in [1, 3, 9] {
        let servers = Servers::start(3);
        let manager = build(builder_over(&servers));
        let pool = Pool::builder()
            .max_size(9)
            .test_on_check_out(false)
            .build(manager)
            .expect("all peers are up");
        let what = format!("without test_on_check_out, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn per_connection_balance_moves_connections_off_a_down_peer_and_back() {
    let servers = Servers::start(3);
    let builder = builder_over(&servers)
        .balance(Balance::PerConnection)
        .check_interval(SOON)
        .rebalance_interval(Duration::from_millis(20));
    let (pool, peers) = pool_of(builder, 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    // r2d2 opens another connection for each one that is closed.
    let check_out_all = || (0..9).map_while(|_| pool.get().ok()).collect::<Vec<_>>();
    servers[0].accept(false);
    wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    wait_until("the connections to peer0 are replaced", PATIENCE, || {
        assert_eq!(check_out_all().len(), 9, "connections to a down peer are used until then");
        links(&peers)[0] == 0
    });
    servers[0].accept(true);
    wait_until("connections move to peer0 when it is back", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [3, 3, 3]
    });
}

/// A peer on which `on_connect` fails stays down, and does not alternate between up and down.
#[test]
fn peer_on_which_on_connect_fails_stays_down() {
    let servers = Servers::start(3);
    let bad = servers[0].url().to_owned();
    let refusing = move |conn: &mut ScriptedConnection| {
        conn.batch_execute("SET something")?;
        if conn.url() == bad { Err(diesel::result::Error::NotFound) } else { Ok(()) }
    };
    let builder = builder_over(&servers).on_connect(refusing).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 6);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 3, 3]);
    let failures = || status(&peers, "peer0").connect_failures;
    let (before, since) = (failures(), status(&peers, "peer0").since);
    wait_until("peer0 has failed five more checks", PATIENCE, || {
        drop(pool.get());
        failures() >= before + 5
    });
    assert_eq!(status(&peers, "peer0").since, since, "the peer is down all the time");
    let connects: u64 = peers.snapshot().peers.iter().map(|peer| peer.connects).sum();
    assert_eq!(connects, 6, "no connection to another peer was closed for peer0");
}

#[test]
fn per_connection_balance_reuses_the_last_returned_connection() {
    let servers = Servers::start(3);
    let pool = fresh_pool(builder_over(&servers).balance(Balance::PerConnection), 9);
    let shares = shares(&pool, &servers, 1);
    assert!(
        shares.contains(&100.0),
        "each checkout gets the connection that was returned last: {shares:?}"
    );
}

#[test]
fn first_tier_serves_alone_until_it_is_down() {
    let servers = Servers::start(3);
    let builder = builder_over(&servers).strategy(Strategy::Ordered).tier("peer1", 1);
    let pool = fresh_pool(builder.tier("peer2", 1), 4);
    assert_shares(&shares(&pool, &servers, 2), &[100.0, 0.0, 0.0], "all peers are up");
    servers[0].crash();
    drop(pool.get());
    wait_until("the next tier serves", PATIENCE, || {
        pool.get().is_ok_and(|conn| conn.peer() != "peer0")
    });
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 4);
    assert_shares(&shares(&pool, &servers, 2), &[0.0, 50.0, 50.0], "the first tier is down");
}

#[test]
fn checkout_that_finds_a_dead_connection_takes_another_in_the_same_call() {
    let servers = Servers::start(3);
    let manager = build(builder_over(&servers));
    let peers = manager.peers();
    let pool = Pool::builder().max_size(9).build(manager).expect("all peers are up");
    shares(&pool, &servers, 1);
    servers[0].crash();
    let before = servers[0].queries();
    for _ in 0..100 {
        // `try_get` does not wait for a login.
        let mut conn = pool.try_get().expect("six working connections are idle");
        conn.batch_execute("a query").expect("the connection works");
        assert_ne!(conn.peer(), "peer0", "the connection does not lead to the crashed peer");
    }
    assert_eq!(servers[0].queries(), before, "no query is sent to the crashed peer");
    wait_until("the dead connections are closed", PATIENCE, || {
        drop(pool.get());
        links(&peers)[0] == 0
    });
    wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
}

#[test]
fn returning_peer_gets_one_connection_per_rebalance_interval() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let servers = Servers::start(3);
    let builder = builder_over(&servers).check_interval(SOON).rebalance_interval(INTERVAL);
    let (pool, peers) = pool_of(builder, 12);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [4, 4, 4]);
    servers[0].crash();
    wait_until("peer0 has no connections", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [0, 6, 6]
    });
    servers[0].accept(true);
    wait_until("peer0 is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    // One thread is enough: each checkin closes connections of peers that have too many.
    let logins = |server: usize| servers[server].logins();
    let before = [logins(1), logins(2)];
    let start = Instant::now();
    wait_until("peer0 has its share", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [4, 4, 4]
    });
    assert!(start.elapsed() >= 3 * INTERVAL, "four connections move one at a time");
    for _ in 0..2000 {
        drop(pool.get());
    }
    let checks = usize::try_from(start.elapsed().as_millis() / SOON.as_millis()).unwrap() + 2;
    for (other, before) in [1, 2].into_iter().zip(before) {
        assert!(
            logins(other) - before <= checks,
            "connections do not oscillate: only checks log in to the others"
        );
    }
    assert_shares(&shares(&pool, &servers, 1), &THIRDS, "after the return");
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod real_servers {
    use diesel_peers::Strategy;
    use support::backend::{Backend, PATIENCE, fill, manager_over, pool_of};
    use support::load::Load;
    use support::wait_until;

    /// Asserts on real servers what holds on a scripted backend, with a larger tolerance.
    fn on_real_servers<B: Backend>(sessions: impl Fn(&B) -> usize) {
        let servers = B::start(3);
        // With more than one thread, a faster server has fewer connections in use and gets more checkouts.
        for (strategy, threads) in [(Strategy::LeastConnections, 1), (Strategy::RoundRobin, 3)] {
            let (pool, peers) = pool_of(manager_over(&servers).strategy(strategy), 9);
            fill(&pool, &peers, &[3, 3, 3]);
            let seen = Load::run(&pool, threads, "SELECT 1", |load| {
                wait_until("3000 queries succeed", PATIENCE, || load.served() >= 3000);
            });
            let all: usize = seen.served.values().sum();
            for (peer, served) in &seen.served {
                let share = 100.0 * *served as f64 / all as f64;
                assert!(
                    (share - 100.0 / 3.0).abs() <= 5.0,
                    "with {threads} threads {peer} gets a third of the queries: {share:.1} %"
                );
            }
            assert_eq!(
                (seen.refused.len(), seen.failed.len()),
                (0, 0),
                "no checkout and no query fails"
            );
            for server in &servers {
                assert_eq!(sessions(server), 3, "each server counts three sessions of the pool");
            }
            drop(pool);
            wait_until("the sessions end", PATIENCE, || {
                servers.iter().all(|server| sessions(server) == 0)
            });
        }
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn mariadb_servers_get_fair_shares() {
        on_real_servers(support::mariadb::MariaDb::sessions);
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn postgres_servers_get_fair_shares() {
        on_real_servers(support::postgres::Postgres::sessions);
    }
}

#[test]
fn connections_over_the_max_age_are_replaced_when_they_come_back() {
    let servers = Servers::start(3);
    let builder = builder_over(&servers).connection_max_age(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    let first: Vec<_> = servers.iter().map(|server| server.logins()).collect();
    wait_until("each connection is replaced, however idle its slot is", PATIENCE, || {
        // One checkout at a time reaches each connection in turn.
        drop(pool.get());
        servers.iter().zip(&first).all(|(server, first)| server.logins() >= first + 3)
    });
    let open: usize = servers.iter().map(|server| server.open()).sum();
    assert!(open <= 9 + 3, "at most three new connections wait for the end of old ones: {open}");
}

/// With test transactions a connection stays with its slot, so that a test sees its own rows.
#[cfg(feature = "mysql")]
#[test]
fn connections_in_test_transactions_stay_with_their_slots() {
    use diesel::prelude::*;
    use diesel::r2d2::{ConnectionManager, ManageConnection, TestCustomizer};

    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        count: i64,
    }

    /// Returns the number of rows that each of twelve checkouts sees after another one has inserted a row.
    fn seen<M>(manager: M) -> Vec<i64>
    where
        M: ManageConnection<Error = Error>,
        M::Connection: diesel::r2d2::R2D2Connection<Backend = diesel::mysql::Mysql>
            + diesel::connection::LoadConnection,
    {
        let pool = Pool::builder()
            .max_size(3)
            .connection_customizer(Box::new(TestCustomizer))
            .build(manager)
            .expect("the peer is up");
        let mut first = pool.get().expect("the peer is up");
        diesel::sql_query("INSERT INTO t VALUES (1)").execute(&mut first).expect("the peer is up");
        drop(first);
        let seen = || {
            let mut conn = pool.get().expect("the peer is up");
            let count = diesel::sql_query("SELECT COUNT(*) AS count FROM t");
            count.get_result::<Count>(&mut conn).expect("the peer is up").count
        };
        (0..12).map(|_| seen()).collect()
    }

    let server = support::mariadb::MariaDb::start();
    server.sql("CREATE TABLE app.t (id INT) ENGINE=InnoDB");
    let with_diesel = seen(ConnectionManager::<MysqlConnection>::new(server.url()));
    let with_peers = seen(build(support::backend::manager_of::<MysqlConnection>([server.url()])));
    assert_eq!(with_peers, with_diesel, "the result is the same as with diesel's manager");
    assert_eq!(with_peers, [1; 12], "each checkout sees the row");
}
