//! r2d2 loses a slot for ever when `connect` or `is_valid` panics, so they do not, whatever the
//! user's code in them does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent, SimpleConnection};
use support::backend::{PATIENCE, SOON, manager_of, pool_of};
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
fn a_login_that_panics_is_a_failed_login() {
    let server = Server::start();
    server.panic_at_login(true);
    let (pool, peers) =
        pool_of(manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON), 2);
    wait_until("both logins and a check have panicked", PATIENCE, || server.logins() >= 4);
    let reason = peers.snapshot().peers.swap_remove(0).reason.expect("it is down");
    assert!(reason.contains("panicked"), "the reason is told: {reason}");
    server.panic_at_login(false);
    wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);
}

#[test]
fn an_instrumentation_that_panics_costs_its_connection_and_no_slot() {
    let server = Server::start();
    let (pool, _peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 2);
    wait_until("the pool is full", PATIENCE, || pool.state().connections == 2);
    let armed = Arc::new(AtomicBool::new(false));
    let mut both = [pool.get().expect("there are two"), pool.get().expect("there are two")];
    for conn in &mut both {
        conn.set_instrumentation(Panicking { armed: armed.clone() });
    }
    drop(both);
    armed.store(true, Ordering::SeqCst);
    // Both connections' pings panic inside this call, and it gets a third connection.
    let mut conn = pool.get().expect("a connection without that instrumentation");
    conn.batch_execute("SELECT 1").expect("it works");

    conn.set_instrumentation(Panicking { armed });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        // The application's own query, in its own thread: it sees its own panic.
        let _ = conn.batch_execute("SELECT 1");
    }));
    assert!(panicked.is_err(), "a panic in a query of the application's is not swallowed");
    drop(conn);
    wait_until("no slot was lost", PATIENCE, || pool.state().connections == 2);
    let mut both = [pool.get().expect("there are two"), pool.get().expect("there are two")];
    for conn in &mut both {
        conn.batch_execute("SELECT 1").expect("it works");
    }
}

#[test]
fn a_loss_is_seen_before_the_users_instrumentation_panics() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let mut conn = pool.get().expect("the peer lives");
    conn.set_instrumentation(|event: InstrumentationEvent<'_>| {
        let is_error = matches!(event, InstrumentationEvent::FinishQuery { error: Some(_), .. });
        assert!(!is_error, "this instrumentation panics at errors");
    });
    server.cut_off();
    let query = catch_unwind(AssertUnwindSafe(|| conn.batch_execute("SELECT 1").is_ok()));
    assert!(query.is_err(), "it did");
    drop(conn);
    pool.get().expect("the peer lives").batch_execute("SELECT 1").expect("another connection");
    assert_eq!(peers.snapshot().peers[0].connects, 2, "the lost one did not go back");
}

#[test]
fn a_thread_that_panics_does_not_put_its_connection_back() {
    let server = Server::start();
    let (pool, peers) = pool_of(manager_of::<ScriptedConnection>([server.url()]), 1);
    let panicked = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let _conn = pool.get().expect("the peer lives");
            panic!("this thread panics while it holds a connection");
        });
        thread.join().is_err()
    });
    assert!(panicked, "it did");
    drop(pool.get().expect("the peer lives"));
    assert_eq!(peers.snapshot().peers[0].connects, 2, "the connection was replaced");
    assert_eq!(peers.snapshot().peers[0].in_use, 0, "and is not counted as in use");
}
