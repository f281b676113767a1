//! A real Galera cluster whose nodes are killed, isolated and maintained while eight threads work: which
//! errors the threads get, and which data the nodes have afterwards.

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
use diesel_peers::{Fault, PeerManager, PeerManagerBuilder, PeerState, Peers};
use support::backend::{PATIENCE, SOON, fill, links, manager_of, pool_of, state, status};
use support::galera::{Cluster, Node};
use support::haproxy::HaProxy;
use support::load::{Load, Seen};
use support::network::connect;
use support::one_of_three::{PEERS, SHARES, THREADS, comes_back, full_pool, leaves, wait_for_more};
use support::{EndsThreads, how_long, wait_until, within};

/// An interval longer than a test, so that no check is scheduled in the test.
const NEVER: Duration = Duration::from_secs(3600);

/// The error of a node that is not ready for queries.
const NOT_READY: &str = "WSREP has not yet prepared node for application use";
/// The error of a node when another one has changed the same row.
const CONFLICT: &str = "Deadlock found when trying to get lock; try restarting transaction";

/// A query without a table, which a node answers even when it is not ready.
const TABLELESS: &str = "SELECT SLEEP(0.001)";
/// A query with a table, which only a ready node answers.
const OF_A_TABLE: &str = "SELECT SLEEP(0.001) FROM t";
/// The query for the value of the row.
const VALUE: &str = "SELECT v FROM t";

type MysqlPool = Pool<PeerManager<MysqlConnection>>;
type PooledMysql = PooledConnection<PeerManager<MysqlConnection>>;

fn manager(cluster: &Cluster) -> PeerManagerBuilder<MysqlConnection> {
    manager_of(cluster.urls()).check_interval(SOON)
}

/// Restarts a node, and returns how long it took until the node accepts logins.
fn restart(node: &mut Node) -> Duration {
    how_long("the node accepts logins", PATIENCE, || {
        node.restart();
        true
    })
}

/// Asserts that all errors are of this peer: at most one query in flight for each thread, and a few refused
/// queries that began later.
#[track_caller]
fn assert_only_errors_of(failed: &[(String, String)], name: &str) {
    let mut texts: BTreeMap<&str, usize> = BTreeMap::new();
    for (peer, text) in failed {
        assert_eq!(peer, name, "queries on the other nodes succeed: {text}");
        *texts.entry(text).or_default() += 1;
    }
    println!("    {texts:?}");
    let refused = texts.remove(NOT_READY).unwrap_or_default();
    assert!(texts.values().sum::<usize>() <= THREADS, "only queries in flight fail: {texts:?}");
    assert!(refused <= 2 * THREADS, "the first refusal takes the node out of service: {refused}");
}

#[track_caller]
fn assert_no_error(seen: &Seen) {
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert!(seen.failed.is_empty(), "no query failed: {:?}", seen.failed);
}

/// Causes several faults one after the other, on one cluster.
#[test]
fn galera_nodes_that_fail_leave_service_and_come_back() {
    let mut cluster = Cluster::with_table();
    let (pool, peers) = full_pool(manager(&cluster));
    killed(&mut cluster, &pool, &peers);
    cut_off(&cluster, &pool, &peers);
    rejecting(&cluster, &pool, &peers);
    desynced(&cluster, &pool, &peers);
    given_all_data(&mut cluster, &pool, &peers);
    drop(pool);
    refused_query_takes_the_node_out_of_service(&cluster);
    sessions_with_the_old_node_behind_an_address_are_replaced(&cluster);
}

/// A killed node comes back with the writes that it has missed, and gets only these from another node.
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
        assert!(cluster.nodes[0].is_ready(), "the node is used when it is ready");
        assert_eq!(
            cluster.nodes[0].sql("SELECT v FROM app.t"),
            "1\n",
            "the node has the write that it missed"
        );
        let log = cluster.nodes[0].log().split_off(log);
        assert!(log.contains("IST received"), "another node sent the missed writes: {log}");
        assert!(!log.contains("SST completed"), "no node sent all the data: {log}");
        println!(
            "killed: left after {left:?}, {errors} errors; listens after {started:?}, its share \
             {back:?} later"
        );
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert_only_errors_of(&seen.failed, "peer0");
    assert!(
        seen.failed.len() <= SHARES[0],
        "at most one query fails on each of its connections: {:?}",
        seen.failed
    );
    cluster.wait_synced();
}

/// An isolated node still answers queries without a table, so only the next check detects the fault.
fn cut_off(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[1];
    let seen = Load::run(pool, THREADS, TABLELESS, |load| {
        wait_for_more(load, &PEERS);
        node.partition();
        let unready = how_long("the node is not ready", PATIENCE, || !node.is_ready());
        let left = leaves(peers, "peer1");
        wait_for_more(load, &["peer0", "peer2"]);
        assert_eq!(state(peers, "peer1"), PeerState::Down, "the node stays out of service");
        node.heal();
        let healed = how_long("the node is ready", PATIENCE, || node.is_ready());
        let back = comes_back(peers, "peer1", load);
        assert_eq!(node.state(), "Synced");
        println!(
            "cut off: not ready after {unready:?}, left {left:?} later; healed in {healed:?}, its \
             share {back:?} later"
        );
    });
    assert_no_error(&seen);
}

/// A node that rejects queries still reports that it is ready.
fn rejecting(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[2];
    let seen = Load::run(pool, THREADS, TABLELESS, |load| {
        wait_for_more(load, &PEERS);
        node.reject_queries(true);
        let left = leaves(peers, "peer2");
        assert!(node.is_ready(), "the status variable claims that the node is ready");
        wait_for_more(load, &PEERS[..2]);
        node.reject_queries(false);
        let back = comes_back(peers, "peer2", load);
        println!("rejecting: left after {left:?}, its share {back:?} after it accepts");
    });
    assert_no_error(&seen);
}

/// A node that is desynced on purpose can still serve.
fn desynced(cluster: &Cluster, pool: &MysqlPool, peers: &Peers) {
    let node = &cluster.nodes[2];
    let seen = Load::run(pool, THREADS, OF_A_TABLE, |load| {
        node.desync();
        wait_until("the node is desynced", PATIENCE, || node.state() == "Donor/Desynced");
        let next_check = || status(peers, "peer2").next_check;
        let before = next_check();
        wait_until("the node is checked", PATIENCE, || next_check() > before);
        wait_for_more(load, &PEERS);
        assert_eq!(node.state(), "Donor/Desynced");
        assert_eq!(state(peers, "peer2"), PeerState::Up, "a desynced node goes on serving");
        node.resync();
        node.wait_synced();
    });
    assert_no_error(&seen);
}

/// A node refuses connections until it has all the data. The node that sends the data goes on serving.
fn given_all_data(cluster: &mut Cluster, pool: &MysqlPool, peers: &Peers) {
    let seen = Load::run(pool, THREADS, OF_A_TABLE, |load| {
        wait_for_more(load, &PEERS);
        cluster.nodes[2].stop();
        let left = leaves(peers, "peer2");
        let errors = load.failed();
        let log = cluster.nodes[2].log().len();
        cluster.nodes[2].begin_restart_from_nothing();
        let donates = |node: &Node| node.state() == "Donor/Desynced";
        wait_until("another node sends its data", PATIENCE, || {
            cluster.nodes[..2].iter().any(donates)
        });
        let port = cluster.nodes[2].port();
        connect(port, PATIENCE).expect_err("the node refuses connections meanwhile");
        assert_eq!(state(peers, "peer2"), PeerState::Down, "the node is out of service meanwhile");
        wait_for_more(load, &PEERS[..2]);
        let node = &mut cluster.nodes[2];
        let started = how_long("the node accepts logins", PATIENCE, || {
            node.await_ready();
            true
        });
        let back = comes_back(peers, "peer2", load);
        let log = cluster.nodes[2].log().split_off(log);
        assert!(log.contains("SST completed"), "another node sent all the data: {log}");
        println!(
            "stopped: left after {left:?}, {errors} errors; listens after {started:?}, its share \
             {back:?} later"
        );
    });
    assert_eq!(seen.refused, [""; 0], "no `pool.get()` failed");
    assert_only_errors_of(&seen.failed, "peer2");
    cluster.wait_synced();
}

/// A refused query takes a node out of service although no check is scheduled.
fn refused_query_takes_the_node_out_of_service(cluster: &Cluster) {
    type Action = fn(&Node);
    let faults: [(&str, Action, Action); 2] = [
        ("cut off", Node::partition, Node::heal),
        ("rejecting", |node| node.reject_queries(true), |node| node.reject_queries(false)),
    ];
    for (what, breaks, mends) in faults {
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
        let all_refused =
            seen.failed.iter().all(|(peer, reason)| peer == "peer0" && reason == NOT_READY);
        assert!(all_refused, "only refused queries fail: {:?}", seen.failed);
        assert!(
            seen.failed.len() <= 2 * THREADS,
            "the first refusal takes the node out of service: {}",
            seen.failed.len()
        );
    }
}

/// Every node is stopped and started in turn while all threads write.
#[test]
fn rolling_restart_loses_no_acknowledged_write() {
    let mut cluster = Cluster::with_table();
    // The server generates the key, so a mark that is written twice makes two rows.
    cluster.nodes[0].sql(
        "CREATE TABLE app.marks (id CHAR(36) PRIMARY KEY DEFAULT UUID(), mark VARCHAR(20) NOT NULL)",
    );
    cluster.wait_synced();
    let (pool, peers) = full_pool(manager(&cluster));
    let written = Mutex::new(Vec::new());
    let failed = Mutex::new(Vec::new());
    let stopped = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = EndsThreads(&stopped);
        for thread in 0..THREADS {
            let (pool, written, failed, stopped) = (&pool, &written, &failed, &stopped);
            scope.spawn(move || {
                for number in 0.. {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let mark = format!("{thread}-{number}");
                    let mut conn = pool.get_timeout(PATIENCE).expect("two nodes are up");
                    let insert =
                        format!("INSERT INTO marks (mark) SELECT IF(SLEEP(0.002), '', '{mark}')");
                    match sql_query(insert).execute(&mut conn) {
                        Ok(_) => written.lock().expect("no thread panics").push(mark),
                        // A change of the members may be a conflict for what is being certified.
                        Err(error) if Fault::of(&error) == Fault::Retryable => {}
                        Err(error) => {
                            let peer = conn.peer().to_owned();
                            failed
                                .lock()
                                .expect("no thread panics")
                                .push((peer, error.to_string()));
                        }
                    }
                }
            });
        }
        let count = || written.lock().expect("no thread panics").len();
        for (index, name) in PEERS.into_iter().enumerate() {
            let before = count();
            wait_until("200 more rows are written", PATIENCE, || count() > before + 200);
            cluster.nodes[index].stop();
            let left = leaves(&peers, name);
            let before = count();
            wait_until("200 more rows are written to the other nodes", PATIENCE, || {
                count() > before + 200
            });
            let started = restart(&mut cluster.nodes[index]);
            let back =
                how_long("the peer is up again", PATIENCE, || state(&peers, name) == PeerState::Up)
                    + how_long("the peer has its share again", PATIENCE, || {
                        links(&peers) == SHARES
                    });
            cluster.wait_synced();
            let failed = mem::take(&mut *failed.lock().expect("no thread panics"));
            println!(
                "restarted: left after {left:?}, {} errors; listens after {started:?}, its share \
                 {back:?} later",
                failed.len()
            );
            assert_only_errors_of(&failed, name);
        }
    });
    let mut written = written.into_inner().expect("no thread panics");
    written.sort_unstable();
    wait_until("all nodes have the same number of rows", PATIENCE, || {
        let counts = cluster.nodes.iter().map(|node| node.sql("SELECT COUNT(*) FROM app.marks"));
        let counts: Vec<_> = counts.collect();
        counts.iter().all(|count| *count == counts[0])
    });
    for node in &cluster.nodes {
        let answer = node.sql("SELECT mark FROM app.marks");
        let mut marks: Vec<&str> = answer.lines().collect();
        marks.sort_unstable();
        assert!(marks.windows(2).all(|pair| pair[0] != pair[1]), "no row is written twice");
        let lost = written.iter().find(|mark| marks.binary_search(&mark.as_str()).is_err());
        assert_eq!(lost, None, "no acknowledged row is lost");
    }
}

/// Writes on several nodes may conflict, and a read on another node may lag behind.
#[test]
fn conflicts_and_late_reads_between_nodes_are_not_faults() {
    let cluster = Cluster::with_table();
    conflicts(&cluster);
    read_on_another_node_may_miss_a_write(&cluster);
}

/// All threads write to one row, and each node has its own value until it receives the others' writes. The
/// later of two conflicting writes fails, and that error does not count against its node.
fn conflicts(cluster: &Cluster) {
    let (pool, peers) = full_pool(manager(cluster));
    let before = peers.snapshot();
    let seen: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let stopped = AtomicBool::new(false);
    let counted = |outcome: &str| {
        let seen = seen.lock().expect("no thread panics");
        seen.iter()
            .filter(|(text, _)| text.contains(outcome))
            .map(|(_, count)| count)
            .sum::<usize>()
    };
    let start = value(&mut pool.get().expect("all nodes are up"));
    thread::scope(|scope| {
        let _stop = EndsThreads(&stopped);
        for thread in 0..THREADS {
            let (pool, seen, stopped) = (&pool, &seen, &stopped);
            scope.spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    let mut conn = pool.get().expect("all nodes are up");
                    let add = |conn: &mut PooledMysql| {
                        sql_query("UPDATE t SET v = v + 1 WHERE id = 1").execute(conn)
                    };
                    // Half of the threads get the error of a conflict when they commit.
                    let (how, outcome) = if thread % 2 == 0 {
                        ("statement", add(&mut conn))
                    } else {
                        ("transaction", conn.transaction(add))
                    };
                    let text = match outcome {
                        Ok(rows) => format!("ok {rows}"),
                        Err(Error::DatabaseError(kind, info)) => {
                            format!("{kind:?}: {}", info.message())
                        }
                        Err(error) => format!("{error:?}"),
                    };
                    let mut seen = seen.lock().expect("no thread panics");
                    *seen.entry(format!("{how}: {text}")).or_default() += 1;
                }
            });
        }
        wait_until("there are conflicts", PATIENCE, || {
            counted("statement: SerializationFailure") > 20
                && counted("transaction: Unknown") > 20
                && counted("ok 1") > 100
        });
    });
    println!("conflicts: {:#?}", seen.lock().expect("no thread panics"));
    assert_eq!(counted(""), counted("ok 1") + counted(CONFLICT), "all errors are conflicts");
    let done = i64::try_from(counted("ok 1")).expect("the number is small");
    wait_until("the value is the number of successful writes", PATIENCE, || {
        (0..SHARES.len()).all(|_| value(&mut pool.get().expect("all nodes are up")) == start + done)
    });
    for (before, after) in before.peers.iter().zip(&peers.snapshot().peers) {
        assert_eq!(after.state, PeerState::Up, "a conflict does not mark the node down");
        assert_eq!(after.since, before.since, "the node is up all the time");
        assert_eq!(after.connects, before.connects, "a conflict closes no connection");
    }
}

/// Returns the value of the row.
fn value(conn: &mut PooledMysql) -> i64 {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        v: i64,
    }
    sql_query(VALUE).get_result::<Row>(conn).expect("the row exists").v
}

/// A read on another node than the write may miss it, unless the session waits for all writes. A read in the
/// same checkout never does.
fn read_on_another_node_may_miss_a_write(cluster: &Cluster) {
    let both = |builder: PeerManagerBuilder<MysqlConnection>| {
        let (pool, peers) = pool_of(builder.weight("peer2", 0), 2);
        fill(&pool, &peers, &[1, 1, 0]);
        let mut conns = [(); 2].map(|()| pool.get().expect("both nodes are up"));
        conns.sort_by_key(|conn| conn.peer().to_owned());
        (pool, peers, conns)
    };
    let (_pool, _peers, [mut writer, mut reader]) = both(manager(cluster));
    let waits = |conn: &mut MysqlConnection| conn.batch_execute("SET SESSION wsrep_sync_wait = 1");
    let (_pool, peers, [_, mut waiting]) = both(manager(cluster).on_connect(waits));
    let since = status(&peers, "peer1").since;

    // The lock lets the second node receive the write, but not apply it.
    let mut lock = MysqlConnection::establish(&cluster.nodes[1].url()).expect("the node is up");
    lock.batch_execute("LOCK TABLES t READ").expect("the node is up");
    let before = value(&mut writer);
    writer.batch_execute("UPDATE t SET v = v + 1").expect("the first node accepts writes");
    assert_eq!(value(&mut reader), before, "the second node has not applied the write");
    assert_eq!(cluster.nodes[1].state(), "Synced", "the second node reports that it is synced");
    assert_eq!(value(&mut writer), before + 1, "a read in the checkout of the write sees it");
    thread::scope(|scope| {
        let read = scope.spawn(|| value(&mut waiting));
        wait_until("the read waits", PATIENCE, || {
            let queries = "SELECT COUNT(*) FROM information_schema.processlist WHERE info = ";
            cluster.nodes[1].sql(&format!("{queries}'{VALUE}' AND time_ms > 500")) == "1\n"
        });
        assert!(!read.is_finished(), "the read waits until the node has the write");
        lock.batch_execute("UNLOCK TABLES").expect("the node is up");
        let value = read.join().expect("the thread does not panic");
        assert_eq!(value, before + 1, "the read has waited for the write");
    });
    assert_eq!(value(&mut reader), before + 1, "the second node has applied the write");
    assert_eq!(status(&peers, "peer1").since, since, "a node that lags behind is up");
}

/// The addresses of the peers lead to another node by now, for which each check succeeds. The old node keeps its
/// sessions, and refuses their queries.
fn sessions_with_the_old_node_behind_an_address_are_replaced(cluster: &Cluster) {
    const CONNECTIONS: u32 = 4;
    let [old, new] = [cluster.nodes[0].port(), cluster.nodes[1].port()];
    let proxies = [HaProxy::balancing(&[old, new]), HaProxy::balancing(&[old, new])];
    for proxy in &proxies {
        proxy.ask(&format!("set server back/s{new} state maint"));
    }
    let urls = proxies.iter().map(HaProxy::mysql_url);
    let builder = manager_of::<MysqlConnection>(urls).check_interval(NEVER);
    let (pool, peers) = pool_of(builder, CONNECTIONS);
    fill(&pool, &peers, &[2, 2]);
    let before = status(&peers, "peer0").connects + status(&peers, "peer1").connects;
    let seen = Load::run(&pool, 4, OF_A_TABLE, |load| {
        wait_for_more(load, &PEERS[..2]);
        for proxy in &proxies {
            proxy.ask(&format!("set server back/s{new} state ready"));
            proxy.ask(&format!("set server back/s{old} state drain"));
        }
        cluster.nodes[0].reject_queries(true);
        wait_until("all connections are replaced", PATIENCE, || {
            let connects = status(&peers, "peer0").connects + status(&peers, "peer1").connects;
            connects >= before + u64::from(CONNECTIONS) && links(&peers) == [2, 2]
        });
        let failed = load.failed();
        wait_for_more(load, &PEERS[..2]);
        let fails = || load.failed() > failed;
        assert!(!within(Duration::from_secs(1), fails), "no query fails any more");
    });
    println!("behind an address: {} queries failed", seen.failed.len());
    // A connection fails once, and then again if its server was found to work in between.
    assert!(seen.failed.len() <= 2 * CONNECTIONS as usize, "{} queries", seen.failed.len());
    cluster.nodes[0].reject_queries(false);
}
