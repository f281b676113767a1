//! A process may end while logins hang in client libraries, on threads that are never joined. The process
//! ends with its own status and not by a signal.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use diesel::r2d2::R2D2Connection;
use diesel::{MysqlConnection, PgConnection};
use support::backend::{PATIENCE, SOON, manager_of, pool_of};
use support::network::{FullBacklog, Silent};
use support::process::our_threads;
use support::{mariadb, postgres, wait_until, within};

/// The environment variable with the [`Order`] for the child process.
const ORDER: &str = "DIESEL_PEERS_TEST_EXIT";

/// The number of child processes.
const EXITS: usize = 100;
/// The number of child processes that run at the same time.
const AT_ONCE: usize = 4;

/// The way in which a child process ends.
#[derive(Debug, Clone, Copy)]
struct Order {
    /// A port that accepts connections and never answers.
    silent: u16,
    /// A port that does not accept connections.
    full: u16,
    /// Whether the process ends after logins were repeatedly cut off, or while the first ones hang.
    late: bool,
    /// Whether the process ends by `exit` with its pools, or at the end of `main` without them.
    by_exit: bool,
}

impl Order {
    fn text(self) -> String {
        let Self { silent, full, late, by_exit } = self;
        format!("{silent} {full} {late} {by_exit}")
    }

    fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        Some(Self {
            silent: words.next()?.parse().ok()?,
            full: words.next()?.parse().ok()?,
            late: words.next()?.parse().ok()?,
            by_exit: words.next()?.parse().ok()?,
        })
    }
}

/// The child process of the next test. In any other process it does nothing.
#[test]
fn child() {
    let Ok(order) = env::var(ORDER) else { return };
    let order = Order::read(&order).expect("the order is valid");
    let ports = [order.silent, order.full];
    let mysql = dials::<MysqlConnection>(order, ports.map(mariadb::url));
    // At the beginning of a login libpq requests Kerberos credentials, and that code does not tolerate the end
    // of the process.
    let without_kerberos = |port| postgres::url(port) + "?gssencmode=disable";
    let postgres = dials::<PgConnection>(order, ports.map(without_kerberos));
    wait_until("logins are under way", PATIENCE, || dialers() >= 4);
    // After this time the logins hang, or some have been cut off and others have followed.
    within(Duration::from_millis(150), || false);
    if order.by_exit {
        process::exit(0);
    }
    drop((mysql, postgres));
}

fn dials<C>(order: Order, urls: [String; 2]) -> impl Sized
where
    C: R2D2Connection + Send + 'static,
{
    let builder = manager_of::<C>(urls).check_interval(SOON);
    let builder = if order.late {
        builder.connect_timeout(Duration::from_millis(50)).check_timeout(Duration::from_millis(50))
    } else {
        builder
    };
    pool_of(builder, 4)
}

/// Returns the number of this process's threads that log in.
fn dialers() -> usize {
    our_threads().iter().filter(|name| name.starts_with("peers-dial")).count()
}

#[test]
fn process_ends_with_its_own_status_while_logins_hang() {
    let (silent, full) = (Silent::start(), FullBacklog::start());
    let orders = (0..EXITS).map(|number| Order {
        silent: silent.port(),
        full: full.port(),
        late: number % 2 == 0,
        by_exit: number % 4 < 2,
    });
    let orders = Mutex::new(orders);
    let next = || orders.lock().expect("no thread panics with the lock").next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(order) = next() {
                    assert_ends_normally(order);
                }
            });
        }
    });
    assert!(silent.accepted() >= EXITS, "each child process has connected to the silent port");
}

fn assert_ends_normally(order: Order) {
    let mut child = Command::new(env::current_exe().expect("the test program has a path"));
    child.args(["--exact", "child", "--nocapture"]).env(ORDER, order.text());
    let child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = child.output().expect("the test program starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{order:?} ended by a signal: {errors}");
    assert!(output.status.success(), "{order:?} ended with {}: {errors}", output.status);
}
