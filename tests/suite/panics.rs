//! r2d2 loses a slot permanently when `connect` or `is_valid` panics. So neither panics, whatever the
//! application's code that they call does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, SimpleConnection};
use support::backend::{PATIENCE, SOON, manager_of, pool_of, status};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// Panics at every event while it is armed.
struct Panicking {
    armed: Arc<AtomicBool>,
}

impl Instrumentation for Panicking {
    fn on_connection_event(&mut self, _: InstrumentationEvent<'_>) {
        assert!(!self.armed.load(Ordering::SeqCst), "this instrumentation panics");
    }
}

#[test]
fn panic_in_a_login_is_a_failed_login() {
    let server = Server::start();
    server.panic_at_login(true);
    let (pool, peers) =
        pool_of(manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON), 2);
    wait_until("both logins and a check have panicked", PATIENCE, || server.logins() >= 4);
    let reason = status(&peers, "peer0").reason.expect("the peer is down");
    assert!(reason.contains("panicked"), "the reason names the panic: {reason}");
    server.panic_at_login(false);
    wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);
}

#[test]
fn panicking_instrumentation_costs_a_connection_but_no_slot() {
    let server = Server::start();
    let (pool, _peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);
    let armed = Arc::new(AtomicBool::new(false));
    let mut both = [pool.get().expect("the pool has two"), pool.get().expect("the pool has two")];
    for conn in &mut both {
        conn.set_instrumentation(Panicking { armed: armed.clone() });
    }
    drop(both);
    armed.store(true, Ordering::SeqCst);
    // The pings of both connections panic inside this call, which then gets a third connection.
    let mut conn = pool.get().expect("a connection without that instrumentation is created");
    conn.batch_execute("SELECT 1").expect("the query succeeds");

    conn.set_instrumentation(Panicking { armed });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        // The application's own query, on the application's own thread.
        let _ = conn.batch_execute("SELECT 1");
    }));
    assert!(panicked.is_err(), "a panic in a query of the application is not caught");
    drop(conn);
    wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);
    let mut both = [pool.get().expect("the pool has two"), pool.get().expect("the pool has two")];
    for conn in &mut both {
        conn.batch_execute("SELECT 1").expect("the query succeeds");
    }
}

#[test]
fn lost_connection_is_noticed_although_the_instrumentation_panics() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer is up");
    conn.set_instrumentation(|event: InstrumentationEvent<'_>| {
        let is_error = matches!(event, InstrumentationEvent::FinishQuery { error: Some(_), .. });
        assert!(!is_error, "this instrumentation panics at errors");
    });
    server.cut_off();
    let query = catch_unwind(AssertUnwindSafe(|| conn.batch_execute("SELECT 1").is_ok()));
    assert!(query.is_err(), "the instrumentation panicked");
    drop(conn);
    pool.get()
        .expect("the peer is up")
        .batch_execute("SELECT 1")
        .expect("this is another connection");
    assert_eq!(status(&peers, "peer0").connects, 2, "the lost connection was replaced");
}

#[test]
fn connection_of_a_panicking_thread_is_replaced() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let panicked = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _conn = pool.get().expect("the peer is up");
            panic!("this thread panics while it holds a connection");
        });
        thread.join().is_err()
    });
    assert!(panicked, "the thread panicked");
    drop(pool.get().expect("the peer is up"));
    assert_eq!(status(&peers, "peer0").connects, 2, "the connection was replaced");
    assert_eq!(
        status(&peers, "peer0").in_use,
        0,
        "the replaced connection is not counted as in use"
    );
}
