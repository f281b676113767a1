//! The examples run and have the effects that they print.

#[cfg(feature = "mysql")]
use std::env;
use std::fs;
#[cfg(feature = "mysql")]
use std::io::{BufRead, BufReader};
use std::process::Command;
#[cfg(feature = "mysql")]
use std::process::Stdio;

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

/// Returns the command `cargo test` for an example, with the packages, features and profile by which all tests
/// are run, so that only the example has to be built.
#[cfg(feature = "mysql")]
fn cargo_test(example: &str) -> Command {
    let profile = support::profile_folder();
    let folder = profile.parent().expect("each profile has a folder in the target folder");
    let profile =
        profile.file_name().and_then(|name| name.to_str()).expect("the folder has a name");

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).env_remove("DATABASE_URL");
    cargo.args(["test", "--locked", "--offline", "--workspace", "--all-features"]);
    cargo.args(["--example", example]).arg("--target-dir").arg(folder);
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
