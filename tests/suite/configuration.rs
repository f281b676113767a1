//! Settings as text have the same effect as the builder's methods, on real servers: URLs with several hosts,
//! environment variables, and credentials from other sources.

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
use support::backend::{PATIENCE, SOON, build, fill, links, pool_of, state, status};
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::{APP, APP_PASSWORD, wait_until};

/// A password with all characters that are special in a URL or in a quoted text.
const ODD_PASSWORD: &str = r"s3cret@/:?#[]%41&=+ 'ü\";
const ODD_PASSWORD_ESCAPED: &str = "s3cret%40%2F%3A%3F%23%5B%5D%2541%26%3D%2B%20%27%C3%BC%5C";

fn builder<C>() -> PeerManagerBuilder<C> {
    PeerManager::builder()
}

/// Runs some queries and returns the names of the peers that they ran on.
#[track_caller]
fn serving_peers<C: R2D2Connection + Send + 'static>(
    pool: &Pool<PeerManager<C>>,
) -> BTreeSet<String> {
    let serve = |_| {
        let mut conn = pool.get().expect("the servers are up");
        conn.batch_execute("SELECT 1").expect("the servers are up");
        conn.peer().to_owned()
    };
    (0..20).map(serve).collect()
}

/// Returns the names of the peers of a URL with several hosts.
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
    assert_eq!(serving_peers(&pool), hosts.iter().cloned().collect(), "every host is a peer");
}

#[test]
fn url_with_several_hosts_has_a_peer_for_each() {
    let servers = [MariaDb::start(), MariaDb::start()];
    let hosts = hosts(&[servers[0].port(), servers[1].port()]);
    let url = format!("mysql://{APP}:{APP_PASSWORD}@{}/{APP}?check_interval=1s", hosts.join(","));
    serves_from_all(builder::<MysqlConnection>().url(&url), &hosts);
    let url = format!("mysql://{}/{APP}?user={APP}&password={APP_PASSWORD}", hosts.join(","));
    serves_from_all(builder::<MysqlConnection>().url(&url), &hosts);
}

#[test]
fn url_parameters_that_are_not_settings_reach_the_client_library() {
    let servers = [Postgres::start(), Postgres::start()];
    let hosts = hosts(&[servers[0].port(), servers[1].port()]);
    let url = format!(
        "postgres://{APP}:{APP_PASSWORD}@{}/{APP}?application_name=the%20shop&connect_timeout=7\
         &tcp_user_timeout=20s",
        hosts.join(","),
    );
    serves_from_all(builder::<PgConnection>().url(&url), &hosts);
    let manager = build(builder::<PgConnection>().url(&url));
    let mut conn = manager.connect().expect("the servers are up");
    assert_eq!(session_setting(&mut conn, "application_name"), "the shop");
}

/// Returns a setting of the session on the server.
fn session_setting(conn: &mut PeerConnection<PgConnection>, setting: &str) -> String {
    diesel::select(diesel::dsl::sql::<Text>(&format!("current_setting('{setting}')")))
        .get_result(conn)
        .expect("the setting exists")
}

#[test]
fn ipv6_hosts_of_a_url_are_peers() {
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
fn unix_sockets_of_a_url_are_peers() {
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
    assert_eq!(serving_peers(&pool), BTreeSet::from(["localhost".to_owned()]));
}

/// A server on which a test changes the password of the application's user.
trait SetPassword {
    /// Changes the password. Open sessions go on.
    fn set_password(&self, password: &str);
    /// Ends the application's sessions.
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
    conn.batch_execute("SELECT 1").expect("the server is up");
}

#[test]
fn password_with_special_characters_logs_in_from_every_source() {
    let server = MariaDb::start();
    server.set_password(ODD_PASSWORD);
    let host = format!("127.0.0.1:{}/{APP}", server.port());
    let new = builder::<MysqlConnection>;
    logs_in("URL", new().url(format!("mysql://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in("peer", new().peer("a", format!("mysql://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in(
        "parameter",
        new().url(format!("mysql://{APP}@{host}?password={ODD_PASSWORD_ESCAPED}")),
    );
    logs_in("setter", new().url(format!("mysql://{host}")).user(APP).password(ODD_PASSWORD));
    let credentials = |_: &str| Ok::<_, String>(Credentials::password(ODD_PASSWORD));
    logs_in("closure", new().url(format!("mysql://{APP}:old@{host}")).credentials(credentials));

    let server = Postgres::start();
    server.set_password(ODD_PASSWORD);
    let host = format!("127.0.0.1:{}/{APP}", server.port());
    let keywords = format!("host=127.0.0.1 port={} dbname={APP} user={APP}", server.port());
    let new = builder::<PgConnection>;
    logs_in("URL", new().url(format!("postgres://{APP}:{ODD_PASSWORD_ESCAPED}@{host}")));
    logs_in(
        "parameter",
        new().url(format!("postgres://{APP}@{host}?password={ODD_PASSWORD_ESCAPED}")),
    );
    logs_in("setter", new().url(format!("postgres://{host}")).user(APP).password(ODD_PASSWORD));
    logs_in("keywords", new().peer("a", &*keywords).password(ODD_PASSWORD));
    logs_in("closure", new().peer("a", keywords).credentials(credentials));
}

/// Changes the password while the application runs.
fn credentials_are_requested_at_each_login<C, S>(server: &S, url: &str)
where
    C: R2D2Connection + Send + 'static,
    S: SetPassword,
{
    let password = Arc::new(Mutex::new(APP_PASSWORD.to_owned()));
    let requested = Arc::new(AtomicUsize::new(0));
    let credentials = {
        let (password, requested) = (password.clone(), requested.clone());
        move |peer: &str| {
            assert_eq!(peer, "db0", "the closure gets the peer's name");
            requested.fetch_add(1, Ordering::Relaxed);
            Ok::<_, String>(Credentials::new(APP, password.lock().unwrap().clone()))
        }
    };
    let builder = builder::<C>().peer("db0", url).check_interval(SOON).credentials(credentials);
    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[2]);
    assert!(
        requested.load(Ordering::Relaxed) >= 2,
        "credentials are requested for each connection"
    );

    server.set_password("another-s3cret");
    wait_until("a check fails with the old password", PATIENCE, || {
        state(&peers, "db0").is_marked_down()
    });
    let reason = status(&peers, "db0").reason.expect("a peer that is down has a reason");
    assert!(!reason.contains(APP_PASSWORD), "{reason}");
    "another-s3cret".clone_into(&mut password.lock().unwrap());
    wait_until("a check succeeds with the new password", PATIENCE, || {
        state(&peers, "db0") == PeerState::Up
    });
    server.end_sessions();
    wait_until("new connections log in with the new password", PATIENCE, || {
        drop(pool.get_timeout(SOON));
        let conn = pool.get_timeout(SOON);
        conn.is_ok_and(|mut conn| conn.batch_execute("SELECT 1").is_ok()) && links(&peers) == [2]
    });
}

#[test]
fn changed_password_needs_no_restart() {
    let server = MariaDb::start();
    let url = format!("mysql://127.0.0.1:{}/{APP}", server.port());
    credentials_are_requested_at_each_login::<MysqlConnection, _>(&server, &url);
    let server = Postgres::start();
    let url = format!("postgres://127.0.0.1:{}/{APP}", server.port());
    credentials_are_requested_at_each_login::<PgConnection, _>(&server, &url);
}

#[test]
fn failure_to_provide_credentials_does_not_mark_the_peer_down() {
    fn fails<E>(
        credentials: impl Fn(&str) -> Result<Credentials, E> + Send + Sync + 'static,
        expected: &str,
    ) where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let url = "mysql://app:s3cret@127.0.0.1:1/app";
        let builder = builder::<MysqlConnection>().peer("db0", url).credentials(credentials);
        let manager = build(builder);
        let error =
            manager.connect().map(|_| ()).expect_err("there are no credentials").to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
        assert_eq!(
            state(&manager.peers(), "db0"),
            PeerState::Up,
            "the peer was not contacted: {error}"
        );
    }
    fails(|_| Err("the vault is sealed"), "db0: no credentials: the vault is sealed");
    fails(|_| Err("s3cret has run out"), "db0: no credentials: *** has run out");
    fails(|_| -> Result<_, String> { panic!("on purpose") }, "db0: the connection, or");
    let shown = |value: &dyn Debug| format!("{value:?}");
    let credentials = Credentials::new("app", "s3cret");
    assert_eq!(shown(&credentials), r#"Credentials { user: Some("app"), password: Some("***") }"#);
}

/// The environment variable that marks the child process.
const CHILD: &str = "DIESEL_PEERS_TEST_ENVIRONMENT";

/// The child process of the next test. In any other process it does nothing.
#[test]
fn child() {
    if env::var_os(CHILD).is_none() {
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

/// Runs the child process with these variables and returns its output.
#[track_caller]
fn output_with(variables: &[(&str, &str)]) -> String {
    let mut child = Command::new(env::current_exe().expect("the test program has a path"));
    child.args(["--exact", "configuration::child", "--nocapture"]).env(CHILD, "1");
    let output = child.envs(variables.iter().copied()).output().expect("the test program starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn environment_variables_configure_the_manager() {
    let server = MariaDb::start();
    let host = format!("127.0.0.1:{}", server.port());
    let url = ("SHOP_DB_URL", &*format!("mysql://{APP}@{host}/{APP}"));
    let password = ("SHOP_DB_PASSWORD", APP_PASSWORD);
    let output = output_with(&[url, password]);
    assert!(output.contains(&format!("serves: Ok({host:?})")), "{output}");

    let output = output_with(&[url]);
    assert!(
        output.contains("Access denied"),
        "without the variable there is no password: {output}"
    );
    let output = output_with(&[]);
    assert!(output.contains("(the environment variable `SHOP_DB_URL` is not set)"), "{output}");
    let output = output_with(&[url, password, ("SHOP_DB_CHECK_INTERVAL", "often")]);
    let expected =
        r#"refuses: the environment variable `SHOP_DB_CHECK_INTERVAL` is "often": give a"#;
    assert!(output.contains(expected), "{output}");
    let output = output_with(&[url, password, ("SHOP_DB_CHECK_INTERVAL", "1ms")]);
    assert!(output.contains("refuses: `check_interval` is 1ms: the minimum is 10ms"), "{output}");
    let output = output_with(&[url, ("SHOP_DB_PASWORD", APP_PASSWORD)]);
    assert!(
        output.contains("`SHOP_DB_PASWORD` is not a setting: did you mean `password`?"),
        "{output}"
    );
    assert!(!output.contains(APP_PASSWORD), "{output}");
}

#[test]
fn settings_in_a_url_take_effect() {
    let server = MariaDb::start();
    let url = format!("{}?check_interval=200ms&stall_after=none&check_timeout=100ms", server.url());
    let (pool, peers) = pool_of(builder::<MysqlConnection>().url(&url), 1);
    fill(&pool, &peers, &[1]);
    let next_check = || peers.snapshot().peers[0].next_check;
    let scheduled = next_check();
    wait_until("the peer is checked at this interval", PATIENCE, || {
        next_check() > scheduled + Duration::from_millis(200)
    });
}
