//! A peer whose queries fail because it lacks something: refusing costs it no time, so it seems to be idle. It
//! gets no more than its share, and is checked at once.

#![cfg(all(target_os = "linux", feature = "mysql"))]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel_peers::{Fault, PeerState};
use support::backend::{PATIENCE, fill, manager_of, pool_of, status};
use support::mariadb::MariaDb;
use support::{wait_until, within};

#[test]
fn peer_that_prepares_no_statement_is_marked_down_at_once() {
    let servers = [MariaDb::start(), MariaDb::start()];
    let builder = manager_of::<MysqlConnection>(servers.iter().map(MariaDb::url));
    let (pool, peers) = pool_of(builder.check_interval(PATIENCE * 10), 4);
    fill(&pool, &peers, &[2, 2]);
    servers[0].sql("SET GLOBAL max_prepared_stmt_count = 0");
    wait_until("a failed query causes a check", PATIENCE, || {
        let mut conn = pool.get().expect("a peer is up");
        let _ = diesel::sql_query("SELECT 1").execute(&mut conn);
        status(&peers, "peer0").state.is_marked_down()
    });
    assert_eq!(status(&peers, "peer0").fault, Some(Fault::OutOfResources));
}

#[test]
fn peer_whose_queries_fail_fast_gets_no_more_than_its_share() {
    let servers = [MariaDb::start(), MariaDb::start()];
    let builder = manager_of::<MysqlConnection>(servers.iter().map(MariaDb::url));
    // Each peer has a connection for each thread, so that the strategy always has a choice.
    let (pool, peers) = pool_of(builder, 8);
    fill(&pool, &peers, &[4, 4]);
    let served = [AtomicUsize::new(0), AtomicUsize::new(0)];
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                within(Duration::from_secs(1), || {
                    let mut conn = pool.get().expect("both peers are up");
                    let fails = conn.peer() == "peer0";
                    let query = if fails {
                        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'Out of memory.'"
                    } else {
                        "DO SLEEP(0.02)"
                    };
                    assert_eq!(conn.batch_execute(query).is_err(), fails);
                    served[usize::from(!fails)].fetch_add(1, Ordering::Relaxed);
                    false
                });
            });
        }
    });
    let [failed, worked] = served.map(AtomicUsize::into_inner);
    assert!(worked > 20, "{worked} queries worked");
    // The first queries fail before the peer is known to be short of something.
    assert!(failed <= worked * 5 / 4 + 10, "{failed} queries failed, and {worked} worked");
    assert_eq!(status(&peers, "peer0").state, PeerState::Up, "the check succeeded");
}
