//! A paused proxy refuses new connections while its sessions continue, as after `PROXYSQL PAUSE`. A pool
//! notices that without needing a new connection, and moves to the other peers without a single error.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]

#[cfg(feature = "mysql")]
use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel_peers::PeerState;
#[cfg(feature = "mysql")]
use support::backend::status;
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state};
use support::haproxy::HaProxy;
use support::load::Load;
use support::wait_until;

/// The size of the pool.
const CONNECTIONS: u32 = 6;

fn proxies_are_paused_in_turn<C>(
    server_port: u16,
    url: impl Fn(&HaProxy) -> String,
    threads: usize,
    query: &str,
) where
    C: R2D2Connection + Send + 'static,
{
    let mut proxies: Vec<_> = (0..3).map(|_| HaProxy::in_front_of(server_port)).collect();
    let builder = manager_of::<C>(proxies.iter().map(url)).check_interval(SOON);
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    fill(&pool, &peers, &[2, 2, 2]);

    let seen = Load::run(&pool, threads, query, |load| {
        for (index, proxy) in proxies.iter_mut().enumerate() {
            let name = format!("peer{index}");
            proxy.refuse();
            wait_until("the peer is marked down", PATIENCE, || {
                state(&peers, &name).is_marked_down()
            });
            wait_until("the proxy has no session left", PATIENCE, || proxy.sessions() == 0);
            wait_until("the connections to the peer are replaced", PATIENCE, || {
                links(&peers)[index] == 0
            });
            proxy.stop();
            let before = load.served();
            wait_until("the other peers serve", PATIENCE, || load.served() > before + 200);
            proxy.restart();
            wait_until("the peer is up again", PATIENCE, || state(&peers, &name) == PeerState::Up);
            wait_until("the peer has its share of the connections again", PATIENCE, || {
                links(&peers) == [2, 2, 2]
            });
        }
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

#[cfg(feature = "mysql")]
#[test]
fn paused_proxies_before_mariadb_cause_no_error_with_every_connection_busy() {
    let server = support::mariadb::MariaDb::start();
    proxies_are_paused_in_turn::<diesel::MysqlConnection>(
        server.port(),
        HaProxy::mysql_url,
        6,
        "SELECT SLEEP(0.005)",
    );
}

/// The other connections are idle: each checkin of the busy one takes a connection to the paused proxy out
/// of the pool.
#[cfg(feature = "mysql")]
#[test]
fn paused_proxies_before_mariadb_cause_no_error_with_one_connection_busy() {
    let server = support::mariadb::MariaDb::start();
    proxies_are_paused_in_turn::<diesel::MysqlConnection>(
        server.port(),
        HaProxy::mysql_url,
        1,
        "SELECT 1",
    );
}

#[cfg(feature = "postgres")]
#[test]
fn paused_proxies_before_postgres_cause_no_error_with_every_connection_busy() {
    let server = support::postgres::Postgres::start();
    proxies_are_paused_in_turn::<diesel::PgConnection>(
        server.port(),
        HaProxy::postgres_url,
        6,
        "SELECT pg_sleep(0.005)",
    );
}

#[cfg(feature = "mysql")]
#[test]
fn paused_proxy_is_noticed_by_an_idle_pool() {
    let server = support::mariadb::MariaDb::start();
    let proxies = [HaProxy::in_front_of(server.port()), HaProxy::in_front_of(server.port())];
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let builder = manager_of::<diesel::MysqlConnection>(urls).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    proxies[0].refuse();
    // The pool is not used meanwhile.
    wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    wait_until("the proxy's idle sessions have ended", PATIENCE, || proxies[0].sessions() == 0);
    for _ in 0..10 {
        let mut conn = pool.get().expect("the other peer serves");
        assert_eq!(conn.peer(), "peer1", "the paused proxy gets no work");
        conn.batch_execute("SELECT 1").expect("the other peer serves");
    }
    proxies[0].accept();
    wait_until("the peer is up again", PATIENCE, || state(&peers, "peer0") == PeerState::Up);
}

/// The first proxy is paused while the second still serves, which gets its sessions. The second keeps them.
#[cfg(feature = "mysql")]
#[test]
fn last_proxy_to_be_paused_keeps_its_sessions() {
    let server = support::mariadb::MariaDb::start();
    let proxies = [HaProxy::in_front_of(server.port()), HaProxy::in_front_of(server.port())];
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let builder = manager_of::<diesel::MysqlConnection>(urls).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 8);
    fill(&pool, &peers, &[4, 4]);
    for (name, proxy) in ["peer0", "peer1"].into_iter().zip(&proxies) {
        proxy.refuse();
        wait_until("the peer is marked down", PATIENCE, || state(&peers, name).is_marked_down());
        wait_until("the first proxy's sessions are replaced", PATIENCE, || links(&peers) == [0, 8]);
    }
    // They are closed on a thread of its own.
    wait_until("the first proxy has no session", PATIENCE, || proxies[0].sessions() == 0);
    let mut served = 0;
    while let Some(mut conn) = pool.try_get() {
        assert_eq!(conn.peer(), "peer1", "only the last proxy has sessions");
        conn.batch_execute("SELECT 1").expect("the session continues");
        served += 1;
        std::mem::forget(conn);
    }
    assert_eq!(served, 8, "all sessions of the last proxy continue");
}

/// No peer accepts new connections, so the pool goes on with the sessions that it has.
#[cfg(feature = "mysql")]
#[test]
fn only_proxy_keeps_its_sessions_while_paused() {
    let server = support::mariadb::MariaDb::start();
    let proxy = HaProxy::in_front_of(server.port());
    let builder = manager_of::<diesel::MysqlConnection>([proxy.mysql_url()]).check_interval(SOON);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[2]);
    proxy.refuse();
    wait_until("the peer is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
    for _ in 0..10 {
        let mut conn = pool.get().expect("the sessions continue");
        conn.batch_execute("SELECT 1").expect("the sessions continue");
    }
    assert_eq!(status(&peers, "peer0").connects, 2, "no connection was added");
}
