//! Test support: real servers, each started for one test and removed with it, and the ways in which
//! they fail.
//!
//! All servers listen on loopback and keep their files in temporary folders. Real servers need Linux;
//! [`scripted`] servers run on any platform.
#![allow(clippy::disallowed_methods, reason = "the test support waits for real processes")]
#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::new_ret_no_self,
    clippy::return_self_not_must_use,
    reason = "only tests use this library, and a test that cannot continue panics"
)]

#[cfg(target_os = "linux")]
pub mod account;
#[cfg(target_os = "linux")]
pub mod browser;
#[cfg(target_os = "linux")]
pub mod galera;
#[cfg(target_os = "linux")]
pub mod guestbook;
#[cfg(target_os = "linux")]
pub mod haproxy;
#[cfg(target_os = "linux")]
pub mod impostor;
#[cfg(target_os = "linux")]
pub mod mariadb;
#[cfg(target_os = "linux")]
pub mod mysql_words;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod pgbouncer;
#[cfg(target_os = "linux")]
pub mod pgpool;
#[cfg(target_os = "linux")]
pub mod port;
#[cfg(target_os = "linux")]
pub mod postgres;
#[cfg(target_os = "linux")]
pub mod postgres_standby;
#[cfg(target_os = "linux")]
pub mod postgres_words;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(feature = "status-page")]
pub mod site;
#[cfg(target_os = "linux")]
pub mod template;
#[cfg(target_os = "linux")]
pub mod tls;
#[cfg(target_os = "linux")]
pub mod words;

pub mod backend;
pub mod cutting_proxy;
pub mod figure;
pub mod http;
pub mod load;
pub mod one_of_three;
pub mod resolver;
pub mod scripted;

use std::env;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The environment variable with comma-separated URLs of the tester's own `MySQL` or `MariaDB` servers,
/// for [`own_urls`].
pub const OWN_MYSQL: &str = "DIESEL_PEERS_TEST_MYSQL_URL";
/// The environment variable with comma-separated URLs of the tester's own `PostgreSQL` servers, for
/// [`own_urls`].
pub const OWN_POSTGRES: &str = "DIESEL_PEERS_TEST_POSTGRES_URL";

/// The name of the database, and of its user, on every server of the test support.
pub const APP: &str = "app";
/// The password of [`APP`]. It must not show up in any log.
pub const APP_PASSWORD: &str = "s3cret-app";

/// How long a wait sleeps between two evaluations of its condition.
const POLL: Duration = Duration::from_millis(5);

/// Sets the flag that ends threads when it is dropped. It also does so when the code that runs beside the
/// threads panics; otherwise their scope would wait for them forever.
pub struct EndsThreads<'a>(pub &'a AtomicBool);

impl Drop for EndsThreads<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// Panics with `what` when `deadline` has passed. The deadline should be generous: a wait whose
/// condition holds ends at once.
#[track_caller]
pub fn wait_until(what: &str, deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(within(deadline, condition), "waited {deadline:?} until {what}");
}

/// Waits as [`wait_until`] does, and returns how long that took.
#[track_caller]
pub fn how_long(what: &str, deadline: Duration, condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    wait_until(what, deadline, condition);
    start.elapsed()
}

/// Returns whether `condition` holds before the deadline. The condition is evaluated at least once.
pub fn within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() >= deadline {
            return false;
        }
        thread::sleep(POLL);
    }
}

/// Returns Cargo's folder for the profile of these tests.
pub fn profile_folder() -> PathBuf {
    let test = env::current_exe().expect("the test program has a path");
    test.ancestors()
        .nth(2)
        .expect("test programs are in a subfolder of the profile's folder")
        .to_owned()
}

/// The program of an example of diesel-peers. `cargo test --workspace` builds the examples before it runs
/// the tests.
///
/// # Panics
///
/// The message names the command that builds the example, if that was not built.
#[track_caller]
pub fn example(name: &str) -> PathBuf {
    built(&profile_folder().join("examples"), name, &format!("-p diesel-peers --example {name}"))
}

/// The program of another package of this workspace. `cargo test --workspace` builds the programs before it
/// runs the tests.
///
/// # Panics
///
/// The message names the command that builds the program, if that was not built.
#[track_caller]
pub fn program(name: &str, package: &str) -> PathBuf {
    built(&profile_folder(), name, &format!("-p {package}"))
}

#[track_caller]
fn built(folder: &Path, name: &str, arguments: &str) -> PathBuf {
    let program = folder.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} does not exist: run `cargo build {arguments} --all-features` first, or all tests with \
         `cargo test --workspace --all-features`",
        program.display()
    );
    program
}

/// Returns the URLs of the tester's own servers, which the environment variable `var` lists.
pub fn own_urls(var: &str) -> Option<Vec<String>> {
    let urls = env::var(var).ok()?;
    let urls: Vec<_> =
        urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(String::from).collect();
    (!urls.is_empty()).then_some(urls)
}

/// Compiles the code in the documents, which needs more crates than the library depends on.
#[cfg(all(
    doctest,
    feature = "mysql",
    feature = "postgres",
    feature = "serde",
    feature = "rocket",
    feature = "metrics",
    feature = "status-page"
))]
mod documents {
    macro_rules! documents {
        ($($name:ident = $file:literal;)*) => {
            $(
                #[doc = include_str!($file)]
                mod $name {}
            )*
        };
    }

    documents! {
        readme = "../../README.md";
        behavior = "../../docs/behavior.md";
        configuration = "../../docs/configuration.md";
        cookbook = "../../docs/cookbook.md";
        dns = "../../docs/dns.md";
        errors = "../../docs/errors.md";
        limitations = "../../docs/limitations.md";
        migrating = "../../docs/migrating.md";
        observing = "../../docs/observing.md";
        operating = "../../docs/operating.md";
        peers_command = "../../docs/peers-command.md";
        performance = "../../docs/performance.md";
        proxies = "../../docs/proxies.md";
        rocket = "../../docs/rocket.md";
        transactions = "../../docs/transactions.md";
        slow_peers = "../../docs/slow-peers.md";
    }
}
