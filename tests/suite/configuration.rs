//! Settings in text lead to the same peers as the builder's methods do, on real servers: URLs with
//! several hosts, the environment, and credentials that come from elsewhere.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::collections::BTreeSet;
use std::env;
use std::error::Error;
use std::fmt::Debug;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{ManageConnection, Pool, R2D2Connection};
use diesel::sql_types::Text;
use diesel::{MysqlConnection, PgConnection};
use diesel_peers::{Credentials, PeerConnection, PeerManager, PeerManagerBuilder, PeerState};
use support::backend::{PATIENCE, SOON, fill, links, pool_of, state};
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::{APP, APP_PASSWORD, wait_until};

/// All that is special in a URL, in a quoted text, or in both.
const ODD_PASSWORD: &str = r"s3cret@/:?#[]%41&=+ 'ü\";
const ODD_PASSWORD_ESCAPED: &str = "s3cret%40%2F%3A%3F%23%5B%5D%2541%26%3D%2B%20%27%C3%BC%5C";

fn builder<C>() -> PeerManagerBuilder<C> {
    PeerManager::builder()
}

/// Each peer's name, once it has served.
#[track_caller]
fn who_serves<C: R2D2Connection + Send + 'static>(pool: &Pool<PeerManager<C>>) -> BTreeSet<String> {
    let serve = |_| {
        let mut conn = pool.get().expect("the servers live");
        conn.batch_execute("SELECT 1").expect("the servers live");
        conn.peer().to_owned()
    };
    (0..20).map(serve).collect()
}

/// The servers' names in a URL of several hosts.
fn hosts(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
}

#[track_caller]
fn serves_from_all<C: R2D2Connection + Send + 'static>(
    builder: PeerManagerBuilder<C>,
    hosts: &[String],
) {
    let (pool, peers) = pool_of(builder, 4);
    fill(&pool, &peers, &[2, 2]);
    assert_eq!(who_serves(&pool), hosts.iter().cloned().collect(), "every host is a peer");
}

#[test]
fn one_url_with_several_hosts() {
    let servers = [MariaDb::start(), MariaDb::start()];
    let hosts = hosts(&[servers[0].port(), servers[1].port()]);
    let url = format!("mysql://{APP}:{APP_PASSWORD}@{}/{APP}?check_interval=1s", hosts.join(","));
    serves_from_all(builder::<MysqlConnection>().url(&url), &hosts);
    let url = format!("mysql://{}/{APP}?user={APP}&password={APP_PASSWORD}", hosts.join(","));
    serves_from_all(builder::<MysqlConnection>().url(&url), &hosts);
}

#[test]
fn parameters_that_are_no_settings_come_through() {
    let servers = [Postgres::start(), Postgres::start()];
    let hosts = hosts(&[servers[0].port(), servers[1].port()]);
    let url = format!(
        "postgres://{APP}:{APP_PASSWORD}@{}/{APP}?application_name=the%20shop&connect_timeout=7\
         &tcp_user_timeout=20s",
        hosts.join(","),
    );
    serves_from_all(builder::<PgConnection>().url(&url), &hosts);
    let manager = builder::<PgConnection>().url(&url).build().expect("the settings are right");
    let mut conn = manager.connect().expect("the servers live");
    assert_eq!(shown(&mut conn, "application_name"), "the shop");
}

/// A setting of the server's.
fn shown(conn: &mut PeerConnection<PgConnection>, setting: &str) -> String {
    diesel::select(diesel::dsl::sql::<Text>(&format!("current_setting('{setting}')")))
        .get_result(conn)
        .expect("there is such a setting")
}

#[test]
fn ipv6_hosts() {
    let servers = [MariaDb::start_on_both(), MariaDb::start_on_both()];
    let hosts = servers.each_ref().map(|server| format!("[::1]:{}", server.port()));
    let url = format!("mysql://{APP}:{APP_PASSWORD}@{}/{APP}", hosts.join(","));
    serves_from_all(builder::<MysqlConnection>().url(&url), &hosts);

    let servers = [Postgres::start_on_both(), Postgres::start_on_both()];
    let hosts = servers.each_ref().map(|server| format!("[::1]:{}", server.port()));
    let url = format!("postgres://{APP}:{APP_PASSWORD}@{}/{APP}", hosts.join(","));
    serves_from_all(builder::<PgConnection>().url(&url), &hosts);
}

#[test]
fn unix_sockets() {
    let servers = [Postgres::start(), Postgres::start()];
    let hosts =
        servers.each_ref().map(|server| format!("{}:{}", server.folder().display(), server.port()));
    let escaped = hosts.each_ref().map(|host| host.replace('/', "%2F"));
    let url = format!("postgres://{APP}:{APP_PASSWORD}@{}/{APP}", escaped.join(","));
    serves_from_all(builder::<PgConnection>().url(&url), &hosts);

    let server = MariaDb::start();
    let socket = server.folder().join("socket");
    let url =
        format!("mysql://{APP}:{APP_PASSWORD}@localhost/{APP}?unix_socket={}", socket.display());
    let (pool, _) = pool_of(builder::<MysqlConnection>().url(&url), 1);
    assert_eq!(who_serves(&pool), BTreeSet::from(["localhost".to_owned()]));
}

/// Gives the application's user another password. Sessions that are open go on.
trait SetPassword {
    fn set_password(&self, password: &str);
    fn end_sessions(&self);
}

impl SetPassword for MariaDb {
    fn set_password(&self, password: &str) {
        let quoted = password.replace('\\', r"\\").replace('\'', "''");
        self.sql(&format!("SET NAMES utf8mb4; ALTER USER {APP} IDENTIFIED BY '{quoted}'"));
    }

    fn end_sessions(&self) {
        self.sql(&format!("KILL USER {APP}"));
    }
}

impl SetPassword for Postgres {
    fn set_password(&self, password: &str) {
        self.sql(&format!("ALTER ROLE {APP} PASSWORD '{}'", password.replace('\'', "''")));
    }

    fn end_sessions(&self) {
        let all = format!("FROM pg_stat_activity WHERE usename = '{APP}'");
        self.sql(&format!("SELECT pg_terminate_backend(pid) {all}"));
    }
}

#[track_caller]
fn logs_in<C: R2D2Connection + Send + 'static>(how: &str, builder: PeerManagerBuilder<C>) {
    let manager = builder.build().unwrap_or_else(|error| panic!("{how}: {error}"));
    let mut conn = manager.connect().unwrap_or_else(|error| panic!("{how}: {error}"));
    conn.batch_execute("SELECT 1").expect("the server lives");
}

#[test]
fn passwords_of_any_letters() {
    let server = MariaDb::start();
    server.set_password(ODD_PASSWORD);
    let host = format!("127.0.0.1:{}/{APP}", server.port());
    let new = builder::<MysqlConnection>;
    logs_in("URL", new().url(&format!("mysql://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in("peer", new().peer("a", format!("mysql://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in(
        "parameter",
        new().url(&format!("mysql://{APP}@{host}?password={ODD_PASSWORD_ESCAPED}")),
    );
    logs_in("setter", new().url(&format!("mysql://{host}")).user(APP).password(ODD_PASSWORD));
    let credentials = |_: &str| Ok::<_, String>(Credentials::password(ODD_PASSWORD));
    logs_in("closure", new().url(&format!("mysql://{APP}:old@{host}")).credentials(credentials));

    let server = Postgres::start();
    server.set_password(ODD_PASSWORD);
    let host = format!("127.0.0.1:{}/{APP}", server.port());
    let keywords = format!("host=127.0.0.1 port={} dbname={APP} user={APP}", server.port());
    let new = builder::<PgConnection>;
    logs_in("URL", new().url(&format!("postgres://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in(
        "parameter",
        new().url(&format!("postgres://{APP}@{host}?password={ODD_PASSWORD_ESCAPED}")),
    );
    logs_in("setter", new().url(&format!("postgres://{host}")).user(APP).password(ODD_PASSWORD));
    logs_in("keywords", new().peer("a", &*keywords).password(ODD_PASSWORD));
    logs_in("closure", new().peer("a", keywords).credentials(credentials));
}

/// A password that is changed while the application runs.
fn credentials_are_asked_for_at_each_login<C, S>(server: &S, url: &str)
where
    C: R2D2Connection + Send + 'static,
    S: SetPassword,
{
    let password = Arc::new(Mutex::new(APP_PASSWORD.to_owned()));
    let asked = Arc::new(AtomicUsize::new(0));
    let credentials = {
        let (password, asked) = (password.clone(), asked.clone());
        move |peer: &str| {
            assert_eq!(peer, "db0", "it is told which peer");
            asked.fetch_add(1, Ordering::Relaxed);
            Ok::<_, String>(Credentials::new(APP, password.lock().unwrap().clone()))
        }
    };
    let builder = builder::<C>().peer("db0", url).check_interval(SOON).credentials(credentials);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[2]);
    assert!(asked.load(Ordering::Relaxed) >= 2, "once for each connection");

    server.set_password("another-s3cret");
    wait_until("a check is refused", PATIENCE, || state(&peers, "db0") == PeerState::Down);
    let reason = peers.snapshot().peers[0].reason.clone().expect("it is down");
    assert!(!reason.contains(APP_PASSWORD), "{reason}");
    "another-s3cret".clone_into(&mut password.lock().unwrap());
    wait_until("the new one is used", PATIENCE, || state(&peers, "db0") == PeerState::Up);
    server.end_sessions();
    wait_until("new connections are made with it", PATIENCE, || {
        drop(pool.get_timeout(SOON));
        let conn = pool.get_timeout(SOON);
        conn.is_ok_and(|mut conn| conn.batch_execute("SELECT 1").is_ok()) && links(&peers) == [2]
    });
}

#[test]
fn a_new_password_needs_no_restart() {
    let server = MariaDb::start();
    let url = format!("mysql://127.0.0.1:{}/{APP}", server.port());
    credentials_are_asked_for_at_each_login::<MysqlConnection, _>(&server, &url);
    let server = Postgres::start();
    let url = format!("postgres://127.0.0.1:{}/{APP}", server.port());
    credentials_are_asked_for_at_each_login::<PgConnection, _>(&server, &url);
}

#[test]
fn credentials_that_cannot_be_had_say_nothing_about_the_peer() {
    fn fails<E>(
        credentials: impl Fn(&str) -> Result<Credentials, E> + Send + Sync + 'static,
        expected: &str,
    ) where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let url = "mysql://app:s3cret@127.0.0.1:1/app";
        let builder = builder::<MysqlConnection>().peer("db0", url).credentials(credentials);
        let manager = builder.build().expect("the settings are right");
        let story = manager.connect().map(|_| ()).expect_err("nobody is let in").to_string();
        assert!(story.contains(expected), "{story}");
        assert!(!story.contains("s3cret"), "{story}");
        assert_eq!(
            state(&manager.peers(), "db0"),
            PeerState::Up,
            "the peer was not asked: {story}"
        );
    }
    fails(|_| Err("the vault is sealed"), "db0: no credentials: the vault is sealed");
    fails(|_| Err("s3cret has run out"), "db0: no credentials: *** has run out");
    fails(|_| -> Result<_, String> { panic!("on purpose") }, "db0: the connection, or");
    let shown = |value: &dyn Debug| format!("{value:?}");
    let credentials = Credentials::new("app", "s3cret");
    assert_eq!(shown(&credentials), r#"Credentials { user: Some("app"), password: Some("***") }"#);
}

/// Tells the child what it is to do.
const ORDER: &str = "DIESEL_PEERS_TEST_ENVIRONMENT";

/// The child. Without an order it has nothing to do.
#[test]
fn child() {
    if env::var_os(ORDER).is_none() {
        return;
    }
    match builder::<MysqlConnection>().check_interval(PATIENCE).env("SHOP_DB_").build() {
        Ok(manager) => {
            let conn = manager.connect().map(|conn| conn.peer().to_owned());
            println!("serves: {conn:?}");
        }
        Err(error) => println!("refuses: {error}"),
    }
}

/// What a process says that has these variables.
#[track_caller]
fn said_with(variables: &[(&str, &str)]) -> String {
    let mut child = Command::new(env::current_exe().expect("it runs"));
    child.args(["--exact", "configuration::child", "--nocapture"]).env(ORDER, "1");
    let output = child.envs(variables.iter().copied()).output().expect("it was started before");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_environment_is_read() {
    let server = MariaDb::start();
    let host = format!("127.0.0.1:{}", server.port());
    let url = ("SHOP_DB_URL", &*format!("mysql://{APP}@{host}/{APP}"));
    let password = ("SHOP_DB_PASSWORD", APP_PASSWORD);
    let said = said_with(&[url, password]);
    assert!(said.contains(&format!("serves: Ok({host:?})")), "{said}");

    let said = said_with(&[url]);
    assert!(said.contains("Access denied"), "the password was from there alone: {said}");
    let said = said_with(&[]);
    assert!(said.contains("(the environment variable `SHOP_DB_URL` is not set)"), "{said}");
    let said = said_with(&[url, password, ("SHOP_DB_CHECK_INTERVAL", "often")]);
    let expected =
        r#"refuses: the environment variable `SHOP_DB_CHECK_INTERVAL` is "often": give a"#;
    assert!(said.contains(expected), "{said}");
    let said = said_with(&[url, password, ("SHOP_DB_CHECK_INTERVAL", "1ms")]);
    assert!(said.contains("refuses: `check_interval` is 1ms: the minimum is 10ms"), "{said}");
    let said = said_with(&[url, ("SHOP_DB_PASWORD", APP_PASSWORD)]);
    assert!(
        said.contains("`SHOP_DB_PASWORD` is not a setting: did you mean `password`?"),
        "{said}"
    );
    assert!(!said.contains(APP_PASSWORD), "{said}");
}

/// Some time, in the form of a setting.
#[test]
fn settings_of_a_url_are_used() {
    let server = MariaDb::start();
    let url = format!("{}?check_interval=200ms&stall_after=none&check_timeout=100ms", server.url());
    let (pool, peers) = pool_of(builder::<MysqlConnection>().url(&url), 1);
    fill(&pool, &peers, &[1]);
    let due = peers.snapshot().peers[0].next_check;
    wait_until("it is checked at this interval", PATIENCE, || {
        peers.snapshot().peers[0].next_check > due + Duration::from_millis(200)
    });
}
