//! A peer that stops without a word (its process is frozen, its machine hangs) keeps no thread for
//! long: its queries are cut off. Those of a peer that only takes its time are not.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

#[cfg(feature = "mysql")]
use std::io::Read;
#[cfg(feature = "mysql")]
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::DerefMut;
#[cfg(feature = "mysql")]
use std::sync::Arc;
#[cfg(feature = "mysql")]
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::r2d2::{Pool, PooledConnection, R2D2Connection};
use diesel_peers::{PeerManager, PeerState, Strategy};
use support::backend::{Backend, PATIENCE, SOON, fill, links, manager_over, pool_of, state};
use support::load::Load;
use support::process::Server;
use support::wait_until;

const STALL_AFTER: Duration = Duration::from_millis(500);
const CHECK_TIMEOUT: Duration = Duration::from_millis(200);

/// More threads than a peer has connections, and as many connections as threads.
const THREADS: u32 = 12;

/// Three servers, and one of them freezes under load.
fn the_others_go_on<B>(strategy: Strategy, query: &str)
where
    B: Backend + DerefMut<Target = Server>,
{
    let mut servers = B::start(3);
    let builder = manager_over(&servers)
        .strategy(strategy)
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(2))
        .stall_after(STALL_AFTER)
        .check_timeout(CHECK_TIMEOUT);
    let (pool, peers) = pool_of(builder, THREADS);
    fill(&pool, &peers, &[4, 4, 4]);
    let seen = Load::run(&pool, THREADS as usize, query, |load| {
        wait_until("all serve", PATIENCE, || load.served() > 1000);
        servers[0].freeze();
        let in_use = || peers.snapshot().peers[0].in_use;
        for _ in 0..10 {
            let before = load.served();
            wait_until("the others go on serving", PATIENCE, || load.served() > before + 20);
        }
        wait_until("it is noticed", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        wait_until("every thread is free", PATIENCE, || in_use() == 0);
        let served = load.served();
        wait_until("all the others' work is done", PATIENCE, || load.served() > served + 1000);
        assert_eq!(in_use(), 0, "nobody goes there");
        servers[0].thaw();
        wait_until("it is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
        wait_until("it has its share again", PATIENCE, || links(&peers) == [4, 4, 4]);
        let before = load.served_by("peer0");
        wait_until("it serves", PATIENCE, || load.served_by("peer0") > before + 100);
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.iter().all(|(peer, _)| peer == "peer0"), "only there: {:?}", seen.failed);
    assert!(seen.failed.len() <= 6, "those that were in flight: {:?}", seen.failed);
}

#[cfg(feature = "mysql")]
mod mariadb {
    use super::*;
    use support::mariadb::MariaDb;

    #[test]
    fn the_others_go_on_by_connections_in_use() {
        the_others_go_on::<MariaDb>(Strategy::LeastConnections, "SELECT SLEEP(0.001)");
    }

    #[test]
    fn the_others_go_on_by_chance() {
        the_others_go_on::<MariaDb>(Strategy::Random, "SELECT SLEEP(0.001)");
    }

    #[test]
    fn the_others_go_on_in_turn() {
        the_others_go_on::<MariaDb>(Strategy::RoundRobin, "SELECT SLEEP(0.001)");
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::*;
    use support::postgres::Postgres;

    #[test]
    fn the_others_go_on() {
        super::the_others_go_on::<Postgres>(Strategy::LeastConnections, "SELECT pg_sleep(0.001)");
    }
}

/// The connections of a pool at rest that lead to the first peer.
fn all_to_peer0<C>(pool: &Pool<PeerManager<C>>) -> Vec<PooledConnection<PeerManager<C>>>
where
    C: R2D2Connection + Send + 'static,
{
    let connections = pool.state().connections;
    let mut all: Vec<_> = (0..connections).map(|_| pool.get().expect("both live")).collect();
    all.retain(|conn| conn.peer() == "peer0");
    all
}

/// The application's own test of a peer may wait for somebody else, whose silence is not the peer's.
#[cfg(feature = "mysql")]
#[test]
fn nothing_is_cut_off_because_a_test_waits_for_somebody_else() {
    let servers = <support::mariadb::MariaDb as Backend>::start(2);
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = silent.local_addr().expect("it listens");
    let waits = Arc::new(AtomicBool::new(false));
    let asked = waits.clone();
    let builder = manager_over(&servers)
        .stall_after(STALL_AFTER)
        .check_timeout(CHECK_TIMEOUT)
        .health_check(move |_| {
            if asked.load(Ordering::SeqCst) {
                let mut other = TcpStream::connect(address).expect("it listens");
                let _ = other.read(&mut [0]);
            }
            Ok(())
        });
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    waits.store(true, Ordering::SeqCst);
    let [mut long, mut short] = [(); 2].map(|()| pool.get().expect("both live"));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                let _ = short.batch_execute("DO SLEEP(0.02)");
            }
        });
        let outcome = long.batch_execute("DO SLEEP(3)");
        ended.store(true, Ordering::SeqCst);
        outcome.expect("its peer has answered each check");
    });
    drop(silent);
}

/// A connection that was checked out before, and is used only later.
#[cfg(feature = "mysql")]
#[test]
fn queries_that_begin_later_are_cut_off_as_well() {
    let mut servers = <support::mariadb::MariaDb as Backend>::start(2);
    let builder = manager_over(&servers)
        .check_interval(PATIENCE)
        .stall_after(STALL_AFTER)
        .check_timeout(CHECK_TIMEOUT);
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    let mut conns = all_to_peer0(&pool);
    servers[0].freeze();
    for conn in &mut conns {
        conn.batch_execute("SELECT 1").expect_err("it is cut off while its server is frozen");
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "it is known to have stopped");
    }
    drop(conns);
    servers[0].thaw();
}

/// A pool that has rested pings. The first ping goes to the frozen peer, and takes all the time there
/// is; the others' connections are not given up for that.
#[cfg(feature = "mysql")]
#[test]
fn a_pool_at_rest_keeps_the_others_connections() {
    let mut servers = <support::mariadb::MariaDb as Backend>::start(3);
    let builder = manager_over(&servers)
        .check_interval(PATIENCE)
        .ping_idle(Duration::ZERO)
        .ping_timeout(STALL_AFTER);
    let (pool, peers) = pool_of(builder, 9);
    fill(&pool, &peers, &[3, 3, 3]);
    let made = || peers.snapshot().peers.iter().map(|peer| peer.connects).collect::<Vec<_>>();
    let before = made();
    servers[0].freeze();
    // Enough to meet each peer's connections.
    for _ in 0..12 {
        let conn = pool.get().expect("two peers live");
        assert_ne!(conn.peer(), "peer0", "that one does not answer");
    }
    wait_until("its connections are given up", PATIENCE, || {
        drop(pool.try_get());
        links(&peers)[0] == 0
    });
    assert!(
        made()[1..].iter().sum::<u64>() <= before[1..].iter().sum::<u64>() + 3,
        "and no others"
    );
    servers[0].thaw();
}

/// One that takes its time is asked after, and is no reason to leave its peer out of the balance.
#[cfg(feature = "mysql")]
#[test]
fn a_long_query_does_not_keep_others_away() {
    let servers = <support::mariadb::MariaDb as Backend>::start(2);
    let (pool, peers) = pool_of(manager_over(&servers).stall_after(STALL_AFTER), 8);
    fill(&pool, &peers, &[4, 4]);
    let mut long = pool.get().expect("both live");
    let on = long.peer().to_owned();
    thread::scope(|scope| {
        scope.spawn(move || long.batch_execute("SELECT SLEEP(6)").expect("it takes its time"));
        wait_until("its peer is back in the balance", Duration::from_secs(5), || {
            let mut conns: Vec<_> = (0..3).map(|_| pool.get().expect("both live")).collect();
            conns.iter_mut().any(|conn| {
                conn.batch_execute("SELECT 1").expect("both live");
                conn.peer() == on
            })
        });
    });
}

/// One that refuses new sessions while a long query runs there is asked no more often than another.
#[cfg(feature = "mysql")]
#[test]
fn a_refusal_is_an_answer() {
    use support::backend::manager_of;
    use support::haproxy::HaProxy;
    let server = support::mariadb::MariaDb::start();
    let proxies = [(); 2].map(|()| HaProxy::in_front_of(server.port()));
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let (pool, peers) = pool_of(manager_of::<diesel::MysqlConnection>(urls), 2);
    fill(&pool, &peers, &[1, 1]);
    let mut conns = all_to_peer0(&pool);
    proxies[0].refuse();
    conns[0].batch_execute("SELECT SLEEP(7)").expect("its session goes on");
    let failures = peers.snapshot().peers[0].connect_failures;
    assert!((1..10).contains(&failures), "once in two seconds, as much as that: {failures}");
}

/// What is before the server answers who logs in, and then nothing more comes. As many poolers do.
#[cfg(feature = "postgres")]
#[expect(clippy::disallowed_methods, reason = "a stand-in of a few lines")]
mod behind_one_that_greets {
    use std::env;
    use std::io::{self, BufRead, BufReader, Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;
    use support::backend::manager_of;
    use support::postgres::{self, Postgres};

    /// Tells the child the port of the server.
    const GREETS: &str = "DIESEL_PEERS_TEST_GREETS";

    /// A process of its own, as a socket of this one could be taken for the connection's.
    struct Greeter(Child, u16);

    impl Greeter {
        fn before(port: u16) -> Self {
            let mut child = Command::new(env::current_exe().expect("this program"))
                .args(["--exact", "behind_one_that_greets::child", "--nocapture"])
                .env(GREETS, port.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program starts");
            let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
            let port = lines.map_while(Result::ok).find_map(|line| {
                line.rsplit_once("listens on ").and_then(|(_, port)| port.parse().ok())
            });
            Self(child, port.expect("it says where it listens"))
        }
    }

    impl Drop for Greeter {
        fn drop(&mut self) {
            // It ends when its input does.
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    /// The child. Without an order it has nothing to do.
    #[test]
    fn child() {
        let Ok(server) = env::var(GREETS) else { return };
        let server: u16 = server.parse().expect("a port");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there are ports");
        println!("listens on {}", listener.local_addr().expect("it listens").port());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || greet(client, server));
            }
        });
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    }

    fn greet(mut client: TcpStream, server: u16) -> io::Result<()> {
        // What a client asks first is whether there is TLS. There is none.
        client.read_exact(&mut [0; 8])?;
        client.write_all(b"N")?;
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || io::copy(&mut from, &mut to));
        io::copy(&mut client, &mut server).map(drop)
    }

    #[test]
    fn queries_are_cut_off_as_well() {
        let mut servers = <Postgres as Backend>::start(2);
        let greeters = [0, 1].map(|at| Greeter::before(servers[at].port()));
        let urls = greeters.iter().map(|greeter| postgres::url(greeter.1));
        let builder = manager_of::<diesel::PgConnection>(urls)
            .connect_timeout(Duration::from_secs(2))
            .stall_after(STALL_AFTER)
            .check_timeout(CHECK_TIMEOUT);
        let (pool, peers) = pool_of(builder, 4);
        fill(&pool, &peers, &[2, 2]);
        let mut conns = all_to_peer0(&pool);
        servers[0].freeze();
        let start = Instant::now();
        conns[0].batch_execute("SELECT 1").expect_err("it is cut off while its server is frozen");
        // 4.5 seconds are promised; a check that is taken for an answer makes it wait for luck.
        assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "it is known to have stopped");
        servers[0].thaw();
    }
}

/// A long query is asked after, and left alone.
#[cfg(feature = "mysql")]
#[test]
fn long_queries_on_a_peer_that_answers_go_on() {
    let servers = <support::mariadb::MariaDb as Backend>::start(2);
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
                let mut conn = pool.get().expect("both live");
                conn.batch_execute("SELECT SLEEP(3)").expect("it takes as long as it takes");
            });
        }
    });
    assert!(logins() > before + 5, "it was asked again and again");
    let snapshot = peers.snapshot();
    assert!(snapshot.peers.iter().all(|peer| peer.state == PeerState::Up), "{snapshot:?}");
}
