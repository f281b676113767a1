//! URLs and passwords are shown nowhere: not in errors, logs, `Debug` or snapshots, also where a
//! client library quotes them. In a file of its own, as the logger is the whole process's.

use std::sync::Mutex;
use std::time::Duration;

use diesel::r2d2::{ManageConnection, R2D2Connection};
use diesel_peers::PeerManager;
use log::{LevelFilter, Log, Metadata, Record};
use support::backend::{PATIENCE, SOON, pool_of};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// Every secret of this file holds this word, and nothing else does.
const SECRET: &str = "s3cret";

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        LINES.lock().unwrap().push(format!("{}: {}", record.target(), record.args()));
    }

    fn flush(&self) {}
}

/// Uses a peer that refuses its logins in every way that shows something, and returns all of it.
fn all_that_is_shown<C>(url: &str) -> Vec<String>
where
    C: R2D2Connection + Send + 'static,
{
    let builder = || PeerManager::<C>::builder().peer("db0", url).check_interval(SOON);
    let mut shown = vec![format!("{:#?}", builder())];
    let manager = match builder().build() {
        Ok(manager) => manager,
        // Nothing like a URL.
        Err(error) => {
            shown.extend([error.to_string(), format!("{error:#?}")]);
            return shown;
        }
    };
    shown.push(manager.connect().map(|_| ()).expect_err("the login fails").to_string());
    shown.push(format!("{manager:#?}"));
    shown.push(format!("{:#?}", manager.peers()));

    let (pool, peers) = pool_of(builder(), 1);
    let brief = Duration::from_millis(500);
    shown.push(pool.get_timeout(brief).map(|_| ()).expect_err("the login fails").to_string());
    wait_until("checks fail too", PATIENCE, || peers.snapshot().peers[0].connect_failures >= 3);
    shown.push(format!("{pool:#?}"));
    shown.push(format!("{:#?}", peers.snapshot()));
    shown.extend(peers.snapshot().peers[0].reason.clone());
    #[cfg(feature = "status-page")]
    {
        let page = diesel_peers::status_page::StatusPage::new().pool(peers).with_actions();
        for query in [None, Some("json")] {
            shown.push(page.respond("GET", query, |_| None, b"").body);
        }
    }
    shown
}

#[test]
fn no_secret_is_shown() {
    log::set_logger(&Lines).expect("this process has no other");
    log::set_max_level(LevelFilter::Trace);

    let server = Server::start();
    let connected =
        PeerManager::<ScriptedConnection>::builder().peer("db0", server.url()).build().unwrap();
    let mut shown = vec![format!("{:?}", connected.connect().expect("the server lives"))];
    server.crash();
    shown.extend(all_that_is_shown::<ScriptedConnection>(server.url()));

    #[cfg(feature = "mysql")]
    {
        let server = support::mariadb::MariaDb::start();
        let port = server.port();
        for url in [
            format!("mysql://app:wrong-s3cret@127.0.0.1:{port}/app"),
            format!("mysql://app:s3cret@1@127.0.0.1:{port}/app"),
            format!("mysql://app:s3cret%401@127.0.0.1:{port}/app"),
            "mysql://app:s3cret@host.invalid:x/app".to_owned(),
            "mysql//app:s3cret@nowhere".to_owned(),
        ] {
            shown.extend(all_that_is_shown::<diesel::MysqlConnection>(&url));
        }
    }
    #[cfg(feature = "postgres")]
    {
        let server = support::postgres::Postgres::start();
        let port = server.port();
        for url in [
            format!("postgres://app:wrong-s3cret@127.0.0.1:{port}/app"),
            // libpq takes `s3cret@…` for the host, and quotes it.
            format!("postgres://app:x@s3cret@127.0.0.1:{port}/app"),
            format!("postgres://app:x/s3cret@127.0.0.1:{port}/app"),
            "postgres://app:s3cret@host.invalid:x/app".to_owned(),
            "host=127.0.0.1 user=app password=s3cret what=this".to_owned(),
            "host=127.0.0.1 user=app password='s3cret".to_owned(),
            "postgres//app:s3cret@nowhere".to_owned(),
            // Without `://` libpq takes it for `option=value`, and quotes the option.
            "postgres:/app:s3cret@nowhere/app?sslmode=require".to_owned(),
            "host=127.0.0.1 user=app password=correct s3cret".to_owned(),
        ] {
            shown.extend(all_that_is_shown::<diesel::PgConnection>(&url));
        }
    }

    let logged = LINES.lock().unwrap().clone();
    assert!(
        logged.iter().any(|line| line.contains("db0 is down")),
        "the mark is logged: {logged:?}"
    );
    for text in shown.iter().chain(&logged) {
        assert!(!text.contains(SECRET), "a secret is shown: {text}");
    }
}
