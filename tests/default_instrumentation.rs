//! The default instrumentation sees the application's queries, and not the manager's health checks. This
//! test has a process of its own, because the default instrumentation is process-wide.

use std::sync::atomic::{AtomicUsize, Ordering};

use diesel::connection::{
    Instrumentation, InstrumentationEvent, SimpleConnection, set_default_instrumentation,
};
use support::backend::{PATIENCE, SOON, manager_of, pool_of};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

static QUERIES: AtomicUsize = AtomicUsize::new(0);
static TRANSACTIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

impl Instrumentation for Counting {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::FinishQuery { .. } => QUERIES.fetch_add(1, Ordering::SeqCst),
            InstrumentationEvent::BeginTransaction { .. } => {
                TRANSACTIONS.fetch_add(1, Ordering::SeqCst)
            }
            _ => 0,
        };
    }
}

#[test]
fn default_instrumentation_sees_queries_but_not_health_checks() {
    set_default_instrumentation(|| Some(Box::new(Counting))).expect("no other thread sets it");
    let server = Server::start();
    let builder = manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON);
    let (pool, _peers) = pool_of(builder, 1);
    let mut conn = pool.get().expect("the peer is up");
    let before = QUERIES.load(Ordering::SeqCst);
    conn.batch_execute("SELECT 1").expect("the peer is up");
    assert_eq!(QUERIES.load(Ordering::SeqCst), before + 1, "the query of the application is seen");
    let begins = server.begins();
    wait_until("the peer is checked twice", PATIENCE, || server.begins() >= begins + 2);
    assert_eq!(QUERIES.load(Ordering::SeqCst), before + 1, "the statements of checks are not seen");
    assert_eq!(TRANSACTIONS.load(Ordering::SeqCst), 0, "the transactions of checks are not seen");
}
