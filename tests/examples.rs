//! The examples run and have the effects that they print.

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

/// Returns the command of an example.
fn example(name: &str) -> Command {
    Command::new(support::example(name))
}

/// Runs a command, and returns whether it succeeds, and its output.
fn outcome(command: &mut Command) -> (bool, String) {
    let output = command.output().expect("the example starts");
    let bytes = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&bytes).into_owned())
}

/// Asserts that a command succeeds and prints all these texts, and returns its output.
#[track_caller]
fn assert_prints(command: &mut Command, texts: &[&str]) -> String {
    let (succeeds, output) = outcome(command);
    assert!(succeeds, "the example succeeds: {output}");
    for expected in texts {
        assert!(output.contains(expected), "the output contains `{expected}`: {output}");
    }
    output
}

#[test]
fn quickstart_example_survives_a_peer_that_is_down() {
    let texts = ["> peer db1 is down: ", "> peer db1 is up after ", "Not one visit failed."];
    assert_prints(&mut example("quickstart"), &texts);
}

#[test]
fn threads_example_loses_no_order() {
    assert_prints(
        &mut example("threads"),
        &["db2 took ", "120 orders by 6 threads, 0 pieces left"],
    );
}

#[test]
fn job_worker_example_repeats_the_job_of_a_lost_worker() {
    let texts = ["this worker dies with job 13", "job 13, try ", "job 40, try "];
    let output = assert_prints(&mut example("job_worker"), &texts);
    assert!(!output.contains("job 13, try 1:"), "a later try completes the job: {output}");
}

#[test]
fn multi_connection_example_serves_sqlite() {
    assert_prints(&mut example("multi_connection"), &["db0 is SQLite 3.", "db1 is SQLite 3."]);

    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    fs::write(folder.path().join("app.db"), "").expect("the test owns the folder");
    let mut example = example("multi_connection");
    for path in ["app.db", "missing.db"] {
        example.arg(format!("file:{}/{path}?mode=rw", folder.path().display()));
    }
    let (succeeds, output) = outcome(&mut example);
    assert!(!succeeds, "the example fails when a peer is down: {output}");
    assert!(output.contains("db0 is SQLite 3."), "the other peer serves: {output}");
    let cause = "db1 is down: Invalid connection url for multiconnection";
    assert!(output.contains(cause), "the limitation is as documented: {output}");
}

#[cfg(feature = "mysql")]
#[test]
fn multi_connection_example_serves_mysql() {
    let servers = [support::mariadb::MariaDb::start(), support::mariadb::MariaDb::start()];
    let mut example = example("multi_connection");
    example.args(servers.iter().map(support::mariadb::MariaDb::url));
    let output = assert_prints(&mut example, &["db0 is MySQL ", "db1 is MySQL "]);
    assert!(!output.contains(support::APP_PASSWORD), "no password is printed: {output}");
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        self.0.wait().expect("the process is a child of this one");
    }
}

/// Sends an empty `POST` request, and returns the status and the body of the response.
fn post(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("the server reads the request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the server answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let text = answer.split_once("\r\n\r\n").map(|(_, text)| text.to_owned());
    status.zip(text).unwrap_or_else(|| panic!("the answer is an HTTP response: {answer}"))
}

/// Starts the example `axum` with its files in this folder, and returns the address at which it listens.
fn axum_in(folder: &Path) -> (Running, String) {
    let mut example = example("axum");
    let example = example.env("TMPDIR", folder).stdout(Stdio::piped());
    let mut running = Running(example.spawn().expect("the example starts"));
    let mut line = String::new();
    let output = running.0.stdout.take().expect("the output is piped");
    BufReader::new(output).read_line(&mut line).expect("the output is text");
    let address =
        line.trim().strip_prefix("listening on ").expect("the address is printed").to_owned();
    (running, address)
}

#[test]
fn axum_example_serves_refuses_when_busy_and_stops_cleanly() {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let (mut running, address) = axum_in(folder.path());

    for visit in 1..=10 {
        let (status, text) = post(&address, "/visits");
        assert_eq!(status, 200, "{text}");
        assert!(text.starts_with(&format!("visit {visit}, served by db")), "{text}");
    }
    assert_eq!(post(&address, "/nowhere").0, 404);

    // As long as the database is locked, each request that has a connection keeps it.
    let mut files = fs::read_dir(folder.path()).expect("the test owns the folder");
    let data = files.next().expect("the example has a folder").expect("the test owns the folder");
    let data = data.path().join("app.db");
    let mut lock =
        SqliteConnection::establish(&data.display().to_string()).expect("the file exists");
    lock.batch_execute("PRAGMA busy_timeout = 30000; BEGIN EXCLUSIVE")
        .expect("no request is running");
    let (answer, answers) = mpsc::channel();
    for _ in 0..8 {
        let (address, answer) = (address.clone(), answer.clone());
        let request = move || answer.send(post(&address, "/visits").0).expect("the test receives");
        thread::Builder::new().spawn(request).expect("a thread can be started");
    }
    drop(answer);
    let first: Vec<_> = answers.iter().take(4).collect();
    assert_eq!(first, [503; 4], "requests without one of the pool's four connections are refused");
    lock.batch_execute("COMMIT").expect("the lock is held");
    assert_eq!(answers.iter().collect::<Vec<_>>(), [200; 4], "requests with a connection succeed");
    let (_, text) = post(&address, "/visits");
    assert!(text.starts_with("visit 15,"), "a refused request has no effect: {text}");

    let interrupt = ["-c", "kill -s INT $0", &running.0.id().to_string()];
    assert!(Command::new("sh").args(interrupt).status().expect("a shell is installed").success());
    let status = running.0.wait().expect("the process is a child of this one");
    assert!(status.success(), "the example ends in good order when it is interrupted");
    let files = fs::read_dir(folder.path()).expect("the test owns the folder").count();
    assert_eq!(files, 0, "the example removes its files");
}

#[cfg(feature = "status-page")]
#[test]
fn axum_example_serves_the_status_page() {
    let folder = tempfile::tempdir().expect("a temporary folder can be created");
    let (_running, address) = axum_in(folder.path());
    let browser = support::browser::Browser::desktop(1280, 720);
    browser.open(&format!("http://{address}/operator"));
    browser.wait_for(".live");
    browser.click("tbody[data-peer='db1'] button");
    support::wait_until("the page shows the drained peer", support::backend::PATIENCE, || {
        // The connections of a drained SQLite peer are closed as the pool is used.
        post(&address, "/visits");
        let state = "return document.querySelector('[data-peer=db1] [data-is=state]').innerText";
        browser.run(state) == "drained"
    });
    assert_eq!(browser.text("#notice"), "", "the page shows no error");

    let site = support::http::Client::of(&format!("http://{address}"));
    for (path, content_type) in [("", "text/html"), ("?json", "application/json")] {
        let answer = site.get(&format!("/operator{path}"));
        assert_eq!(answer.content_types, [format!("{content_type}; charset=utf-8")]);
    }
    assert_eq!(site.get("/nowhere").status, 404);
}

/// Returns the command `cargo test` for an example, with the features and the profile of this test, so that
/// only the example has to be built.
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
    let folder = profile.parent().expect("each profile has a folder in the target folder");
    let profile =
        profile.file_name().and_then(|name| name.to_str()).expect("the folder has a name");

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
fn test_transactions_example_leaves_nothing_behind() {
    let server = support::mariadb::MariaDb::start();
    // The second run would find what the first one has left behind.
    for _ in 0..2 {
        let mut tests = cargo_test("test_transactions");
        let output = assert_prints(
            tests.env("DATABASE_URL", server.url()),
            &[
                "test tests::who_has_registered_is_known ... ok",
                "test tests::nothing_is_left_behind ... ok",
                "test result: ok. 2 passed; 0 failed",
            ],
        );
        assert!(!output.contains(support::APP_PASSWORD), "no password is printed: {output}");
        let left = server.sql(&format!("SELECT * FROM {}.example_visitors", support::APP));
        assert_eq!(left, "", "the table exists and is empty");
    }

    let (succeeds, output) = outcome(&mut cargo_test("test_transactions"));
    assert!(!succeeds, "the example fails without a server: {output}");
    assert!(output.contains("DATABASE_URL is not set"), "the error names the variable: {output}");
}

#[cfg(feature = "mysql")]
#[test]
fn mysql_failover_example_reports_a_killed_server() {
    use support::mariadb::MariaDb;

    let mut servers = [MariaDb::start(), MariaDb::start()];
    let mut example = example("mysql_failover");
    example.args(["--seconds", "15"]).args(servers.iter().map(MariaDb::url));
    let mut running = example.stdout(Stdio::piped()).spawn().expect("the example starts");
    let mut lines = BufReader::new(running.stdout.take().expect("the output is piped")).lines();
    let mut output = String::new();
    let mut until = |expected: &str| loop {
        let line =
            lines.next().unwrap_or_else(|| panic!("the output contains `{expected}`: {output}"));
        let line = line.expect("the output is text");
        output += &(line.clone() + "\n");
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
    assert!(running.wait().expect("the process is a child of this one").success(), "{output}");
    assert!(!output.contains(support::APP_PASSWORD), "no password is printed: {output}");

    let refused = self::example("mysql_failover").output().expect("the example starts");
    assert!(!refused.status.success(), "the example fails without arguments");
}
