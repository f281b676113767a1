//! A connection that a query has found lost does not go back into the pool, whichever way the query
//! was made; its peer is checked, and the check decides about the peer.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, SimpleConnection};
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{PeerManager, PeerState};
use support::backend::{PATIENCE, manager_of, pool_of, state};
use support::scripted::{ScriptedConnection, Server};
use support::{wait_until, within};

/// A pool of one connection that is not tested at checkout: what goes back is what comes out.
#[track_caller]
fn untested_pool<C>(url: &str) -> (Pool<PeerManager<C>>, diesel_peers::Peers)
where
    C: R2D2Connection + Send + 'static,
{
    let manager = manager_of::<C>([url]).build().expect("the settings are right");
    let peers = manager.peers();
    let pool = Pool::builder()
        .max_size(1)
        .test_on_check_out(false)
        .connection_timeout(PATIENCE)
        .build(manager)
        .expect("the peer lives");
    (pool, peers)
}

/// Runs a query over a connection whose session has been ended by `end_sessions`, once through the
/// pooled connection and once through the bare one, and sees each replaced.
#[cfg(any(feature = "mysql", feature = "postgres"))]
fn is_replaced<C>(url: &str, end_sessions: impl Fn())
where
    C: R2D2Connection + Send + 'static,
{
    /// What an application has written for diesel's own connection.
    fn application_code<C: SimpleConnection>(conn: &mut C) -> diesel::QueryResult<()> {
        conn.batch_execute("SELECT 1")
    }

    let (pool, peers) = untested_pool::<C>(url);
    for bare in [false, true] {
        let mut conn = pool.get().expect("the peer lives");
        application_code(&mut conn).expect("its session lives");
        end_sessions();
        let lost =
            if bare { application_code::<C>(&mut conn) } else { application_code(&mut conn) };
        lost.expect_err("its session was ended");
        drop(conn);
        let mut conn = pool.get().expect("the peer lives");
        application_code(&mut conn).expect("this is another connection");
    }
    let status = peers.snapshot().peers.swap_remove(0);
    assert_eq!(status.connects, 3, "one at first, and one for each that was lost");
    assert_eq!(status.state, PeerState::Up, "a session that was killed is no dead server");
}

#[cfg(feature = "mysql")]
#[test]
fn on_mariadb_it_is_replaced() {
    let server = support::mariadb::MariaDb::start();
    is_replaced::<diesel::MysqlConnection>(&server.url(), || {
        server.sql("KILL USER app");
    });
}

#[cfg(feature = "postgres")]
#[test]
fn on_postgres_it_is_replaced() {
    let server = support::postgres::Postgres::start();
    is_replaced::<diesel::PgConnection>(&server.url(), || {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        wait_until("the sessions end", PATIENCE, || server.sessions() == 0);
    });
}

#[test]
fn its_peer_is_checked_at_once_and_the_check_decides() {
    let server = Server::start();
    // The interval is longer than the test: it is the loss that causes the check.
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("its session was cut off");
    // The connection was put to the same test when it was made.
    wait_until("the peer is checked", PATIENCE, || server.begins() == 2);
    assert_eq!(state(&peers, "peer0"), PeerState::Up, "the check succeeded");
    drop(conn);

    let mut conn = pool.get().expect("the peer lives");
    server.crash();
    conn.batch_execute("SELECT 1").expect_err("the server crashed");
    wait_until("the check fails", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
}

#[test]
fn many_losses_at_once_cause_few_checks() {
    const THREADS: usize = 16;
    let server = Server::start();
    let manager = manager_of::<ScriptedConnection>([server.url()]).build().expect("right settings");
    let peers = manager.peers();
    let pool = Pool::builder().max_size(16).build(manager).expect("the peer lives");
    let (connected, cut) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    // Each new connection is put to a check's test as well.
    let connects = || usize::try_from(peers.snapshot().peers[0].connects).expect("a few");
    let checks = || server.begins().saturating_sub(connects());
    let before = checks();
    #[expect(clippy::disallowed_methods, reason = "how many checks there may be depends on it")]
    let start = thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut conn = pool.get().expect("there is one for each thread");
                connected.wait();
                cut.wait();
                conn.batch_execute("SELECT 1").expect_err("its session was cut off");
            });
        }
        connected.wait();
        server.cut_off();
        let start = Instant::now();
        cut.wait();
        start
    });
    wait_until("the peer is checked", PATIENCE, || checks() > before);
    // What comes after this is another loss's, or none at all.
    within(Duration::from_millis(300), || false);
    let checks = checks() - before;
    // One, and one more for losses noticed after it began; on a slow machine one each 100 ms.
    let bound = 2 + usize::try_from(start.elapsed().as_millis() / 100).expect("a short test");
    assert!(checks <= bound && checks < THREADS, "{checks} checks for {THREADS} losses");
}

#[derive(Default)]
struct Counting {
    queries: usize,
}

impl Instrumentation for Counting {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { .. } = event {
            self.queries += 1;
        }
    }
}

#[test]
fn the_users_instrumentation_stays_in_the_chain() {
    let server = Server::start();
    let (pool, _peers) = untested_pool::<ScriptedConnection>(server.url());
    let mut conn = pool.get().expect("the peer lives");
    conn.set_instrumentation(Counting::default());
    conn.batch_execute("SELECT 1").expect("the session lives");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("its session was cut off");
    let counting = conn.instrumentation().downcast_ref::<Counting>();
    assert_eq!(counting.expect("it is the user's own").queries, 2, "it saw both queries");
    drop(conn);
    let mut conn = pool.get().expect("the peer lives");
    conn.batch_execute("SELECT 1").expect("and the loss was seen all the same");
}

#[test]
fn a_user_who_replaces_the_observer_keeps_theirs() {
    let server = Server::start();
    let (pool, _peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    // Through the bare connection, where nothing of ours can come between.
    let bare: &mut ScriptedConnection = &mut conn;
    bare.set_instrumentation(Counting::default());
    bare.batch_execute("SELECT 1").expect("the session lives");
    drop(conn);
    let mut conn = pool.get().expect("the peer lives");
    assert!(conn.instrumentation().is::<Counting>(), "it is still there");
    server.cut_off();
    conn.batch_execute("SELECT 1").expect_err("its session was cut off");
    drop(conn);
    let mut conn = pool.get().expect("the peer lives");
    conn.batch_execute("SELECT 1").expect("the loss was found at the next checkout");
}
