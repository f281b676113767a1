//! The databases of a Rocket application: settings in `Rocket.toml`, the registry, and the errors of a
//! failed launch.

#![cfg(feature = "rocket")]
#![allow(clippy::needless_pass_by_value, reason = "Rocket's guards are values")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use diesel::SqliteConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::R2D2Connection;
use diesel::sql_types::{Integer, Text};
use diesel_peers::rocket::{Customize, Registry};
use diesel_peers::{PeerConnection, PeerState};
use rocket::error::ErrorKind;
use rocket::fairing::AdHoc;
use rocket::figment::Figment;
use rocket::figment::providers::{Format, Toml};
use rocket::local::blocking::Client;
use rocket::{Build, Rocket, State, get, routes};
use rocket_sync_db_pools::{Error, Poolable, database};
use support::backend::{Backend, SqlitePath};

#[database("shop")]
struct Shop(PeerConnection<SqliteConnection>);

#[get("/peer")]
async fn peer(shop: Shop) -> String {
    shop.run(|conn| {
        conn.batch_execute("SELECT 1").expect("the file is there");
        conn.peer().to_owned()
    })
    .await
}

#[get("/registry")]
fn registry(registry: &State<Registry>) -> String {
    let peers = registry.peers("shop").expect("the database is registered").snapshot().peers;
    let peers: Vec<_> =
        peers.iter().map(|peer| format!("{}: {:?}", peer.name, peer.state)).collect();
    peers.join("\n")
}

#[get("/pragmas")]
async fn pragmas(shop: Shop) -> String {
    shop.run(|conn| {
        let foreign_keys = diesel::dsl::sql::<Integer>("(SELECT * FROM pragma_foreign_keys)");
        let journal = diesel::dsl::sql::<Text>("(SELECT * FROM pragma_journal_mode)");
        let (keys, journal): (i32, String) = diesel::select((foreign_keys, journal))
            .get_result(conn)
            .expect("SQLite has both pragmas");
        format!("{keys} {journal}")
    })
    .await
}

/// A Rocket instance with these settings.
fn configured(settings: &str) -> Rocket<Build> {
    let toml = format!("[default]\nlog_level = 'off'\nworkers = 2\n{settings}");
    rocket::custom(Figment::from(rocket::Config::default()).merge(Toml::string(&toml).nested()))
}

fn application(settings: &str) -> Rocket<Build> {
    configured(settings)
        .attach(Registry::fairing())
        .attach(Shop::fairing())
        .mount("/", routes![peer, registry, pragmas])
}

fn body(client: &Client, path: &str) -> String {
    let response = client.get(path.to_owned()).dispatch();
    assert_eq!(response.status().code, 200, "{path}");
    response.into_string().expect("a text")
}

fn paths(files: &[SqlitePath]) -> Vec<String> {
    let path = |file: &SqlitePath| {
        let url = file.url();
        url.trim_start_matches("file:").trim_end_matches("?mode=rw").to_owned()
    };
    files.iter().map(path).collect()
}

#[track_caller]
fn assert_all_serve(client: &Client, names: &[String]) {
    let served: BTreeSet<String> = (0..20).map(|_| body(client, "/peer")).collect();
    assert_eq!(served, names.iter().cloned().collect(), "every peer serves");
}

#[test]
fn url_with_several_hosts_configures_several_peers() {
    let files = SqlitePath::start(3);
    let paths = paths(&files);
    let application = application(&format!(
        "[default.databases.shop]\nurl = 'file:{}?mode=rw'\npool_size = 6\ncheck_interval = 30\n\
         weight = {{ '{}' = 2 }}",
        paths.join(","),
        paths[0],
    ));
    let client = Client::untracked(application).expect("the application launches");
    assert_all_serve(&client, &paths);
    let expected: Vec<_> = paths.iter().map(|path| format!("{path}: Up")).collect();
    assert_eq!(body(&client, "/registry"), expected.join("\n"), "a request reads the registry");
    let registry = client.rocket().state::<Registry>().expect("the registry was attached");
    let snapshot = registry.peers("shop").expect("the database is registered").snapshot();
    assert_eq!(snapshot.peers[0].weight, 2);
    assert_eq!(snapshot.peers.iter().map(|peer| peer.connections).sum::<usize>(), 6, "`pool_size`");
    assert_eq!(registry.all().len(), 1);
    assert!(registry.peers("another").is_none());
    assert_eq!(
        body(&client, "/pragmas"),
        "1 wal",
        "the same pragmas as for Rocket's own SQLite databases"
    );
}

#[test]
fn table_of_peers_configures_their_names_and_weights() {
    let files = SqlitePath::start(2);
    let application = application(&format!(
        "[default.databases.shop]\npeers = {{ db0 = '{}', db1 = {{ url = '{}', weight = 3 }} }}",
        files[0].url(),
        files[1].url(),
    ));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let at_liftoff = seen.clone();
    let application = application.attach(AdHoc::on_liftoff("Peers", move |rocket| {
        Box::pin(async move {
            let registry = rocket.state::<Registry>().expect("the registry was attached");
            at_liftoff.lock().unwrap().extend(registry.all());
        })
    }));
    let client = Client::untracked(application).expect("the application launches");
    assert_all_serve(&client, &["db0".to_owned(), "db1".to_owned()]);
    let seen = seen.lock().unwrap();
    let [(name, peers)] = &seen[..] else { panic!("there is one database: {seen:?}") };
    assert_eq!(
        (&**name, peers.snapshot().peers[1].weight),
        ("shop", 3),
        "a fairing reads the registry"
    );
    assert_eq!(peers.snapshot().peers[1].state, PeerState::Up);
}

#[test]
fn customize_sets_closures_that_a_file_cannot_contain() {
    let files = SqlitePath::start(1);
    let customize = Customize::<SqliteConnection>::new(|database, builder| {
        assert_eq!(database, "shop");
        builder.on_connect(|conn| conn.batch_execute("PRAGMA foreign_keys = OFF"))
    });
    let settings = format!("[default.databases.shop]\nurl = '{}'", files[0].url());
    let client = Client::untracked(application(&settings).manage(customize))
        .expect("the application launches");
    assert!(
        body(&client, "/pragmas").starts_with("0 "),
        "the closure replaces Rocket's own pragmas"
    );
}

/// The error of a launch with these settings of the database.
#[track_caller]
fn launch_error<C: R2D2Connection + Send + 'static>(settings: &str) -> String {
    let rocket = configured(&format!("[default.databases.shop]\n{settings}"));
    match PeerConnection::<C>::pool("shop", &rocket) {
        Ok(_) => panic!("these settings are valid: {settings}"),
        // Rocket prints the errors in these forms.
        Err(Error::Config(error)) => error.to_string(),
        Err(Error::Pool(error)) => error.to_string(),
        Err(Error::Custom(error)) => format!("{error:?}"),
    }
}

#[test]
fn launch_error_names_a_wrong_setting() {
    let url = "url = 'file:s3cret.db?mode=rw'\n";
    for (settings, expected) in [
        (
            format!("{url}chek_interval = 3"),
            "`chek_interval` is not a setting: did you mean `check",
        ),
        (format!("{url}check_interval = 'soon'"), "`check_interval` is \"soon\": give a duration"),
        (format!("{url}max_size = 3"), "`max_size` is not a setting: use Rocket's `pool_size`"),
        (format!("{url}tiemout = 3"), "`tiemout` is not a setting: use Rocket's `timeout`"),
        (format!("{url}on_connect = 'x'"), "`on_connect` is not a setting: it is a closure"),
        (
            format!("{url}connect_deadline = 10"),
            "`connect_deadline` (10s) is longer than `timeout` (5s): make the first",
        ),
        (
            format!("{url}pool_timeout = 30"),
            "`pool_timeout` of database `shop` is not a setting: use",
        ),
        (
            "url = 'file:s3cret.db?pool_size=3'".to_owned(),
            "`pool_size` in the URL is not a setting",
        ),
        (format!("{url}timeout = 0"), "`timeout` of database `shop` is 0: give at least 1"),
        (format!("{url}pool_size = 0"), "`pool_size` of database `shop` is 0: give at least 1"),
        (format!("{url}timeout = '5s'"), "timeout"),
        (format!("{url}peers = []"), "`peers` and `url` both define the peers: remove one"),
        ("url = 'mysql://app:s3cret@db0'".to_owned(), "`url` is not a path, and SQLite would take"),
        ("peers = ['a']".to_owned(), "missing field `url`"),
    ] {
        let error = launch_error::<SqliteConnection>(&settings);
        assert!(error.contains(expected), "{settings}: {error}");
        assert!(!error.contains("s3cret"), "{settings}: {error}");
    }
    let wrong = application("[default.databases.shop]\nurl = 'a.db'\nstrategy = 'best'");
    let error = Client::untracked(wrong).map(|_| ()).expect_err("the launch fails");
    // Rocket's error panics when it is dropped unless its kind was inspected.
    assert!(matches!(error.kind(), ErrorKind::FailedFairings(_)), "{error}");
}

#[test]
fn launch_error_names_peers_that_are_down() {
    let settings = "peers = { db0 = 'file:/nowhere/a?mode=rw', db1 = 'file:/nowhere/b?mode=rw' }\n\
                    url = 'see peers'\ntimeout = 1";
    let error = launch_error::<SqliteConnection>(settings);
    for peer in ["db0", "db1"] {
        assert!(error.contains(&format!("{peer} is down: ")), "{error}");
    }
    let beginning = "no peer accepted a connection within Rocket's `timeout`: db0";
    assert!(error.starts_with(beginning), "{error}");
    assert!(error.contains("unable to open database file"), "the reason is given: {error}");
}

/// Rocket's timeout is shorter than the default timeout of a login, but the error must have the reasons.
#[cfg(all(feature = "mysql", target_os = "linux"))]
#[test]
fn launch_error_names_peers_that_do_not_answer() {
    let silent = support::network::Silent::start();
    let url = |port| format!("mysql://app:s3cret@127.0.0.1:{port}/app");
    let settings = format!(
        "peers = {{ db0 = '{}', db1 = '{}' }}\nurl = 'see peers'",
        url(silent.port()),
        url(1)
    );
    let error = launch_error::<diesel::MysqlConnection>(&settings);
    assert!(error.contains("db0 is down: no answer"), "{error}");
    assert!(error.contains("db1 is down: "), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[cfg(feature = "status-page")]
#[test]
fn status_page_without_pools_shows_every_database() {
    use diesel_peers::status_page::StatusPage;

    let files = SqlitePath::start(2);
    let settings = format!(
        "[default.databases.shop]\npeers = {{ db0 = '{}', db1 = '{}' }}",
        files[0].url(),
        files[1].url(),
    );
    let application = application(&settings).mount("/peers", StatusPage::new());
    let client = Client::untracked(application).expect("the application launches");
    let page = body(&client, "/peers");
    assert!(
        page.contains("<section data-pool=\"shop\""),
        "the page has the name of the database: {page}"
    );
    assert!(!page.contains("<button name=\"action\""), "the page has no buttons by default");
    for (path, expected) in [("/peers", "text/html"), ("/peers?json", "application/json")] {
        let response = client.get(path).dispatch();
        let header = |name: &str| response.headers().get(name).collect::<Vec<_>>().join(", ");
        assert!(header("Content-Type").starts_with(expected), "{path}");
        assert_eq!(header("X-Content-Type-Options"), "nosniff", "from Rocket's Shield, once");
        assert_eq!(header("Cache-Control"), "no-store");
        assert!(header("Content-Security-Policy").contains("frame-ancestors 'none'"));
        assert!(client.head(path).dispatch().into_string().is_none_or(|body| body.is_empty()));
    }
    let json = body(&client, "/peers?json");
    assert!(json.contains("\"actions\":false") && json.contains("\"name\":\"db1\""), "{json}");
    let form = "pool=shop&peer=db0&action=drain";
    let refused = client.post("/peers").body(form).dispatch();
    assert!([404, 405].contains(&refused.status().code), "the page accepts no actions");
    let registry = client.rocket().state::<Registry>().expect("the registry was attached");
    let peers = registry.peers("shop").expect("the database is registered").snapshot().peers;
    assert!(peers.iter().all(|peer| peer.state == PeerState::Up), "nothing was drained");
}
