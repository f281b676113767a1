//! A proxy that is paused (it refuses new connections, its sessions go on: what `PROXYSQL PAUSE`
//! does) is noticed by a pool that needs no new connection, and left without a single error.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

#[cfg(feature = "mysql")]
use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel_peers::PeerState;
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state};
use support::haproxy::HaProxy;
use support::load::Load;
use support::wait_until;

/// The pool's connections.
const CONNECTIONS: u32 = 6;

fn three_proxies_are_paused_in_turn<C>(
    behind: u16,
    url: impl Fn(&HaProxy) -> String,
    threads: usize,
    query: &str,
) where
    C: R2D2Connection + Send + 'static,
{
    let mut proxies: Vec<_> = (0..3).map(|_| HaProxy::in_front_of(behind)).collect();
    let builder = manager_of::<C>(proxies.iter().map(url)).check_interval(SOON);
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    fill(&pool, &peers, &[2, 2, 2]);

    let seen = Load::run(&pool, threads, query, |load| {
        for (index, proxy) in proxies.iter_mut().enumerate() {
            let name = format!("peer{index}");
            proxy.refuse();
            wait_until("it is noticed", PATIENCE, || state(&peers, &name) == PeerState::Down);
            wait_until("it is drained", PATIENCE, || proxy.sessions() == 0);
            wait_until("its connections are replaced", PATIENCE, || links(&peers)[index] == 0);
            proxy.stop();
            let before = load.served();
            wait_until("the others serve", PATIENCE, || load.served() > before + 200);
            proxy.restart();
            wait_until("it is up again", PATIENCE, || state(&peers, &name) == PeerState::Up);
            wait_until("it has its share again", PATIENCE, || links(&peers) == [2, 2, 2]);
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

#[cfg(feature = "mysql")]
#[test]
fn in_front_of_mariadb_with_every_connection_busy() {
    let server = support::mariadb::MariaDb::start();
    three_proxies_are_paused_in_turn::<diesel::MysqlConnection>(
        server.port(),
        HaProxy::mysql_url,
        6,
        "SELECT SLEEP(0.005)",
    );
}

/// The others are idle: who comes back carries the paused proxy's connections out.
#[cfg(feature = "mysql")]
#[test]
fn in_front_of_mariadb_with_one_connection_busy() {
    let server = support::mariadb::MariaDb::start();
    three_proxies_are_paused_in_turn::<diesel::MysqlConnection>(
        server.port(),
        HaProxy::mysql_url,
        1,
        "SELECT 1",
    );
}

#[cfg(feature = "postgres")]
#[test]
fn in_front_of_postgres_with_every_connection_busy() {
    let server = support::postgres::Postgres::start();
    three_proxies_are_paused_in_turn::<diesel::PgConnection>(
        server.port(),
        HaProxy::postgres_url,
        6,
        "SELECT pg_sleep(0.005)",
    );
}

#[cfg(feature = "mysql")]
#[test]
fn a_pool_at_rest_notices() {
    let server = support::mariadb::MariaDb::start();
    let proxies = [HaProxy::in_front_of(server.port()), HaProxy::in_front_of(server.port())];
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let builder = manager_of::<diesel::MysqlConnection>(urls).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    proxies[0].refuse();
    // Nobody asks for a connection meanwhile.
    wait_until("it is noticed", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    wait_until("its idle sessions have ended", PATIENCE, || proxies[0].sessions() == 0);
    for _ in 0..10 {
        let mut conn = pool.get().expect("the other one serves");
        assert_eq!(conn.peer(), "peer1", "nothing goes to the paused proxy");
        conn.batch_execute("SELECT 1").expect("the other one serves");
    }
    proxies[0].accept();
    wait_until("it is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

/// One after the other: the first loses its sessions, and the last keeps them.
#[cfg(feature = "mysql")]
#[test]
fn when_all_are_paused_in_turn_the_last_one_s_sessions_go_on() {
    let server = support::mariadb::MariaDb::start();
    let proxies = [HaProxy::in_front_of(server.port()), HaProxy::in_front_of(server.port())];
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let builder = manager_of::<diesel::MysqlConnection>(urls).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 8);
    fill(&pool, &peers, &[4, 4]);
    for (name, proxy) in ["peer0", "peer1"].into_iter().zip(&proxies) {
        proxy.refuse();
        wait_until("it is noticed", PATIENCE, || state(&peers, name) == PeerState::Down);
    }
    assert_eq!(proxies[0].sessions(), 0, "it was paused while the other served");
    let mut served = 0;
    while let Some(mut conn) = pool.try_get() {
        assert_eq!(conn.peer(), "peer1", "it is all there is");
        conn.batch_execute("SELECT 1").expect("its session goes on");
        served += 1;
        std::mem::forget(conn);
    }
    assert_eq!(served, 4, "each of them does");
}

/// When every proxy is paused the sessions that are left are all there is: they go on.
#[cfg(feature = "mysql")]
#[test]
fn when_all_are_paused_their_sessions_go_on() {
    let server = support::mariadb::MariaDb::start();
    let proxy = HaProxy::in_front_of(server.port());
    let builder = manager_of::<diesel::MysqlConnection>([proxy.mysql_url()]).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[2]);
    proxy.refuse();
    wait_until("it is noticed", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
    for _ in 0..10 {
        let mut conn = pool.get().expect("its sessions go on");
        conn.batch_execute("SELECT 1").expect("its sessions go on");
    }
    assert_eq!(peers.snapshot().peers[0].connects, 2, "over the connections that there were");
}
