//! Runs the commands of `docs/operating.md` exactly as they are printed there, and the recipes of
//! `docs/cookbook.md`.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::fs;
use std::process::{Command, Output};
#[cfg(all(feature = "rocket", feature = "status-page"))]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(all(feature = "rocket", feature = "status-page"))]
use std::thread;
use std::time::{Duration, Instant};

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::r2d2::{ManageConnection, Pool};
use diesel_peers::{PeerConfig, PeerManager, PeerManagerBuilder, PeerState};
use support::backend::{PATIENCE, SOON, build, manager_of, pool_of, state, status};
use support::galera::Cluster;
use support::haproxy::HaProxy;
use support::load::Load;
use support::mariadb::MariaDb;
use support::one_of_three::{PEERS, THREADS, full_pool};
use support::{APP, APP_PASSWORD, wait_until};

const GUIDE: &str = include_str!("../docs/operating.md");

/// The code blocks in this language under this heading.
#[track_caller]
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let (_, section) =
        GUIDE.split_once(&format!("\n{heading}\n")).expect("the guide has the heading");
    let section = section.split("\n## ").next().and_then(|section| section.split("\n### ").next());
    let mut blocks = Vec::new();
    let mut rest = section.expect("a split has a first part");
    while let Some((_, after)) = rest.split_once(&format!("```{language}\n")) {
        let (block, after) = after.split_once("```").expect("the block ends");
        blocks.push(block.lines().map(str::trim).collect::<Vec<_>>().join("\n"));
        rest = after;
    }
    assert!(!blocks.is_empty(), "there is a block of {language} under {heading:?}");
    blocks
}

/// Runs commands in a shell that stops at the first failure, or after a time limit.
fn run_in_shell(commands: &str) -> Output {
    let patience = PATIENCE.as_secs().to_string();
    let mut shell = Command::new("timeout");
    shell.args([&patience, "sh", "-ec", commands]).output().expect("there is a shell")
}

/// Runs commands as [`run_in_shell`] does, and requires that they succeed.
#[track_caller]
fn shell(commands: &str) -> Output {
    let output = run_in_shell(commands);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}: {errors}");
    output
}

/// Takes `peer1` out of service and back under load, and requires that nothing fails.
fn peer_leaves_and_returns_without_an_error(
    urls: &[String],
    take_out: impl FnOnce(),
    has_sessions: impl Fn() -> bool,
    put_back: impl FnOnce(),
) {
    let (pool, peers) = full_pool(manager_of::<MysqlConnection>(urls).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT SLEEP(0.005)", |load| {
        take_out();
        wait_until("the peer is marked down", PATIENCE, || {
            state(&peers, PEERS[1]).is_marked_down()
        });
        wait_until("the server has no session left", PATIENCE, || !has_sessions());
        let before = load.served();
        wait_until("the other peers serve", PATIENCE, || load.served() > before + 100);
        put_back();
        wait_until("the peer is up", PATIENCE, || state(&peers, PEERS[1]) == PeerState::Up);
        wait_until("the peer has its share of the connections", PATIENCE, || {
            status(&peers, PEERS[1]).connections == 3
        });
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

#[test]
fn paused_proxy_takes_a_peer_out_without_an_error() {
    let server = MariaDb::start();
    let proxies: Vec<_> = (0..3).map(|_| HaProxy::in_front_of(server.port())).collect();
    let urls: Vec<_> = proxies.iter().map(HaProxy::mysql_url).collect();
    let block = &blocks("### Pause its proxy", "haproxy")[0];
    let commands: Vec<_> = block.lines().map(|line| line.replace(" db", " front")).collect();
    let [pause, show, resume] = &commands[..] else {
        panic!("there are three commands: {commands:?}")
    };
    let run = |command: &str| assert_eq!(proxies[1].ask(command).trim(), "", "{command}");
    let has_sessions = || {
        let answer = proxies[1].ask(show);
        let current = answer.lines().nth(1).and_then(|line| line.split(',').nth(4));
        current.expect("the fifth field is the number of current sessions") != "0"
    };
    peer_leaves_and_returns_without_an_error(&urls, || run(pause), has_sessions, || run(resume));
}

#[test]
fn closed_port_takes_a_peer_out_without_an_error() {
    /// Deletes its table of firewall rules when it is dropped, also when the test fails.
    struct Rules(String);
    impl Drop for Rules {
        fn drop(&mut self) {
            let _ = Command::new("nft").args(["delete", "table", "inet", &self.0]).output();
        }
    }

    let servers: Vec<_> = (0..3).map(|_| MariaDb::start()).collect();
    let urls: Vec<_> = servers.iter().map(MariaDb::url).collect();
    let port = servers[1].port().to_string();
    let rules = Rules(format!("drain{port}"));
    let heading = "### Close its port";
    let [close, open] = &blocks(heading, "sh")[..] else {
        panic!("one block closes the port and one opens it")
    };
    let run = |commands: &str| {
        shell(&commands.replace("3306", &port).replace("inet drain", &format!("inet {}", rules.0)));
    };
    let count = &blocks(heading, "sql")[0];
    let has_sessions = || servers[1].sql(count).trim() != "0";
    peer_leaves_and_returns_without_an_error(&urls, || run(close), has_sessions, || run(open));
}

#[test]
fn galera_query_shows_the_state_of_a_node() {
    let cluster = Cluster::start();
    let answers = cluster.nodes[0].sql(&blocks("### A Galera cluster, node by node", "sql")[0]);
    assert!(answers.contains("wsrep_local_state_comment\tSynced"), "{answers}");
    assert!(answers.contains("wsrep_cluster_size\t3"), "{answers}");
}

#[test]
fn user_of_the_guide_has_sufficient_privileges() {
    let server = MariaDb::start();
    let create = &blocks("## Adding and replacing a peer", "sql")[0];
    let create = create.replace("'app'@'%'", "'shop'@'%'");
    server.sql(&format!("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT); {create}"));
    let url = format!("mysql://shop:secret@127.0.0.1:{}/shop", server.port());
    let (pool, peers) = pool_of(manager_of::<MysqlConnection>([url]).check_interval(SOON), 2);
    let seen = Load::run(&pool, 2, "INSERT INTO orders VALUES (1)", |load| {
        wait_until("queries succeed", PATIENCE, || load.served() > 100);
        let first_check = status(&peers, "peer0").next_check;
        wait_until("the peer is checked twice", PATIENCE, || {
            status(&peers, "peer0").next_check > first_check + SOON
        });
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "{seen:?}");
    assert_eq!(status(&peers, "peer0").connect_failures, 0, "no check has failed");
}

#[test]
fn doctor_command_compares_a_new_peer_with_the_others() {
    let servers: Vec<_> = (0..3).map(|_| MariaDb::start()).collect();
    let url = servers.iter().skip(1).fold(servers[0].url(), |url, server| {
        let (before, database) = url.rsplit_once('/').expect("a path");
        format!("{before},127.0.0.1:{}/{database}", server.port())
    });
    let command = &blocks("## Adding and replacing a peer", "sh")[0];
    let command = command.replace("mysql://app@db0,db1,db3/shop", &url);
    assert!(command.contains(&url), "{command}");
    let program = support::program("peers", "diesel-peers-cli");
    let folder = program.parent().expect("the program is in a folder");
    let path = format!("PATH={}:$PATH; ", folder.display());
    let output = shell(&(path + &command));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("No problems found"), "{printed}");
}

#[cfg(all(feature = "rocket", feature = "status-page"))]
#[test]
fn script_drains_and_resumes_peers_through_the_status_page() {
    use support::EndsThreads;
    use support::guestbook::GuestBook;

    let app = GuestBook::start();
    let [action, wait] = &blocks("### Drain it in the application", "sh")[..] else {
        panic!("one block drains and one waits")
    };
    let action = action.replace("http://localhost:8000", &app.site());
    assert!(action.contains(&app.site()), "{action}");
    let json = |answer: &[u8]| serde_json::from_slice::<serde_json::Value>(answer).expect("JSON");
    let succeed = |commands: &str| json(&shell(commands).stdout);
    let fail = |commands: &str| {
        let output = run_in_shell(commands);
        assert!(!output.status.success(), "a script stops after a failed action");
        json(&output.stdout)
    };
    let state = |answer: &serde_json::Value, peer: usize| {
        answer["pools"][0]["peers"][peer]["state"].as_str().expect("a peer").to_owned()
    };
    // Connections to SQLite have no socket, so they are closed only as the pool is used.
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = EndsThreads(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                app.visitor().get("/");
            }
        });
        shell(&format!("{action}\n{wait}"));
    });
    let action_on = |peer: &str| action.replace("peer=db1", &format!("peer={peer}"));
    let resumed = succeed(&action_on("db0").replace("action=drain", "action=resume"));
    assert_eq!((state(&resumed, 0), state(&resumed, 1)), ("up".into(), "drained".into()));
    succeed(&action_on("db0"));
    assert!(fail(&action_on("db2"))["confirm"].is_string(), "the last peer needs a confirmation");
    let confirmed = action_on("db2").replace("action=drain", "action=drain -d confirm=yes");
    assert!(state(&succeed(&confirmed), 2).starts_with("drain"));
    assert_eq!(state(&succeed(&action.replace("drain", "resume")), 1), "up");
    let error = fail(&action_on("db7"))["error"].to_string();
    assert!(error.contains("unknown peer \\\"db7\\\""), "{error}");
    let error = fail(&action.replace("pool=guestbook", "pool='a+b&c'"))["error"].to_string();
    assert!(error.contains("there is no pool a+b&c: the pools are guestbook."), "{error}");
}

/// Changes the login of an application at three servers, under load and without an error: runs the SQL
/// `before` on each server, replaces the URLs of the peers, waits until `is_done`, and runs the SQL `after`.
fn login_is_changed_under_load(
    before: &str,
    (user, password): (&str, &str),
    is_done: impl Fn(&MariaDb) -> bool,
    after: &str,
) {
    let servers: Vec<_> = (0..3).map(|_| MariaDb::start()).collect();
    let urls: Vec<_> = servers.iter().map(MariaDb::url).collect();
    let login = format!("{}:{}@", support::APP, support::APP_PASSWORD);
    let run = |commands: &str| {
        for server in &servers {
            server.sql(&commands.replace("'secret'", &format!("'{}'", support::APP_PASSWORD)));
        }
    };
    let builder = manager_of::<MysqlConnection>(&urls);
    let (pool, peers) = full_pool(builder.check_interval(SOON).connection_max_age(10 * SOON));
    let seen = Load::run(&pool, THREADS, "SELECT SLEEP(0.005)", |_| {
        let wait = |what: &str| {
            let connects = || peers.snapshot().peers.iter().map(|peer| peer.connects).sum::<u64>();
            let before = connects();
            wait_until(what, PATIENCE, || connects() > before + 10);
        };
        run(before);
        wait("logins with the old URL succeed");
        let new = urls.iter().map(|url| url.replace(&login, &format!("{user}:{password}@")));
        let configs = PEERS.into_iter().zip(new).map(|(name, url)| PeerConfig::new(name, url));
        peers.replace(configs).expect("the list is valid");
        wait("logins with the new URL succeed");
        wait_until("the old login is not used any more", PATIENCE, || servers.iter().all(&is_done));
        run(after);
        wait("logins succeed after the change");
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    assert!(
        peers.snapshot().peers.iter().all(|peer| peer.connect_failures == 0),
        "no login failed"
    );
}

#[test]
fn user_is_changed_under_load_without_an_error() {
    let [create, count, end, ..] = &blocks("## Changing a password", "sql")[..] else {
        panic!("the blocks create a user, count sessions and drop the old user")
    };
    let create = create.replace("shop.*", "app.*");
    let is_done = |server: &MariaDb| server.sql(count).trim() == "0";
    login_is_changed_under_load(&create, ("app2", "new"), is_done, end);
}

#[test]
fn password_is_changed_under_load_without_an_error() {
    let [.., both, new] = &blocks("## Changing a password", "sql")[..] else {
        panic!("the last two blocks add the new password and drop the old one")
    };
    login_is_changed_under_load(both, (support::APP, "new"), |_| true, new);
}

/// The source code of the library.
fn code() -> String {
    fn add(folder: &str, all: &mut String) {
        for entry in fs::read_dir(folder).expect("our own folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                add(path.to_str().expect("our own names"), all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *all += &fs::read_to_string(path).expect("our own file");
            }
        }
    }
    let mut code = String::new();
    add(concat!(env!("CARGO_MANIFEST_DIR"), "/../src"), &mut code);
    code
}

/// The guide says which keys a line has, and a search of the log by them finds each line.
#[test]
fn lines_above_the_level_debug_have_the_keys_pool_and_event() {
    let code = code();
    let calls: Vec<_> = ["error!(", "warn!(", "info!("]
        .iter()
        .flat_map(|call| code.split(call).skip(1))
        .map(str::trim_start)
        .filter(|arguments| arguments.starts_with("target: LOG_TARGET"))
        .collect();
    assert!(calls.len() > 5, "the calls were found: {calls:?}");
    for arguments in calls {
        let keys = arguments.split(';').next().expect("a split has a first part");
        assert!(keys.contains("event = \"") && keys.contains("pool = "), "{keys}");
    }
}

/// Each line of the guide's tables must be a text in the source code.
#[test]
fn log_lines_in_the_guide_exist_in_the_code() {
    let code = code();
    let (_, section) =
        GUIDE.split_once("\n## Reading the log\n").expect("the guide has the heading");
    let section = section.split("\n## ").next().expect("a split has a first part");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let lines: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(lines.len() > 20, "the tables were found: {lines:?}");
    for line in lines {
        let text = line.trim_start_matches("peer db1 is down: ").split([':', '(']).next();
        let text = text.expect("a split has a first part");
        // The code contains the parts between the names of peers, numbers and the client library's errors.
        let text = text.replace("peer db1", "0").replace("peer db", "0");
        for part in text.split(|letter: char| letter.is_ascii_digit()) {
            let part = part.trim_end_matches("...").trim();
            let is_from_library = part.starts_with("Can't connect");
            assert!(is_from_library || code.contains(part), "{part:?} of {line:?}");
        }
    }
}

/// One URL with all these servers.
fn one_url(servers: &[MariaDb], password: &str) -> PeerManagerBuilder<MysqlConnection> {
    let hosts = servers.iter().map(|server| format!("127.0.0.1:{}", server.port()));
    let hosts = hosts.collect::<Vec<_>>().join(",");
    PeerManager::builder().url(format!("mysql://{APP}:{password}@{hosts}/{APP}"))
}

#[test]
fn single_connection_needs_no_pool_and_outlives_its_manager() {
    let mut servers = [MariaDb::start(), MariaDb::start()];
    servers[0].kill();
    let manager = build(one_url(&servers, APP_PASSWORD));
    let mut conn = manager.connect().expect("one of two peers is up");
    let peers = manager.peers();
    drop(manager);
    wait_until("the manager is closed", PATIENCE, || peers.snapshot().closed);
    conn.batch_execute("CREATE TABLE t (a INT)").expect("the connection works");
    assert!(conn.peer().ends_with(&servers[1].port().to_string()), "the other peer serves");
    assert_eq!(servers[1].sessions(), 1, "the connection is the only session");
    drop(conn);
    wait_until("its session has ended", PATIENCE, || servers[1].sessions() == 0);
}

#[test]
fn hung_query_of_a_single_connection_is_aborted_while_its_manager_lives() {
    let mut servers = [MariaDb::start(), MariaDb::start()];
    let builder = one_url(&servers, APP_PASSWORD).stall_after(SOON).check_timeout(SOON);
    let manager = build(builder);
    let mut conn = manager.connect().expect("both peers are up");
    let is_of_first = conn.peer().ends_with(&servers[0].port().to_string());
    let server = &mut servers[usize::from(!is_of_first)];
    server.freeze();
    let error = conn.batch_execute("DO 1").expect_err("the query hangs");
    server.thaw();
    let fault = diesel_peers::Fault::of(&error);
    assert_eq!(fault, diesel_peers::Fault::ConnectionLost, "the query was aborted: {error}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the duration is the subject of the test")]
fn wrong_password_fails_the_first_connect_at_once_and_the_pool_at_its_timeout() {
    let servers = [MariaDb::start(), MariaDb::start()];
    let manager = build(one_url(&servers, "wrong"));
    let began = Instant::now();
    let error = manager.connect().map(|_| ()).expect_err("the password is wrong").to_string();
    assert!(began.elapsed() < Duration::from_secs(20), "it does not wait for the peers' return");
    assert_eq!(error.matches("Access denied").count(), 2, "each peer's reason is given: {error}");

    let timeout = Duration::from_secs(2);
    let began = Instant::now();
    let pool = Pool::builder().connection_timeout(timeout).build(manager);
    let error = pool.map(|_| ()).expect_err("the password is wrong").to_string();
    assert!(began.elapsed() >= timeout, "r2d2 waits for its own timeout");
    assert!(error.contains("Access denied"), "the reason is given: {error}");
}
