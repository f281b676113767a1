//! The crate finds the socket of each of its connections, and touches no other socket of the process. So
//! checkouts send nothing, idle connections to a peer that is down end at once, and connections that other
//! code of the process has open to the same server continue.

#![cfg(all(feature = "socket", target_os = "linux", any(feature = "mysql", feature = "postgres")))]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{ConnectionManager, Pool, R2D2Connection};
use diesel_peers::{PeerState, Peers};
use support::backend::{PATIENCE, SOON, links, manager_of, pool_of, state, status};
use support::haproxy::HaProxy;
use support::{EndsThreads, wait_until};

/// Returns a text that changes with each statement of the application, pings included.
type Statements<'a> = &'a dyn Fn() -> String;

/// A hundred checkouts send nothing to the server.
#[track_caller]
fn checkouts_send_nothing<C>(url: &str, statements: Statements<'_>)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url]), 4);
    wait_until("the pool is full", PATIENCE, || links(&peers) == [4]);
    let before = statements();
    for _ in 0..25 {
        let all: Vec<_> = (0..4).map(|_| pool.get().expect("the pool has four")).collect();
        drop(all);
    }
    assert_eq!(statements(), before, "a hundred checkouts send nothing");
    pool.get().expect("the pool has four").batch_execute("SELECT 1").expect("the query succeeds");
    assert_ne!(statements(), before, "a query is visible on the server");
}

/// The server ends the sessions of an idle pool, which must replace them at checkout.
#[track_caller]
fn closed_connections_are_replaced_at_checkout<C>(url: &str, end_sessions: impl Fn())
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url]), 4);
    for round in 1..=3 {
        wait_until("the pool is full", PATIENCE, || links(&peers) == [4]);
        end_sessions();
        let mut all: Vec<_> =
            (0..4).map(|_| pool.get().expect("another connection is created")).collect();
        for conn in &mut all {
            conn.batch_execute("SELECT 1").expect("the session is open");
        }
        drop(all);
        assert_eq!(
            state(&peers, "peer0"),
            PeerState::Up,
            "closed sessions do not mark the peer down"
        );
        assert!(status(&peers, "peer0").connects > 4 * round, "the connections were replaced");
    }
}

/// The idle sessions with a peer that refuses new ones end although the pool is not used.
fn idle_sessions_of_a_down_peer_end<C>(proxy: &HaProxy, url: &str, other: &str)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url, other]).check_interval(SOON), 6);
    wait_until("the pool is full", PATIENCE, || is_full(&peers, 6));
    proxy.refuse();
    wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    wait_until("the idle sessions have ended", PATIENCE, || proxy.sessions() == 0);
    for _ in 0..12 {
        let mut conn = pool.get().expect("the other peer serves");
        conn.batch_execute("SELECT 1").expect("the other peer serves");
    }
}

/// Whether the pool has all its connections, and some to each peer. How many lead to a peer depends on how
/// long logins take on a busy machine.
fn is_full(peers: &Peers, size: usize) -> bool {
    let links = links(peers);
    links.iter().sum::<usize>() == size && !links.contains(&0)
}

/// Threads of other code in the process that use the same server.
#[derive(Debug, Default)]
struct OtherUsers {
    stopped: AtomicBool,
    served: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

impl OtherUsers {
    /// Starts threads that repeat `work` while `scenario` runs. No `work` may fail.
    fn run<S>(
        threads: usize,
        begin: impl Fn() -> S + Sync,
        work: impl Fn(&mut S) -> Result<(), String> + Sync,
        scenario: impl FnOnce(&Self),
    ) {
        let users = Self::default();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let mut state = begin();
                    while !users.stopped.load(Ordering::Relaxed) {
                        match work(&mut state) {
                            Ok(()) => _ = users.served.fetch_add(1, Ordering::Relaxed),
                            Err(error) => users.failed().push(error),
                        }
                    }
                });
            }
            let _ends = EndsThreads(&users.stopped);
            scenario(&users);
        });
        assert_eq!(*users.failed(), [""; 0], "nothing of the other code fails");
    }

    fn failed(&self) -> MutexGuard<'_, Vec<String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_more(&self, more: usize) {
        let before = self.served.load(Ordering::Relaxed);
        wait_until("the other code is served", PATIENCE, || {
            self.served.load(Ordering::Relaxed) >= before + more || !self.failed().is_empty()
        });
    }
}

/// diesel's own pool has connections over the same proxy, which are in use. Both pools are filled at the
/// same time in the same process.
fn busy_pool_of_diesel_goes_on<C>(proxy: &HaProxy, url: &str, other: &str)
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
        OtherUsers::run(
            4,
            || (),
            |()| query(),
            |users| {
                wait_until("both pools are full", PATIENCE, || {
                    is_full(&peers, 16) && theirs.state().connections == THEIRS
                });
                proxy.refuse();
                wait_until("the peer is marked down", PATIENCE, || {
                    state(&peers, "peer0").is_marked_down()
                });
                wait_until("the sessions of this crate's pool end", PATIENCE, || {
                    proxy.sessions() <= 8
                });
                users.wait_for_more(200);
                assert_eq!(proxy.sessions(), 8, "the sessions of diesel's pool continue");
                pool.get().expect("the other peer serves");
            },
        );
        drop((pool, theirs));
        wait_until("all sessions have ended", PATIENCE, || proxy.sessions() == 0);
        proxy.accept();
    }
}

#[cfg(feature = "mysql")]
mod mariadb {
    use diesel::{Connection, MysqlConnection};

    use super::*;
    use support::mariadb::MariaDb;

    /// Counts the statements of all sessions, except those that read the counters.
    fn statements(server: &MariaDb) -> String {
        server.sql(
            "SHOW GLOBAL STATUS WHERE Variable_name LIKE 'Com\\_%' AND Value > 0
             AND Variable_name <> 'Com_show_status'",
        )
    }

    fn end_sessions(server: &MariaDb) {
        server.sql("KILL USER app");
        wait_until("the sessions end", PATIENCE, || server.sessions() == 0);
    }

    #[test]
    fn checkouts_send_nothing_and_notice_closed_connections() {
        let server = MariaDb::start();
        checkouts_send_nothing::<MysqlConnection>(&server.url(), &|| statements(&server));
        closed_connections_are_replaced_at_checkout::<MysqlConnection>(&server.url(), || {
            end_sessions(&server);
        });
    }

    #[test]
    fn checkouts_over_ipv6_send_nothing_and_notice_closed_connections() {
        let server = MariaDb::start_on_both();
        let url = server.url().replace("127.0.0.1", "[::1]");
        checkouts_send_nothing::<MysqlConnection>(&url, &|| statements(&server));
        closed_connections_are_replaced_at_checkout::<MysqlConnection>(&url, || {
            end_sessions(&server);
        });
    }

    #[test]
    fn checkouts_over_tls_send_nothing_and_idle_sessions_end() {
        let servers = [MariaDb::start_with_tls(), MariaDb::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        // The server rejects logins without TLS.
        MysqlConnection::establish(&format!("{}?ssl_mode=disabled", servers[0].url()))
            .map(drop)
            .expect_err("the server requires TLS");
        let ca = servers[0].folder().join("certificate.pem");
        let with_tls =
            |url: String| format!("{url}?ssl_mode=verify_identity&ssl_ca={}", ca.display());
        checkouts_send_nothing::<MysqlConnection>(&with_tls(servers[0].url()), &|| {
            statements(&servers[0])
        });
        closed_connections_are_replaced_at_checkout::<MysqlConnection>(
            &with_tls(servers[0].url()),
            || {
                end_sessions(&servers[0]);
            },
        );
        idle_sessions_of_a_down_peer_end::<MysqlConnection>(
            &proxy,
            &with_tls(proxy.mysql_url()),
            &servers[1].url(),
        );
    }

    #[test]
    fn busy_pool_of_diesel_beside_ours_goes_on() {
        let servers = [MariaDb::start(), MariaDb::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        busy_pool_of_diesel_goes_on::<MysqlConnection>(
            &proxy,
            &proxy.mysql_url(),
            &servers[1].url(),
        );
    }

    /// A connection over a Unix socket has no counters. The pool must work without them, and must not take
    /// the socket of other code that connects to the same server over TCP meanwhile.
    #[test]
    fn pool_over_a_unix_socket_leaves_tcp_connections_of_other_code_alone() {
        let servers = [MariaDb::start(), MariaDb::start()];
        let socket = servers[0].folder().join("socket");
        let away = servers[0].folder().join("away");
        let url = format!("mysql://app:s3cret-app@localhost/app?unix_socket={}", socket.display());
        let connect =
            || MysqlConnection::establish(&servers[0].url()).expect("the server is running");
        // Each thread replaces its connection now and then.
        let work = |(conn, queries): &mut (MysqlConnection, usize)| {
            *queries += 1;
            if *queries % 20 == 0 {
                *conn = connect();
            }
            let padding = "x".repeat(*queries % 512);
            conn.batch_execute(&format!("SELECT 1 /*{padding}*/"))
                .map_err(|error| error.to_string())
        };
        OtherUsers::run(
            4,
            || (connect(), 0),
            work,
            |users| {
                for _ in 0..5 {
                    let urls = [url.clone(), servers[1].url()];
                    let builder = manager_of::<MysqlConnection>(urls).check_interval(SOON);
                    let (pool, peers) = pool_of(builder, 12);
                    wait_until("the pool is full", PATIENCE, || is_full(&peers, 12));
                    for _ in 0..24 {
                        let mut conn = pool.get().expect("the peers are up");
                        conn.batch_execute("SELECT 1").expect("the query succeeds");
                    }
                    fs::rename(&socket, &away).expect("the socket exists");
                    wait_until("the peer is marked down", PATIENCE, || {
                        state(&peers, "peer0").is_marked_down()
                    });
                    users.wait_for_more(100);
                    for _ in 0..24 {
                        let mut conn = pool.get().expect("the other peer serves");
                        assert_eq!(conn.peer(), "peer1", "a peer that is down gets no work");
                        conn.batch_execute("SELECT 1").expect("the other peer serves");
                    }
                    fs::rename(&away, &socket).expect("the socket exists");
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
    use std::io;
    use std::net::{Shutdown, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    use diesel::PgConnection;
    use diesel::r2d2::ManageConnection;
    use diesel_peers::PeerManager;

    use super::*;
    use support::backend::build;
    use support::postgres::Postgres;
    use support::process::{find_program, run};

    /// Lists the start of the last statement of each session of the application.
    fn statements(server: &Postgres) -> String {
        server
            .sql("SELECT pid, query_start FROM pg_stat_activity WHERE usename = 'app' ORDER BY pid")
    }

    fn end_sessions(server: &Postgres) {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        wait_until("the sessions end", PATIENCE, || server.sessions() == 0);
    }

    #[test]
    fn checkouts_send_nothing_and_notice_closed_connections() {
        let server = Postgres::start();
        checkouts_send_nothing::<PgConnection>(&server.url(), &|| statements(&server));
        closed_connections_are_replaced_at_checkout::<PgConnection>(&server.url(), || {
            end_sessions(&server);
        });
    }

    /// Returns after how many seconds the kernel probes the client's end of the only connection to the server.
    /// `None` means that it sends no probes.
    fn seconds_to_the_first_probe(server: &Postgres) -> Option<u64> {
        let mut ss = Command::new(find_program("ss"));
        ss.args(["--tcp", "--numeric", "--options", "--no-header", "state", "established"]);
        let listed = run(ss.arg(format!("dport = :{}", server.port())));
        let lines: Vec<&str> = listed.lines().collect();
        let [line] = lines[..] else { panic!("there is one connection: {listed}") };
        let (_, timer) = line.split_once("timer:(keepalive,")?;
        // Such as `49sec`, or `8.984ms` for 8.984 seconds.
        let (seconds, _) = timer.split_once(['.', 's']).expect("the timer is in seconds");
        Some(seconds.parse().expect("the timer is a number"))
    }

    #[test]
    fn default_keepalive_does_not_shorten_that_of_the_url() {
        let server = Postgres::start();
        let default = 9;
        // The parameters of the URL, the explicit setting, and the time to the first probe.
        for (parameters, explicit, expected) in [
            ("", None, Some(default)),
            ("?keepalives_idle=5", None, Some(default)),
            ("?keepalives_idle=50", None, Some(50)),
            ("?keepalives_idle=50", Some(20), Some(20)),
            ("?keepalives=0", None, None),
            ("?keepalives=0", Some(20), Some(20)),
        ] {
            let url = format!("{}{parameters}", server.url());
            let builder = PeerManager::<PgConnection>::builder().peer("db0", url);
            let builder = match explicit {
                Some(seconds) => builder.tcp_keepalive(Duration::from_secs(seconds)),
                None => builder,
            };
            let conn = build(builder).connect().expect("the server is up");
            let seconds = seconds_to_the_first_probe(&server);
            drop(conn);
            wait_until("the session ends", PATIENCE, || server.sessions() == 0);
            let is_expected = match (seconds, expected) {
                // The clock ticks meanwhile.
                (Some(seconds), Some(expected)) => (expected - 4..=expected).contains(&seconds),
                (seconds, expected) => seconds == expected,
            };
            assert!(is_expected, "{parameters} {explicit:?}: {seconds:?}, not {expected:?}");
        }
    }

    #[test]
    fn checkouts_over_ipv6_send_nothing_and_notice_closed_connections() {
        let server = Postgres::start_on_both();
        let url = server.url().replace("127.0.0.1", "[::1]");
        checkouts_send_nothing::<PgConnection>(&url, &|| statements(&server));
        closed_connections_are_replaced_at_checkout::<PgConnection>(&url, || end_sessions(&server));
    }

    /// libpq tries one address after the other. The server listens on only one of them.
    #[test]
    fn checkouts_over_one_of_several_addresses_send_nothing() {
        let server = Postgres::start();
        let port = server.port();
        // Two addresses in the URL, in case `localhost` has only one on this machine.
        let url = format!("{}?host=::1,127.0.0.1&port={port},{port}", server.url());
        for url in [server.url().replace("127.0.0.1", "localhost"), url] {
            checkouts_send_nothing::<PgConnection>(&url, &|| statements(&server));
            closed_connections_are_replaced_at_checkout::<PgConnection>(&url, || {
                end_sessions(&server);
            });
        }
    }

    #[test]
    fn checkouts_over_tls_send_nothing_and_idle_sessions_end() {
        let servers = [Postgres::start_with_tls(), Postgres::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        let with_tls = |url: String| format!("{url}?sslmode=require");
        checkouts_send_nothing::<PgConnection>(&with_tls(servers[0].url()), &|| {
            statements(&servers[0])
        });
        closed_connections_are_replaced_at_checkout::<PgConnection>(
            &with_tls(servers[0].url()),
            || {
                end_sessions(&servers[0]);
            },
        );
        idle_sessions_of_a_down_peer_end::<PgConnection>(
            &proxy,
            &with_tls(proxy.postgres_url()),
            &servers[1].url(),
        );
    }

    /// The traffic of the relay's own TCP connection is that of the connection over the Unix socket.
    #[test]
    fn relay_from_a_unix_socket_to_tcp_in_this_process_keeps_its_sockets() {
        let server = Postgres::start();
        let port = server.port();
        let folder = tempfile::tempdir().expect("a folder can be created");
        let listener = UnixListener::bind(folder.path().join(format!(".s.PGSQL.{port}")))
            .expect("the folder is new");
        let relay = move || {
            let (local, _) = listener.accept().expect("the client connects");
            let remote = TcpStream::connect(("127.0.0.1", port)).expect("the server listens");
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = io::copy(&mut &local, &mut &remote);
                    remote.shutdown(Shutdown::Both)
                });
                let _ = io::copy(&mut &remote, &mut &local);
                let _ = local.shutdown(Shutdown::Both);
            });
        };
        let folder = folder.path().display();
        let url = format!("postgres:///app?user=app&password=s3cret-app&host={folder}&port={port}");
        let builder = PeerManager::<PgConnection>::builder().peer("db0", url);
        thread::scope(|scope| {
            scope.spawn(relay);
            let _conn = build(builder).connect().expect("the server is up");
            let seconds = seconds_to_the_first_probe(&server);
            assert_eq!(seconds, None, "the socket is not ours to tune");
        });
    }

    #[test]
    fn checkouts_over_a_unix_socket_notice_closed_connections() {
        let server = Postgres::start();
        let (folder, port) = (server.folder().display(), server.port());
        let url = format!("postgres:///app?user=app&password=s3cret-app&host={folder}&port={port}");
        closed_connections_are_replaced_at_checkout::<PgConnection>(&url, || end_sessions(&server));
    }

    #[test]
    fn busy_pool_of_diesel_beside_ours_goes_on() {
        let servers = [Postgres::start(), Postgres::start()];
        let proxy = HaProxy::in_front_of(servers[0].port());
        busy_pool_of_diesel_goes_on::<PgConnection>(
            &proxy,
            &proxy.postgres_url(),
            &servers[1].url(),
        );
    }
}
