//! Healthy sessions are never aborted, however slow they are: on a busy server, during a long query, through
//! a paused proxy, and after the application itself was suspended.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::env;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use diesel::MysqlConnection;
use diesel_peers::{PeerManagerBuilder, Strategy};
use support::backend::{
    Backend, PATIENCE, RealServer, SOON, fill, links, manager_of, manager_over, pool_of, state,
};
use support::haproxy::HaProxy;
use support::load::{Load, Seen};
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::process::run;
use support::{wait_until, within};

/// Makes a builder suspect a peer quickly. The check interval stays long, so no regular check shows that a
/// peer works.
fn quick_to_suspect<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    builder.stall_after(Duration::from_millis(500)).check_timeout(Duration::from_millis(200))
}

/// Prints the figures of a load and asserts that no checkout and no query failed.
#[track_caller]
fn assert_nothing_failed(what: &str, seen: &Seen) {
    println!(
        "{what}: longest get {:.0?}, longest query {:.0?}, served {:?}",
        seen.longest_get, seen.longest_query, seen.served
    );
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// All queries go to one of two peers, and are more than the machine can handle.
fn queries_on_a_busy_server_are_not_aborted<B: RealServer>() {
    const SESSIONS: usize = 64;
    let servers = B::start(2);
    let builder = quick_to_suspect(manager_over(&servers))
        .strategy(Strategy::Ordered)
        .tier("peer1", 1)
        .rebalance_interval(Duration::ZERO);
    let (pool, peers) = pool_of(builder, u32::try_from(SESSIONS).expect("the number is small"));
    wait_until("all connections lead to peer0", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [SESSIONS, 0]
    });
    let query = |number| if number % 2 == 0 { B::rest(2.0) } else { B::toil(2) };
    let queries: Vec<_> = (0..SESSIONS).map(query).collect();
    let seen = Load::run_each(&pool, &queries, |load| {
        // The machine is overloaded, so the time for this has no meaning.
        wait_until("each thread has finished a query", 3 * PATIENCE, || {
            load.all_came_back(&[0; SESSIONS], 1)
        });
    });
    assert_nothing_failed("a busy server", &seen);
}

/// The query takes several times as long as it takes to suspect its peer, and is the only one.
fn long_query_is_not_aborted<B: RealServer>() {
    let servers = B::start(2);
    let (pool, peers) = pool_of(quick_to_suspect(manager_over(&servers)), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 1, &B::rest(4.0), |load| {
        wait_until("the query ends", PATIENCE, || load.all_came_back(&[0], 1));
    });
    assert_nothing_failed("a long query", &seen);
}

/// The peer of the query is down while the proxy refuses new connections.
#[test]
fn long_query_through_a_paused_proxy_is_not_aborted() {
    let server = MariaDb::start();
    let proxies = [(); 2].map(|()| HaProxy::in_front_of(server.port()));
    let builder =
        quick_to_suspect(manager_of::<MysqlConnection>(proxies.iter().map(HaProxy::mysql_url)));
    let (pool, peers) = pool_of(builder.check_interval(SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 4, &MariaDb::rest(4.0), |load| {
        wait_until("all queries run", PATIENCE, || {
            peers.snapshot().peers.iter().all(|peer| peer.in_use == 2)
        });
        proxies[0].refuse();
        wait_until("peer0 is marked down", PATIENCE, || state(&peers, "peer0").is_marked_down());
        assert_eq!(load.rounds(), [0; 4], "all queries still run");
        wait_until("all queries end", PATIENCE, || load.all_came_back(&[0; 4], 1));
        let is_down = state(&peers, "peer0").is_marked_down();
        assert!(is_down, "the peer is down while its proxy is paused");
        wait_until("the connections to peer0 are replaced", PATIENCE, || links(&peers) == [0, 4]);
        proxies[0].accept();
    });
    assert_nothing_failed("a paused proxy", &seen);
}

/// The environment variable with the URLs of the peers for the application that is suspended. The application
/// is this test program, started by its test.
const SUSPENDED: &str = "DIESEL_PEERS_TEST_STANDS_STILL";

/// The line that the application prints when all peers serve.
const WORKS: &str = "every peer serves";
/// The line that the application prints when nothing has failed.
const ALL_IS_WELL: &str = "nothing has failed";

/// The time of the first suspension, which is longer than every timeout.
const SUSPENSION: Duration = Duration::from_secs(5);

/// Runs queries until the standard input ends.
fn application<B: RealServer>(urls: &str) {
    let builder = quick_to_suspect(manager_of::<B::Connection>(urls.split(',')))
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(1))
        .ping_timeout(Duration::from_secs(1))
        .ping_idle(Duration::ZERO);
    let (pool, peers) = pool_of(builder, 8);
    fill(&pool, &peers, &[4, 4]);
    let [short, middle, long] = [0.005, 0.4, 7.0].map(B::rest);
    let queries = [&short, &short, &short, &middle, &middle, &long];
    let seen = Load::run_each(&pool, &queries, |load| {
        wait_until("both peers serve", PATIENCE, || {
            ["peer0", "peer1"].iter().all(|peer| load.served_by(peer) > 20)
        });
        println!("\n{WORKS}");
        std::io::stdin().read_to_end(&mut Vec::new()).expect("the input is a pipe");
        let before = load.rounds();
        wait_until("each thread finishes a query", PATIENCE, || load.all_came_back(&before, 1));
    });
    assert_nothing_failed("a suspended application", &seen);
    println!("\n{ALL_IS_WELL}");
}

/// Waits until the child prints this line, and returns whether it did before its output ended.
fn prints(child: &mut Child, expected: &str) -> bool {
    let output = child.stdout.as_mut().expect("the output is piped");
    let mut text = Vec::new();
    let mut byte = [0];
    while output.read(&mut byte).is_ok_and(|read| read > 0) {
        if byte == *b"\n" {
            let line = String::from_utf8_lossy(&text).into_owned();
            if line == expected {
                return true;
            }
            println!("  {line}");
            text.clear();
        } else {
            text.push(byte[0]);
        }
    }
    false
}

fn suspension_of_the_application_aborts_no_query<B: RealServer>(test: &str) {
    if let Ok(urls) = env::var(SUSPENDED) {
        return application::<B>(&urls);
    }
    let servers = B::start(2);
    let urls: Vec<_> = servers.iter().map(Backend::url).collect();
    let mut child = Command::new(env::current_exe().expect("the test program has a path"));
    child.args(["--exact", test, "--nocapture"]).env(SUSPENDED, urls.join(","));
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test program starts");
    assert!(prints(&mut child, WORKS), "the application works");
    let pid = child.id().to_string();
    // The suspensions hit different phases of its queries.
    for time in [SUSPENSION, SUSPENSION / 4, SUSPENSION / 8] {
        run(Command::new("sh").args(["-c", "kill -s STOP $0", &pid]));
        within(time, || false);
        run(Command::new("sh").args(["-c", "kill -s CONT $0", &pid]));
        within(Duration::from_millis(300), || false);
    }
    drop(child.stdin.take());
    assert!(prints(&mut child, ALL_IS_WELL), "nothing fails in the application");
    let status = child.wait().expect("the process is a child of this one");
    assert!(status.success(), "{status}");
}

mod mariadb {
    use super::MariaDb;

    #[test]
    fn queries_on_a_busy_server_are_not_aborted() {
        super::queries_on_a_busy_server_are_not_aborted::<MariaDb>();
    }

    #[test]
    fn long_query_is_not_aborted() {
        super::long_query_is_not_aborted::<MariaDb>();
    }

    #[test]
    fn suspension_of_the_application_aborts_no_query() {
        super::suspension_of_the_application_aborts_no_query::<MariaDb>(
            "mariadb::suspension_of_the_application_aborts_no_query",
        );
    }
}

mod postgres {
    use super::Postgres;

    #[test]
    fn queries_on_a_busy_server_are_not_aborted() {
        super::queries_on_a_busy_server_are_not_aborted::<Postgres>();
    }

    #[test]
    fn long_query_is_not_aborted() {
        super::long_query_is_not_aborted::<Postgres>();
    }

    #[test]
    fn suspension_of_the_application_aborts_no_query() {
        super::suspension_of_the_application_aborts_no_query::<Postgres>(
            "postgres::suspension_of_the_application_aborts_no_query",
        );
    }
}
