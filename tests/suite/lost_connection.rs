//! A connection that was lost during a query does not go back into the pool, whether the query used the
//! pooled connection or diesel's own inside it. The peer is checked, and the check decides about its state.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, SimpleConnection};
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerState};
use support::backend::{PATIENCE, build, manager_of, pool_of, state, status};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

/// A pool of one connection without a test at checkout: a connection that goes back is the next to come out.
#[track_caller]
fn untested_pool<C>(url: &str) -> (Pool<PeerManager<C>>, diesel_peers::Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let manager = build(manager_of::<C>([url]));
    let peers = manager.peers();
    let pool = Pool::builder()
        .max_size(1)
        .test_on_check_out(false)
        .connection_timeout(PATIENCE)
        .build(manager)
        .expect("the peer is up");
    (pool, peers)
}

/// Runs a query on a connection after `end_sessions` has ended its session, first through the pooled
/// connection and then through diesel's own inside it. The pool must replace the connection both times.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn lost_connection_is_replaced<C>(url: &str, end_sessions: impl Fn())
where
    C: R2D2Connection + Send + 'static,
{
    /// Code that was written for diesel's own connection.
    fn application_code<C: SimpleConnection>(conn: &mut C) -> diesel::QueryResult<()> {
        conn.batch_execute("SELECT 1")
    }

    let (pool, peers) = untested_pool::<C>(url);
    for bare in [false, true] {
        let mut conn = pool.get().expect("the peer is up");
        application_code(&mut conn).expect("the session is open");
        end_sessions();
        let lost =
            if bare { application_code::<C>(&mut conn) } else { application_code(&mut conn) };
        lost.expect_err("the session was ended");
        drop(conn);
        let mut conn = pool.get().expect("the peer is up");
        application_code(&mut conn).expect("the connection was replaced");
    }
    let status = status(&peers, "peer0");
    assert_eq!(status.connects, 3, "the first connection, and one for each that was lost");
    assert_eq!(status.state, PeerState::Up, "a killed session does not mark the peer down");
}

#[cfg(feature = "mysql")]
#[test]
fn lost_mariadb_connection_is_replaced() {
    let server = support::mariadb::MariaDb::start();
    lost_connection_is_replaced::<diesel::MysqlConnection>(&server.url(), || {
        server.sql("KILL USER app");
    });
}

#[cfg(feature = "postgres")]
#[test]
fn lost_postgres_connection_is_replaced() {
    let server = support::postgres::Postgres::start();
    lost_connection_is_replaced::<diesel::PgConnection>(&server.url(), || {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        wait_until("the sessions end", PATIENCE, || server.sessions() == 0);
    });
}

#[test]
fn peer_of_a_lost_connection_is_checked_at_once_and_the_check_decides_its_state() {
    let server = Server::start();
    // The check interval is longer than the test, so only the loss can cause the check.
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("the session was cut off");
    // The first transaction was the test of the new connection; the second is the check.
    wait_until("the peer is checked", PATIENCE, || server.begins() == 2);
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "the check succeeded");
    drop(conn);

    let mut conn = pool.get().expect("the peer is up");
    server.crash();
    conn.batch_execute("SELECT 1").expect_err("the server crashed");
    wait_until("the check fails", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the permitted number of checks depends on the elapsed time"
)]
fn many_losses_at_once_cause_few_checks() {
    const THREADS: usize = 16;
    let server = Server::start();
    let manager = build(manager_of::<ScriptedConnection>([server.url()]));
    let peers = manager.peers();
    let pool = Pool::builder().max_size(16).build(manager).expect("the peer is up");
    let (connected, cut) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    // A check begins a transaction, and so does the test of each new connection.
    let connects = || usize::try_from(status(&peers, "peer0").connects).expect("a few connects");
    let checks = || server.begins().saturating_sub(connects());
    let before = checks();
    let start = thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut conn = pool.get().expect("the pool has a connection for each thread");
                connected.wait();
                cut.wait();
                conn.batch_execute("SELECT 1").expect_err("the session was cut off");
            });
        }
        connected.wait();
        server.cut_off();
        let start = Instant::now();
        cut.wait();
        start
    });
    wait_until("the peer is checked", PATIENCE, || checks() > before);
    // Late losses may cause another check within this time.
    within(Duration::from_millis(300), || false);
    let checks = checks() - before;
    // One check, and another one for losses that are noticed after it has begun. On a slow machine there may
    // be one each 100 ms.
    let bound = 2 + usize::try_from(start.elapsed().as_millis() / 100).expect("a short test");
    assert!(checks <= bound && checks < THREADS, "{checks} checks for {THREADS} losses");
}

/// Counts finished queries.
#[derive(Default)]
struct CountsQueries {
    queries: usize,
}

impl Instrumentation for CountsQueries {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { .. } = event {
            self.queries += 1;
        }
    }
}

#[test]
fn instrumentation_of_the_application_is_called_and_losses_are_noticed() {
    let server = Server::start();
    let (pool, _peers) = untested_pool::<ScriptedConnection>(server.url());
    let mut conn = pool.get().expect("the peer is up");
    conn.set_instrumentation(CountsQueries::default());
    conn.batch_execute("SELECT 1").expect("the session is open");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("the session was cut off");
    let own = conn.instrumentation().downcast_ref::<CountsQueries>();
    let own = own.expect("the instrumentation is the application's own");
    assert_eq!(own.queries, 2, "both queries were counted");
    drop(conn);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("SELECT 1").expect("the lost connection was replaced");
}

#[test]
fn instrumentation_set_on_the_bare_connection_stays_and_the_loss_is_found_at_checkout() {
    let server = Server::start();
    let (pool, _peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    // The bare connection's method replaces the crate's own instrumentation.
    let bare: &mut ScriptedConnection = &mut conn;
    bare.set_instrumentation(CountsQueries::default());
    bare.batch_execute("SELECT 1").expect("the session is open");
    drop(conn);
    let mut conn = pool.get().expect("the peer is up");
    assert!(conn.instrumentation().is::<CountsQueries>(), "the instrumentation stays");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("the session was cut off");
    drop(conn);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("SELECT 1").expect("the lost connection was replaced at checkout");
}
