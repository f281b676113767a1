//! The process-wide default instrumentation goes on seeing the application's queries, and is spared
//! the manager's own checks. In a file of its own, as it is the whole process's.

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
fn it_sees_queries_and_no_checks() {
    set_default_instrumentation(|| Some(Box::new(Counting))).expect("nothing else sets it");
    let server = Server::start();
    let builder = manager_of::<ScriptedConnection>([server.url()]).check_interval(SOON);
    let (pool, _peers) = pool_of(builder, 1);
    let mut conn = pool.get().expect("the peer lives");
    let before = QUERIES.load(Ordering::SeqCst);
    conn.batch_execute("SELECT 1").expect("the session lives");
    assert_eq!(QUERIES.load(Ordering::SeqCst), before + 1, "a query through the pool is seen");
    let begins = server.begins();
    wait_until("the peer is checked twice", PATIENCE, || server.begins() >= begins + 2);
    assert_eq!(QUERIES.load(Ordering::SeqCst), before + 1, "the checks' statements are not");
    assert_eq!(TRANSACTIONS.load(Ordering::SeqCst), 0, "nor their transactions");
}
