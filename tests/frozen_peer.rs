//! A peer that stops answering (a frozen process, a machine that hangs) does not block a thread for long: its
//! queries are aborted. Queries on a peer that is only slow are not aborted.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

#[cfg(feature = "mysql")]
use std::io::Read;
#[cfg(feature = "mysql")]
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::DerefMut;
#[cfg(feature = "mysql")]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, PooledConnection, R2D2Connection};
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Strategy};
use support::backend::{
    Backend, PATIENCE, SOON, fill, links, manager_over, pool_of, state, status,
};
use support::load::Load;
#[cfg(feature = "mysql")]
use support::mariadb::MariaDb;
use support::process::Server;
use support::wait_until;

const STALL_AFTER: Duration = Duration::from_millis(500);
const CHECK_TIMEOUT: Duration = Duration::from_millis(200);

/// The number of threads and of connections, which is more than a peer's share of the connections.
const THREADS: u32 = 12;

/// Makes a builder detect and abort hung queries quickly.
fn quick_to_abort<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    builder.stall_after(STALL_AFTER).check_timeout(CHECK_TIMEOUT)
}

/// Freezes one of three servers under load.
fn frozen_peer_blocks_no_thread<B>(strategy: Strategy, query: &str)
where
    B: Backend + DerefMut<Target = Server>,
{
    let mut servers = B::start(3);
    let builder = quick_to_abort(manager_over(&servers))
        .strategy(strategy)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2));
    let (pool, peers) = pool_of(builder, THREADS);
    fill(&pool, &peers, &[4, 4, 4]);
    let seen = Load::run(&pool, THREADS as usize, query, |load| {
        wait_until("1000 queries succeed", PATIENCE, || load.served() > 1000);
        servers[0].freeze();
        let in_use = || status(&peers, "peer0").in_use;
        for _ in 0..10 {
            let before = load.served();
            wait_until("the other peers go on serving", PATIENCE, || load.served() > before + 20);
        }
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        wait_until("no connection to peer0 is in use", PATIENCE, || in_use() == 0);
        let served = load.served();
        wait_until("1000 more queries succeed", PATIENCE, || load.served() > served + 1000);
        assert_eq!(in_use(), 0, "no checkout gets a connection to the frozen peer");
        servers[0].thaw();
        wait_until("peer0 is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("peer0 has its share again", PATIENCE, || links(&peers) == [4, 4, 4]);
        let before = load.served_by("peer0");
        wait_until("peer0 serves", PATIENCE, || load.served_by("peer0") > before + 100);
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    let only_frozen = seen.failed.iter().all(|(peer, _)| peer == "peer0");
    assert!(only_frozen, "only the frozen peer's queries fail: {:?}", seen.failed);
    assert!(seen.failed.len() <= 6, "only queries in flight fail: {:?}", seen.failed);
}

#[cfg(feature = "mysql")]
mod mariadb {
    use super::*;

    #[test]
    fn frozen_peer_blocks_no_thread_with_least_connections() {
        frozen_peer_blocks_no_thread::<MariaDb>(Strategy::LeastConnections, "SELECT SLEEP(0.001)");
    }

    #[test]
    fn frozen_peer_blocks_no_thread_with_random() {
        frozen_peer_blocks_no_thread::<MariaDb>(Strategy::Random, "SELECT SLEEP(0.001)");
    }

    #[test]
    fn frozen_peer_blocks_no_thread_with_round_robin() {
        frozen_peer_blocks_no_thread::<MariaDb>(Strategy::RoundRobin, "SELECT SLEEP(0.001)");
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use support::postgres::Postgres;

    #[test]
    fn frozen_peer_blocks_no_thread_with_least_connections() {
        frozen_peer_blocks_no_thread::<Postgres>(
            Strategy::LeastConnections,
            "SELECT pg_sleep(0.001)",
        );
    }
}

/// Queries whose events do not say how long they run.
#[cfg(feature = "postgres")]
#[expect(clippy::disallowed_methods, reason = "the time until a query is aborted is the guarantee")]
mod events_are_not_brackets {
    use std::io::{BufRead, Write};
    use std::time::Instant;

    use diesel::pg::{CopyFormat, Pg};
    use diesel::prelude::*;
    use diesel::serialize::{IsNull, Output, ToSql};
    use diesel::sql_types::{Integer, SqlType};
    use diesel::{ExecuteCopyFromDsl, PgConnection};

    use super::*;
    use support::postgres::Postgres;

    diesel::table! {
        numbers (number) { number -> Integer, }
    }

    #[derive(SqlType, diesel::query_builder::QueryId)]
    #[diesel(postgres_type(name = "mood"))]
    struct MoodType;

    #[derive(Debug, diesel::expression::AsExpression, Clone, Copy)]
    #[diesel(sql_type = MoodType)]
    enum Mood {
        Fine,
        /// Has no form in SQL.
        Unspeakable,
    }

    impl ToSql<MoodType, Pg> for Mood {
        fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
            match self {
                Self::Fine => out.write_all(b"fine")?,
                Self::Unspeakable => return Err("no form in SQL".into()),
            }
            Ok(IsNull::No)
        }
    }

    #[derive(QueryableByName)]
    struct One {
        #[diesel(sql_type = Integer)]
        #[expect(dead_code, reason = "no row is expected")]
        one: i32,
    }

    fn two_servers() -> Vec<Postgres> {
        let servers = <Postgres as Backend>::start(2);
        for server in &servers {
            let mut conn = PgConnection::establish(&server.url()).expect("the server is up");
            conn.batch_execute(
                "CREATE TYPE mood AS ENUM ('fine'); CREATE TABLE numbers (number INTEGER); \
                 INSERT INTO numbers SELECT generate_series(1, 300000)",
            )
            .expect("the application owns its database");
        }
        servers
    }

    /// Runs a query on a server that is frozen as soon as the query runs there, or as soon as the query says
    /// so. The query has to be aborted long before the server is thawed.
    fn is_aborted(query: impl FnOnce(&mut PgConnection, &(dyn Fn() + Sync)) -> bool) {
        let mut servers = two_servers();
        let builder = quick_to_abort(manager_over(&servers)).check_interval(PATIENCE);
        let (pool, peers) = pool_of(builder, 2);
        fill(&pool, &peers, &[1, 1]);
        let mut conns = all_to_peer0(&pool);
        let ended = AtomicBool::new(false);
        let (freeze, asked) = crossbeam_channel::bounded(1);
        let server = &mut servers[0];
        thread::scope(|scope| {
            scope.spawn(|| {
                asked.recv().expect("the query says when");
                server.freeze();
                let start = Instant::now();
                while !ended.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(20) {
                    thread::sleep(Duration::from_millis(50));
                }
                let took = start.elapsed();
                server.thaw();
                assert!(took < Duration::from_secs(15), "the query ended after {took:?}");
            });
            let has_failed = query(&mut conns[0], &|| freeze.send(()).expect("a thread waits"));
            ended.store(true, Ordering::SeqCst);
            assert!(has_failed, "the query fails while its server is frozen");
        });
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "the frozen peer is marked down");
    }

    #[test]
    fn query_that_looks_up_a_custom_type_is_aborted() {
        is_aborted(|conn, freeze| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_millis(500));
                    freeze();
                });
                diesel::sql_query("SELECT pg_sleep(2) IS NULL WHERE $1 IS NOT NULL")
                    .bind::<MoodType, _>(Mood::Fine)
                    .load::<One>(conn)
                    .is_err_and(|error| matches!(error, diesel::result::Error::DatabaseError(..)))
            })
        });
    }

    #[test]
    fn copy_to_is_aborted() {
        is_aborted(|conn, freeze| {
            let mut rows = diesel::copy_to(numbers::table)
                .with_format(CopyFormat::Csv)
                .load_raw(conn)
                .expect("the copy begins");
            freeze();
            thread::sleep(Duration::from_secs(1));
            let mut line = String::new();
            loop {
                line.clear();
                match rows.read_line(&mut line) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(_) => return true,
                }
            }
        });
    }

    #[test]
    fn copy_from_is_aborted() {
        is_aborted(|conn, freeze| {
            let copied = diesel::copy_from(numbers::table)
                .from_raw_data(numbers::table, |copy| {
                    freeze();
                    for number in 1_000_000..3_000_000 {
                        writeln!(copy, "{number}").map_err(|error| {
                            diesel::result::Error::SerializationError(error.into())
                        })?;
                    }
                    diesel::QueryResult::Ok(())
                })
                .execute(conn);
            copied.is_err()
        });
    }

    /// Neither a query that never began nor a copy that the application takes its time with runs.
    #[test]
    fn connection_whose_thread_does_not_wait_makes_no_peer_suspect() {
        let servers = two_servers();
        let builder = quick_to_abort(manager_over(&servers)).check_interval(PATIENCE);
        let (pool, peers) = pool_of(builder, 4);
        fill(&pool, &peers, &[2, 2]);
        let mut conns = all_to_peer0(&pool);
        let [one, other] = &mut conns[..] else { panic!("two connections lead to each peer") };
        let unspeakable = || {
            diesel::sql_query("SELECT 1 AS one WHERE $1 IS NOT NULL")
                .bind::<MoodType, _>(Mood::Unspeakable)
        };
        for _ in 0..2 {
            one.batch_execute("SELECT 1").expect("the peer is up");
            unspeakable().load::<One>(&mut **one).map(drop).expect_err("the value has no form");
        }
        let mut rows = diesel::copy_to(numbers::table)
            .with_format(CopyFormat::Csv)
            .load_raw(&mut ***other)
            .expect("the copy begins");
        rows.read_line(&mut String::new()).expect("the peer sends a row");
        let checks =
            || servers[0].sql("SELECT sessions FROM pg_stat_database WHERE datname = 'app'");
        let before = checks();
        for _ in 0..40 {
            thread::sleep(Duration::from_millis(50));
            let status = status(&peers, "peer0");
            assert!(!status.is_unresponsive, "no query waits for the peer");
        }
        assert_eq!(checks(), before, "the peer is not checked");
        let rows = rows.lines().map_while(Result::ok).count();
        assert_eq!(rows, 299_999, "the copy is complete");
    }
}

/// Checks out all connections of an idle pool, and returns those to the first peer.
fn all_to_peer0<C>(pool: &Pool<PeerManager<C>>) -> Vec<PooledConnection<PeerManager<C>>>
where
    C: R2D2Connection + Send + 'static,
{
    let connections = pool.state().connections;
    let mut all: Vec<_> =
        (0..connections).map(|_| pool.get().expect("both peers are up")).collect();
    all.retain(|conn| conn.peer() == "peer0");
    all
}

/// The application's health check may wait for another service, whose silence is not that of the peer.
#[cfg(feature = "mysql")]
#[test]
fn health_check_that_waits_for_another_service_aborts_no_query() {
    let servers = <MariaDb as Backend>::start(2);
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = silent.local_addr().expect("the listener is bound");
    let waits = Arc::new(AtomicBool::new(false));
    let check_waits = waits.clone();
    let builder = quick_to_abort(manager_over(&servers)).health_check(move |_| {
        if check_waits.load(Ordering::SeqCst) {
            let mut other = TcpStream::connect(address).expect("the service listens");
            let _ = other.read(&mut [0]);
        }
        Ok(())
    });
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    waits.store(true, Ordering::SeqCst);
    let [mut long, mut short] = [(); 2].map(|()| pool.get().expect("both peers are up"));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let _ = short.batch_execute("DO SLEEP(0.02)");
            }
        });
        let outcome = long.batch_execute("DO SLEEP(3)");
        ended.store(true, Ordering::SeqCst);
        outcome.expect("the query is not aborted: its peer has answered each check");
    });
    drop(silent);
}

/// A connection that is checked out before the freeze, and first used after it.
#[cfg(feature = "mysql")]
#[test]
fn query_that_begins_after_the_freeze_is_aborted() {
    let mut servers = <MariaDb as Backend>::start(2);
    let builder = quick_to_abort(manager_over(&servers)).check_interval(PATIENCE);
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    let mut conns = all_to_peer0(&pool);
    servers[0].freeze();
    for conn in &mut conns {
        conn.batch_execute("SELECT 1")
            .expect_err("the query is aborted while its server is frozen");
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "the frozen peer is marked down");
    }
    drop(conns);
    servers[0].thaw();
}

/// Each client library waits in its own way for an answer over TLS, and the kernel has to show that.
#[cfg(all(feature = "mysql", feature = "postgres"))]
mod over_tls {
    use super::*;
    use support::backend::{RealServer, manager_of};
    use support::postgres::Postgres;
    use support::within;

    fn query_is_aborted<S: RealServer + Send>(mut frozen: S, tls: &str) {
        let other = S::start(1);
        let urls = [frozen.url() + tls, other[0].url()];
        let builder = quick_to_abort(manager_of::<S::Connection>(urls)).check_interval(PATIENCE);
        let (pool, peers) = pool_of(builder, 2);
        fill(&pool, &peers, &[1, 1]);
        let mut conns = all_to_peer0(&pool);
        thread::scope(|scope| {
            scope.spawn(|| {
                within(STALL_AFTER / 2, || false);
                frozen.freeze();
                wait_until("peer0 is down", PATIENCE, || state(&peers, "peer0").is_marked_down());
                frozen.thaw();
            });
            let query = S::rest(3.0);
            conns[0].batch_execute(&query).expect_err("the query is aborted");
        });
    }

    #[test]
    fn query_on_mariadb_is_aborted() {
        let server = MariaDb::start_with_tls();
        let ca = server.folder().join("certificate.pem");
        let tls = format!("?ssl_mode=verify_identity&ssl_ca={}", ca.display());
        query_is_aborted(server, &tls);
    }

    #[test]
    fn query_on_postgres_is_aborted() {
        query_is_aborted(Postgres::start_with_tls(), "?sslmode=require");
    }
}

/// Idle connections are pinged. The first ping goes to the frozen peer and uses up the time for pings; the
/// connections to the other peers are not closed because of that.
#[cfg(feature = "mysql")]
#[test]
fn idle_pool_keeps_the_connections_to_other_peers() {
    let mut servers = <MariaDb as Backend>::start(3);
    let builder = manager_over(&servers)
        .check_interval(PATIENCE)
        .ping_idle(Duration::ZERO)
        .ping_timeout(STALL_AFTER);
    let (pool, peers) = pool_of(builder, 9);
    fill(&pool, &peers, &[3, 3, 3]);
    let made = || peers.snapshot().peers.iter().map(|peer| peer.connects).collect::<Vec<_>>();
    let before = made();
    servers[0].freeze();
    // Enough checkouts to reach the connections of each peer.
    for _ in 0..12 {
        let conn = pool.get().expect("two peers are up");
        assert_ne!(conn.peer(), "peer0", "the frozen peer does not answer pings");
    }
    wait_until("the connections to peer0 are closed", PATIENCE, || {
        drop(pool.try_get());
        links(&peers)[0] == 0
    });
    assert!(
        made()[1..].iter().sum::<u64>() <= before[1..].iter().sum::<u64>() + 3,
        "no connections to other peers are closed"
    );
    servers[0].thaw();
}

/// A long query leads to a check of its peer, and the peer gets checkouts again after the check.
#[cfg(feature = "mysql")]
#[test]
fn long_query_does_not_exclude_its_peer() {
    let servers = <MariaDb as Backend>::start(2);
    let (pool, peers) = pool_of(manager_over(&servers).stall_after(STALL_AFTER), 8);
    fill(&pool, &peers, &[4, 4]);
    let mut long = pool.get().expect("both peers are up");
    let on = long.peer().to_owned();
    thread::scope(|scope| {
        scope.spawn(move || long.batch_execute("SELECT SLEEP(6)").expect("the long query ends"));
        wait_until("the peer of the long query gets a checkout", Duration::from_secs(5), || {
            let mut conns: Vec<_> =
                (0..3).map(|_| pool.get().expect("both peers are up")).collect();
            conns.iter_mut().any(|conn| {
                conn.batch_execute("SELECT 1").expect("both peers are up");
                conn.peer() == on
            })
        });
    });
}

/// A refused login is an answer: a peer that refuses logins while a long query runs there is checked no more
/// often than another one.
#[cfg(feature = "mysql")]
#[test]
fn peer_that_refuses_logins_is_not_checked_more_often() {
    use support::backend::manager_of;
    use support::haproxy::HaProxy;
    let server = MariaDb::start();
    let proxies = [(); 2].map(|()| HaProxy::in_front_of(server.port()));
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let (pool, peers) = pool_of(manager_of::<diesel::MysqlConnection>(urls), 2);
    fill(&pool, &peers, &[1, 1]);
    let mut conns = all_to_peer0(&pool);
    proxies[0].refuse();
    conns[0].batch_execute("SELECT SLEEP(7)").expect("the session goes on");
    let failures = status(&peers, "peer0").connect_failures;
    assert!((1..10).contains(&failures), "the peer is checked about every two seconds: {failures}");
}

/// A proxy that queues new logins, and goes on with its sessions. The long query is cut only if nothing shows
/// that the peer works: no resting session that could be asked, and no data.
#[cfg(feature = "mysql")]
mod behind_a_full_proxy {
    use super::*;
    use support::backend::manager_of;
    use support::haproxy::HaProxy;

    /// Runs a query of three seconds while its peer's proxy queues logins.
    fn long_query(
        connections: u32,
        other: impl FnOnce(&MariaDb) -> String,
        rests: bool,
        check_interval: Duration,
    ) -> diesel::QueryResult<()> {
        let server = MariaDb::start();
        let proxy = HaProxy::in_front_of(server.port());
        let urls = [proxy.mysql_url(), other(&server)];
        let builder = quick_to_abort(manager_of::<diesel::MysqlConnection>(urls))
            .connect_timeout(Duration::from_secs(60).min(check_interval))
            .check_interval(check_interval);
        let (pool, peers) = pool_of(builder, connections);
        wait_until("the pool has its connections", PATIENCE, || {
            drop(pool.try_get());
            links(&peers).iter().sum::<usize>() == connections as usize && links(&peers)[0] > 0
        });
        let mut conns = all_to_peer0(&pool);
        let mut long = conns.pop().expect("a connection leads to the proxy");
        if rests {
            conns.clear();
        }
        proxy.queue();
        long.batch_execute("DO SLEEP(4)")
    }

    #[test]
    fn query_goes_on_while_a_resting_session_answers() {
        long_query(4, MariaDb::url, true, PATIENCE).expect("a resting session was asked");
    }

    /// A regular check has marked the peer down before, so that its connections are being replaced.
    #[test]
    fn last_resting_session_stays_to_be_asked_while_a_query_runs() {
        long_query(6, MariaDb::url, true, SOON).expect("a resting session was asked");
    }

    #[test]
    fn refusal_by_this_machine_shows_nothing_about_the_others() {
        let nowhere = |_: &MariaDb| "mysql://app:secret@db1.invalid/app".to_owned();
        long_query(1, nowhere, true, PATIENCE).expect("no other peer has answered");
    }

    /// The limit: see docs/limitations.md.
    #[test]
    fn query_is_aborted_if_nothing_shows_that_its_peer_works() {
        long_query(4, MariaDb::url, false, PATIENCE)
            .expect_err("no session of the peer is at rest");
    }
}

/// A pooler in front of a server answers the first message of a login itself, also when the server hangs.
#[cfg(feature = "postgres")]
#[expect(clippy::disallowed_methods, reason = "a minimal pooler has threads, and time is measured")]
mod behind_a_pooler {
    use std::env;
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;
    use support::backend::manager_of;
    use support::postgres::{self, Postgres};

    /// The environment variable with the port of the server for the child process.
    const SERVER: &str = "DIESEL_PEERS_TEST_GREETS";

    /// A pooler, and the port that it listens on. The pooler is another process, because a socket of this
    /// process could be taken for that of a connection.
    struct Pooler(Child, u16);

    impl Pooler {
        fn in_front_of(port: u16) -> Self {
            let mut child = Command::new(env::current_exe().expect("the test program has a path"))
                .args(["--exact", "behind_a_pooler::child", "--nocapture"])
                .env(SERVER, port.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the test program starts");
            let lines = BufReader::new(child.stdout.take().expect("the output is piped")).lines();
            let port = lines.map_while(Result::ok).find_map(|line| {
                line.rsplit_once("listens on ").and_then(|(_, port)| port.parse().ok())
            });
            Self(child, port.expect("the child prints its port"))
        }
    }

    impl Drop for Pooler {
        fn drop(&mut self) {
            // The child ends when its input is closed.
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    /// The child process of the next test. In any other process it does nothing.
    #[test]
    fn child() {
        let Ok(server) = env::var(SERVER) else { return };
        let server: u16 = server.parse().expect("the variable is a port");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        println!("listens on {}", listener.local_addr().expect("the listener is bound").port());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || forward(client, server));
            }
        });
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    }

    fn forward(mut client: TcpStream, server: u16) -> io::Result<()> {
        // The first message of a client is a request for TLS, which the pooler declines.
        client.read_exact(&mut [0; 8])?;
        client.write_all(b"N")?;
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || io::copy(&mut from, &mut to));
        io::copy(&mut client, &mut server).map(drop)
    }

    #[test]
    fn query_to_a_frozen_server_behind_a_pooler_is_aborted_after_pooler_wait() {
        let mut servers = <Postgres as Backend>::start(2);
        let poolers = [0, 1].map(|at| Pooler::in_front_of(servers[at].port()));
        let urls = poolers.iter().map(|pooler| postgres::url(pooler.1));
        let builder = quick_to_abort(manager_of::<diesel::PgConnection>(urls))
            .connect_timeout(Duration::from_secs(2))
            .pooler_wait(Duration::from_secs(4));
        let (pool, peers) = pool_of(builder, 4);
        fill(&pool, &peers, &[2, 2]);
        let mut conns = all_to_peer0(&pool);
        servers[0].freeze();
        let start = Instant::now();
        conns[0]
            .batch_execute("SELECT 1")
            .expect_err("the query is aborted while its server is frozen");
        // These settings limit the time to 4.5 seconds. It would be much longer if the pooler's first bytes of an
        // answer to a check counted as an answer.
        let took = start.elapsed();
        assert!(took < Duration::from_secs(20), "the query is aborted in time: {took:?}");
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "the frozen peer is marked down");
        servers[0].thaw();
    }
}

/// Long queries lead to checks of their peer, and are not aborted.
#[cfg(feature = "mysql")]
#[test]
fn long_queries_on_a_peer_that_passes_checks_are_not_aborted() {
    let servers = <MariaDb as Backend>::start(2);
    let builder = manager_over(&servers).stall_after(STALL_AFTER / 5).check_timeout(CHECK_TIMEOUT);
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    let logins = || {
        let answer = servers[0].sql("SHOW GLOBAL STATUS LIKE 'Connections'");
        answer.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(0_u32)
    };
    let before = logins();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut conn = pool.get().expect("both peers are up");
                conn.batch_execute("SELECT SLEEP(3)").expect("a long query is not aborted");
            });
        }
    });
    assert!(logins() > before + 5, "the peer was checked repeatedly");
    let snapshot = peers.snapshot();
    assert!(snapshot.peers.iter().all(|peer| peer.state == PeerState::Up), "{snapshot:?}");
}
