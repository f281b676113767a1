//! The examples do what they say.

mod support;

#[cfg(feature = "mysql")]
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;

/// What runs an example.
fn example(name: &str) -> Command {
    Command::new(support::example(name))
}

/// Whether it succeeds, and all that it says.
fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("it starts");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

/// It succeeds, and tells of all this.
#[track_caller]
fn tells(command: &mut Command, all: &[&str]) -> String {
    let (succeeds, told) = outcome(command);
    assert!(succeeds, "it fails if what it says did not happen: {told}");
    for expected in all {
        assert!(told.contains(expected), "it tells of `{expected}`: {told}");
    }
    told
}

#[test]
fn quickstart() {
    let story = ["> peer db1 is down: ", "> peer db1 is up after ", "Not one visit failed."];
    tells(&mut example("quickstart"), &story);
}

#[test]
fn threads() {
    tells(&mut example("threads"), &["db2 took ", "120 orders by 6 threads, 0 pieces left"]);
}

#[test]
fn job_worker() {
    let story = ["this worker dies with job 13", "job 13, try ", "job 40, try "];
    let told = tells(&mut example("job_worker"), &story);
    assert!(!told.contains("job 13, try 1:"), "another try did it: {told}");
}

#[test]
fn multi_connection() {
    tells(&mut example("multi_connection"), &["db0 is SQLite 3.", "db1 is SQLite 3."]);

    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("app.db"), "").expect("our own folder");
    let mut example = example("multi_connection");
    for path in ["app.db", "missing.db"] {
        example.arg(format!("file:{}/{path}?mode=rw", folder.path().display()));
    }
    let (succeeds, told) = outcome(&mut example);
    assert!(!succeeds, "a peer is down: {told}");
    assert!(told.contains("db0 is SQLite 3."), "the other serves: {told}");
    let cause = "db1 is down: Invalid connection url for multiconnection";
    assert!(told.contains(cause), "the limitation is as it says: {told}");
}

#[cfg(feature = "mysql")]
#[test]
fn multi_connection_on_mysql() {
    let servers = [support::mariadb::MariaDb::start(), support::mariadb::MariaDb::start()];
    let mut example = example("multi_connection");
    example.args(servers.iter().map(support::mariadb::MariaDb::url));
    let told = tells(&mut example, &["db0 is MySQL ", "db1 is MySQL "]);
    assert!(!told.contains(support::APP_PASSWORD), "without a password: {told}");
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        self.0.wait().expect("it is ours");
    }
}

/// The status and the text of an answer.
fn post(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let text = answer.split_once("\r\n\r\n").map(|(_, text)| text.to_owned());
    status.zip(text).unwrap_or_else(|| panic!("HTTP: {answer}"))
}

/// The example of this name, with its files in this folder, and the address at which it listens.
fn axum_in(folder: &Path) -> (Running, String) {
    let mut example = example("axum");
    let example = example.env("TMPDIR", folder).stdout(Stdio::piped());
    let mut running = Running(example.spawn().expect("it starts"));
    let mut line = String::new();
    let told = running.0.stdout.take().expect("it is piped");
    BufReader::new(told).read_line(&mut line).expect("text");
    let address = line.trim().strip_prefix("listening on ").expect("it says where").to_owned();
    (running, address)
}

#[test]
fn axum() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (mut running, address) = axum_in(folder.path());

    for visit in 1..=10 {
        let (status, text) = post(&address, "/visits");
        assert_eq!(status, 200, "{text}");
        assert!(text.starts_with(&format!("visit {visit}, served by db")), "{text}");
    }
    assert_eq!(post(&address, "/nowhere").0, 404);

    // As long as the database is locked, each request that has a connection keeps it.
    let data = fs::read_dir(folder.path()).expect("our own folder").next().expect("it has one");
    let data = data.expect("our own folder").path().join("app.db");
    let mut lock = SqliteConnection::establish(&data.display().to_string()).expect("a database");
    lock.batch_execute("PRAGMA busy_timeout = 30000; BEGIN EXCLUSIVE").expect("nobody writes");
    let (answer, answers) = mpsc::channel();
    for _ in 0..8 {
        let (address, answer) = (address.clone(), answer.clone());
        let request = move || answer.send(post(&address, "/visits").0).expect("the test waits");
        thread::Builder::new().spawn(request).expect("a thread");
    }
    drop(answer);
    let first: Vec<_> = answers.iter().take(4).collect();
    assert_eq!(first, [503; 4], "the pool has four connections, and they are busy");
    lock.batch_execute("COMMIT").expect("it is ours");
    assert_eq!(answers.iter().collect::<Vec<_>>(), [200; 4], "those that had them");
    let (_, text) = post(&address, "/visits");
    assert!(text.starts_with("visit 15,"), "who was refused left nothing: {text}");

    let interrupt = ["-c", "kill -s INT $0", &running.0.id().to_string()];
    assert!(Command::new("sh").args(interrupt).status().expect("there is a shell").success());
    assert!(running.0.wait().expect("it ends").success(), "interrupted, it ends in good order");
    assert_eq!(fs::read_dir(folder.path()).expect("our own folder").count(), 0, "it cleans up");
}

#[cfg(feature = "status-page")]
#[test]
fn axum_serves_the_status_page() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_running, address) = axum_in(folder.path());
    let browser = support::browser::Browser::desktop(1280, 720);
    browser.open(&format!("http://{address}/operator"));
    browser.wait_for(".live");
    browser.click("tbody[data-peer='db1'] button");
    support::wait_until("the page follows", support::backend::PATIENCE, || {
        // Connections to SQLite end as the pool is used.
        post(&address, "/visits");
        let state = "return document.querySelector('[data-peer=db1] [data-is=state]').innerText";
        browser.run(state) == "drained"
    });
    assert_eq!(browser.text("#notice"), "", "it has nothing to complain of");

    let site = support::http::Client::of(&format!("http://{address}"));
    for (path, content_type) in [("", "text/html"), ("?json", "application/json")] {
        let answer = site.get(&format!("/operator{path}"));
        assert_eq!(answer.content_types, [format!("{content_type}; charset=utf-8")]);
    }
    assert_eq!(site.get("/nowhere").status, 404);
}

/// As this test was built, so that only the example is built anew.
#[cfg(feature = "mysql")]
fn cargo_test(example: &str) -> Command {
    let features = [
        ("default", cfg!(feature = "default")),
        ("socket", cfg!(feature = "socket")),
        ("mysql", cfg!(feature = "mysql")),
        ("postgres", cfg!(feature = "postgres")),
        ("sqlite", cfg!(feature = "sqlite")),
        ("serde", cfg!(feature = "serde")),
        ("rocket", cfg!(feature = "rocket")),
        ("cli", cfg!(feature = "cli")),
        ("metrics", cfg!(feature = "metrics")),
        ("status-page", cfg!(feature = "status-page")),
    ];
    let features: Vec<_> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let profile = support::profile_folder();
    let folder = profile.parent().expect("each profile has a folder in the target's");
    let profile = profile.file_name().and_then(|name| name.to_str()).expect("cargo named it");

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("DATABASE_URL");
    cargo.args(["test", "--locked", "--offline", "--example", example]);
    cargo.args(["--no-default-features", "--features", &features.join(",")]);
    cargo.arg("--target-dir").arg(folder);
    cargo.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
    cargo
}

#[cfg(feature = "mysql")]
#[test]
fn test_transactions() {
    let server = support::mariadb::MariaDb::start();
    for _ in ["the first run", "one that would find what the first has left behind"] {
        let mut tests = cargo_test("test_transactions");
        let told = tells(
            tests.env("DATABASE_URL", server.url()),
            &[
                "test tests::who_has_registered_is_known ... ok",
                "test tests::nothing_is_left_behind ... ok",
                "test result: ok. 2 passed; 0 failed",
            ],
        );
        assert!(!told.contains(support::APP_PASSWORD), "without a password: {told}");
        let left = server.sql(&format!("SELECT * FROM {}.example_visitors", support::APP));
        assert_eq!(left, "", "the table is there, and empty");
    }

    let (succeeds, told) = outcome(&mut cargo_test("test_transactions"));
    assert!(!succeeds, "without a server it fails: {told}");
    assert!(told.contains("DATABASE_URL is not set"), "and says what to set: {told}");
}

#[cfg(feature = "mysql")]
#[test]
fn mysql_failover() {
    use support::mariadb::MariaDb;

    let mut servers = [MariaDb::start(), MariaDb::start()];
    let mut example = example("mysql_failover");
    example.args(["--seconds", "15"]).args(servers.iter().map(MariaDb::url));
    let mut running = example.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(running.stdout.take().expect("it is piped")).lines();
    let mut told = String::new();
    let mut until = |expected: &str| loop {
        let line = lines.next().unwrap_or_else(|| panic!("it tells of `{expected}`: {told}"));
        let line = line.expect("text");
        told += &(line.clone() + "\n");
        if line.contains(expected) {
            return;
        }
    };
    until("after 1 s");
    servers[1].kill();
    until("> peer peer1 is down: ");
    until("! peer1");
    servers[1].restart();
    until("> peer peer1 is up after ");
    until(" errors");
    assert!(running.wait().expect("it ends").success(), "{told}");
    assert!(!told.contains(support::APP_PASSWORD), "without a password: {told}");

    let refused = self::example("mysql_failover").output().expect("it starts");
    assert!(!refused.status.success(), "it says how it is called");
}
