//! The socket of each connection is found, and nobody else's is touched: checkouts are free, idle
//! connections to a peer that is down end at once, and what other code of the same process has open
//! to the same server goes on.

#![cfg(all(feature = "socket", target_os = "linux", any(feature = "mysql", feature = "postgres")))]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
use diesel_peers::{PeerState, Peers};
use support::backend::{PATIENCE, SOON, links, manager_of, pool_of, state};
use support::haproxy::HaProxy;
use support::wait_until;

/// What a server has been asked so far by the application, pings included. It is not asked by that.
type Asked<'a> = &'a dyn Fn() -> String;

/// A pool of one peer is filled, and checked out a hundred times: nothing is asked.
#[track_caller]
fn check_outs_are_free<C>(url: &str, asked: Asked)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url]), 4);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [4]);
    let before = asked();
    for _ in 0..25 {
        let all: Vec<_> = (0..4).map(|_| pool.get().expect("there is one")).collect();
        drop(all);
    }
    assert_eq!(asked(), before, "a hundred checkouts ask for nothing");
    pool.get().expect("there is one").batch_execute("SELECT 1").expect("the query succeeds");
    assert_ne!(asked(), before, "what is asked does show");
}

/// The sessions of a pool at rest are ended by the server.
#[track_caller]
fn closed_ones_are_noticed<C>(url: &str, end_sessions: impl Fn())
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url]), 4);
    for round in 1..=3 {
        wait_until("the pool is full", PATIENCE, || links(&peers) == [4]);
        end_sessions();
        let mut all: Vec<_> = (0..4).map(|_| pool.get().expect("there is another")).collect();
        for conn in &mut all {
            conn.batch_execute("SELECT 1").expect("it was not handed out");
        }
        drop(all);
        assert_eq!(state(&peers, "peer0"), PeerState::Up, "a server that answers");
        assert!(status(&peers, "peer0").connects > 4 * round, "they were replaced");
    }
}

/// The pool's idle sessions with a peer that refuses new ones are ended while nobody asks for any.
fn idle_ones_end<C>(proxy: &HaProxy, url: &str, other: &str)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url, other]).check_interval(SOON), 6);
    wait_until("the pool is full", PATIENCE, || is_full(&peers, 6));
    proxy.refuse();
    wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    wait_until("its idle sessions have ended", PATIENCE, || proxy.sessions() == 0);
    for _ in 0..12 {
        let mut conn = pool.get().expect("the other peer serves");
        conn.batch_execute("SELECT 1").expect("the other peer serves");
    }
}

/// Whether the pool has all its connections, and some to each peer: how many depends on how long
/// logins take on a busy machine.
fn is_full(peers: &Peers, size: usize) -> bool {
    let links = links(peers);
    links.iter().sum::<usize>() == size && !links.contains(&0)
}

/// What other code of the process does with a server.
#[derive(Debug, Default)]
struct Strangers {
    stopped: AtomicBool,
    served: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl Strangers {
    /// So many threads do `work` again and again while `story` goes on. None of it fails.
    fn at_work<S>(
        threads: usize,
        begin: impl Fn() -> S + Sync,
        work: impl Fn(&mut S) -> Result<(), String> + Sync,
        story: impl FnOnce(&Self),
    ) {
        /// The threads also end when the story panics, or the scope would wait for ever.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let strangers = Self::default();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut state = begin();
                    while !strangers.stopped.load(Ordering::Relaxed) {
                        match work(&mut state) {
                            Ok(()) => _ = strangers.served.fetch_add(1, Ordering::Relaxed),
                            Err(error) => strangers.failed().push(error),
                        }
                    }
                });
            }
            let _stop = Stop(&strangers.stopped);
            story(&strangers);
        });
        assert_eq!(*strangers.failed(), [""; 0], "nothing of a stranger's fails");
    }

    fn failed(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_more(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        wait_until("the strangers are served", PATIENCE, || {
            self.served.load(Ordering::Relaxed) >= before + more || !self.failed().is_empty()
        });
    }
}

/// diesel's own pool has connections over the same proxy, and they are in use. Both pools are filled
/// at the same time, from the same process.
fn beside_a_pool_of_diesel_s<C>(proxy: &HaProxy, url: &str, other: &str)
where
    C: R2D2Connection + Send + 'static,
{
    const THEIRS: u32 = 8;
    for _ in 0..3 {
        let theirs = Pool::builder().max_size(THEIRS).connection_timeout(PATIENCE);
        let theirs = theirs.build_unchecked(ConnectionManager::<C>::new(url));
        let builder = manager_of::<C>([url, other]).check_interval(SOON);
        let (pool, peers) = pool_of(builder, 2 * THEIRS);
        let query = || {
            let mut conn = theirs.get().map_err(|error| error.to_string())?;
            conn.batch_execute("SELECT 1").map_err(|error| error.to_string())
        };
        Strangers::at_work(
            4,
            || (),
            |()| query(),
            |strangers| {
                wait_until("both are full", PATIENCE, || {
                    is_full(&peers, 16) && theirs.state().connections == THEIRS
                });
                proxy.refuse();
                wait_until("the peer is marked down", PATIENCE, || {
                    state(&peers, "peer0") == PeerState::Down
                });
                wait_until("ours end", PATIENCE, || proxy.sessions() <= 8);
                strangers.wait_for_more(200);
                assert_eq!(proxy.sessions(), 8, "theirs go on");
                pool.get().expect("the other peer serves");
            },
        );
        drop((pool, theirs));
        wait_until("all have ended", PATIENCE, || proxy.sessions() == 0);
        proxy.accept();
    }
}

#[cfg(feature = "mysql")]
mod mariadb {
    use diesel::{Connection, MysqlConnection};

    use super::*;
    use support::mariadb::MariaDb;

    /// What every session has been asked, but for the questions about that.
    fn asked(server: &MariaDb) -> String {
        server.sql(
            "SHOW GLOBAL STATUS WHERE Variable_name LIKE 'Com\\_%' AND Value > 0
             AND Variable_name <> 'Com_show_status'",
        )
    }

    fn end_sessions(server: &MariaDb) {
        server.sql("KILL USER app");
        wait_until("they end", PATIENCE, || server.sessions() == 0);
    }

    #[test]
    fn check_outs_are_free_and_closed_ones_are_noticed() {
        let server = MariaDb::start();
        check_outs_are_free::<MysqlConnection>(&server.url(), &|| asked(&server));
        closed_ones_are_noticed::<MysqlConnection>(&server.url(), || end_sessions(&server));
    }

    #[test]
    fn over_ipv6() {
        let server = MariaDb::start_on_both();
        let url = server.url().replace("127.0.0.1", "[::1]");
        check_outs_are_free::<MysqlConnection>(&url, &|| asked(&server));
        closed_ones_are_noticed::<MysqlConnection>(&url, || end_sessions(&server));
    }

    #[test]
    fn over_tls() {
        let servers = [MariaDb::start_with_tls(), MariaDb::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        // Without TLS it lets nobody in.
        MysqlConnection::establish(&format!("{}?ssl_mode=disabled", servers[0].url()))
            .map(drop)
            .expect_err("the server wants TLS");
        let ca = servers[0].folder().join("certificate.pem");
        let with_tls = |url: String| format!("{url}?ssl_mode=required&ssl_ca={}", ca.display());
        check_outs_are_free::<MysqlConnection>(&with_tls(servers[0].url()), &|| asked(&servers[0]));
        closed_ones_are_noticed::<MysqlConnection>(&with_tls(servers[0].url()), || {
            end_sessions(&servers[0]);
        });
        idle_ones_end::<MysqlConnection>(&proxy, &with_tls(proxy.mysql_url()), &servers[1].url());
    }

    #[test]
    fn beside_a_busy_pool_of_diesel_s() {
        let servers = [MariaDb::start(), MariaDb::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        beside_a_pool_of_diesel_s::<MysqlConnection>(&proxy, &proxy.mysql_url(), &servers[1].url());
    }

    /// A connection over a Unix socket has no counters. It must do without, and must not take the
    /// socket of somebody who dials the same server over TCP meanwhile.
    #[test]
    fn over_a_unix_socket_beside_strangers_over_tcp() {
        let servers = [MariaDb::start(), MariaDb::start()];
        let socket = servers[0].folder().join("socket");
        let away = servers[0].folder().join("away");
        let url = format!("mysql://app:s3cret-app@localhost/app?unix_socket={}", socket.display());
        let stranger =
            || MysqlConnection::establish(&servers[0].url()).expect("the server is running");
        // Each makes a new connection now and then.
        let work = |(conn, queries): &mut (MysqlConnection, usize)| {
            *queries += 1;
            if *queries % 20 == 0 {
                *conn = stranger();
            }
            let padding = "x".repeat(*queries % 512);
            conn.batch_execute(&format!("SELECT 1 /*{padding}*/"))
                .map_err(|error| error.to_string())
        };
        Strangers::at_work(
            4,
            || (stranger(), 0),
            work,
            |strangers| {
                for _ in 0..5 {
                    let urls = [url.clone(), servers[1].url()];
                    let builder = manager_of::<MysqlConnection>(urls).check_interval(SOON);
                    let (pool, peers) = pool_of(builder, 12);
                    wait_until("the pool is full", PATIENCE, || is_full(&peers, 12));
                    for _ in 0..24 {
                        let mut conn = pool.get().expect("there is one");
                        conn.batch_execute("SELECT 1").expect("the query succeeds");
                    }
                    fs::rename(&socket, &away).expect("it is there");
                    wait_until("the peer is marked down", PATIENCE, || {
                        state(&peers, "peer0") == PeerState::Down
                    });
                    strangers.wait_for_more(100);
                    for _ in 0..24 {
                        let mut conn = pool.get().expect("the other peer serves");
                        assert_eq!(conn.peer(), "peer1", "nothing goes to one that is down");
                        conn.batch_execute("SELECT 1").expect("the other peer serves");
                    }
                    fs::rename(&away, &socket).expect("it is there");
                    wait_until("the peer is up again", PATIENCE, || {
                        state(&peers, "peer0") == PeerState::Up
                    });
                }
            },
        );
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use diesel::PgConnection;

    use super::*;
    use support::postgres::Postgres;

    /// When each session of the application was asked last.
    fn asked(server: &Postgres) -> String {
        server
            .sql("SELECT pid, query_start FROM pg_stat_activity WHERE usename = 'app' ORDER BY pid")
    }

    fn end_sessions(server: &Postgres) {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        wait_until("they end", PATIENCE, || server.sessions() == 0);
    }

    #[test]
    fn check_outs_are_free_and_closed_ones_are_noticed() {
        let server = Postgres::start();
        check_outs_are_free::<PgConnection>(&server.url(), &|| asked(&server));
        closed_ones_are_noticed::<PgConnection>(&server.url(), || end_sessions(&server));
    }

    #[test]
    fn over_ipv6() {
        let server = Postgres::start_on_both();
        let url = server.url().replace("127.0.0.1", "[::1]");
        check_outs_are_free::<PgConnection>(&url, &|| asked(&server));
        closed_ones_are_noticed::<PgConnection>(&url, || end_sessions(&server));
    }

    /// libpq tries one address after the other. The server listens on one of them only.
    #[test]
    fn over_a_name_with_several_addresses() {
        let server = Postgres::start();
        let port = server.port();
        // Whatever the machine's own names are.
        let url = format!("{}?host=::1,127.0.0.1&port={port},{port}", server.url());
        for url in [server.url().replace("127.0.0.1", "localhost"), url] {
            check_outs_are_free::<PgConnection>(&url, &|| asked(&server));
            closed_ones_are_noticed::<PgConnection>(&url, || end_sessions(&server));
        }
    }

    #[test]
    fn over_tls() {
        let servers = [Postgres::start_with_tls(), Postgres::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        let with_tls = |url: String| format!("{url}?sslmode=require");
        check_outs_are_free::<PgConnection>(&with_tls(servers[0].url()), &|| asked(&servers[0]));
        closed_ones_are_noticed::<PgConnection>(&with_tls(servers[0].url()), || {
            end_sessions(&servers[0]);
        });
        idle_ones_end::<PgConnection>(&proxy, &with_tls(proxy.postgres_url()), &servers[1].url());
    }

    #[test]
    fn over_a_unix_socket() {
        let server = Postgres::start();
        let (folder, port) = (server.folder().display(), server.port());
        let url = format!("postgres:///app?user=app&password=s3cret-app&host={folder}&port={port}");
        closed_ones_are_noticed::<PgConnection>(&url, || end_sessions(&server));
    }

    #[test]
    fn beside_a_busy_pool_of_diesel_s() {
        let servers = [Postgres::start(), Postgres::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        beside_a_pool_of_diesel_s::<PgConnection>(&proxy, &proxy.postgres_url(), &servers[1].url());
    }
}
