//! The default instrumentation sees the application's queries, and not the manager's health checks. This
//! test has a process of its own, because the default instrumentation is process-wide.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use diesel::connection::{
    Instrumentation, InstrumentationEvent, SimpleConnection, set_default_instrumentation,
};
#[cfg(feature = "mysql")]
use diesel::{MysqlConnection, r2d2::ManageConnection};
#[cfg(feature = "mysql")]
use support::backend::build;
use support::backend::{PATIENCE, SOON, manager_of, pool_of};
#[cfg(feature = "mysql")]
use support::mariadb::MariaDb;
#[cfg(feature = "mysql")]
use support::network::Silent;
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

static QUERIES: AtomicUsize = AtomicUsize::new(0);
static TRANSACTIONS: AtomicUsize = AtomicUsize::new(0);

/// The port of a service that the instrumentation asks before each login, unless it is 0.
static SERVICE: AtomicU16 = AtomicU16::new(0);
/// How the service's answers were received.
static ANSWERS: Mutex<Vec<io::Result<usize>>> = Mutex::new(Vec::new());

/// Asks the service, and waits for its answer.
fn ask(port: u16) -> io::Result<usize> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(4 * TIMEOUT))?;
    stream.read(&mut [0; 1])
}

/// The `connect_timeout`.
const TIMEOUT: Duration = Duration::from_millis(500);

struct Counting;

impl Instrumentation for Counting {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::FinishQuery { .. } => QUERIES.fetch_add(1, Ordering::SeqCst),
            InstrumentationEvent::StartEstablishConnection { .. } => {
                let port = SERVICE.load(Ordering::SeqCst);
                if port != 0 {
                    let answer = ask(port);
                    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
                }
                0
            }
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
    #[cfg(feature = "mysql")]
    connection_of_the_instrumentation_is_left_alone();
}

/// While the instrumentation waits for another service, the deadline of the login passes.
#[cfg(feature = "mysql")]
fn connection_of_the_instrumentation_is_left_alone() {
    let service = Silent::start();
    let server = MariaDb::start();
    let builder = manager_of::<MysqlConnection>([server.url()]).connect_timeout(TIMEOUT);
    SERVICE.store(service.port(), Ordering::SeqCst);
    let manager = build(builder);
    manager.connect().map(|_| ()).expect_err("the login takes too long");
    let answers = || ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    wait_until("the instrumentation has waited", PATIENCE, || !answers().is_empty());
    SERVICE.store(0, Ordering::SeqCst);
    let kind = answers()[0].as_ref().map_err(io::Error::kind).copied();
    assert_eq!(kind, Err(io::ErrorKind::WouldBlock), "the connection is not shut down");
}
