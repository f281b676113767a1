//! URLs and passwords are not shown in errors, logs, `Debug` or snapshots, even if a client library quotes
//! them. This test has a file of its own, because a process has only one logger.

use std::sync::Mutex;
use std::time::Duration;

use diesel::r2d2::{ManageConnection, R2D2Connection};
use diesel_peers::PeerManager;
use log::{LevelFilter, Log, Metadata, Record};
use support::backend::{PATIENCE, SOON, build, pool_of, status};
use support::scripted::{ScriptedConnection, Server};
use support::wait_until;

/// All secrets of this file contain this word, and no other text does.
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

/// Uses a peer that refuses logins, and returns all texts that the crate shows about it.
fn shown_texts<C>(url: &str) -> Vec<String>
where
    C: R2D2Connection + Send + 'static,
{
    let builder = || PeerManager::<C>::builder().peer("db0", url).check_interval(SOON);
    let mut shown = vec![format!("{:#?}", builder())];
    let manager = match builder().build() {
        Ok(manager) => manager,
        // The URL is malformed.
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
    wait_until("health checks also fail", PATIENCE, || status(&peers, "db0").connect_failures >= 3);
    shown.push(format!("{pool:#?}"));
    shown.push(format!("{:#?}", peers.snapshot()));
    shown.extend(status(&peers, "db0").reason.clone());
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
fn secrets_are_shown_nowhere() {
    log::set_logger(&Lines).expect("the process has no other logger");
    log::set_max_level(LevelFilter::Trace);

    let server = Server::start();
    let manager = build(PeerManager::<ScriptedConnection>::builder().peer("db0", server.url()));
    let mut shown = vec![format!("{:?}", manager.connect().expect("the server is running"))];
    server.crash();
    shown.extend(shown_texts::<ScriptedConnection>(server.url()));

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
            shown.extend(shown_texts::<diesel::MysqlConnection>(&url));
        }
    }
    #[cfg(feature = "postgres")]
    {
        let server = support::postgres::Postgres::start();
        let port = server.port();
        for url in [
            format!("postgres://app:wrong-s3cret@127.0.0.1:{port}/app"),
            // libpq parses `s3cret@...` as the host and quotes it.
            format!("postgres://app:x@s3cret@127.0.0.1:{port}/app"),
            format!("postgres://app:x/s3cret@127.0.0.1:{port}/app"),
            "postgres://app:s3cret@host.invalid:x/app".to_owned(),
            "host=127.0.0.1 user=app password=s3cret what=this".to_owned(),
            "host=127.0.0.1 user=app password='s3cret".to_owned(),
            "postgres//app:s3cret@nowhere".to_owned(),
            // Without `://`, libpq parses the text as `option=value` and quotes the option.
            "postgres:/app:s3cret@nowhere/app?sslmode=require".to_owned(),
            "host=127.0.0.1 user=app password=correct s3cret".to_owned(),
        ] {
            shown.extend(shown_texts::<diesel::PgConnection>(&url));
        }
    }

    let logged = LINES.lock().unwrap().clone();
    assert!(
        logged.iter().any(|line| line.contains("db0 is down")),
        "the failure mark is logged: {logged:?}"
    );
    for text in shown.iter().chain(&logged) {
        assert!(!text.contains(SECRET), "no secret is shown: {text}");
    }
}
