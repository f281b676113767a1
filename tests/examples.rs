//! The examples do what they say.

mod support;

use std::process::Command;

use support::example;

#[test]
fn quickstart() {
    let output = Command::new(example("quickstart")).output().expect("it starts");
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it fails if what it says did not happen: {told}{complaints}");
    for expected in ["> peer db1 is down: ", "> peer db1 is up after ", "Not one visit failed."] {
        assert!(told.contains(expected), "it tells of `{expected}`: {told}");
    }
}

#[cfg(feature = "mysql")]
#[test]
fn mysql_failover() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use support::mariadb::MariaDb;

    let mut servers = [MariaDb::start(), MariaDb::start()];
    let mut example = Command::new(example("mysql_failover"));
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

    let refused = Command::new(support::example("mysql_failover")).output().expect("it starts");
    assert!(!refused.status.success(), "it says how it is called");
}
