//! What is healthy is not cut off, however slow it is: a busy server, a query that runs for long, a
//! session of a proxy that is paused, and everything when it is the application that stood still.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]

use std::env;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use diesel::MysqlConnection;
use diesel_peers::{PeerManagerBuilder, PeerState, Strategy};
use support::backend::{
    Backend, PATIENCE, RealServer, SOON, fill, links, manager_of, manager_over, pool_of, state,
};
use support::haproxy::HaProxy;
use support::load::{Load, Seen};
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::process::run;
use support::{wait_until, within};

/// Quick to suspect, and with no regular check that shows that a peer works.
fn suspicious<C>(builder: PeerManagerBuilder<C>) -> PeerManagerBuilder<C> {
    builder.stall_after(Duration::from_millis(500)).check_timeout(Duration::from_millis(200))
}

#[track_caller]
fn nothing_failed(what: &str, seen: &Seen) {
    println!(
        "{what}: longest get {:.0?}, longest query {:.0?}, served {:?}",
        seen.longest_get, seen.longest_query, seen.served
    );
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// All of the work goes to one peer of two, and it is more than the machine can do.
fn a_busy_server<B: RealServer>() {
    const SESSIONS: usize = 64;
    let servers = B::start(2);
    let builder = suspicious(manager_over(&servers))
        .strategy(Strategy::Ordered)
        .tier("peer1", 1)
        .rebalance_interval(Duration::ZERO);
    let (pool, peers) = pool_of(builder, u32::try_from(SESSIONS).expect("a few"));
    wait_until("the pool is full, with connections to that peer", PATIENCE, || {
        drop(pool.get());
        links(&peers) == [SESSIONS, 0]
    });
    let query = |number| if number % 2 == 0 { B::rest(2.0) } else { B::toil(2) };
    let queries: Vec<_> = (0..SESSIONS).map(query).collect();
    let seen = Load::run_each(&pool, &queries, |load| {
        // It is more than the machine can do: how long it takes says nothing.
        wait_until("each has done its work", 3 * PATIENCE, || {
            load.all_came_back(&[0; SESSIONS], 1)
        });
    });
    nothing_failed("a busy server", &seen);
}

/// Several times as long as it takes to suspect it, while nothing else goes on.
fn a_long_query<B: RealServer>() {
    let servers = B::start(2);
    let (pool, peers) = pool_of(suspicious(manager_over(&servers)), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 1, &B::rest(4.0), |load| {
        wait_until("it ends", PATIENCE, || load.all_came_back(&[0], 1));
    });
    nothing_failed("a long query", &seen);
}

/// Its peer is down all the while.
#[test]
fn a_long_query_through_a_paused_proxy() {
    let server = MariaDb::start();
    let proxies = [(); 2].map(|()| HaProxy::in_front_of(server.port()));
    let builder = suspicious(manager_of::<MysqlConnection>(proxies.iter().map(HaProxy::mysql_url)));
    let (pool, peers) = pool_of(builder.check_interval(SOON), 4);
    fill(&pool, &peers, &[2, 2]);
    let seen = Load::run(&pool, 4, &MariaDb::rest(4.0), |load| {
        wait_until("all queries run", PATIENCE, || {
            peers.snapshot().peers.iter().all(|peer| peer.in_use == 2)
        });
        proxies[0].refuse();
        wait_until("it is marked", PATIENCE, || state(&peers, "peer0") == PeerState::Down);
        assert_eq!(load.rounds(), [0; 4], "all still run");
        wait_until("they end", PATIENCE, || load.all_came_back(&[0; 4], 1));
        assert_eq!(state(&peers, "peer0"), PeerState::Down, "it is still paused");
        wait_until("its connections are replaced", PATIENCE, || links(&peers) == [0, 4]);
        proxies[0].accept();
    });
    nothing_failed("a paused proxy", &seen);
}

/// The URLs of the peers of the application that is to stand still. It is this program, started by its
/// test.
const STANDS_STILL: &str = "DIESEL_PEERS_TEST_STANDS_STILL";

/// What it says when it works, and when it has seen no error.
const WORKS: &str = "every peer serves";
const ALL_IS_WELL: &str = "nothing has failed";

/// For how long it stands still: longer than every timeout.
const STILL: Duration = Duration::from_secs(5);

/// Works until its input ends.
fn application<B: RealServer>(urls: &str) {
    let builder = suspicious(manager_of::<B::Connection>(urls.split(',')))
        .check_interval(SOON)
        .connect_timeout(Duration::from_secs(1))
        .ping_timeout(Duration::from_secs(1))
        .ping_idle(Duration::ZERO);
    let (pool, peers) = pool_of(builder, 8);
    fill(&pool, &peers, &[4, 4]);
    let [short, middle, long] = [0.005, 0.4, 7.0].map(B::rest);
    let queries = [&short, &short, &short, &middle, &middle, &long];
    let seen = Load::run_each(&pool, &queries, |load| {
        wait_until("both serve", PATIENCE, || {
            ["peer0", "peer1"].iter().all(|peer| load.served_by(peer) > 20)
        });
        println!("\n{WORKS}");
        std::io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
        let before = load.rounds();
        wait_until("all come back", PATIENCE, || load.all_came_back(&before, 1));
    });
    nothing_failed("an application that stood still", &seen);
    println!("\n{ALL_IS_WELL}");
}

/// Waits until a line of its output is `wanted`.
fn says(child: &mut Child, wanted: &str) -> bool {
    let output = child.stdout.as_mut().expect("it is piped");
    let mut said = Vec::new();
    let mut byte = [0];
    while output.read(&mut byte).is_ok_and(|read| read > 0) {
        if byte == *b"\n" {
            let line = String::from_utf8_lossy(&said).into_owned();
            if line == wanted {
                return true;
            }
            println!("  {line}");
            said.clear();
        } else {
            said.push(byte[0]);
        }
    }
    false
}

fn the_application_stands_still<B: RealServer>(test: &str) {
    if let Ok(urls) = env::var(STANDS_STILL) {
        return application::<B>(&urls);
    }
    let servers = B::start(2);
    let urls: Vec<_> = servers.iter().map(Backend::url).collect();
    let mut child = Command::new(env::current_exe().expect("this program"));
    child.args(["--exact", test, "--nocapture"]).env(STANDS_STILL, urls.join(","));
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process more");
    assert!(says(&mut child, WORKS), "it has started");
    let pid = child.id().to_string();
    // In different phases of its work.
    for still in [STILL, STILL / 4, STILL / 8] {
        run(Command::new("sh").args(["-c", "kill -s STOP $0", &pid]));
        within(still, || false);
        run(Command::new("sh").args(["-c", "kill -s CONT $0", &pid]));
        within(Duration::from_millis(300), || false);
    }
    drop(child.stdin.take());
    assert!(says(&mut child, ALL_IS_WELL), "it has seen no error");
    let status = child.wait().expect("it is ours");
    assert!(status.success(), "{status}");
}

mod mariadb {
    use super::MariaDb;

    #[test]
    fn a_busy_server() {
        super::a_busy_server::<MariaDb>();
    }

    #[test]
    fn a_long_query() {
        super::a_long_query::<MariaDb>();
    }

    #[test]
    fn the_application_stands_still() {
        super::the_application_stands_still::<MariaDb>("mariadb::the_application_stands_still");
    }
}

mod postgres {
    use super::Postgres;

    #[test]
    fn a_busy_server() {
        super::a_busy_server::<Postgres>();
    }

    #[test]
    fn a_long_query() {
        super::a_long_query::<Postgres>();
    }

    #[test]
    fn the_application_stands_still() {
        super::the_application_stands_still::<Postgres>("postgres::the_application_stands_still");
    }
}
