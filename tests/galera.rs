//! A real Galera cluster whose nodes are killed, cut off and maintained while eight threads work:
//! what they see of it, and what the data say afterwards.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::collections::BTreeMap;
use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::r2d2::{Pool, PooledConnection};
use diesel::result::Error;
use diesel::sql_query;
use diesel::sql_types::BigInt;
use diesel_peers::{PeerManager, PeerManagerBuilder, PeerState, Peers};
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state};
use support::galera::{Cluster, Node};
use support::load::{Load, Seen};
use support::network::connect;
use support::story::{PEERS, SHARES, THREADS, comes_back, full_pool, leaves, wait_for_more};
use support::{how_long, wait_until};

/// Longer than a test: no check is due in it.
const NEVER: Duration = Duration::from_secs(3600);

/// How a node refuses work that is not ready for it.
const NOT_READY: &str = "WSREP has not yet prepared node for application use";
/// How a node says that another one has changed the same row.
const CONFLICT: &str = "Deadlock found when trying to get lock; try restarting transaction";

/// A query that every node answers that lets clients in, ready or not, and one that needs a table.
const TABLELESS: &str = "SELECT SLEEP(0.001)";
const OF_A_TABLE: &str = "SELECT SLEEP(0.001) FROM t";
/// The value of the row.
const VALUE: &str = "SELECT v FROM t";

type MysqlPool = Pool<PeerManager<MysqlConnection>>;
type PooledMysql = PooledConnection<PeerManager<MysqlConnection>>;

fn manager(cluster: &Cluster) -> PeerManagerBuilder<MysqlConnection> {
    manager_of(cluster.urls()).check_interval(SOON)
}

/// Restarts a node, and tells how long it took until it lets clients in.
fn restart(node: &mut Node) -> Duration {
    how_long("it lets clients in", PATIENCE, || {
        node.restart();
        true
    })
}

/// Errors only of this peer's: of what was in flight, one for each thread at most, and of what each of
/// them began meanwhile.
#[track_caller]
fn assert_only_there(failed: &[(String, String)], name: &str) {
    let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
    for (peer, text) in failed {
        assert_eq!(peer, name, "the others are fine: {text}");
        *texts.entry(text).or_default() += 1;
    }
    println!("    {texts:?}");
    let refused = texts.remove(NOT_READY).unwrap_or_default();
    assert!(texts.values().sum::<usize>() <= THREADS, "only what was in flight: {texts:?}");
    assert!(refused <= 2 * THREADS, "the first refusal is word enough: {refused} more");
}

#[track_caller]
fn assert_no_error(seen: &Seen) {
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// One fault after the other, on one cluster.
#[test]
fn nodes_fail_under_load() {
    let mut cluster = Cluster::with_table();
    let (pool, peers) = full_pool(manager(&cluster));
    killed(&mut cluster, &pool, &peers);
    cut_off(&cluster, &pool, &peers);
    rejecting(&cluster, &pool, &peers);
    desynced(&cluster, &pool, &peers);
    given_all_data(&mut cluster, &pool, &peers);
    drop(pool);
    a_refused_query_is_word_enough(&cluster);
}

/// It comes back with what was written meanwhile, and no more than that is sent to it.
fn killed(cluster: &mut Cluster, pool: &MysqlPool, peers: &Peers) {
    let seen = Load::run(pool, THREADS, OF_A_TABLE, |load| {
        wait_for_more(load, &PEERS);
        let log = cluster.nodes[0].log().len();
        cluster.nodes[0].kill();
        let left = leaves(peers, "peer0");
        let errors = load.failed();
        wait_for_more(load, &PEERS[1..]);
        cluster.nodes[1].sql("UPDATE app.t SET v = v + 1");
        let started = restart(&mut cluster.nodes[0]);
        let back = comes_back(peers, "peer0", load);
        assert!(cluster.nodes[0].is_ready(), "it is used when it is ready");
        assert_eq!(cluster.nodes[0].sql("SELECT v FROM app.t"), "1\n", "it has what it missed");
        let log = cluster.nodes[0].log().split_off(log);
        assert!(log.contains("IST received"), "it was sent what it missed: {log}");
        assert!(!log.contains("SST completed"), "and not all the data: {log}");
        println!(
            "killed: left after {left:?}, {errors} errors; listens after {started:?}, its share \
             {back:?} later"
        );
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert_only_there(&seen.failed, "peer0");
    assert!(seen.failed.len() <= SHARES[0], "one on each of its connections: {:?}", seen.failed);
    cluster.wait_synced();
}

/// Queries that it answers all the same bring no word of it: the next check does.
fn cut_off(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[1];
    let seen = Load::run(pool, THREADS, TABLELESS, |load| {
        wait_for_more(load, &PEERS);
        node.partition();
        let unready = how_long("it is not ready", PATIENCE, || !node.is_ready());
        let left = leaves(peers, "peer1");
        wait_for_more(load, &["peer0", "peer2"]);
        assert_eq!(state(peers, "peer1"), PeerState::Down, "it stays out of service");
        node.heal();
        let healed = how_long("it is ready", PATIENCE, || node.is_ready());
        let back = comes_back(peers, "peer1", load);
        assert_eq!(node.state(), "Synced");
        println!(
            "cut off: not ready after {unready:?}, left {left:?} later; healed in {healed:?}, its \
             share {back:?} later"
        );
    });
    assert_no_error(&seen);
}

fn rejecting(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[2];
    let seen = Load::run(pool, THREADS, TABLELESS, |load| {
        wait_for_more(load, &PEERS);
        node.reject_queries(true);
        let left = leaves(peers, "peer2");
        assert!(node.is_ready(), "it says that it is ready, and is not");
        wait_for_more(load, &PEERS[..2]);
        node.reject_queries(false);
        let back = comes_back(peers, "peer2", load);
        println!("rejecting: left after {left:?}, its share {back:?} after it accepts");
    });
    assert_no_error(&seen);
}

/// One that falls behind on purpose still has all that it needs to serve.
fn desynced(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[2];
    let seen = Load::run(pool, THREADS, OF_A_TABLE, |load| {
        node.desync();
        wait_until("it is desynced", PATIENCE, || node.state() == "Donor/Desynced");
        let checks = peers.snapshot().peers[2].next_check;
        wait_until("it is checked", PATIENCE, || peers.snapshot().peers[2].next_check > checks);
        wait_for_more(load, &PEERS);
        assert_eq!(node.state(), "Donor/Desynced");
        assert_eq!(state(peers, "peer2"), PeerState::Up, "it goes on serving");
        node.resync();
        node.wait_synced();
    });
    assert_no_error(&seen);
}

/// Until a node has got all the data it refuses connections. The one that sends them goes on.
fn given_all_data(cluster: &mut Cluster, pool: &MysqlPool, peers: &Peers) {
    let seen = Load::run(pool, THREADS, OF_A_TABLE, |load| {
        wait_for_more(load, &PEERS);
        cluster.nodes[2].stop();
        let left = leaves(peers, "peer2");
        let errors = load.failed();
        let log = cluster.nodes[2].log().len();
        cluster.nodes[2].begin_restart_from_nothing();
        let donates = |node: &Node| node.state() == "Donor/Desynced";
        wait_until("one sends its data", PATIENCE, || cluster.nodes[..2].iter().any(donates));
        let port = cluster.nodes[2].port();
        connect(port, PATIENCE).expect_err("it refuses connections meanwhile");
        assert_eq!(state(peers, "peer2"), PeerState::Down, "it is out of service meanwhile");
        wait_for_more(load, &PEERS[..2]);
        let node = &mut cluster.nodes[2];
        let started = how_long("it listens", PATIENCE, || {
            node.await_ready();
            true
        });
        let back = comes_back(peers, "peer2", load);
        let log = cluster.nodes[2].log().split_off(log);
        assert!(log.contains("SST completed"), "it was sent all the data: {log}");
        println!(
            "stopped: left after {left:?}, {errors} errors; listens after {started:?}, its share \
             {back:?} later"
        );
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert_only_there(&seen.failed, "peer2");
    cluster.wait_synced();
}

/// No check is due, and yet they leave service: a query has been refused.
fn a_refused_query_is_word_enough(cluster: &Cluster) {
    type Act = fn(&Node);
    let acts: [(&str, Act, Act); 2] = [
        ("cut off", Node::partition, Node::heal),
        ("rejecting", |node| node.reject_queries(true), |node| node.reject_queries(false)),
    ];
    for (what, breaks, mends) in acts {
        let (pool, peers) = full_pool(manager(cluster).check_interval(NEVER));
        let seen = Load::run(&pool, THREADS, OF_A_TABLE, |load| {
            wait_for_more(load, &PEERS);
            breaks(&cluster.nodes[0]);
            wait_until("a query is refused", PATIENCE, || load.failed() > 0);
            let left = leaves(&peers, "peer0");
            println!("{what}: left {left:?} after a query was refused, {} errors", load.failed());
            wait_for_more(load, &PEERS[1..]);
        });
        mends(&cluster.nodes[0]);
        cluster.wait_synced();
        assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
        let all_there =
            seen.failed.iter().all(|(peer, reason)| peer == "peer0" && reason == NOT_READY);
        assert!(all_there, "only refused queries: {:?}", seen.failed);
        assert!(
            seen.failed.len() <= 2 * THREADS,
            "the first is word enough: {}",
            seen.failed.len()
        );
    }
}

/// Every node is stopped and started in turn while all threads write. What was acknowledged is there.
#[test]
fn nodes_are_restarted_in_turn_under_writes() {
    let mut cluster = Cluster::with_table();
    // A mark that was written twice would be two rows: the key is the server's.
    cluster.nodes[0].sql(
        "CREATE TABLE app.marks (id CHAR(36) PRIMARY KEY DEFAULT UUID(), mark VARCHAR(20) NOT NULL)",
    );
    cluster.wait_synced();
    let (pool, peers) = full_pool(manager(&cluster));
    let written = Mutex::new(Vec::new());
    let failed = Mutex::new(Vec::new());
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        for thread in 0..THREADS {
            let (pool, written, failed, stopped) = (&pool, &written, &failed, &stopped);
            scope.spawn(move || {
                for number in 0.. {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let mark = format!("{thread}-{number}");
                    let mut conn = pool.get_timeout(PATIENCE).expect("two nodes live");
                    let insert =
                        format!("INSERT INTO marks (mark) SELECT IF(SLEEP(0.002), '', '{mark}')");
                    match sql_query(insert).execute(&mut conn) {
                        Ok(_) => written.lock().expect("no panics").push(mark),
                        Err(error) => {
                            let peer = conn.peer().to_owned();
                            failed.lock().expect("no panics").push((peer, error.to_string()));
                        }
                    }
                }
            });
        }
        let count = || written.lock().expect("no panics").len();
        for (index, name) in PEERS.into_iter().enumerate() {
            let before = count();
            wait_until("they write", PATIENCE, || count() > before + 200);
            cluster.nodes[index].stop();
            let left = leaves(&peers, name);
            let before = count();
            wait_until("they write to the others", PATIENCE, || count() > before + 200);
            let started = restart(&mut cluster.nodes[index]);
            let back =
                how_long("it is up again", PATIENCE, || state(&peers, name) == PeerState::Up)
                    + how_long("it has its share again", PATIENCE, || links(&peers) == SHARES);
            cluster.wait_synced();
            let failed = mem::take(&mut *failed.lock().expect("no panics"));
            println!(
                "restarted: left after {left:?}, {} errors; listens after {started:?}, its share \
                 {back:?} later",
                failed.len()
            );
            assert_only_there(&failed, name);
        }
    });
    let mut written = written.into_inner().expect("no panics");
    written.sort_unstable();
    wait_until("all nodes have the same", PATIENCE, || {
        let counts = cluster.nodes.iter().map(|node| node.sql("SELECT COUNT(*) FROM app.marks"));
        let counts: Vec<_> = counts.collect();
        counts.iter().all(|count| *count == counts[0])
    });
    for node in &cluster.nodes {
        let answer = node.sql("SELECT mark FROM app.marks");
        let mut marks: Vec<&str> = answer.lines().collect();
        marks.sort_unstable();
        assert!(marks.windows(2).all(|pair| pair[0] != pair[1]), "none is there twice");
        let lost = written.iter().find(|mark| marks.binary_search(&mark.as_str()).is_err());
        assert_eq!(lost, None, "all that was acknowledged is there");
    }
}

/// Also ends the threads when the story panics, or the scope would wait for ever.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What two nodes do to each other's writes, and how late one may be.
#[test]
fn nodes_that_work_at_once() {
    let cluster = Cluster::with_table();
    conflicts(&cluster);
    a_read_elsewhere_may_miss_a_write(&cluster);
}

/// All write to one row, and each node has its own idea of it until it hears of the others. Who is
/// too late is told so; that is nothing against the node.
fn conflicts(cluster: &Cluster) {
    let (pool, peers) = full_pool(manager(cluster));
    let before = peers.snapshot();
    let seen: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let stopped = AtomicBool::new(false);
    let counted = |outcome: &str| {
        let seen = seen.lock().expect("no panics");
        seen.iter()
            .filter(|(said, _)| said.contains(outcome))
            .map(|(_, count)| count)
            .sum::<usize>()
    };
    let start = value(&mut pool.get().expect("all live"));
    thread::scope(|scope| {
        let _stop = Stop(&stopped);
        for thread in 0..THREADS {
            let (pool, seen, stopped) = (&pool, &seen, &stopped);
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let mut conn = pool.get().expect("all live");
                    let add = |conn: &mut PooledMysql| {
                        sql_query("UPDATE t SET v = v + 1 WHERE id = 1").execute(conn)
                    };
                    // Half of them hear of it when they commit.
                    let (how, outcome) = if thread % 2 == 0 {
                        ("statement", add(&mut conn))
                    } else {
                        ("transaction", conn.transaction(add))
                    };
                    let said = match outcome {
                        Ok(rows) => format!("ok {rows}"),
                        Err(Error::DatabaseError(kind, said)) => {
                            format!("{kind:?}: {}", said.message())
                        }
                        Err(error) => format!("{error:?}"),
                    };
                    let mut seen = seen.lock().expect("no panics");
                    *seen.entry(format!("{how}: {said}")).or_default() += 1;
                }
            });
        }
        wait_until("there are conflicts", PATIENCE, || {
            counted("statement: SerializationFailure") > 20
                && counted("transaction: Unknown") > 20
                && counted("ok 1") > 100
        });
    });
    println!("conflicts: {:#?}", seen.lock().expect("no panics"));
    assert_eq!(counted(""), counted("ok 1") + counted(CONFLICT), "nothing else was said");
    let done = i64::try_from(counted("ok 1")).expect("it is small");
    wait_until("it counts what succeeded, and nothing else", PATIENCE, || {
        (0..SHARES.len()).all(|_| value(&mut pool.get().expect("all live")) == start + done)
    });
    for (before, after) in before.peers.iter().zip(&peers.snapshot().peers) {
        assert_eq!(after.state, PeerState::Up, "it was not the node's fault");
        assert_eq!(after.since, before.since, "at no time");
        assert_eq!(after.connects, before.connects, "and not its connections'");
    }
}

/// The value of the row.
fn value(conn: &mut PooledMysql) -> i64 {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        v: i64,
    }
    sql_query(VALUE).get_result::<Row>(conn).expect("the row is there").v
}

/// Unless the session waits for it, or both are done in one checkout.
fn a_read_elsewhere_may_miss_a_write(cluster: &Cluster) {
    let both = |builder: PeerManagerBuilder<MysqlConnection>| {
        let (pool, peers) = pool_of(builder.weight("peer2", 0), 2);
        fill(&pool, &peers, &[1, 1, 0]);
        let mut conns = [(); 2].map(|()| pool.get().expect("both live"));
        conns.sort_by_key(|conn| conn.peer().to_owned());
        (pool, peers, conns)
    };
    let (_pool, _peers, [mut writer, mut reader]) = both(manager(cluster));
    let waits = |conn: &mut MysqlConnection| conn.batch_execute("SET SESSION wsrep_sync_wait = 1");
    let (_pool, peers, [_, mut waiting]) = both(manager(cluster).on_connect(waits));
    let since = peers.snapshot().peers[1].since;

    // The second node has the write, and cannot apply it.
    let mut lock = MysqlConnection::establish(&cluster.nodes[1].url()).expect("it lives");
    lock.batch_execute("LOCK TABLES t READ").expect("it is ours");
    let before = value(&mut writer);
    writer.batch_execute("UPDATE t SET v = v + 1").expect("the first node goes on");
    assert_eq!(value(&mut reader), before, "the second node does not have it yet");
    assert_eq!(cluster.nodes[1].state(), "Synced", "and does not know");
    assert_eq!(value(&mut writer), before + 1, "who has written it reads it in the same checkout");
    thread::scope(|scope| {
        let read = scope.spawn(|| value(&mut waiting));
        wait_until("it waits", PATIENCE, || {
            let queries = "SELECT COUNT(*) FROM information_schema.processlist WHERE info = ";
            cluster.nodes[1].sql(&format!("{queries}'{VALUE}' AND time_ms > 500")) == "1\n"
        });
        assert!(!read.is_finished(), "it waits until the node has it");
        lock.batch_execute("UNLOCK TABLES").expect("it lives");
        assert_eq!(read.join().expect("it reads"), before + 1, "it has waited for the write");
    });
    assert_eq!(value(&mut reader), before + 1, "now everyone sees it");
    assert_eq!(peers.snapshot().peers[1].since, since, "a node that is late is up");
}
