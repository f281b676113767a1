//! The orphaned session of a lost transaction holds locks on its server. It is ended, and no other one.

#![cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]
#![allow(clippy::disallowed_methods, reason = "the test measures how long a lock is held")]

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::Pool;
use diesel::result::Error;
use diesel_peers::{
    Isolation, Ledger, Outcome, PeerManager, PeerManagerBuilder, Peers, Role, Strategy,
};
use support::backend::{PATIENCE, fill, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};

use crate::transactions::{Kind, mark, on_servers};

on_servers!(session_that_was_aborted_in_a_query_is_ended);

/// A pool of one connection to a server with the table `marks` and the ledger.
fn pool<K: Kind>(
    server: &K,
    builder: PeerManagerBuilder<K::Client>,
) -> (Pool<PeerManager<K::Client>>, Peers) {
    pool_of_size(1, server, builder)
}

fn pool_of_size<K: Kind>(
    size: u32,
    server: &K,
    builder: PeerManagerBuilder<K::Client>,
) -> (Pool<PeerManager<K::Client>>, Peers) {
    let ledger = Ledger::table("ledger");
    let (founder, _) = pool_of(manager_of::<K::Client>([server.url()]), 1);
    let mut conn = founder.get().expect("the peer is up");
    conn.batch_execute("CREATE TABLE marks (id INT PRIMARY KEY)").expect("a new database");
    conn.batch_execute(&ledger.create_table()).expect("a new database");
    pool_of(builder.ledger(ledger).retry_deadline(PATIENCE), size)
}

/// Returns how many sessions were ended, through whichever peer.
pub(crate) fn sessions_ended(peers: &Peers) -> u64 {
    peers.snapshot().peers.iter().map(|peer| peer.transactions.sessions_ended).sum()
}

/// A pool whose first peer is the server behind the proxy, and whose second one is the server.
fn pool_behind<K: Kind>(proxy: &CuttingProxy, server: &K) -> (Pool<PeerManager<K::Client>>, Peers) {
    let urls = [K::url_at("127.0.0.1", proxy.port()), server.url()];
    let builder = manager_of::<K::Client>(urls).strategy(Strategy::Ordered).tier("peer1", 1);
    pool(server, builder)
}

/// The server is frozen during a query, which the pool aborts, as another peer answers. After that, the server goes on
/// with the query, and is the only peer.
fn session_that_was_aborted_in_a_query_is_ended<K: Kind + Send>() {
    let mut servers = K::start(2);
    let second = Duration::from_secs(1);
    let builder = manager_of::<K::Client>(servers.iter().map(K::url))
        .strategy(Strategy::Ordered)
        .tier("peer1", 1)
        .stall_after(second)
        .check_timeout(second)
        .check_interval(second);
    let (pool, peers) = pool(&servers[0], builder);
    let mut conn = pool.get().expect("the peer is up");
    assert_eq!(conn.peer(), "peer0", "the first tier serves");
    let mut other = servers.pop().expect("two servers");
    let server = Mutex::new(servers.pop().expect("two servers"));
    let mut thawed = None;
    let outcome = thread::scope(|scope| {
        conn.transaction_with_retry(|conn| {
            mark(conn, 1)?;
            if thawed.is_some() {
                return Ok(());
            }
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(500));
                server.lock().expect("no thread panics with the lock").freeze();
            });
            let aborted = conn.batch_execute(&K::toil(6000));
            other.kill();
            server.lock().expect("no thread panics with the lock").thaw();
            thawed = Some(Instant::now());
            aborted
        })
    });
    let took = thawed.expect("the server is thawed").elapsed();
    assert_eq!(outcome, Outcome::Committed(()));
    assert_eq!(sessions_ended(&peers), 1);
    assert!(took < Duration::from_secs(25), "the query holds the row for a minute: {took:?}");
    assert_eq!(server.into_inner().expect("no thread panics with the lock").marks(), 1);
}

#[cfg(feature = "postgres")]
mod on_postgres {
    use support::backend::RealServer;
    use support::postgres::Postgres;

    use super::*;

    fn open_transactions(server: &Postgres) -> String {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state LIKE \
                    'idle in transaction%'";
        server.sql(open).trim().to_owned()
    }

    /// The session waits for a COMMIT that never comes.
    #[test]
    fn session_that_waits_for_its_commit_is_ended() {
        waits_for_its_commit(None);
    }

    /// The lock is taken at the end of such a transaction.
    #[test]
    fn session_that_waits_for_its_serializable_commit_is_ended() {
        waits_for_its_commit(Some(Isolation::Serializable));
    }

    fn waits_for_its_commit(level: Option<Isolation>) {
        let server = Postgres::start();
        let proxy = CuttingProxy::start(server.port());
        let (pool, peers) = pool_behind(&proxy, &server);
        let mut conn = pool.get().expect("the peer is up");
        assert_eq!(conn.peer(), "peer0", "the first tier serves");
        let mut policy = conn.retry_policy();
        if let Some(level) = level {
            policy = policy.isolation(level);
        }
        proxy.cut_at("COMMIT", Cut::Delayed);
        let mut runs = 0;
        let outcome = policy.transaction(&mut conn, |conn| {
            runs += 1;
            mark(conn, 1)
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 2));
        assert_eq!(open_transactions(&server), "0");
        proxy.release();
        assert_eq!(server.marks(), 1);
        assert_eq!(sessions_ended(&peers), 1);
    }

    #[test]
    fn session_that_was_lost_before_its_commit_is_ended() {
        let server = Postgres::start();
        let proxy = CuttingProxy::start(server.port());
        let (pool, peers) = pool_behind(&proxy, &server);
        let mut conn = pool.get().expect("the peer is up");
        proxy.cut_at("SELECT 99", Cut::Delayed);
        let outcome = conn.transaction_with_retry(|conn| {
            mark(conn, 1)?;
            conn.batch_execute("SELECT 99")
        });
        assert_eq!(outcome, Outcome::Committed(()));
        assert_eq!(open_transactions(&server), "0");
        assert_eq!(sessions_ended(&peers), 1);
        proxy.release();
    }

    /// The session of the resolution stays as well, with the lock of the token.
    #[test]
    fn resolution_that_was_lost_is_ended_by_the_next_try() {
        let server = Postgres::start();
        let proxies = [(); 2].map(|()| CuttingProxy::start(server.port()));
        let urls = proxies.each_ref().map(|proxy| Postgres::url_at("127.0.0.1", proxy.port()));
        let urls = urls.into_iter().chain([server.url()]);
        let builder = manager_of::<diesel::PgConnection>(urls).strategy(Strategy::Ordered);
        let (pool, peers) = pool(&server, builder.tier("peer1", 1).tier("peer2", 2));
        let mut conn = pool.get().expect("the peer is up");
        assert_eq!(conn.peer(), "peer0", "the first tier serves");
        let [first, second] = &proxies;
        first.refuse_connections();
        // (Not the `COMMITTED` of an isolation level.)
        first.cut_at("COMMIT\0", Cut::BeforeServer);
        second.cut_at("COMMIT\0", Cut::Delayed);
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, runs)
        });
        assert_eq!((outcome, runs), (Outcome::Committed(()), 2));
        assert!(!first.is_pending() && !second.is_pending());
        assert_eq!(sessions_ended(&peers), 1, "that of the resolution");
        second.release();
        assert_eq!(server.marks(), 1);
    }

    /// The connection that is to end the session is lost as well.
    #[test]
    fn transaction_is_run_again_although_its_session_cannot_be_ended() {
        let server = Postgres::start();
        let proxies = [(); 2].map(|()| CuttingProxy::start(server.port()));
        let urls = proxies.each_ref().map(|proxy| Postgres::url_at("127.0.0.1", proxy.port()));
        let (pool, peers) = pool_of_size(2, &server, manager_of(urls));
        fill(&pool, &peers, &[1, 1]);
        let mut conns = [(); 2].map(|()| pool.get().expect("the peers are up"));
        assert_ne!(conns[0].peer(), conns[1].peer(), "each peer has a connection");
        for (id, conn) in (1..).zip(&mut conns) {
            assert_eq!(conn.transaction_with_retry(|conn| mark(conn, id)), Outcome::Committed(()));
        }
        drop(conns);
        let mut conn = pool.get().expect("the peers are up");
        let [first, second] = &proxies;
        let (own, other) = if conn.peer() == "peer0" { (first, second) } else { (second, first) };
        own.cut_at("SELECT 99", Cut::BeforeServer);
        other.cut_at("pg_terminate_backend", Cut::BeforeServer);
        let outcome = conn.transaction_with_retry(|conn| {
            mark(conn, 3)?;
            conn.batch_execute("SELECT 99")
        });
        assert_eq!(outcome, Outcome::Committed(()));
        assert!(!own.is_pending() && !other.is_pending());
        assert_eq!(server.marks(), 3);
    }

    /// The closure decides when its snapshot is taken.
    #[test]
    fn transaction_sees_what_was_committed_before_its_first_query() {
        let server = Postgres::start();
        let (pool, _) = pool(&server, manager_of::<diesel::PgConnection>([server.url()]));
        let mut conn = pool.get().expect("the peer is up");
        conn.batch_execute(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        )
        .expect("the connection works");
        let outcome = conn.transaction_with_retry(|conn| {
            server.sql_in("app", "INSERT INTO marks VALUES (1)");
            conn.batch_execute("DO $$ BEGIN ASSERT EXISTS (SELECT FROM marks); END $$")
        });
        assert_eq!(outcome, Outcome::Committed(()));
    }
}

#[cfg(feature = "mysql")]
mod on_mariadb {
    use diesel::prelude::*;
    use support::mariadb::MariaDb;

    use super::*;

    fn connection_id(
        conn: &mut impl diesel::connection::LoadConnection<Backend = diesel::mysql::Mysql>,
    ) -> i64 {
        let id = diesel::dsl::sql::<diesel::sql_types::BigInt>("CONNECTION_ID()");
        diesel::select(id).get_result(conn).expect("the connection works")
    }

    /// A server that refuses a write has not lost the session. It goes back into the pool, which may lend it to others.
    #[test]
    fn session_that_is_not_lost_is_not_ended() {
        let refused = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'The MariaDB server is \
                       running with the --read-only option so it cannot execute this statement'";
        let server = MariaDb::start();
        let builder = manager_of::<MysqlConnection>([server.url()]).require(Role::ReadWrite);
        let (pool, peers) = pool(&server, builder);
        let mut conn = pool.get().expect("the peer is up");
        let mut sessions = Vec::new();
        let outcome = conn.transaction_with_retry(|conn| {
            sessions.push(connection_id(conn));
            if sessions.len() == 1 { conn.batch_execute(refused) } else { mark(conn, 1) }
        });
        assert_eq!(outcome, Outcome::Committed(()));
        assert_eq!(sessions, [sessions[0]; 2], "the only session goes on");
        assert_eq!(sessions_ended(&peers), 0);
    }

    /// The address that the server sees is not that of the pool's socket, so the session may serve other clients.
    #[test]
    fn session_behind_a_proxy_is_not_ended() {
        let server = MariaDb::start();
        let proxy = CuttingProxy::start(server.port());
        let (pool, peers) = pool_behind(&proxy, &server);
        let mut conn = pool.get().expect("the peer is up");
        proxy.cut_at("SELECT 99", Cut::Delayed);
        let mut runs = 0;
        let outcome = conn.transaction_with_retry(|conn| {
            runs += 1;
            mark(conn, runs)?;
            conn.batch_execute("SELECT 99")
        });
        assert_eq!(outcome, Outcome::Committed(()));
        let open = server.sql("SELECT COUNT(*) FROM information_schema.innodb_trx");
        assert_eq!(open.trim(), "1", "the first run");
        assert_eq!(sessions_ended(&peers), 0);
        proxy.release();
    }

    /// After a restart the server counts its connections from the beginning.
    #[test]
    fn strangers_session_with_the_same_number_is_not_ended() {
        let mut server = MariaDb::start();
        let url = server.url();
        let connect = || MysqlConnection::establish(&url).expect("the server is up");
        // The pool's connection gets a number that the pool itself does not reach again.
        drop((0..40).map(|_| connect()).collect::<Vec<_>>());
        let builder = manager_of::<MysqlConnection>([server.url()]).check_interval(PATIENCE);
        let (pool, peers) = pool(&server, builder);
        let mut conn = pool.get().expect("the peer is up");
        let mut stranger = None;
        let outcome = conn.transaction_with_retry(|conn| {
            mark(conn, 1)?;
            if stranger.is_none() {
                let id = connection_id(&mut **conn);
                server.kill();
                server.restart();
                stranger = (0..100).map(|_| connect()).find_map(|mut stranger| {
                    (connection_id(&mut stranger) == id).then_some(stranger)
                });
            }
            conn.batch_execute("SELECT 1")
        });
        assert_eq!(outcome, Outcome::<_, Error>::Committed(()));
        assert_eq!(sessions_ended(&peers), 0);
        let mut stranger = stranger.expect("a stranger got the number");
        stranger.batch_execute("SELECT 1").expect("the stranger is connected");
    }
}
