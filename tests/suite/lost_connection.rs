//! A connection that was lost during a query does not go back into the pool, whether the query used the
//! pooled connection or diesel's own inside it. The peer is checked, and the check decides about its state.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, SimpleConnection};
use diesel::r2d2::{Pool, R2D2Connection};
use diesel_peers::{Event, EventKind, PeerManager, PeerState};
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

/// MariaDB's library reports the end of an encrypted session as an error of TLS.
#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn lost_mariadb_connection_over_tls_is_replaced() {
    let server = support::mariadb::MariaDb::start_with_tls();
    let ca = server.folder().join("certificate.pem");
    // The password may go over the loopback interface in any form.
    let url = format!("{}?ssl_mode=preferred&ssl_ca={}", server.url(), ca.display());
    lost_connection_is_replaced::<diesel::MysqlConnection>(&url, || {
        server.sql("KILL USER app");
    });
}

/// Errors with texts that a user has written. The session and its peer work.
#[cfg(all(target_os = "linux", any(feature = "mysql", feature = "postgres")))]
fn text_of_a_user_has_no_consequence<C>(url: &str, failing: &[String], logins: impl Fn() -> u32)
where
    C: R2D2Connection + Send + 'static,
{
    let (pool, peers) = pool_of(manager_of::<C>([url]), 1);
    drop(pool.get().expect("the peer is up"));
    let before = logins();
    for query in failing {
        let mut conn = pool.get().expect("the peer is up");
        conn.batch_execute(query).expect_err("the query raises an error");
        drop(conn);
    }
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute("SELECT 1").expect("the connection works");
    let status = status(&peers, "peer0");
    assert_eq!((status.connects, status.queries_lost), (1, 0), "the connection was not lost");
    let events = peers.snapshot().events;
    let is_down = |event: &&Event| matches!(event.kind, EventKind::Down { .. });
    assert_eq!(events.iter().find(is_down), None, "the peer stayed up");
    // Counting is a login itself.
    assert!(logins() <= before + 1, "no check was made");
}

#[cfg(all(target_os = "linux", feature = "mysql"))]
#[test]
fn text_of_a_user_of_mariadb_has_no_consequence() {
    let server = support::mariadb::MariaDb::start();
    let signal = |text| format!("SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{text}'");
    let texts = [
        "Lost connection to the printer on the second floor",
        "Server has gone away",
        "TLS/SSL error: says a ticket",
        "WSREP has not yet prepared node, says a ticket",
        "deadlock detected",
    ];
    text_of_a_user_has_no_consequence::<diesel::MysqlConnection>(
        &server.url(),
        &texts.map(signal),
        || {
            let count = server.sql("SHOW GLOBAL STATUS LIKE 'Connections'");
            count.split_whitespace().last().and_then(|it| it.parse().ok()).expect("a number")
        },
    );
}

#[cfg(all(target_os = "linux", feature = "postgres"))]
#[test]
fn text_of_a_user_of_postgres_has_no_consequence() {
    let server = support::postgres::Postgres::start();
    let raise = |(text, code): (&str, &str)| {
        format!("DO $$ BEGIN RAISE '{text}' USING ERRCODE = '{code}'; END $$")
    };
    let texts = [
        ("Server has gone away", "P0001"),
        ("Lost connection to the printer", "P0001"),
        ("WSREP has not yet prepared node for application use", "P0001"),
        // What `dblink` raises when it cannot connect to another server.
        ("could not establish connection", "08001"),
        ("server closed the connection unexpectedly", "08006"),
    ];
    text_of_a_user_has_no_consequence::<diesel::PgConnection>(
        &server.url(),
        &texts.map(raise),
        || 0,
    );
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
    wait_until("the check fails", PATIENCE, || state(&peers, "peer0").is_marked_down());
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
