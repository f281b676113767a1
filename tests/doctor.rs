//! The command `peers check`, on real servers: it finds what is wrong with one of them, and where they
//! differ, and shows no secret.

#![cfg(all(
    target_os = "linux",
    feature = "cli",
    feature = "mysql",
    feature = "postgres",
    feature = "sqlite"
))]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::{Connection, MysqlConnection, PgConnection};
use diesel_peers::doctor::{self, Aspect, Condition, Severity, Value};
use serde_json::Value as Json;
use support::backend::{Backend, PATIENCE, SqlitePath, manager_over};
use support::galera::Cluster;
use support::mariadb::MariaDb;
use support::network::Silent;
use support::postgres::Postgres;
use support::{APP, APP_PASSWORD, how_long, wait_until};
use tempfile::TempDir;

/// What the command's exit codes mean.
const WELL: i32 = 0;
const TROUBLE: i32 = 1;
const WRONG: i32 = 2;

/// What a run of the command comes to.
#[derive(Debug)]
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// It ends so, and says all of this.
    #[track_caller]
    fn is(&self, code: i32, said: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for expected in said {
            assert!(self.stdout.contains(expected), "it says `{expected}`: {}", self.stdout);
        }
    }

    /// It is refused, and says why.
    #[track_caller]
    fn is_refused(&self, reason: &[&str]) {
        assert_eq!((self.code, &*self.stdout), (WRONG, ""), "{self:?}");
        for expected in reason {
            assert!(self.stderr.contains(expected), "it says `{expected}`: {}", self.stderr);
        }
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.arg("check");
    command
}

/// Runs it to its end. No secret is in what it says.
#[track_caller]
fn outcome(command: &mut Command) -> Outcome {
    let output = command.stdin(Stdio::null()).output().expect("it was built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let [stdout, stderr] = [text(&output.stdout), text(&output.stderr)];
    for told in [&stdout, &stderr] {
        assert!(!told.contains("s3cret"), "no secret is shown: {told}");
        assert!(!told.contains('\x1b'), "no colors where nobody looks: {told:?}");
    }
    Outcome { code: output.status.code().expect("it ends by itself"), stdout, stderr }
}

#[track_caller]
fn check(arguments: &[&str]) -> Outcome {
    outcome(command().args(arguments))
}

/// The servers' ports, by which they are known, and a URL of all of them.
fn url_of(scheme: &str, ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("{scheme}://{APP}:{APP_PASSWORD}@{}/{APP}", hosts.join(","))
}

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

/// A file in a folder that is gone with the test.
fn file(content: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("settings.toml");
    fs::write(&path, content).expect("our own folder");
    (folder, path)
}

#[test]
fn check_of_equal_servers_succeeds() {
    let (_servers, url, names) = three_servers();
    let told = check(&[&url]);
    told.is(
        WELL,
        &["All is well.", "sql_mode", "isolation", "migrations", "all", "REPEATABLE-READ"],
    );
    assert!(!told.stdout.contains(['!', '~']), "they are equal: {}", told.stdout);
    assert_eq!(told.stderr, "", "it says who is waited for on a terminal alone");

    let (code, json) = json(&[&url]);
    assert_eq!((code, &json["is_ok"]), (WELL, &Json::Bool(true)));
    for (peer, name) in json["peers"].as_array().expect("a list").iter().zip(&names) {
        assert_eq!(peer["name"], **name, "in the order in which they were given");
        assert_eq!(peer["condition"], "ready");
        let (login, round_trip) = (peer["login_ms"].as_f64(), peer["round_trip_ms"].as_f64());
        assert!(login > round_trip && round_trip > Some(0.0), "{peer}");
        let facts = &peer["facts"];
        assert!(facts["version"].as_str().is_some_and(|it| it.contains("MariaDB")), "{facts}");
        assert_eq!((&facts["database"], &facts["role"]), (&APP.into(), &"read-write".into()));
        assert_eq!((&facts["migrations"], &facts["encryption"]), (&Json::Null, &Json::Null));
        assert_eq!((&facts["cluster"], facts.get("cluster_size")), (&Json::Null, None));
        let modes = facts["sql_mode"].as_array().expect("a list");
        assert!(modes.contains(&"STRICT_TRANS_TABLES".into()), "{facts}");
        let place = facts["server"].as_str().expect("a text");
        assert!(name.ends_with(&place[place.find(':').expect("a port")..]), "{place} is {name}");
    }
    for list in ["differences", "same_server", "problems", "notes"] {
        assert_eq!(json[list], Json::Array(Vec::new()), "{list}");
    }
}

#[test]
fn addresses_of_a_resolved_name_are_checked_as_peers() {
    let (servers, _, _) = three_servers();
    let port = servers[0].port();
    // The system's resolver knows the short form of an address.
    let url = format!("mysql://{APP}:{APP_PASSWORD}@127.1:{port}/{APP}?resolve_interval=1s");
    let (code, json) = json(&[&url]);
    assert_eq!(code, WELL, "{json}");
    let names: Vec<_> = json["peers"].as_array().into_iter().flatten().collect();
    let names: Vec<_> = names.iter().map(|peer| peer["name"].as_str()).collect();
    assert_eq!(names, [Some(&*format!("127.1:{port}/127.0.0.1"))]);
}

#[test]
fn unreachable_server_is_named() {
    let (mut servers, url, names) = three_servers();
    servers[1].kill();
    let gone = format!("! {} is unreachable: Can't connect to ", names[1]);
    check(&[&url]).is(TROUBLE, &[&gone, "Trouble: 1."]);
    let (code, json) = json(&[&url]);
    assert_eq!(code, TROUBLE);
    let peer = &json["peers"][1];
    assert_eq!((&peer["condition"], &peer["fault"]), (&"unreachable".into(), &"peer_down".into()));
    assert_eq!((&peer["login_ms"], &peer["facts"]), (&Json::Null, &serde_json::json!({})));
    assert_eq!(json["problems"].as_array().map(Vec::len), Some(1));
    servers[1].restart();
    check(&[&url]).is(WELL, &[]);
}

/// Asserts that `check` takes at least `limit`, and not much longer.
#[track_caller]
fn assert_takes(limit: Duration, check: impl Fn()) {
    let took = how_long("the check ends", PATIENCE, || {
        check();
        true
    });
    assert!((limit..limit * 5).contains(&took), "it took {took:?}");
}

/// Of one that is frozen, and of many that accept and say nothing: all at once.
#[test]
fn check_of_silent_servers_ends_at_the_connect_timeout() {
    const LIMIT: Duration = Duration::from_secs(1);
    let (mut servers, url, names) = three_servers();
    let url = format!("{url}?connect_timeout=1s");
    servers[2].freeze();
    let silence = format!("! {} is silent: no answer to a login within 1s", names[2]);
    assert_takes(LIMIT, || check(&[&url]).is(TROUBLE, &[&silence, "Trouble: 1."]));

    let silent = Silent::start();
    let url = format!("mysql://{APP}:{APP_PASSWORD}@127.0.0.1:{}/{APP}", silent.port());
    let peers: Vec<_> = (0..8).map(|index| format!("db{index} = \"{url}\"\n")).collect();
    let (_folder, path) = file(&format!("connect_timeout = 1\n[peers]\n{}", peers.concat()));
    let path = path.to_str().expect("text");
    assert_takes(LIMIT, || {
        check(&["--config", path]).is(TROUBLE, &["! db0 is silent", "! db7 is silent"]);
    });
}

/// Also after the login: a table that is locked is not waited for.
#[test]
fn check_of_a_server_that_is_silent_after_the_login_ends() {
    let server = MariaDb::start();
    server.sql("CREATE TABLE app.__diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY)");
    let mut lock = MysqlConnection::establish(&server.url()).expect("it lives");
    lock.batch_execute("LOCK TABLES __diesel_schema_migrations WRITE").expect("it is ours");
    let told = check(&[&format!("{}?connect_timeout=1s", server.url())]);
    let silent =
        " is silent: it let us in, and did not tell its migrations within `connect_timeout`";
    told.is(TROUBLE, &[silent, "STRICT_TRANS_TABLES"]);
}

#[test]
fn differences_between_mariadb_servers_are_reported() {
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
    let told = check(&[&url]);
    told.is(
        TROUBLE,
        &[
            &format!("! migrations: {b} lacks 20260102000000, compared with {a} and {c}"),
            &format!("! sql_mode: {c} lacks "),
            "STRICT_TRANS_TABLES and has ANSI_QUOTES besides",
            &format!("~ time zone: {a} has +02:00; {b} and {c} have SYSTEM ("),
            &format!("! isolation: {b} has READ-COMMITTED; {a} and {c} have REPEATABLE-READ"),
            &format!("! character set: {a} has utf8mb4; {b} and {c} have latin1"),
            &format!("! collation: {a} has utf8mb4_unicode_ci; {b} and {c} have latin1_"),
            &format!("! role: {c} has read-only; {a} and {b} have read-write"),
            "Trouble: 6.",
        ],
    );
    let (_, json) = json(&[&url]);
    let differences = json["differences"].as_array().expect("a list");
    let told: Vec<(&str, &str, &str)> = differences
        .iter()
        .map(|it| {
            (
                it["aspect"].as_str().unwrap_or_default(),
                it["severity"].as_str().unwrap_or_default(),
                it["odd"][0].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("role", "trouble", &**c),
        ("migrations", "trouble", b),
        ("sql_mode", "trouble", c),
        ("isolation", "trouble", b),
        ("character_set", "trouble", a),
        ("collation", "trouble", a),
        ("time_zone", "note", a),
    ];
    assert_eq!(told, expected);
    assert_eq!(differences[1]["groups"][1]["value"], serde_json::json!(["20260101000000"]));
}

/// A difference that is only noted is no failure.
#[test]
fn check_with_only_notes_succeeds() {
    let servers = [MariaDb::start(), MariaDb::start()];
    servers[0].sql("SET GLOBAL time_zone = '+02:00'");
    let url = url_of("mysql", &[servers[0].port(), servers[1].port()]);
    check(&[&url]).is(WELL, &["~ time zone: ", "All is well."]);

    let peers = format!("[peers]\none = \"{0}\"\nother = \"{0}\"\n", servers[0].url());
    let (_folder, path) = file(&peers);
    let told = check(&["--config", path.to_str().expect("text")]);
    told.is(WELL, &["~ one and other are the same server"]);
}

#[test]
fn misconfigured_logins_are_reported_without_secrets() {
    let server = MariaDb::start();
    let url = server.url();
    let wrong = url.replace(APP_PASSWORD, "s3cret-wrong");
    let told = check(&[&wrong]);
    told.is(TROUBLE, &["misconfigured", " does not let us in: Access denied for user "]);
    let (_, json) = json(&[&url.replace(&format!("/{APP}"), "/nowhere")]);
    assert_eq!(json["peers"][0]["fault"], "misconfigured", "{json}");

    let required = format!("{url}?ssl_mode=required");
    check(&[&required]).is(TROUBLE, &["misconfigured", "does not let us in: "]);

    let postgres = Postgres::start();
    let wrong = postgres.url().replace(APP_PASSWORD, "s3cret-wrong");
    check(&[&wrong]).is(TROUBLE, &["does not let us in: ", "password authentication failed"]);
}

/// What a peer is required to be is looked at as the pool looks at it; its facts are told all the same.
#[test]
fn required_role_is_checked_as_in_the_pool() {
    let (servers, url, names) = three_servers();
    servers[1].sql("SET GLOBAL read_only = ON");
    let told = check(&[&format!("{url}?require=read_write")]);
    let role = format!("! {} has the wrong role: it only reads (read_only is ON)", names[1]);
    told.is(TROUBLE, &["wrong role", &role, "! role: "]);
    for server in &servers {
        server.sql("SET GLOBAL read_only = ON");
    }
    check(&[&format!("{url}?require=read_only")]).is(WELL, &["read-only"]);
}

#[test]
fn unready_galera_node_is_reported() {
    let cluster = Cluster::start();
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port()).collect();
    let url = url_of("mysql", &ports);
    let (code, json) = json(&[&url]);
    assert_eq!(code, WELL, "{json:#}");
    for peer in json["peers"].as_array().expect("a list") {
        let facts = &peer["facts"];
        assert_eq!(facts["cluster"], json["peers"][0]["facts"]["cluster"], "of one cluster");
        assert_eq!(facts["cluster"].as_str().map(str::len), Some(36), "a UUID");
        for (key, expected) in [
            ("cluster_status", "Primary"),
            ("cluster_size", "3"),
            ("node_state", "Synced"),
            ("node_ready", "ON"),
        ] {
            assert_eq!(facts[key], expected, "{facts}");
        }
    }

    let name = format!("127.0.0.1:{}", ports[2]);
    cluster.nodes[2].partition();
    wait_until("it is not ready", PATIENCE, || !cluster.nodes[2].is_ready());
    wait_until("the others know", PATIENCE, || {
        let size = |node: usize| cluster.nodes[node].status("wsrep_cluster_size");
        [0, 1].iter().all(|node| size(*node).as_deref() == Some("2"))
    });
    let told = check(&[&url]);
    let status = format!("! cluster status: {name} has non-Primary");
    told.is(TROUBLE, &[&format!("! {name} is not ready: "), &status, "! cluster size: "]);
    cluster.nodes[2].heal();
    cluster.wait_synced();

    cluster.nodes[2].reject_queries(true);
    let told = check(&[&url]);
    told.is(TROUBLE, &[&format!("! {name} is not ready: WSREP has not yet prepared node")]);
    cluster.nodes[2].reject_queries(false);

    cluster.nodes[2].desync();
    wait_until("it is desynced", PATIENCE, || cluster.nodes[2].state() == "Donor/Desynced");
    check(&[&url]).is(WELL, &[&format!("~ node state: {name} has Donor/Desynced")]);
    let told = check(&[&format!("{url}?galera_donors=wait")]);
    told.is(TROUBLE, &[&format!("! {name} is not ready: the Galera node takes no work")]);
    cluster.nodes[2].resync();

    // One that is of no cluster, or of another one.
    let stranger = MariaDb::start();
    let url = url_of("mysql", &[ports[0], ports[1], stranger.port()]);
    let stranger = format!("! cluster: 127.0.0.1:{} has none; ", stranger.port());
    check(&[&url]).is(TROUBLE, &[&stranger]);
}

#[test]
fn differences_between_postgres_servers_are_reported() {
    let mut servers = [Postgres::start(), Postgres::start_with_tls(), Postgres::start()];
    let ports = servers.each_ref().map(|server| server.port());
    let [a, b, c] = ports.map(|port| format!("127.0.0.1:{port}"));
    let url = url_of("postgres", &ports);
    let told = check(&[&format!("{url}?sslmode=disable")]);
    told.is(WELL, &["All is well.", "system identifier", "read committed", "UTF8", "read-write"]);
    let told = check(&[&format!("{url}?sslmode=prefer")]);
    told.is(
        TROUBLE,
        &[&format!("! encryption: {b} has TLSv1."), &format!("; {a} and {c} have none")],
    );

    servers[2].sql("ALTER SYSTEM SET default_transaction_isolation = 'serializable'");
    servers[2].sql("ALTER SYSTEM SET TimeZone = 'Europe/Berlin'");
    servers[2].sql("ALTER SYSTEM SET default_transaction_read_only = on");
    servers[2].restart();
    let as_owner = |server: &Postgres, statements: &str| {
        let mut conn = PgConnection::establish(&server.url()).expect("it lives");
        conn.batch_execute(statements).expect("it is ours");
    };
    as_owner(
        &servers[0],
        "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY);
         INSERT INTO __diesel_schema_migrations VALUES ('20260101000000')",
    );
    let told = check(&[&format!("{url}?sslmode=disable")]);
    told.is(
        TROUBLE,
        &[
            &format!("! isolation: {c} has serializable; {a} and {b} have read committed"),
            &format!("~ time zone: {c} has Europe/Berlin; "),
            &format!("! role: {c} has read-only; {a} and {b} have read-write"),
            &format!("! migrations: {a} has 1, the newest 20260101000000; {b} and {c} have none"),
        ],
    );
    servers[0].freeze();
    let told = check(&[&format!("{url}?sslmode=disable&connect_timeout=2")]);
    told.is(TROUBLE, &[&format!("! {a} is silent: ")]);
}

#[test]
fn sqlite_files_are_checked_without_changing_them() {
    let mut paths = SqlitePath::start(3);
    let named = |paths: &[SqlitePath]| {
        let named = paths.iter().enumerate().rev();
        let lines = named.map(|(index, path)| format!("db{index} = \"{}\"\n", path.url()));
        format!("[peers]\n{}", lines.collect::<String>())
    };
    let (_folder, settings) = file(&named(&paths));
    let settings = settings.to_str().expect("text");
    let told = check(&["--config", settings]);
    let order = ["db2", "db1", "db0"].map(|name| told.stdout.find(name));
    assert!(order.is_sorted(), "in the order of the file: {}", told.stdout);
    told.is(WELL, &["All is well.", "file ", "inode ", "journal mode", "delete", "migrations"]);
    paths[1].kill();
    check(&["--config", settings]).is(TROUBLE, &["! db1 is unreachable: unable to open"]);

    // Whatever SQLite makes of the rest: to look changes nothing.
    let folder = tempfile::tempdir().expect("a temporary folder");
    for url in [
        "file:nope.db#?mode=rw",
        "sqlite://nope.db#?mode=rw",
        "file:nope.db?x=1#mode=rw&mode=rw",
        "file:nope.db?vfs=unix&mode=rw%63",
    ] {
        let told = outcome(command().current_dir(&folder).arg(url));
        let files = fs::read_dir(&folder).expect("our own folder").count();
        assert_eq!((told.code, files), (TROUBLE, 0), "{url}: {told:?}");
    }
    fs::write(folder.path().join("real.db"), "").expect("our own folder");
    outcome(command().current_dir(&folder).arg("file:real.db#part")).is(WELL, &["All is well."]);

    // Another file is another database.
    let other = tempfile::tempdir().expect("a temporary folder");
    let other = other.path().join("app.db");
    let other = other.to_str().expect("text");
    let ours = paths[0].url();
    let ours = ours.trim_start_matches("file:").trim_end_matches("?mode=rw");
    let told = check(&[&format!("{ours},{other}")]);
    told.is(TROUBLE, &[" does not let us in: there is no such file"]);
    assert!(!fs::exists(other).expect("our own folder"), "to look changes nothing");
    fs::write(other, "").expect("our own folder");
    check(&[&format!("{ours},{other}")]).is(TROUBLE, &["! file: "]);
}

#[test]
fn wrong_configuration_is_refused_with_its_reason() {
    let url = "mysql://app:s3cret@127.0.0.1:1/app";
    for (content, reason) in [
        (format!("url = \"{url}\"\ncheck_intervall = 1"), "`check_intervall` is no setting"),
        (format!("url = \"{url}\"\nrequire = \"x\""), "`require` is \"x\": give one of"),
        (format!("url = \"{url}\"\nconnect_timeout = 0"), "`connect_timeout` is 0ns"),
        (format!("url = \"{url}\"\npool_size = 4"), "it is the pool's"),
        ("url = 'mysql://app:s3cret@db0:x/app'".to_owned(), "`url`"),
        ("url = 'maria://app:s3cret@db0/app'".to_owned(), "the URL begins with none of"),
        (format!("a = 1\nurl = \"{url}\" s3cret"), "line 2, is no TOML: "),
        (format!("url = \"{url}"), "line 1, is no TOML: "),
        ("check_interval = 1".to_owned(), "there is no peer"),
        (
            format!("[default.databases.shop]\nurl = \"{url}\""),
            "peers: there are peers in the table `default.databases.shop`: name it, with `--table`\n",
        ),
        (format!("[peers]\na = \"{url}\"\nb = \"postgres://b/app\""), "`mysql://`"),
    ] {
        let (_folder, path) = file(&content);
        check(&["--config", path.to_str().expect("text")]).is_refused(&[reason]);
    }
    // Another table's `url` may be that of something else.
    let (_folder, path) = file("check_interval = 'soon'\n[api]\nurl = 'https://api.example'");
    let path = path.to_str().expect("text");
    check(&[url, "--config", path]).is_refused(&["`check_interval` is \"soon\""]);
    check(&["--config", "/nowhere.toml"]).is_refused(&["/nowhere.toml cannot be read: "]);
    check(&["host=db0 dbname=shop"]).is_refused(&["`url` is no URL, but libpq's keywords: "]);
    check(&["mysql://app:s3cret@db0,s3cret@db1/app"]).is_refused(&["`url`", "several `@`"]);
    check(&[]).is_refused(&["--config <FILE>", "--env <PREFIX>"]);
    check(&[url, "mysql://app:s3cret@127.0.0.1:2/app"]).is_refused(&[
        "unexpected argument '***'",
        "Several hosts stand in one URL: mysql://app@db0,db1/shop",
    ]);
    check(&[url, "s3cret"]).is_refused(&["unexpected argument '***'"]);
    for (slip, told) in [
        ("shop", "the URL begins with none of"),
        ("", "the URL begins with none of"),
        ("Rocket.toml", "give it with `--config`"),
        ("$DATABASE_URL", "the shell has put no value"),
        ("mysql//app:s3cret@db0/shop", "is no URL"),
    ] {
        check(&[slip]).is_refused(&[told]);
    }
    check(&[url, "--watch=s3cret@db0"]).is_refused(&["give a number of seconds"]);
    check(&[url, "--watch", "--json"]).is_refused(&["cannot be used with"]);
    check(&["--json", "--table", "a", url]).is_refused(&["--config <FILE>"]);
}

/// Where a secret stands in the wrong place.
#[test]
fn misplaced_secret_is_never_shown() {
    for secret in ["mysql://app:s3cret@127.0.0.1:1/shop", "host=h password=s3cret"] {
        check(&["--config", secret]).is_refused(&["the file, whose name may be a secret, cannot"]);
        let (_folder, path) = file(&format!("[a.\"{secret}\"]\n[a.b]\n['{secret}'.c]\nurl = 'x'"));
        let path = path.to_str().expect("text");
        let of = |table: &str| check(&["--config", path, "--table", table]);
        of(secret).is_refused(&["is no path of a table"]);
        of(&format!("\"{secret}\".d")).is_refused(&["no table of that name"]);
        of(&format!("b.\"{secret}\".b")).is_refused(&["no table of that name"]);
        of("a.c").is_refused(&["there is no `c` beside b\n"]);
        check(&["--config", path]).is_refused(&["is no setting"]);
        check(&["--env", secret]).is_refused(&["'***'", "give letters, digits and `_`"]);

        let url = "mysql://db0/shop";
        let value = format!("url = \"{url}\"\ncheck_interval = \"{secret}\"");
        let weight = format!("[peers.db0]\nurl = \"{url}\"\nweight = \"{secret}\"");
        for content in [value, weight] {
            let (_folder, path) = file(&content);
            let told = check(&["--config", path.to_str().expect("text")]);
            told.is_refused(&["is a text that may be a secret: give a "]);
        }
        let mut with = command();
        with.env("SHOP_CHECK_INTERVAL", secret).args([url, "--env", "SHOP_"]);
        outcome(&mut with).is_refused(&["`SHOP_CHECK_INTERVAL` is a text that may be a secret"]);
    }
    check(&["--env", "s3cret-"]).is_refused(&["'***'", "give letters, digits and `_`"]);
}

#[test]
fn report_that_cannot_be_written_is_an_error() {
    let database = tempfile::NamedTempFile::new().expect("a temporary file");
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    for more in [&[][..], &["--json"], &["--watch"]] {
        let mut command = command();
        command.arg(database.path()).args(more).stdin(Stdio::null()).stdout(full());
        let output = command.stderr(Stdio::piped()).output().expect("it was built");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(WRONG), "{stderr}");
        assert!(stderr.contains("the report cannot be written: No space left"), "{stderr}");
    }
}

#[test]
fn table_option_selects_a_table_of_a_file() {
    let server = MariaDb::start();
    let url = server.url();
    let content = format!(
        "[default]\nport = 8000\n[default.databases.shop]\nurl = \"{url}\"\npool_size = 12\n\
         timeout = 10\ncheck_interval = 30\n[default.databases.long]\nurl = \"{url}\"\n\
         connect_timeout = 6\n[default.databases.none]\nurl = \"{url}\"\npool_size = 0\n"
    );
    let (_folder, path) = file(&content);
    let path = path.to_str().expect("text");
    let of = |table: &str| check(&["--config", path, "--table", table]);
    of("default.databases.shop").is(WELL, &["All is well."]);
    of("default.databases.none").is_refused(&["`pool_size` is no whole number, 1 or more"]);
    of("default.databases.sop").is_refused(&["there is no `sop` beside ", "shop"]);
    let clue = "there are peers in the table `default.databases.shop`, and in ";
    for table in ["shop", "databases.shop", "default", "default.databases"] {
        of(table).is_refused(&[clue]);
    }
    // What contradicts Rocket's own is an error, as it is when the application starts.
    let content = content.replace("connect_timeout = 6", "connect_timeout = 60\ntimeout = 10");
    let (_folder, path) = file(&content);
    let told =
        check(&["--config", path.to_str().expect("text"), "--table", "default.databases.long"]);
    told.is_refused(&["`connect_timeout` is 60s, and `timeout` only 10s"]);
}

#[test]
fn environment_variables_configure_the_check() {
    let server = MariaDb::start();
    let url = format!("mysql://{APP}@127.0.0.1:{}/{APP}", server.port());
    let mut with = command();
    with.env("SHOP_DB_URL", &url).env("SHOP_DB_PASSWORD", APP_PASSWORD);
    outcome(with.args(["--env", "SHOP_DB_"])).is(WELL, &["All is well."]);
    // The password alone.
    let (_folder, path) = file(&format!("url = \"{url}\""));
    let mut with = command();
    with.env("SHOP_DB_PASSWORD", APP_PASSWORD).arg("--config").arg(path);
    outcome(with.args(["--env", "SHOP_DB_"])).is(WELL, &["All is well."]);
    outcome(command().args(["--env", "SHOP_DB_"])).is_refused(&["there is no peer", "SHOP_DB_URL"]);
    // A URL that was typed is meant.
    let mut with = command();
    with.env("SHOP_DB_URL", "postgres://app@db0/app?x=y").env("SHOP_DB_PASSWORD", APP_PASSWORD);
    let (_folder, path) = file("url = 'shop.db'\ncheck_interval = 30");
    let path = path.to_str().expect("text");
    let with = with.args([&url, "--env", "SHOP_DB_", "--config", path]);
    outcome(with).is(WELL, &["All is well."]);
    let mut with = command();
    with.env("SHOP_DB_URL", &url).env("SHOP_DB_PASSWORD", APP_PASSWORD);
    outcome(with.args(["--env", "SHOP_DB_", "--config", path])).is(WELL, &["All is well."]);
    // And what is not, is told.
    for (prefix, told) in [
        ("SHOP_DB", "`SHOP_DB_PASSWORD` is no setting: give the prefix `SHOP_DB_`"),
        ("SHOP_", "`SHOP_DB_PASSWORD` is no setting: give the prefix `SHOP_DB_`"),
    ] {
        let mut with = command();
        with.env("SHOP_DB_PASSWORD", APP_PASSWORD).args([&url, "--env", prefix]);
        outcome(&mut with).is_refused(&[told]);
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }
}

#[test]
fn watch_repeats_the_check() {
    let mut server = MariaDb::start();
    let mut command = command();
    command.args([&server.url(), "--watch", "0.2"]).stdout(Stdio::piped());
    let mut running = Running(command.spawn().expect("it was built"));
    let told = BufReader::new(running.0.stdout.take().expect("it is piped"));
    let (tell, lines) = mpsc::channel();
    let read = move || told.lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
    thread::Builder::new().spawn(read).expect("a thread");
    let until = |expected: &str| {
        let told = || lines.recv_timeout(PATIENCE).expect("it goes on");
        wait_until(expected, PATIENCE, || told().contains(expected));
    };
    until("All is well.");
    until("All is well.");
    server.kill();
    until("is unreachable: ");
    server.restart();
    until("All is well.");
}

/// A file that is half-written is told, and looked at again.
#[test]
fn watch_reads_a_changed_file_again() {
    let (folder, path) = file("url = ");
    let watch = || {
        let mut command = command();
        command.arg("--config").arg(&path).args(["--watch", "0.2"]).stdin(Stdio::null());
        command
    };
    outcome(&mut watch()).is_refused(&["line 1, is no TOML"]);

    let database = folder.path().join("shop.db");
    fs::write(&database, "").expect("our own folder");
    let good = format!("url = \"{}\"", database.display());
    fs::write(&path, &good).expect("our own folder");
    let mut running = watch();
    running.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(running.spawn().expect("it was built"));
    let (tell, lines) = mpsc::channel();
    let outputs: [Box<dyn Read + Send>; 2] = [
        Box::new(running.0.stdout.take().expect("it is piped")),
        Box::new(running.0.stderr.take().expect("it is piped")),
    ];
    for output in outputs {
        let tell = tell.clone();
        let told = BufReader::new(output);
        let read = move || told.lines().map_while(Result::ok).try_for_each(|line| tell.send(line));
        thread::Builder::new().spawn(read).expect("a thread");
    }
    drop(tell);
    let until = |expected: &str| {
        let told = || lines.recv_timeout(PATIENCE).expect("it goes on");
        wait_until(expected, PATIENCE, || told().contains(expected));
    };
    until("All is well.");
    fs::write(&path, &good[..good.len() - 1]).expect("our own folder");
    until("is no TOML");
    fs::write(&path, &good).expect("our own folder");
    until("All is well.");
}

/// What is said on a terminal, where `script` provides one.
fn output_on_a_terminal(url: &str, no_color: &str) -> String {
    let mut script = Command::new("script");
    let command = format!("{} check '{url}'", env!("CARGO_BIN_EXE_peers"));
    script.args(["-q", "-e", "-c", &command, "/dev/null"]).env("NO_COLOR", no_color);
    let mut child = script
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("every Debian has it");
    let mut told = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut told).expect("text");
    assert_eq!(child.wait().expect("it is ours").code(), Some(TROUBLE), "{told}");
    assert!(!told.contains("s3cret"), "{told}");
    told
}

#[test]
fn terminal_output_has_colors_and_progress() {
    let url = "mysql://app:s3cret@127.0.0.1:1,127.0.0.1:2/app";
    let told = output_on_a_terminal(url, "");
    assert!(told.contains("\x1b[31m! 127.0.0.1:2 is unreachable"), "in colors: {told:?}");
    assert!(told.contains("waiting for 127.0.0.1:1, 127.0.0.1:2"), "who is waited for: {told:?}");
    let told = output_on_a_terminal(url, "1");
    assert!(!told.contains("\x1b[31m") && told.contains("unreachable"), "no colors: {told:?}");
}

/// As a function, for applications whose settings stand in code.
#[test]
fn examine_function_takes_a_builder() {
    let servers = <MariaDb as Backend>::start(2);
    let builder = manager_over(&servers)
        .on_connect(|conn| conn.batch_execute("SET SESSION tx_isolation = 'SERIALIZABLE'"));
    let report = doctor::examine(builder).expect("the settings are right");
    assert!(report.is_ok(), "{report}");
    let facts = &report.peers[0].facts;
    let isolation = Value::Text("SERIALIZABLE".to_owned());
    assert_eq!(facts[&Aspect::Isolation], isolation, "that of the application's sessions");

    let builder = manager_over(&servers).credentials(|peer| match peer {
        "peer1" => Err("the vault is sealed"),
        _ => Ok(diesel_peers::Credentials::new(APP, APP_PASSWORD)),
    });
    let report = doctor::examine(builder).expect("the settings are right");
    assert_eq!(report.peers[1].condition, Condition::NotAsked);
    assert_eq!(report.problems(), ["peer1 was not asked: no credentials: the vault is sealed"]);
    assert!(report.differences.iter().all(|it| it.severity == Severity::Note), "{report}");
}
