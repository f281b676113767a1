//! The command `peers check` on real servers: it reports unusable peers and differences, and shows no
//! secrets.

#![cfg(target_os = "linux")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, MysqlConnection, PgConnection};
use serde_json::Value as Json;
use support::backend::{Backend, PATIENCE, SqlitePath};
use support::galera::Cluster;
use support::mariadb::MariaDb;
use support::network::Silent;
use support::pgbouncer::PgBouncer;
use support::pgpool::Pgpool;
use support::postgres::Postgres;
use support::{APP, APP_PASSWORD, how_long, wait_until};
use tempfile::TempDir;

/// The exit codes of the command.
const NO_PROBLEMS: i32 = 0;
const PROBLEMS: i32 = 1;
const FAILURE: i32 = 2;

/// The exit code and the output of one run of the command.
#[derive(Debug)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Asserts the exit code, and that the report contains all of these texts.
    #[track_caller]
    fn is(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "the exit code of {self:?}");
        for text in texts {
            assert!(self.stdout.contains(text), "the report contains `{text}`: {}", self.stdout);
        }
    }

    /// Asserts that the command fails without a report, with an error that contains all of these texts.
    #[track_caller]
    fn is_failure(&self, texts: &[&str]) {
        assert_eq!((self.code, &*self.stdout), (FAILURE, ""), "code and report of {self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "the error contains `{text}`: {}", self.stderr);
        }
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.arg("check");
    command
}

/// Runs the command to its end. Asserts that the output contains no secret and no color.
#[track_caller]
fn run(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().expect("the command was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let [stdout, stderr] = [text(&output.stdout), text(&output.stderr)];
    for shown in [&stdout, &stderr] {
        assert!(!shown.contains("s3cret"), "no secret is shown: {shown}");
        assert!(!shown.contains('\x1b'), "colors are for terminals only: {shown:?}");
    }
    Outcome {
        code: output.status.code().expect("the command exits without a signal"),
        stdout,
        stderr,
    }
}

#[track_caller]
fn check(arguments: &[&str]) -> Outcome {
    run(command().args(arguments))
}

/// Returns a URL of servers on these ports.
fn url_of(scheme: &str, ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("{scheme}://{APP}:{APP_PASSWORD}@{}/{APP}", hosts.join(","))
}

/// Starts three servers. Returns them with a URL and their names as peers.
fn three_servers() -> ([MariaDb; 3], String, [String; 3]) {
    let servers = [(); 3].map(|()| MariaDb::start());
    let ports = servers.each_ref().map(|server| server.port());
    let names = ports.map(|port| format!("127.0.0.1:{port}"));
    (servers, url_of("mysql", &ports), names)
}

#[track_caller]
fn json(arguments: &[&str]) -> (i32, Json) {
    let outcome = check(&[arguments, &["--json"]].concat());
    let json = serde_json::from_str(&outcome.stdout).unwrap_or_else(|_| panic!("{outcome:?}"));
    (outcome.code, json)
}

/// Creates a file in a folder that is removed after the test.
fn file(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder is created");
    let path = folder.path().join("settings.toml");
    fs::write(&path, content).expect("the folder is accessible");
    (folder, path)
}

#[test]
fn equal_servers_have_no_problems() {
    let (_servers, url, names) = three_servers();
    let outcome = check(&[&url]);
    outcome.is(
        NO_PROBLEMS,
        &[
            "No problems found.",
            "  slow_peers       shift\n",
            "sql_mode",
            "isolation",
            "migrations",
            "all",
            "REPEATABLE-READ",
        ],
    );
    assert!(
        !outcome.stdout.contains(['!', '~']),
        "equal servers have no differences: {}",
        outcome.stdout
    );
    assert_eq!(outcome.stderr, "", "progress is for terminals only");

    let (code, json) = json(&[&url]);
    assert_eq!((code, &json["is_ok"]), (NO_PROBLEMS, &Json::Bool(true)));
    for (peer, name) in json["peers"].as_array().expect("the value is a list").iter().zip(&names) {
        assert_eq!(peer["name"], **name, "peers are in the order of the URL");
        assert_eq!(peer["condition"], "ready");
        let (login, round_trip) = (peer["login_ms"].as_f64(), peer["round_trip_ms"].as_f64());
        assert!(login > round_trip && round_trip > Some(0.0), "times of {peer}");
        let facts = &peer["facts"];
        assert!(
            facts["version"].as_str().is_some_and(|it| it.contains("MariaDB")),
            "version in {facts}"
        );
        assert_eq!((&facts["database"], &facts["role"]), (&APP.into(), &"read-write".into()));
        assert_eq!((&facts["migrations"], &facts["encryption"]), (&Json::Null, &Json::Null));
        assert_eq!((&facts["cluster"], facts.get("cluster_size")), (&Json::Null, None));
        let modes = facts["sql_mode"].as_array().expect("the value is a list");
        assert!(modes.contains(&"STRICT_TRANS_TABLES".into()), "sql_mode in {facts}");
        let address = facts["server"].as_str().expect("the value is a text");
        assert!(
            name.ends_with(&address[address.find(':').expect("the address has a port")..]),
            "{address} has the port of {name}"
        );
    }
    for list in ["differences", "same_server", "problems", "notes"] {
        assert_eq!(json[list], Json::Array(Vec::new()), "the list {list} is empty");
    }
}

#[test]
fn addresses_of_a_host_name_are_peers() {
    let (servers, _, _) = three_servers();
    let port = servers[0].port();
    // The system's resolver accepts the short form of an address.
    let url = format!("mysql://{APP}:{APP_PASSWORD}@127.1:{port}/{APP}?resolve_interval=1s");
    let (code, json) = json(&[&url]);
    assert_eq!(code, NO_PROBLEMS, "the exit code of {json}");
    let names: Vec<_> = json["peers"].as_array().into_iter().flatten().collect();
    let names: Vec<_> = names.iter().map(|peer| peer["name"].as_str()).collect();
    assert_eq!(names, [Some(&*format!("127.1:{port}/127.0.0.1"))]);
}

#[test]
fn stopped_server_is_unreachable() {
    let (mut servers, url, names) = three_servers();
    servers[1].kill();
    let unreachable = format!("! {} is unreachable: Can't connect to ", names[1]);
    check(&[&url]).is(PROBLEMS, &[&unreachable, "1 problem found."]);
    let (code, json) = json(&[&url]);
    assert_eq!(code, PROBLEMS);
    let peer = &json["peers"][1];
    assert_eq!((&peer["condition"], &peer["fault"]), (&"unreachable".into(), &"peer_down".into()));
    assert_eq!((&peer["login_ms"], &peer["facts"]), (&Json::Null, &serde_json::json!({})));
    assert_eq!(json["problems"].as_array().map(Vec::len), Some(1));
    servers[1].restart();
    check(&[&url]).is(NO_PROBLEMS, &[]);
}

/// Asserts that the check ends no sooner than the limit, and not much later.
#[track_caller]
fn takes(limit: Duration, check: impl Fn()) {
    let took = how_long("the check ends", PATIENCE, || {
        check();
        true
    });
    assert!((limit..limit * 5).contains(&took), "the check takes about {limit:?}, not {took:?}");
}

/// One peer is frozen; later, eight peers accept connections and send nothing.
#[test]
fn peers_that_time_out_take_one_connect_timeout_together() {
    const LIMIT: Duration = Duration::from_secs(1);
    let (mut servers, url, names) = three_servers();
    let url = format!("{url}?connect_timeout=1s");
    servers[2].freeze();
    let timed_out = format!("! {} timed out: no answer to a login within 1s", names[2]);
    takes(LIMIT, || check(&[&url]).is(PROBLEMS, &[&timed_out, "1 problem found."]));

    let silent = Silent::start();
    let url = format!("mysql://{APP}:{APP_PASSWORD}@127.0.0.1:{}/{APP}", silent.port());
    let peers: Vec<_> = (0..8).map(|index| format!("db{index} = \"{url}\"\n")).collect();
    let (_folder, path) = file(&format!("connect_timeout = 1\n[peers]\n{}", peers.concat()));
    let path = path.to_str().expect("the path is UTF-8");
    takes(LIMIT, || {
        check(&["--config", path]).is(PROBLEMS, &["! db0 timed out", "! db7 timed out"]);
    });
}

/// A locked table delays the query for the migrations.
#[test]
fn queries_after_the_login_are_bounded_by_connect_timeout() {
    let server = MariaDb::start();
    server.sql("CREATE TABLE app.__diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY)");
    let mut lock = MysqlConnection::establish(&server.url()).expect("the server is running");
    lock.batch_execute("LOCK TABLES __diesel_schema_migrations WRITE").expect("the table exists");
    let outcome = check(&[&format!("{}?connect_timeout=1s", server.url())]);
    let timed_out = " timed out: the login succeeded, but the peer did not return its \
                        migrations within `connect_timeout`";
    outcome.is(PROBLEMS, &[timed_out, "STRICT_TRANS_TABLES"]);
}

#[test]
fn differences_are_reported_with_outliers() {
    let (servers, url, names) = three_servers();
    let [a, b, c] = &names;
    let migrations = |server: &MariaDb, versions: &[&str]| {
        let values: Vec<String> = versions.iter().map(|it| format!("('{it}')")).collect();
        server.sql(&format!(
            "CREATE TABLE app.__diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY);
             INSERT INTO app.__diesel_schema_migrations VALUES {}",
            values.join(",")
        ));
    };
    migrations(&servers[0], &["20260101000000", "20260102000000"]);
    migrations(&servers[1], &["20260101000000"]);
    migrations(&servers[2], &["20260101000000", "20260102000000"]);
    servers[2].sql("SET GLOBAL sql_mode = 'NO_ENGINE_SUBSTITUTION,ANSI_QUOTES'");
    servers[0].sql("SET GLOBAL time_zone = '+02:00'");
    servers[1].sql("SET GLOBAL tx_isolation = 'READ-COMMITTED'");
    servers[0].sql("ALTER DATABASE app CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci");
    servers[2].sql("SET GLOBAL read_only = ON");
    let outcome = check(&[&url]);
    outcome.is(
        PROBLEMS,
        &[
            &format!("! migrations: {b} lacks 20260102000000, compared with {a} and {c}"),
            &format!("! sql_mode: {c} lacks "),
            "STRICT_TRANS_TABLES and also has ANSI_QUOTES",
            &format!("~ time zone: {a} has +02:00; {b} and {c} have SYSTEM ("),
            &format!("! isolation: {b} has READ-COMMITTED; {a} and {c} have REPEATABLE-READ"),
            &format!("! character set: {a} has utf8mb4; {b} and {c} have latin1"),
            &format!("! collation: {a} has utf8mb4_unicode_ci; {b} and {c} have latin1_"),
            &format!("! role: {c} has read-only; {a} and {b} have read-write"),
            "6 problems found.",
        ],
    );
    let (_, json) = json(&[&url]);
    let differences = json["differences"].as_array().expect("the value is a list");
    let found: Vec<(&str, &str, &str)> = differences
        .iter()
        .map(|it| {
            (
                it["aspect"].as_str().unwrap_or_default(),
                it["severity"].as_str().unwrap_or_default(),
                it["outliers"][0].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("role", "problem", &**c),
        ("migrations", "problem", b),
        ("sql_mode", "problem", c),
        ("isolation", "problem", b),
        ("character_set", "problem", a),
        ("collation", "problem", a),
        ("time_zone", "note", a),
    ];
    assert_eq!(found, expected, "the differences in the order of the aspects");
    assert_eq!(differences[1]["groups"][1]["value"], serde_json::json!(["20260101000000"]));
}

#[test]
fn notes_do_not_change_the_exit_code() {
    let servers = [MariaDb::start(), MariaDb::start()];
    servers[0].sql("SET GLOBAL time_zone = '+02:00'");
    let url = url_of("mysql", &[servers[0].port(), servers[1].port()]);
    check(&[&url]).is(NO_PROBLEMS, &["~ time zone: ", "No problems found."]);

    let peers = format!("[peers]\none = \"{0}\"\nother = \"{0}\"\n", servers[0].url());
    let (_folder, path) = file(&peers);
    let outcome = check(&["--config", path.to_str().expect("the path is UTF-8")]);
    outcome.is(NO_PROBLEMS, &["~ one and other are the same server"]);
}

#[test]
fn rejected_logins_are_reported_without_secrets() {
    let server = MariaDb::start();
    let url = server.url();
    let wrong = url.replace(APP_PASSWORD, "s3cret-wrong");
    let outcome = check(&[&wrong]);
    outcome.is(PROBLEMS, &[" is misconfigured: Access denied for user "]);
    let (_, json) = json(&[&url.replace(&format!("/{APP}"), "/nowhere")]);
    assert_eq!(json["peers"][0]["fault"], "misconfigured", "the fault in {json}");

    let required = format!("{url}?ssl_mode=verify_identity&ssl_ca=/nowhere.pem");
    check(&[&required]).is(PROBLEMS, &[" is misconfigured: ", "SSL is required"]);

    let postgres = Postgres::start();
    let wrong = postgres.url().replace(APP_PASSWORD, "s3cret-wrong");
    check(&[&wrong]).is(PROBLEMS, &[" is misconfigured: ", "password authentication failed"]);
}

/// The facts of a peer are reported even if the peer does not have the required role.
#[test]
fn required_role_is_tested_as_in_the_pool() {
    let (servers, url, names) = three_servers();
    servers[1].sql("SET GLOBAL read_only = ON");
    let outcome = check(&[&format!("{url}?require=read_write")]);
    let role =
        format!("! {} has the wrong role: the server is read-only (read_only is ON)", names[1]);
    outcome.is(PROBLEMS, &["wrong role", &role, "! role: "]);
    for server in &servers {
        server.sql("SET GLOBAL read_only = ON");
    }
    check(&[&format!("{url}?require=read_only")]).is(NO_PROBLEMS, &["read-only"]);
}

#[test]
fn galera_node_that_takes_no_work_is_not_ready() {
    let cluster = Cluster::start();
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port()).collect();
    let url = url_of("mysql", &ports);
    let (code, json) = json(&[&url]);
    assert_eq!(code, NO_PROBLEMS, "the exit code of {json:#}");
    for peer in json["peers"].as_array().expect("the value is a list") {
        let facts = &peer["facts"];
        assert_eq!(
            facts["cluster"], json["peers"][0]["facts"]["cluster"],
            "all nodes belong to one cluster"
        );
        assert_eq!(
            facts["cluster"].as_str().map(str::len),
            Some(36),
            "the cluster is identified by a UUID"
        );
        for (key, expected) in [
            ("cluster_status", "Primary"),
            ("cluster_size", "3"),
            ("node_state", "Synced"),
            ("node_ready", "ON"),
        ] {
            assert_eq!(facts[key], expected, "the fact {key} in {facts}");
        }
    }

    let name = format!("127.0.0.1:{}", ports[2]);
    cluster.nodes[2].partition();
    wait_until("the node is not ready", PATIENCE, || !cluster.nodes[2].is_ready());
    wait_until("the other nodes notice", PATIENCE, || {
        let size = |node: usize| cluster.nodes[node].status("wsrep_cluster_size");
        [0, 1].iter().all(|node| size(*node).as_deref() == Some("2"))
    });
    let outcome = check(&[&url]);
    let status = format!("! cluster status: {name} has non-Primary");
    outcome.is(PROBLEMS, &[&format!("! {name} is not ready: "), &status, "! cluster size: "]);
    cluster.nodes[2].heal();
    cluster.wait_synced();

    cluster.nodes[2].reject_queries(true);
    let outcome = check(&[&url]);
    outcome.is(PROBLEMS, &[&format!("! {name} is not ready: WSREP has not yet prepared node")]);
    cluster.nodes[2].reject_queries(false);

    cluster.nodes[2].desync();
    wait_until("the node is desynced", PATIENCE, || cluster.nodes[2].state() == "Donor/Desynced");
    check(&[&url]).is(NO_PROBLEMS, &[&format!("~ node state: {name} has Donor/Desynced")]);
    let outcome = check(&[&format!("{url}?galera_donors=wait")]);
    outcome.is(PROBLEMS, &[&format!("! {name} is not ready: the Galera node takes no work")]);
    cluster.nodes[2].resync();

    // A server that is not part of the cluster.
    let stranger = MariaDb::start();
    let url = url_of("mysql", &[ports[0], ports[1], stranger.port()]);
    let stranger = format!("! cluster: 127.0.0.1:{} has none; ", stranger.port());
    check(&[&url]).is(PROBLEMS, &[&stranger]);
}

#[test]
fn postgres_differences_are_reported() {
    let mut servers = [Postgres::start(), Postgres::start_with_tls(), Postgres::start()];
    let ports = servers.each_ref().map(|server| server.port());
    let [a, b, c] = ports.map(|port| format!("127.0.0.1:{port}"));
    let url = url_of("postgres", &ports);
    let outcome = check(&[&format!("{url}?sslmode=disable")]);
    outcome.is(
        NO_PROBLEMS,
        &["No problems found.", "system identifier", "read committed", "UTF8", "read-write"],
    );
    let outcome = check(&[&format!("{url}?sslmode=prefer")]);
    outcome.is(
        PROBLEMS,
        &[&format!("! encryption: {b} has TLSv1."), &format!("; {a} and {c} have none")],
    );

    servers[2].sql("ALTER SYSTEM SET default_transaction_isolation = 'serializable'");
    servers[2].sql("ALTER SYSTEM SET TimeZone = 'Europe/Berlin'");
    servers[2].sql("ALTER SYSTEM SET default_transaction_read_only = on");
    servers[2].restart();
    let as_owner = |server: &Postgres, statements: &str| {
        let mut conn = PgConnection::establish(&server.url()).expect("the server is running");
        conn.batch_execute(statements).expect("the user owns the database");
    };
    as_owner(
        &servers[0],
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY);
         INSERT INTO __diesel_schema_migrations VALUES ('20260101000000')",
    );
    let outcome = check(&[&format!("{url}?sslmode=disable")]);
    outcome.is(
        PROBLEMS,
        &[
            &format!("! isolation: {c} has serializable; {a} and {b} have read committed"),
            &format!("~ time zone: {c} has Europe/Berlin; "),
            &format!("! role: {c} has read-only; {a} and {b} have read-write"),
            &format!("! migrations: {a} has 1, the newest 20260101000000; {b} and {c} have none"),
        ],
    );
    servers[0].freeze();
    let outcome = check(&[&format!("{url}?sslmode=disable&connect_timeout=2")]);
    outcome.is(PROBLEMS, &[&format!("! {a} timed out: ")]);
}

/// Returns the statement that a report prints as the correction.
#[track_caller]
fn correction(outcome: &Outcome, start: &str) -> String {
    let found = outcome.stdout.lines().find_map(|line| Some(&line[line.find(start)?..]));
    found.unwrap_or_else(|| panic!("{start} in {outcome:?}")).to_owned()
}

#[test]
fn ledger_is_verified_on_each_mariadb_server() {
    let (servers, url, names) = three_servers();
    let url = format!("{url}?ledger=shop_ledger");
    let flaw = |name: &str, flaw: &str| {
        format!("! {name}: the table shop_ledger cannot be a ledger: {flaw}")
    };
    let missing = check(&[&url]);
    let no_table =
        "there is no such table, or its user has no right to it; create it: CREATE TABLE";
    missing.is(PROBLEMS, &[&flaw(&names[0], no_table), &flaw(&names[2], no_table), "3 problems"]);
    let create = correction(&missing, "CREATE TABLE");
    let in_app = |server: &MariaDb, statement: &str| server.sql(&format!("USE app; {statement}"));
    for server in &servers {
        in_app(server, &create);
    }
    check(&[&url]).is(NO_PROBLEMS, &["  ledger history        all              none\n"]);

    in_app(&servers[1], "ALTER TABLE shop_ledger ENGINE=MyISAM");
    in_app(&servers[2], "ALTER TABLE shop_ledger DROP PRIMARY KEY");
    let unsuitable = check(&[&url]);
    unsuitable.is(
        PROBLEMS,
        &[
            &flaw(&names[1], "its engine has no transactions; change it: ALTER TABLE"),
            &flaw(&names[2], "its column `token` is not unique by itself; change it: ALTER TABLE"),
            "2 problems found.",
            &format!("! {}  ready", names[1]),
        ],
    );
    in_app(&servers[1], &correction(&unsuitable, "ALTER TABLE shop_ledger ENGINE"));
    in_app(&servers[2], &correction(&unsuitable, "ALTER TABLE shop_ledger ADD"));
    check(&[&url]).is(NO_PROBLEMS, &["No problems found."]);
    for server in &servers {
        let rows = in_app(server, "SELECT COUNT(*) FROM shop_ledger");
        assert_eq!(rows.trim(), "0", "nothing is left behind");
    }

    for (server, history) in servers.iter().zip(["one", "two", "one"]) {
        in_app(server, &format!("INSERT INTO shop_ledger VALUES ('history', '{history}', NOW())"));
    }
    let [a, b, c] = &names;
    let histories = format!("! ledger history: {b} has two; {a} and {c} have one");
    check(&[&url]).is(PROBLEMS, &[&histories, "1 problem found."]);

    servers[0].sql(&format!(
        "CREATE USER reader IDENTIFIED BY '{APP_PASSWORD}'; GRANT SELECT ON app.* TO reader"
    ));
    let reader = format!("mysql://reader:{APP_PASSWORD}@{a}/app?ledger=shop_ledger");
    let refused = check(&[&reader]);
    refused.is(PROBLEMS, &[&flaw(a, "INSERT command denied"), "rights to SELECT and INSERT"]);
    servers[0].sql("SET GLOBAL read_only = ON");
    let refused = check(&[&reader]);
    refused.is(PROBLEMS, &[&flaw(a, "INSERT command denied")]);
    // A replica may become the primary.
    let replica = url_of("mysql", &[servers[0].port()]) + "?ledger=shop_ledger";
    check(&[&replica]).is(NO_PROBLEMS, &["ledger history", "one"]);
    check(&[&url.replace("shop_ledger", "xid")]).is_failure(&["needs PostgreSQL"]);
}

#[test]
fn ledger_is_verified_on_postgres() {
    let server = Postgres::start();
    let in_app = |statement: &str| server.sql_in("app", statement);
    let url = format!("{}?ledger=shop_ledger", server.url());
    let flaw = |flaw: &str| format!(": the table shop_ledger cannot be a ledger: {flaw}");
    let missing = check(&[&url]);
    missing.is(PROBLEMS, &[&flaw("there is no such table; create it: "), "1 problem found."]);
    in_app(&correction(&missing, "CREATE TABLE"));
    let refused = check(&[&url]);
    refused.is(PROBLEMS, &[&flaw("permission denied"), "the rights to SELECT and INSERT"]);
    in_app("GRANT SELECT ON shop_ledger TO app");
    check(&[&url]).is(PROBLEMS, &[&flaw("permission denied"), "1 problem found."]);
    in_app("GRANT INSERT ON shop_ledger TO app");
    check(&[&url]).is(NO_PROBLEMS, &["ledger history", "No problems found."]);
    server.sql("ALTER ROLE app SET default_transaction_read_only = on");
    check(&[&url]).is(NO_PROBLEMS, &["read-only", "No problems found."]);
    server.sql("ALTER ROLE app RESET default_transaction_read_only");

    in_app("ALTER TABLE shop_ledger SET UNLOGGED");
    let unlogged = check(&[&url]);
    unlogged
        .is(PROBLEMS, &[&flaw("it is not a logged table, which survives a crash; change it: ")]);
    in_app(&correction(&unlogged, "ALTER TABLE"));
    in_app("INSERT INTO shop_ledger VALUES ('history', 'one')");
    check(&[&url]).is(NO_PROBLEMS, &["one\n", "No problems found."]);
    assert_eq!(in_app("SELECT count(*) FROM shop_ledger").trim(), "1", "nothing is left behind");
    in_app("ALTER TABLE shop_ledger RENAME TO plain; CREATE VIEW shop_ledger AS TABLE plain");
    check(&[&url]).is(PROBLEMS, &[&flaw("it is not a plain table; create one: CREATE TABLE")]);

    let (code, report) = json(&[&url]);
    assert_eq!(code, PROBLEMS);
    let flaw = report["peers"][0]["ledger_flaw"].as_str().expect("a text");
    assert!(flaw.contains("it is not a plain table"), "{flaw}");
    assert_eq!(report["peers"][0]["condition"], "ready");

    let (code, report) = json(&[&url.replace("shop_ledger", "xid")]);
    let peer = &report["peers"][0];
    assert_eq!((code, &peer["ledger_flaw"]), (NO_PROBLEMS, &Json::Null), "{report}");
    assert_eq!(peer["facts"]["ledger_history"], peer["facts"]["system_identifier"]);
    server.sql("ALTER ROLE app SET default_transaction_read_only = on");
    check(&[&url.replace("shop_ledger", "xid")]).is(NO_PROBLEMS, &["read-only"]);
}

/// A standby accepts no token, and may become the primary. Its history is that of the primary.
#[test]
fn ledger_of_a_primary_and_its_standby_is_no_problem() {
    let primary = Postgres::start();
    primary.sql_in("app", "CREATE TABLE shop_ledger (token CHAR(32) PRIMARY KEY, outcome TEXT)");
    primary.sql_in("app", "GRANT SELECT, INSERT ON shop_ledger TO app");
    primary.sql_in("app", "INSERT INTO shop_ledger VALUES ('history', 'one')");
    let standby = primary.start_synchronous_standby();
    let url = url_of("postgres", &[primary.port(), standby.port()]);
    for ledger in ["shop_ledger", "xid"] {
        let (code, report) = json(&[&format!("{url}?ledger={ledger}")]);
        assert_eq!(code, PROBLEMS, "the role differs");
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(1), "{report}");
        assert_eq!(report["differences"][0]["aspect"], "role", "{report}");
        for peer in report["peers"].as_array().expect("the value is a list") {
            assert!(peer["facts"]["ledger_history"].is_string(), "{peer}");
        }
    }
}

#[test]
fn ledger_is_verified_on_sqlite() {
    let path = SqlitePath::start(1).remove(0);
    let mut conn = diesel::SqliteConnection::establish(&path.url()).expect("the file is created");
    conn.batch_execute("CREATE TABLE other (id)").expect("an empty database");
    let (_folder, settings) = file(&format!("url = '{}'\nledger = 'shop_ledger'", path.url()));
    let arguments = ["--config", settings.to_str().expect("the path is UTF-8")];
    let missing = check(&arguments);
    missing.is(PROBLEMS, &[": there is no such table; create it: CREATE TABLE"]);
    conn.batch_execute(&correction(&missing, "CREATE TABLE")).expect("the statement is valid");
    check(&arguments).is(NO_PROBLEMS, &["ledger history", "No problems found."]);
    conn.batch_execute("ALTER TABLE shop_ledger RENAME COLUMN outcome TO result").expect("a table");
    check(&arguments).is(PROBLEMS, &["no such column: outcome; the user needs"]);
}

/// A pooler answers the login itself, and the facts are those of the server behind it.
#[test]
fn poolers_are_examined_as_peers() {
    let server = Postgres::start();
    let bouncer = PgBouncer::in_front_of(server.port(), &[]);
    let pgpool = Pgpool::in_front_of(server.port(), &[]);
    let [a, b] = [bouncer.port(), pgpool.port()].map(|port| format!("127.0.0.1:{port}"));
    let url = url_of("postgres", &[bouncer.port(), pgpool.port()]) + "?connect_timeout=2s";
    let (code, report) = json(&[&url]);
    assert_eq!((code, &report["problems"]), (NO_PROBLEMS, &Json::Array(Vec::new())), "{report}");
    for peer in report["peers"].as_array().expect("the value is a list") {
        assert_eq!(peer["condition"], "ready", "{peer}");
        let facts = &peer["facts"];
        assert_eq!((&facts["database"], &facts["role"]), (&APP.into(), &"read-write".into()));
        assert_eq!(facts["isolation"], "read committed", "{facts}");
        assert!(facts["system_identifier"].is_string(), "{facts}");
    }
    check(&[&url]).is(NO_PROBLEMS, &[&format!("~ {a} and {b} are the same server")]);

    let nowhere = url.replace(&format!("/{APP}?"), "/nowhere?");
    check(&[&nowhere]).is(
        PROBLEMS,
        &[&format!("! {a} is misconfigured: "), &format!("! {b} is misconfigured: ")],
    );
    bouncer.order(&format!("DISABLE {APP}"));
    let disabled = format!("! {a} is not ready: ");
    check(&[&url]).is(PROBLEMS, &[&disabled, " is disabled"]);
    bouncer.order(&format!("ENABLE {APP}"));
    bouncer.order("PAUSE");
    let held = format!("! {a} timed out: a login was begun and not completed within 2s");
    check(&[&url]).is(PROBLEMS, &[&held, "1 problem found."]);
    bouncer.order("RESUME");
    check(&[&url]).is(NO_PROBLEMS, &["No problems found."]);
}

#[test]
fn sqlite_examination_creates_no_file() {
    let mut paths = SqlitePath::start(3);
    let named = |paths: &[SqlitePath]| {
        let named = paths.iter().enumerate().rev();
        let lines = named.map(|(index, path)| format!("db{index} = \"{}\"\n", path.url()));
        format!("[peers]\n{}", lines.collect::<String>())
    };
    let (_folder, settings) = file(&named(&paths));
    let settings = settings.to_str().expect("the path is UTF-8");
    let outcome = check(&["--config", settings]);
    let order = ["db2", "db1", "db0"].map(|name| outcome.stdout.find(name));
    assert!(order.is_sorted(), "peers are in the order of the file: {}", outcome.stdout);
    outcome.is(
        NO_PROBLEMS,
        &["No problems found.", "file ", "inode ", "journal mode", "delete", "migrations"],
    );
    paths[1].kill();
    check(&["--config", settings]).is(PROBLEMS, &["! db1 is unreachable: unable to open"]);

    // However SQLite interprets the rest of the URL, the examination creates no file.
    let folder = tempfile::tempdir().expect("a temporary folder is created");
    for url in [
        "file:nope.db#?mode=rw",
        "sqlite://nope.db#?mode=rw",
        "file:nope.db?x=1#mode=rw&mode=rw",
        "file:nope.db?vfs=unix&mode=rw%63",
    ] {
        let outcome = run(command().current_dir(&folder).arg(url));
        let files = fs::read_dir(&folder).expect("the folder is accessible").count();
        assert_eq!(
            (outcome.code, files),
            (PROBLEMS, 0),
            "exit code and files after {url}: {outcome:?}"
        );
    }
    fs::write(folder.path().join("real.db"), "").expect("the folder is accessible");
    run(command().current_dir(&folder).arg("file:real.db#part"))
        .is(NO_PROBLEMS, &["No problems found."]);

    // Another file is a different database.
    let other = tempfile::tempdir().expect("a temporary folder is created");
    let other = other.path().join("app.db");
    let other = other.to_str().expect("the path is UTF-8");
    let ours = paths[0].url();
    let ours = ours.trim_start_matches("file:").trim_end_matches("?mode=rw");
    let outcome = check(&[&format!("{ours},{other}")]);
    outcome.is(PROBLEMS, &[" is misconfigured: the file does not exist"]);
    assert!(
        !fs::exists(other).expect("the folder is accessible"),
        "the examination creates no file"
    );
    fs::write(other, "").expect("the folder is accessible");
    check(&[&format!("{ours},{other}")]).is(PROBLEMS, &["! file: "]);
}

#[test]
fn invalid_configurations_are_rejected() {
    let url = "mysql://app:s3cret@127.0.0.1:1/app";
    for (content, reason) in [
        (format!("url = \"{url}\"\ncheck_intervall = 1"), "`check_intervall` is not a setting"),
        (format!("url = \"{url}\"\nrequire = \"x\""), "`require` is \"x\": give one of"),
        (format!("url = \"{url}\"\nconnect_timeout = 0"), "`connect_timeout` is 0ns"),
        (format!("url = \"{url}\"\npool_size = 4"), "it belongs to the pool"),
        ("url = 'mysql://app:s3cret@db0:x/app'".to_owned(), "`url`"),
        ("url = 'maria://app:s3cret@db0/app'".to_owned(), "the URL has no known scheme"),
        (format!("a = 1\nurl = \"{url}\" s3cret"), "line 2: "),
        (format!("url = \"{url}"), "line 1: "),
        ("check_interval = 1".to_owned(), "no peer is configured"),
        (
            format!("[default.databases.shop]\nurl = \"{url}\""),
            "peers: the table `default.databases.shop` contains peers: select it with `--table`\n",
        ),
        (format!("[peers]\na = \"{url}\"\nb = \"postgres://b/app\""), "`mysql://`"),
    ] {
        let (_folder, path) = file(&content);
        check(&["--config", path.to_str().expect("the path is UTF-8")]).is_failure(&[reason]);
    }
    // The key `url` of another table does not necessarily belong to a database.
    let (_folder, path) = file("check_interval = 'soon'\n[api]\nurl = 'https://api.example'");
    let path = path.to_str().expect("the path is UTF-8");
    check(&[url, "--config", path]).is_failure(&["`check_interval` is \"soon\""]);
    check(&["--config", "/nowhere.toml"]).is_failure(&["cannot read /nowhere.toml: "]);
    check(&["host=db0 dbname=shop"]).is_failure(&["`url` is a libpq conninfo string, not a URL: "]);
    check(&["mysql://app:s3cret@db0,s3cret@db1/app"]).is_failure(&["`url`", "several `@`"]);
    check(&[]).is_failure(&["--config <FILE>", "--env <PREFIX>"]);
    check(&[url, "mysql://app:s3cret@127.0.0.1:2/app"]).is_failure(&[
        "unexpected argument '***'",
        "Write several hosts in one URL: mysql://app@db0,db1/shop",
    ]);
    check(&[url, "s3cret"]).is_failure(&["unexpected argument '***'"]);
    for (url, text) in [
        ("shop", "the URL has no known scheme"),
        ("", "the URL has no known scheme"),
        ("Rocket.toml", "pass the file with `--config`"),
        ("$DATABASE_URL", "the shell did not expand the variable"),
        ("mysql//app:s3cret@db0/shop", "is not a URL"),
    ] {
        check(&[url]).is_failure(&[text]);
    }
    check(&[url, "--watch=s3cret@db0"]).is_failure(&["use a positive number of seconds"]);
    check(&[url, "--watch", "--json"]).is_failure(&["cannot be used with"]);
    check(&["--json", "--table", "a", url]).is_failure(&["--config <FILE>"]);
}

#[test]
fn secrets_in_wrong_places_are_not_shown() {
    for secret in ["mysql://app:s3cret@127.0.0.1:1/shop", "host=h password=s3cret"] {
        check(&["--config", secret])
            .is_failure(&["cannot read the file (name hidden: may be a secret): "]);
        let (_folder, path) = file(&format!("[a.\"{secret}\"]\n[a.b]\n['{secret}'.c]\nurl = 'x'"));
        let path = path.to_str().expect("the path is UTF-8");
        let of = |table: &str| check(&["--config", path, "--table", table]);
        of(secret).is_failure(&["is not the path of a table"]);
        of(&format!("\"{secret}\".d")).is_failure(&["no table of the given path"]);
        of(&format!("b.\"{secret}\".b")).is_failure(&["no table of the given path"]);
        of("a.c").is_failure(&["`c` does not exist; existing tables there: b\n"]);
        check(&["--config", path]).is_failure(&["is not a setting"]);
        check(&["--env", secret]).is_failure(&["'***'", "use only letters, digits and `_`"]);

        let url = "mysql://db0/shop";
        let value = format!("url = \"{url}\"\ncheck_interval = \"{secret}\"");
        let weight = format!("[peers.db0]\nurl = \"{url}\"\nweight = \"{secret}\"");
        for content in [value, weight] {
            let (_folder, path) = file(&content);
            let outcome = check(&["--config", path.to_str().expect("the path is UTF-8")]);
            outcome.is_failure(&["is a string that may be a secret (not shown): give a "]);
        }
        let mut with = command();
        with.env("SHOP_CHECK_INTERVAL", secret).args([url, "--env", "SHOP_"]);
        run(&mut with).is_failure(&["`SHOP_CHECK_INTERVAL` is a string that may be a secret"]);
    }
    check(&["--env", "s3cret-"]).is_failure(&["'***'", "use only letters, digits and `_`"]);
}

#[test]
fn unwritable_output_is_a_failure() {
    let database = tempfile::NamedTempFile::new().expect("a temporary file is created");
    let full =
        || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has /dev/full");
    for more in [&[][..], &["--json"], &["--watch"]] {
        let mut command = command();
        command.arg(database.path()).args(more).stdin(Stdio::null()).stdout(full());
        let output = command.stderr(Stdio::piped()).output().expect("the command was built");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(FAILURE), "the exit code with the error {stderr}");
        assert!(stderr.contains("cannot write the report: No space left"), "the error is {stderr}");
    }
}

#[test]
fn table_of_a_rocket_application_is_read() {
    let server = MariaDb::start();
    let url = server.url();
    let content = format!(
        "[default]\nport = 8000\n[default.databases.shop]\nurl = \"{url}\"\npool_size = 12\n\
         timeout = 10\ncheck_interval = 30\n[default.databases.long]\nurl = \"{url}\"\n\
         connect_timeout = 6\n[default.databases.none]\nurl = \"{url}\"\npool_size = 0\n"
    );
    let (_folder, path) = file(&content);
    let path = path.to_str().expect("the path is UTF-8");
    let of = |table: &str| check(&["--config", path, "--table", table]);
    of("default.databases.shop").is(NO_PROBLEMS, &["No problems found."]);
    of("default.databases.none").is_failure(&["`pool_size` must be a whole number of at least 1"]);
    of("default.databases.sop")
        .is_failure(&["`sop` does not exist; existing tables there: ", "shop"]);
    let suggestion = " contain peers: select one with `--table`";
    for table in ["shop", "databases.shop", "default", "default.databases"] {
        of(table).is_failure(&[suggestion, "`default.databases.shop`"]);
    }
    // A conflict with Rocket's own settings is an error, as it is when the application starts.
    let content = content.replace("connect_timeout = 6", "connect_timeout = 60\ntimeout = 10");
    let (_folder, path) = file(&content);
    let outcome = check(&[
        "--config",
        path.to_str().expect("the path is UTF-8"),
        "--table",
        "default.databases.long",
    ]);
    outcome.is_failure(&["`connect_timeout` (60s) is longer than `timeout` (10s)"]);
}

#[test]
fn environment_variables_are_read() {
    let server = MariaDb::start();
    let url = format!("mysql://{APP}@127.0.0.1:{}/{APP}", server.port());
    let mut with = command();
    with.env("SHOP_DB_URL", &url).env("SHOP_DB_PASSWORD", APP_PASSWORD);
    run(with.args(["--env", "SHOP_DB_"])).is(NO_PROBLEMS, &["No problems found."]);
    // Only the password is in the environment.
    let (_folder, path) = file(&format!("url = \"{url}\""));
    let mut with = command();
    with.env("SHOP_DB_PASSWORD", APP_PASSWORD).arg("--config").arg(path);
    run(with.args(["--env", "SHOP_DB_"])).is(NO_PROBLEMS, &["No problems found."]);
    run(command().args(["--env", "SHOP_DB_"]))
        .is_failure(&["no peer is configured", "SHOP_DB_URL"]);
    // A URL on the command line overrides the other sources.
    let mut with = command();
    with.env("SHOP_DB_URL", "postgres://app@db0/app?x=y").env("SHOP_DB_PASSWORD", APP_PASSWORD);
    let (_folder, path) = file("url = 'shop.db'\ncheck_interval = 30");
    let path = path.to_str().expect("the path is UTF-8");
    let with = with.args([&url, "--env", "SHOP_DB_", "--config", path]);
    run(with).is(NO_PROBLEMS, &["No problems found."]);
    let mut with = command();
    with.env("SHOP_DB_URL", &url).env("SHOP_DB_PASSWORD", APP_PASSWORD);
    run(with.args(["--env", "SHOP_DB_", "--config", path]))
        .is(NO_PROBLEMS, &["No problems found."]);
    // A wrong prefix is reported.
    for (prefix, text) in [
        ("SHOP_DB", "`SHOP_DB_PASSWORD` is not a setting: did you mean the prefix `SHOP_DB_`?"),
        ("SHOP_", "`SHOP_DB_PASSWORD` is not a setting: did you mean the prefix `SHOP_DB_`?"),
    ] {
        let mut with = command();
        with.env("SHOP_DB_PASSWORD", APP_PASSWORD).args([&url, "--env", prefix]);
        run(&mut with).is_failure(&[text]);
    }
}

/// A process that is killed at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("the process is a child of the test");
        self.0.wait().expect("the process is a child of the test");
    }
}

/// The weights of the peers of a file, or of the environment, belong to these peers.
#[test]
fn overridden_peers_take_their_weights_along() {
    let peers = SqlitePath::start(2);
    let urls: Vec<String> = peers.iter().map(SqlitePath::url).collect();
    let (_folder, path) =
        file("url = \"mysql://db0,db1/shop\"\nweight = { db0 = 2 }\ntier = { db1 = 1 }\n");
    let path = path.to_str().expect("the path is UTF-8");
    check(&["--config", path, &urls[0]]).is(NO_PROBLEMS, &["No problems found."]);

    let mut with = command();
    with.env("shop_db_url", &urls[0]).args(["--config", path, "--env", "shop_db_"]);
    run(&mut with).is(NO_PROBLEMS, &["No problems found."]);

    let mut with = command();
    with.env("SHOP_DB_URL", "mysql://db0,db1/shop").env("SHOP_DB_WEIGHT", "db0=2");
    run(with.args(["--env", "SHOP_DB_", &urls[1]])).is(NO_PROBLEMS, &["No problems found."]);
}

#[test]
fn errors_do_not_control_the_terminal() {
    let (_folder, path) = file("\"\\u001b[31mred\" = 1\nurl = \"file:app.db?mode=rw\"\n");
    let outcome = check(&["--config", path.to_str().expect("the path is UTF-8")]);
    outcome.is_failure(&["red"]);
    check(&["--env", ""]).is_failure(&["use only letters, digits and `_`"]);
}

#[test]
fn watch_repeats_the_check() {
    let mut server = MariaDb::start();
    let mut command = command();
    command.args([&server.url(), "--watch", "0.2"]).stdout(Stdio::piped());
    let mut running = Running(command.spawn().expect("the command was built"));
    let output = BufReader::new(running.0.stdout.take().expect("the output is piped"));
    let (sender, lines) = mpsc::channel();
    let read = move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
    thread::Builder::new().spawn(read).expect("the thread starts");
    let until = |expected: &str| {
        let next = || lines.recv_timeout(PATIENCE).expect("the command keeps running");
        wait_until(expected, PATIENCE, || next().contains(expected));
    };
    until("No problems found.");
    until("No problems found.");
    server.kill();
    until("is unreachable: ");
    server.restart();
    until("No problems found.");
}

/// An invalid file is an error at the start, and is reported and read again later.
#[test]
fn watch_survives_an_invalid_file() {
    let (folder, path) = file("url = ");
    let watch = || {
        let mut command = command();
        command.arg("--config").arg(&path).args(["--watch", "0.2"]).stdin(Stdio::null());
        command
    };
    run(&mut watch()).is_failure(&["invalid TOML in ", "line 1: "]);

    let database = folder.path().join("shop.db");
    fs::write(&database, "").expect("the folder is accessible");
    let good = format!("url = \"{}\"", database.display());
    fs::write(&path, &good).expect("the folder is accessible");
    let mut running = watch();
    running.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(running.spawn().expect("the command was built"));
    let (sender, lines) = mpsc::channel();
    let outputs: [Box<dyn Read + Send>; 2] = [
        Box::new(running.0.stdout.take().expect("the output is piped")),
        Box::new(running.0.stderr.take().expect("the output is piped")),
    ];
    for output in outputs {
        let sender = sender.clone();
        let output = BufReader::new(output);
        let read =
            move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        thread::Builder::new().spawn(read).expect("the thread starts");
    }
    drop(sender);
    let until = |expected: &str| {
        let next = || lines.recv_timeout(PATIENCE).expect("the command keeps running");
        wait_until(expected, PATIENCE, || next().contains(expected));
    };
    until("No problems found.");
    fs::write(&path, &good[..good.len() - 1]).expect("the folder is accessible");
    until("invalid TOML");
    fs::write(&path, &good).expect("the folder is accessible");
    until("No problems found.");
}

/// Returns the output of the command on a terminal, which `script` provides.
fn on_a_terminal(url: &str, no_color: &str) -> String {
    let mut script = Command::new("script");
    let command = format!("{} check '{url}'", env!("CARGO_BIN_EXE_peers"));
    script.args(["-q", "-e", "-c", &command, "/dev/null"]).env("NO_COLOR", no_color);
    let mut child = script
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script` is installed");
    let mut shown = String::new();
    child
        .stdout
        .take()
        .expect("the output is piped")
        .read_to_string(&mut shown)
        .expect("the output is text");
    assert_eq!(
        child.wait().expect("the process is a child").code(),
        Some(PROBLEMS),
        "the exit code after {shown}"
    );
    assert!(!shown.contains("s3cret"), "no secret is shown: {shown}");
    shown
}

#[test]
fn terminal_output_has_colors_and_progress() {
    let url = "mysql://app:s3cret@127.0.0.1:1,127.0.0.1:2/app";
    let shown = on_a_terminal(url, "");
    assert!(
        shown.contains("\x1b[31m! 127.0.0.1:2 is unreachable"),
        "problems are in color: {shown:?}"
    );
    assert!(shown.contains("waiting for 127.0.0.1:1, 127.0.0.1:2"), "progress is shown: {shown:?}");
    let shown = on_a_terminal(url, "1");
    assert!(
        !shown.contains("\x1b[31m") && shown.contains("unreachable"),
        "NO_COLOR disables colors: {shown:?}"
    );
}
