//! The commands of the guide for operators, each run as it stands there.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::fs;
use std::process::{Command, Output};
#[cfg(all(feature = "rocket", feature = "status-page"))]
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(all(feature = "rocket", feature = "status-page"))]
use std::thread;

use diesel::MysqlConnection;
use diesel_peers::{PeerConfig, PeerState};
use support::backend::{PATIENCE, SOON, manager_of, pool_of, state};
use support::galera::Cluster;
use support::haproxy::HaProxy;
use support::load::Load;
use support::mariadb::MariaDb;
use support::story::{PEERS, THREADS, full_pool};
use support::wait_until;

const GUIDE: &str = include_str!("../OPERATIONS.md");

/// The blocks of code in this language under this heading.
#[track_caller]
fn blocks(heading: &str, language: &str) -> Vec<String> {
    let (_, section) =
        GUIDE.split_once(&format!("\n{heading}\n")).expect("there is such a heading");
    let section = section.split("\n## ").next().and_then(|section| section.split("\n### ").next());
    let mut blocks = Vec::new();
    let mut rest = section.expect("it has a beginning");
    while let Some((_, after)) = rest.split_once(&format!("```{language}\n")) {
        let (block, after) = after.split_once("```").expect("it has an end");
        blocks.push(block.lines().map(str::trim).collect::<Vec<_>>().join("\n"));
        rest = after;
    }
    assert!(!blocks.is_empty(), "there is such a block under {heading:?}");
    blocks
}

/// Runs commands in a shell that stops at the first that fails, and does not wait for ever.
fn in_shell(commands: &str) -> Output {
    let patience = PATIENCE.as_secs().to_string();
    let mut shell = Command::new("timeout");
    shell.args([&patience, "sh", "-ec", commands]).output().expect("there is a shell")
}

/// As [`in_shell`], of what succeeds.
#[track_caller]
fn shell(commands: &str) -> Output {
    let output = in_shell(commands);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}: {said}");
    output
}

/// `peer1` leaves and comes back, under load, without an error.
fn without_an_error(
    urls: &[String],
    leaves: impl FnOnce(),
    has_sessions: impl Fn() -> bool,
    comes_back: impl FnOnce(),
) {
    let (pool, peers) = full_pool(manager_of::<MysqlConnection>(urls).check_interval(SOON));
    let seen = Load::run(&pool, THREADS, "SELECT SLEEP(0.005)", |load| {
        leaves();
        wait_until("the peer is marked down", PATIENCE, || {
            state(&peers, PEERS[1]) == PeerState::Down
        });
        wait_until("it is empty", PATIENCE, || !has_sessions());
        let before = load.served();
        wait_until("the other peers serve", PATIENCE, || load.served() > before + 100);
        comes_back();
        wait_until("the peer is up", PATIENCE, || state(&peers, PEERS[1]) == PeerState::Up);
        wait_until("it serves", PATIENCE, || {
            peers.snapshot().peer(PEERS[1]).is_some_and(|peer| peer.connections == 3)
        });
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

#[test]
fn a_paused_proxy() {
    let server = MariaDb::start();
    let proxies: Vec<_> = (0..3).map(|_| HaProxy::in_front_of(server.port())).collect();
    let urls: Vec<_> = proxies.iter().map(HaProxy::mysql_url).collect();
    let block = &blocks("### By the proxy's pause", "haproxy")[0];
    let commands: Vec<_> = block.lines().map(|line| line.replace(" db", " front")).collect();
    let [pause, look, resume] = &commands[..] else { panic!("three commands: {commands:?}") };
    let order = |command: &str| assert_eq!(proxies[1].ask(command).trim(), "", "{command}");
    let sessions = || {
        let answer = proxies[1].ask(look);
        let current = answer.lines().nth(1).and_then(|line| line.split(',').nth(4));
        current.expect("the fifth figure is that of current sessions") != "0"
    };
    without_an_error(&urls, || order(pause), sessions, || order(resume));
}

#[test]
fn a_closed_port() {
    /// The rules end with the test, however it ends.
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
    let heading = "### By its port";
    let [close, open] = &blocks(heading, "sh")[..] else { panic!("to close and to open") };
    let run = |commands: &str| {
        shell(&commands.replace("3306", &port).replace("inet drain", &format!("inet {}", rules.0)));
    };
    let count = &blocks(heading, "sql")[0];
    let has_sessions = || servers[1].sql(count).trim() != "0";
    without_an_error(&urls, || run(close), has_sessions, || run(open));
}

#[test]
fn a_galera_node_tells_its_state() {
    let cluster = Cluster::start();
    let answers = cluster.nodes[0].sql(&blocks("### A Galera cluster, node by node", "sql")[0]);
    assert!(answers.contains("wsrep_local_state_comment\tSynced"), "{answers}");
    assert!(answers.contains("wsrep_cluster_size\t3"), "{answers}");
}

#[test]
fn a_user_needs_no_more_rights_than_these() {
    let server = MariaDb::start();
    let create = &blocks("## Adding and replacing a peer", "sql")[0];
    let create = create.replace("'app'@'%'", "'shop'@'%'");
    server.sql(&format!("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT); {create}"));
    let url = format!("mysql://shop:secret@127.0.0.1:{}/shop", server.port());
    let (pool, peers) = pool_of(manager_of::<MysqlConnection>([url]).check_interval(SOON), 2);
    let seen = Load::run(&pool, 2, "INSERT INTO orders VALUES (1)", |load| {
        wait_until("it works", PATIENCE, || load.served() > 100);
        let checked = status(&peers, "peer0").next_check;
        wait_until("it is checked twice", PATIENCE, || {
            status(&peers, "peer0").next_check > checked + SOON
        });
    });
    assert!(seen.failed.is_empty() && seen.refused.is_empty(), "{seen:?}");
    assert_eq!(status(&peers, "peer0").connect_failures, 0, "no check has failed");
}

#[test]
fn a_new_peer_is_compared_with_the_others() {
    let servers: Vec<_> = (0..3).map(|_| MariaDb::start()).collect();
    let url = servers.iter().skip(1).fold(servers[0].url(), |url, server| {
        let (before, database) = url.rsplit_once('/').expect("a path");
        format!("{before},127.0.0.1:{}/{database}", server.port())
    });
    let command = &blocks("## Adding and replacing a peer", "sh")[0];
    let command = command.replace("mysql://app:secret@db0,db1,db3/shop", &url);
    assert!(command.contains(&url), "{command}");
    let program = support::program("peers", "diesel-peers-cli");
    let folder = program.parent().expect("a program is in a folder");
    let path = format!("PATH={}:$PATH; ", folder.display());
    let output = shell(&(path + &command));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("No problems found"), "{said}");
}

/// What a script does in place of an operator.
#[cfg(all(feature = "rocket", feature = "status-page"))]
#[test]
fn a_button_is_pressed_by_a_script() {
    use support::EndsThreads;
    use support::guestbook::GuestBook;

    let app = GuestBook::start();
    let [press, wait] = &blocks("### By drain", "sh")[..] else { panic!("to press and to wait") };
    let press = press.replace("http://localhost:8000", &app.site());
    assert!(press.contains(&app.site()), "{press}");
    let json = |answer: &[u8]| serde_json::from_slice::<serde_json::Value>(answer).expect("JSON");
    let done = |commands: &str| json(&shell(commands).stdout);
    let refused = |commands: &str| {
        let output = in_shell(commands);
        assert!(!output.status.success(), "what follows is not begun");
        json(&output.stdout)
    };
    let state = |answer: &serde_json::Value, peer: usize| {
        answer["pools"][0]["peers"][peer]["state"].as_str().expect("a peer").to_owned()
    };
    // SQLite's connections end as the pool is used.
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = EndsThreads(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                app.visitor().get("/");
            }
        });
        shell(&format!("{press}\n{wait}"));
    });
    let of = |peer: &str| press.replace("peer=db1", &format!("peer={peer}"));
    let resumed = done(&of("db0").replace("action=drain", "action=resume"));
    assert_eq!((state(&resumed, 0), state(&resumed, 1)), ("up".into(), "drained".into()));
    done(&of("db0"));
    assert!(refused(&of("db2"))["confirm"].is_string(), "it asks: nobody would be left");
    let confirmed = of("db2").replace("action=drain", "action=drain -d confirm=yes");
    assert!(state(&done(&confirmed), 2).starts_with("drain"));
    assert_eq!(state(&done(&press.replace("drain", "resume")), 1), "up");
    let error = refused(&of("db7"))["error"].to_string();
    assert!(error.contains("there is no peer \\\"db7\\\""), "{error}");
    let error = refused(&press.replace("pool=guestbook", "pool='a+b&c'"))["error"].to_string();
    assert!(error.contains("there is no pool a+b&c: the pools are guestbook."), "{error}");
}

/// Has an application change who it is, at three servers and under load, without an error: `before` is
/// done on each server, then the peers' URLs are replaced, and `after` is done when `is_done`.
fn who_logs_in_changes(
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
        wait("it logs in as before");
        let new = urls.iter().map(|url| url.replace(&login, &format!("{user}:{password}@")));
        let configs = PEERS.into_iter().zip(new).map(|(name, url)| PeerConfig::new(name, url));
        peers.replace(configs).expect("they stay");
        wait("it logs in anew");
        wait_until("nobody logs in as before", PATIENCE, || servers.iter().all(&is_done));
        run(after);
        wait("it goes on");
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
    assert!(peers.snapshot().peers.iter().all(|peer| peer.connect_failures == 0), "nor a login");
}

#[test]
fn a_user_is_changed_under_load() {
    let [create, count, end, ..] = &blocks("## Changing a password", "sql")[..] else {
        panic!("a user comes, is used, and the other goes")
    };
    let create = create.replace("shop.*", "app.*");
    let is_done = |server: &MariaDb| server.sql(count).trim() == "0";
    who_logs_in_changes(&create, ("app2", "new"), is_done, end);
}

#[test]
fn a_password_is_changed_under_load() {
    let [.., both, new] = &blocks("## Changing a password", "sql")[..] else {
        panic!("the server learns the new one, and forgets the old one")
    };
    who_logs_in_changes(both, (support::APP, "new"), |_| true, new);
}

/// What the log says is written somewhere in the code.
#[test]
fn lines_of_the_log_are_as_they_are() {
    fn sources(folder: &str, all: &mut String) {
        for entry in fs::read_dir(folder).expect("our own folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(path.to_str().expect("our own names"), all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                *all += &fs::read_to_string(path).expect("our own file");
            }
        }
    }
    let mut code = String::new();
    sources(concat!(env!("CARGO_MANIFEST_DIR"), "/src"), &mut code);
    let (_, section) = GUIDE.split_once("\n## Reading the log\n").expect("there is such a heading");
    let section = section.split("\n## ").next().expect("it has a beginning");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let lines: Vec<_> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(lines.len() > 20, "there are tables: {lines:?}");
    for line in lines {
        let own = line.trim_start_matches("peer db1 is down: ").split([':', '(']).next();
        // What is written in the code: between peers' names, figures and client libraries' words.
        let own = own.expect("its beginning").replace("peer db1", "0").replace("peer db", "0");
        for own in own.split(|letter: char| letter.is_ascii_digit()) {
            let own = own.trim_end_matches("...").trim();
            let is_library_s = own.starts_with("Can't connect");
            assert!(is_library_s || code.contains(own), "{own:?} of {line:?}");
        }
    }
}
