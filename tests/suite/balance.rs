//! Every checkout is balanced: exact shares at any concurrency, on fresh pools without warm-up,
//! and with no more connections than the pool is large.

#![allow(clippy::cast_precision_loss, reason = "shares of a few thousand queries")]
#![allow(clippy::disallowed_methods, reason = "a pace is measured by the clock")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::{CustomizeConnection, Error, Pool};
use diesel_peers::{
    Balance, PeerConnection, PeerManager, PeerManagerBuilder, PeerState, Strategy, prime,
};
use support::backend::{PATIENCE, SOON, links, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

type ScriptedPool = Pool<PeerManager<ScriptedConnection>>;

fn three_servers() -> Vec<Arc<Server>> {
    (0..3).map(|_| Server::start()).collect()
}

fn builder_over(servers: &[Arc<Server>]) -> PeerManagerBuilder<ScriptedConnection> {
    manager_of(servers.iter().map(|server| server.url())).rng_seed(1)
}

fn fresh_pool(builder: PeerManagerBuilder<ScriptedConnection>, max_size: u32) -> ScriptedPool {
    let manager = builder.build().expect("the settings are right");
    Pool::builder().max_size(max_size).build(manager).expect("all peers live")
}

/// The percentage of the queries that each server gets, of 9,000 with so many checkouts at once.
fn shares(pool: &ScriptedPool, servers: &[Arc<Server>], concurrency: usize) -> Vec<f64> {
    const QUERIES: usize = 9000;
    let before: Vec<_> = servers.iter().map(|server| server.queries()).collect();
    let mut held = VecDeque::new();
    for _ in 0..QUERIES {
        if held.len() == concurrency {
            held.pop_front();
        }
        let mut conn = pool.get().expect("there is one");
        conn.batch_execute("a query").expect("all peers live");
        held.push_back(conn);
    }
    let queries = servers.iter().zip(before).map(|(server, before)| server.queries() - before);
    queries.map(|queries| 100.0 * queries as f64 / QUERIES as f64).collect()
}

#[track_caller]
fn assert_shares(shares: &[f64], fair: &[f64], what: &str) {
    let is_fair = shares.iter().zip(fair).all(|(share, fair)| (share - fair).abs() <= 2.0);
    assert!(is_fair, "{what}: {shares:.1?} % of the queries, fair is {fair:.1?} %");
}

const THIRDS: [f64; 3] = [100.0 / 3.0; 3];

/// Touches each new connection, as most customizers do.
#[derive(Debug)]
struct Touching;

impl CustomizeConnection<PeerConnection<ScriptedConnection>, Error> for Touching {
    fn on_acquire(&self, conn: &mut PeerConnection<ScriptedConnection>) -> Result<(), Error> {
        conn.batch_execute("SET something").map_err(Error::QueryError)
    }
}

#[test]
fn at_every_concurrency_and_with_every_strategy() {
    for strategy in [Strategy::LeastConnections, Strategy::Random, Strategy::RoundRobin] {
        for concurrency in [1, 2, 3, 6, 9] {
            let servers = three_servers();
            let pool = fresh_pool(builder_over(&servers).strategy(strategy), 9);
            let what = format!("{strategy:?} at concurrency {concurrency}");
            assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
            for server in &servers {
                assert_eq!(server.most_open(), 3, "{what}: no connections beyond the pool's");
            }
        }
    }
}

#[test]
fn with_a_customizer_that_touches_connections_once_primed() {
    for concurrency in [1, 2, 3, 6, 9] {
        let servers = three_servers();
        let manager = builder_over(&servers).build().expect("the settings are right");
        let pool = Pool::builder()
            .max_size(9)
            .connection_customizer(Box::new(Touching))
            .build(manager)
            .expect("all peers live");
        prime(&pool);
        let what = format!("primed, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn with_on_connect_which_needs_no_priming() {
    for concurrency in [1, 2, 3, 6, 9] {
        let servers = three_servers();
        let builder = builder_over(&servers)
            .on_connect(|conn: &mut ScriptedConnection| conn.batch_execute("SET something"));
        let pool = fresh_pool(builder, 9);
        let prepared: usize = servers.iter().map(|server| server.queries()).sum();
        assert_eq!(prepared, 9, "each connection is prepared once");
        let what = format!("prepared, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn a_customizer_gets_each_new_connection_once() {
    let servers = three_servers();
    let manager = builder_over(&servers).build().expect("the settings are right");
    let peers = manager.peers();
    let pool = Pool::builder()
        .max_size(9)
        .connection_customizer(Box::new(Touching))
        .build(manager)
        .expect("all peers live");
    let in_use: usize = peers.snapshot().peers.iter().map(|peer| peer.in_use).sum();
    assert_eq!(in_use, 0, "a customizer's use is no checkout");
    let customized: Vec<_> = servers.iter().map(|server| server.queries()).collect();
    assert_eq!(customized, [3, 3, 3], "its own, and not another one that is parked");
    drop(pool);
}

#[test]
fn in_proportion_to_the_weights() {
    let fair = [100.0 / 6.0, 200.0 / 6.0, 300.0 / 6.0];
    // In between, the others may meet a peer whose connections are all in use.
    let cases: [(Strategy, &[usize]); 3] = [
        (Strategy::LeastConnections, &[1, 2, 3, 4, 6, 8, 12]),
        (Strategy::Random, &[1, 2, 12]),
        (Strategy::RoundRobin, &[1, 12]),
    ];
    for (strategy, concurrencies) in cases {
        for &concurrency in concurrencies {
            let servers = three_servers();
            let builder = builder_over(&servers).weight("peer1", 2).weight("peer2", 3);
            let pool = fresh_pool(builder.strategy(strategy), 12);
            let what = format!("{strategy:?}, weights 1, 2, 3, at concurrency {concurrency}");
            assert_shares(&shares(&pool, &servers, concurrency), &fair, &what);
        }
    }
}

#[test]
fn without_a_test_at_check_out() {
    for concurrency in [1, 3, 9] {
        let servers = three_servers();
        let manager = builder_over(&servers).build().expect("the settings are right");
        let pool = Pool::builder()
            .max_size(9)
            .test_on_check_out(false)
            .build(manager)
            .expect("all peers live");
        let what = format!("unchecked, at concurrency {concurrency}");
        assert_shares(&shares(&pool, &servers, concurrency), &THIRDS, &what);
    }
}

#[test]
fn connections_alone_if_so_told() {
    let servers = three_servers();
    let builder = builder_over(&servers)
        .balance(Balance::PerConnection)
        .check_interval(SOON)
        .rebalance_interval(Duration::from_millis(20));
    let (pool, peers) = pool_of(builder, 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    let check_out_all = || (0..9).map_while(|_| pool.try_get()).collect::<Vec<_>>();
    servers[0].accept(false);
    wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    for conn in check_out_all() {
        assert_ne!(conn.peer(), "peer0", "its connections are not handed out, though they work");
    }
    wait_until("they are closed", PATIENCE, || {
        drop(check_out_all());
        links(&peers)[0] == 0
    });
    servers[0].accept(true);
    wait_until("some move to it when it is back", PATIENCE, || {
        drop(check_out_all());
        links(&peers) == [3, 3, 3]
    });
}

/// A peer on which connections cannot be prepared is down, and not up and down in turn.
#[test]
fn a_peer_on_which_on_connect_fails_stays_down() {
    let servers = three_servers();
    let bad = servers[0].url().to_owned();
    let refusing = move |conn: &mut ScriptedConnection| {
        conn.batch_execute("SET something")?;
        if conn.url() == bad { Err(diesel::result::Error::NotFound) } else { Ok(()) }
    };
    let builder = builder_over(&servers).on_connect(refusing).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 6);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [0, 3, 3]);
    let failures = || peers.snapshot().peers[0].connect_failures;
    let (before, since) = (failures(), peers.snapshot().peers[0].since);
    wait_until("it is checked again and again", PATIENCE, || {
        drop(pool.get());
        failures() >= before + 5
    });
    assert_eq!(peers.snapshot().peers[0].since, since, "it was down all the time");
    let connects: u64 = peers.snapshot().peers.iter().map(|peer| peer.connects).sum();
    assert_eq!(connects, 6, "no connection was given up for it");
}

#[test]
fn unless_connections_are_balanced_instead() {
    let servers = three_servers();
    let pool = fresh_pool(builder_over(&servers).balance(Balance::PerConnection), 9);
    let shares = shares(&pool, &servers, 1);
    assert!(shares.contains(&100.0), "the one that came back last, each time: {shares:?}");
}

#[test]
fn the_first_tier_serves_alone_until_it_is_down() {
    let servers = three_servers();
    let builder = builder_over(&servers).strategy(Strategy::Ordered).tier("peer1", 1);
    let pool = fresh_pool(builder.tier("peer2", 1), 4);
    assert_shares(&shares(&pool, &servers, 2), &[100.0, 0.0, 0.0], "all peers live");
    servers[0].crash();
    drop(pool.get());
    wait_until("the next tier serves", PATIENCE, || {
        pool.get().is_ok_and(|conn| conn.peer() != "peer0")
    });
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 4);
    assert_shares(&shares(&pool, &servers, 2), &[0.0, 50.0, 50.0], "the first one is down");
}

#[test]
fn a_check_out_that_finds_its_link_dead_takes_another_in_the_same_call() {
    let servers = three_servers();
    let manager = builder_over(&servers).build().expect("the settings are right");
    let peers = manager.peers();
    let pool = Pool::builder().max_size(9).build(manager).expect("all peers live");
    shares(&pool, &servers, 1);
    servers[0].crash();
    let lost = servers[0].queries();
    for _ in 0..100 {
        // `try_get` waits for no connect.
        let mut conn = pool.try_get().expect("six live connections are idle");
        conn.batch_execute("a query").expect("a live one");
        assert_ne!(conn.peer(), "peer0", "it does not lead to the dead peer");
    }
    assert_eq!(servers[0].queries(), lost, "no query was sent to it");
    wait_until("its corpses are carried out", PATIENCE, || {
        drop(pool.get());
        links(&peers)[0] == 0
    });
    wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
}

#[test]
fn a_peer_that_comes_back_gets_its_share_at_the_pace() {
    const PACE: Duration = Duration::from_millis(100);
    let servers = three_servers();
    let builder = builder_over(&servers).check_interval(SOON).rebalance_interval(PACE);
    let (pool, peers) = pool_of(builder, 12);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [4, 4, 4]);
    servers[0].crash();
    wait_until("it is empty", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [0, 6, 6]
    });
    servers[0].accept(true);
    wait_until("it is up", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
    // One thread is enough: whoever comes back carries out what is too many elsewhere.
    let logins = |from: usize| servers[from].logins();
    let before = [logins(1), logins(2)];
    let start = Instant::now();
    wait_until("it has its share", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [4, 4, 4]
    });
    assert!(start.elapsed() >= 3 * PACE, "four connections, one at a time");
    for _ in 0..2000 {
        drop(pool.get());
    }
    let checks = usize::try_from(start.elapsed().as_millis() / SOON.as_millis()).unwrap() + 2;
    for (other, before) in [1, 2].into_iter().zip(before) {
        assert!(logins(other) - before <= checks, "nothing oscillates: only checks log in there");
    }
    assert_shares(&shares(&pool, &servers, 1), &THIRDS, "afterwards");
}

#[cfg(any(feature = "mysql", feature = "postgres"))]
mod real_servers {
    use diesel_peers::Strategy;
    use support::backend::{Backend, PATIENCE, fill, manager_over, pool_of};
    use support::load::Load;
    use support::wait_until;

    /// What holds on a scripted backend holds on real servers, if less exactly.
    fn on_real_servers<B: Backend>(sessions: impl Fn(&B) -> usize) {
        let servers = B::start(3);
        // With more than one thread the fewest in use are a faster server's, which may be any here.
        for (strategy, threads) in [(Strategy::LeastConnections, 1), (Strategy::RoundRobin, 3)] {
            let (pool, peers) = pool_of(manager_over(&servers).strategy(strategy), 9);
            fill(&pool, &peers, &[3, 3, 3]);
            let seen = Load::run(&pool, threads, "SELECT 1", |load| {
                wait_until("enough is served", PATIENCE, || load.served() >= 3000);
            });
            let all: usize = seen.served.values().sum();
            for (peer, served) in &seen.served {
                let share = 100.0 * *served as f64 / all as f64;
                assert!(
                    (share - 100.0 / 3.0).abs() <= 5.0,
                    "{threads} threads, {peer}: {share:.1} %"
                );
            }
            assert_eq!((seen.refused.len(), seen.failed.len()), (0, 0), "nothing fails");
            for server in &servers {
                assert_eq!(sessions(server), 3, "the server's own count of our connections");
            }
            drop(pool);
            wait_until("its sessions end", PATIENCE, || {
                servers.iter().all(|server| sessions(server) == 0)
            });
        }
    }

    #[cfg(feature = "mysql")]
    #[test]
    fn on_mariadb() {
        on_real_servers(support::mariadb::MariaDb::sessions);
    }

    #[cfg(feature = "postgres")]
    #[test]
    fn on_postgres() {
        on_real_servers(support::postgres::Postgres::sessions);
    }
}

#[test]
fn connections_that_are_too_old_are_closed_as_they_come_back() {
    let servers = three_servers();
    let builder = builder_over(&servers).connection_max_age(Duration::from_millis(200));
    let (pool, peers) = pool_of(builder, 9);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [3, 3, 3]);
    let first: Vec<_> = servers.iter().map(|server| server.logins()).collect();
    wait_until("each is replaced, however idle its slot is", PATIENCE, || {
        // One at a time: each link gets its turn.
        drop(pool.get());
        servers.iter().zip(&first).all(|(server, first)| server.logins() >= first + 3)
    });
    for server in &servers {
        assert!(server.most_open() <= 9, "never more than the pool is large");
    }
    let open: usize = servers.iter().map(|server| server.open()).sum();
    assert!(open <= 9, "never more than the pool is large: {open}");
}

/// Test transactions stay with their slots, so that a test sees its own rows.
#[cfg(feature = "mysql")]
#[test]
fn test_transactions_stay_with_their_slots() {
    use diesel::prelude::*;
    use diesel::r2d2::{ConnectionManager, ManageConnection, TestCustomizer};

    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        count: i64,
    }

    /// What each of twelve checkouts in turn sees, of rows that the first one wrote.
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
            .expect("the peer lives");
        let mut first = pool.get().expect("it lives");
        diesel::sql_query("INSERT INTO t VALUES (1)").execute(&mut first).expect("a new row");
        drop(first);
        let seen = || {
            let mut conn = pool.get().expect("it lives");
            let count = diesel::sql_query("SELECT COUNT(*) AS count FROM t");
            count.get_result::<Count>(&mut conn).expect("it lives").count
        };
        (0..12).map(|_| seen()).collect()
    }

    let server = support::mariadb::MariaDb::start();
    server.sql("CREATE TABLE app.t (id INT) ENGINE=InnoDB");
    let theirs = seen(ConnectionManager::<MysqlConnection>::new(server.url()));
    let ours = seen(manager_of::<MysqlConnection>([server.url()]).build().expect("right settings"));
    assert_eq!(ours, theirs, "as with diesel's own manager");
    assert_eq!(ours, [1; 12], "each sees it");
}
