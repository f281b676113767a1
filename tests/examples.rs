//! The examples do what they say.

#[cfg(feature = "mysql")]
use std::env;
use std::fs;
#[cfg(feature = "mysql")]
use std::io::{BufRead, BufReader};
use std::process::Command;
#[cfg(feature = "mysql")]
use std::process::Stdio;

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

/// With the selection of packages and features by which all tests are run, so that only the example is
/// built anew.
#[cfg(feature = "mysql")]
fn cargo_test(example: &str) -> Command {
    let profile = support::profile_folder();
    let folder = profile.parent().expect("each profile has a folder in the target's");
    let profile = profile.file_name().and_then(|name| name.to_str()).expect("cargo named it");

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).env_remove("DATABASE_URL");
    cargo.args(["test", "--locked", "--offline", "--workspace", "--all-features"]);
    cargo.args(["--example", example]).arg("--target-dir").arg(folder);
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
