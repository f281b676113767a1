//! A process may end while logins hang: in client libraries, on threads that nobody joins. It ends
//! with its own status and by no signal.

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

/// Tells the child how to end, and where the ports are that do not answer.
const ORDER: &str = "DIESEL_PEERS_TEST_EXIT";

/// The exits, and how many are made at the same time.
const EXITS: usize = 100;
const AT_ONCE: usize = 4;

/// How a child ends, out of its number.
#[derive(Debug, Clone, Copy)]
struct Order {
    silent: u16,
    full: u16,
    /// While the first logins are under way, or when they were cut off again and again.
    late: bool,
    /// By `exit`, with its pools, or from the end of `main`, without them.
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

/// The child. Without an order it has nothing to do.
#[test]
fn child() {
    let Ok(order) = env::var(ORDER) else { return };
    let order = Order::read(&order).expect("an order");
    let ports = [order.silent, order.full];
    let mysql = dials::<MysqlConnection>(order, ports.map(mariadb::url));
    // When it begins a login, libpq asks Kerberos for credentials, which does not bear the end of its
    // process.
    let without_kerberos = |port| postgres::url(port) + "?gssencmode=disable";
    let postgres = dials::<PgConnection>(order, ports.map(without_kerberos));
    wait_until("logins are under way", PATIENCE, || dialers() >= 4);
    // By now they hang; or some were cut off meanwhile, and others follow.
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

/// How many threads of this process are at a login.
fn dialers() -> usize {
    our_threads().iter().filter(|name| name.starts_with("peers-dial")).count()
}

#[test]
fn a_process_ends_while_logins_hang() {
    let (silent, full) = (Silent::start(), FullBacklog::start());
    let orders = (0..EXITS).map(|number| Order {
        silent: silent.port(),
        full: full.port(),
        late: number % 2 == 0,
        by_exit: number % 4 < 2,
    });
    let orders = Mutex::new(orders);
    let next = || orders.lock().expect("nobody panics with it").next();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(order) = next() {
                    ends_well(order);
                }
            });
        }
    });
    assert!(silent.accepted() >= EXITS, "each has dialed");
}

fn ends_well(order: Order) {
    let mut child = Command::new(env::current_exe().expect("it runs"));
    child.args(["--exact", "child", "--nocapture"]).env(ORDER, order.text());
    let child = child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = child.output().expect("it was started before");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{order:?} ended by a signal: {said}");
    assert!(output.status.success(), "{order:?} ended with {}: {said}", output.status);
}
