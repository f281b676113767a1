//! A bank: sixteen threads transfer money between accounts with a ledger, while their connections are cut at each
//! COMMIT, and while the nodes of a Galera cluster are killed. Afterwards every transfer that was called
//! committed is there exactly once, none that was called aborted is there, the sum is unchanged, no outcome is
//! unknown, and no thread has seen an error. While tokens are deleted at once, an outcome may be forgotten, but is never
//! wrong.
//!
//! `DIESEL_PEERS_TEST_SECONDS` sets the duration of each test in seconds (5 by default), `DIESEL_PEERS_TEST_SEED` the
//! seed. Each run prints its seed.

#![cfg(all(target_os = "linux", feature = "mysql", feature = "postgres"))]
#![allow(clippy::disallowed_methods, reason = "the test's length is measured by the clock")]

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel_peers::{DoubtReason, Ledger, LedgerTable, Outcome, PeerManagerBuilder};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::backend::{PATIENCE, RealServer, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::galera::Cluster;
use support::mariadb::MariaDb;
use support::postgres::Postgres;
use support::{EndsThreads, wait_until};

const THREADS: u32 = 16;
/// So many that few transfers are in conflict: the retry budget is for a fifth of them.
const ACCOUNTS: u32 = 1000;
const BALANCE: u32 = 1000;

/// Held by the bank that runs: on a busy machine the nodes of a Galera cluster suspect each other.
static TURN: Mutex<()> = Mutex::new(());

/// Returns the duration of a test.
fn duration() -> Duration {
    let seconds = env::var("DIESEL_PEERS_TEST_SECONDS").ok();
    Duration::from_secs(seconds.map_or(5, |text| text.parse().expect("a number of seconds")))
}

/// Returns a generator, and prints its seed.
fn rng() -> SmallRng {
    let seed = env::var("DIESEL_PEERS_TEST_SEED").ok();
    let seed = seed.map_or_else(
        || rand::make_rng::<SmallRng>().random(),
        |text| text.parse().expect("a number"),
    );
    println!("DIESEL_PEERS_TEST_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn ledger() -> LedgerTable {
    Ledger::table("ledger")
}

/// Returns the statements that found the bank.
fn foundation() -> Vec<String> {
    let mut accounts = "INSERT INTO accounts VALUES ".to_owned();
    for account in 0..ACCOUNTS {
        let comma = if account == 0 { "" } else { ", " };
        write!(accounts, "{comma}({account}, {BALANCE})").expect("a string accepts everything");
    }
    vec![
        "CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL)".to_owned(),
        "CREATE TABLE transfers (id INT PRIMARY KEY)".to_owned(),
        ledger().create_table(),
        accounts,
    ]
}

/// The transfers by what was said of them.
#[derive(Debug, Default)]
struct Said {
    committed: BTreeSet<u32>,
    not_committed: Vec<(u32, String)>,
    forgotten: BTreeSet<u32>,
}

/// Runs the bank beside `adversary`, which is called again and again until the time is over. With `deletes_tokens`, a
/// thread deletes all tokens again and again.
fn run_bank<C>(
    builder: PeerManagerBuilder<C>,
    deletes_tokens: bool,
    mut adversary: impl FnMut(),
) -> Said
where
    C: R2D2Connection + Send + 'static,
{
    let builder =
        builder.ledger(ledger()).retry_attempts(u32::MAX).retry_deadline(Duration::from_secs(120));
    let (pool, _) = pool_of(builder, THREADS + 1);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let said = Mutex::new(Said::default());
    let is_over = AtomicBool::new(false);
    let work = |thread: u32| {
        let mut rng = SmallRng::seed_from_u64(u64::from(thread));
        let mut number = 0;
        while !is_over.load(Ordering::Relaxed) {
            number += 1;
            let id = thread * 1_000_000 + number;
            let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
            let Ok(mut conn) = pool.get() else { continue };
            let outcome = conn.transaction_with_retry(|conn| {
                conn.batch_execute(&format!("INSERT INTO transfers VALUES ({id})"))?;
                conn.batch_execute(&format!(
                    "UPDATE accounts SET balance = balance - 1 WHERE id = {from}"
                ))?;
                conn.batch_execute(&format!(
                    "UPDATE accounts SET balance = balance + 1 WHERE id = {to}"
                ))
            });
            let mut said = said.lock().expect("no thread panics with the lock");
            match outcome {
                Outcome::Committed(()) => drop(said.committed.insert(id)),
                Outcome::Aborted(error) => said.not_committed.push((id, error.to_string())),
                Outcome::Unknown(doubt) if doubt.reason() == DoubtReason::Forgotten => {
                    said.forgotten.insert(id);
                }
                Outcome::Unknown(doubt) => said.not_committed.push((id, doubt.to_string())),
            }
        }
    };
    thread::scope(|scope| {
        let ends = EndsThreads(&is_over);
        for thread in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(thread));
        }
        if deletes_tokens {
            scope.spawn(|| {
                let ledger = ledger().retention(Duration::ZERO);
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut conn) = pool.get() else { continue };
                    ledger.clean(&mut conn).expect("cleaning is run again if it is interrupted");
                }
            });
        }
        let end = Instant::now() + duration();
        while Instant::now() < end {
            adversary();
        }
        drop(ends);
    });
    said.into_inner().expect("no thread panics with the lock")
}

/// Compares what was said with what the database has. `list` returns the answer to a query, one row a line.
fn audit(said: &Said, list: impl Fn(&str) -> String) {
    let forgotten = said.forgotten.len();
    println!("{} transfers, {forgotten} forgotten, {:?}", said.committed.len(), said.not_committed);
    let sum = list("SELECT SUM(balance) FROM accounts");
    assert_eq!(sum.trim(), (ACCOUNTS * BALANCE).to_string(), "no money was lost or made");
    let there = list("SELECT id FROM transfers");
    let there: BTreeSet<u32> = there.lines().map(|id| id.parse().expect("a number")).collect();
    let lost: Vec<_> = said.committed.difference(&there).collect();
    assert!(lost.is_empty(), "transfers that were called committed are missing: {lost:?}");
    let hidden: Vec<_> =
        there.difference(&said.committed).filter(|id| !said.forgotten.contains(id)).collect();
    assert!(hidden.is_empty(), "transfers that were not called committed are there: {hidden:?}");
    assert!(said.not_committed.is_empty(), "a thread had to handle: {:?}", said.not_committed);
    assert!(said.committed.len() > 50, "the bank has worked");
}

/// One server behind three proxies, which cut a random connection at its COMMIT every few milliseconds.
fn bank_with_cut_connections<S: RealServer>(
    server: &S,
    deletes_tokens: bool,
    list: impl Fn(&str) -> String,
) {
    let (founder, _) = pool_of(manager_of::<S::Client>([server.url()]), 1);
    let mut conn = founder.get().expect("the server is up");
    for statement in foundation() {
        conn.batch_execute(&statement).expect("a new database");
    }
    drop(conn);
    let proxies = [(); 3].map(|()| CuttingProxy::start(server.port()));
    let urls = proxies.each_ref().map(|proxy| S::url_at("127.0.0.1", proxy.port()));
    let mut rng = rng();
    let said = run_bank(manager_of::<S::Client>(urls), deletes_tokens, || {
        let cut = match rng.random_range(0..3) {
            0 => Cut::BeforeServer,
            1 => Cut::BeforeAnswer,
            _ => Cut::InsideAnswer,
        };
        proxies[rng.random_range(0..3)].cut_at("COMMIT", cut);
        thread::sleep(Duration::from_millis(rng.random_range(10..200)));
    });
    audit(&said, list);
}

#[test]
fn bank_on_mariadb_whose_connections_are_cut_at_commits() {
    let server = MariaDb::start();
    bank_with_cut_connections(&server, false, |sql| server.sql(&format!("USE app; {sql}")));
}

#[test]
fn bank_on_postgres_whose_connections_are_cut_at_commits() {
    let server = Postgres::start();
    bank_with_cut_connections(&server, false, |sql| server.sql_in("app", sql));
}

#[test]
fn bank_whose_tokens_are_deleted_at_once() {
    let server = Postgres::start();
    bank_with_cut_connections(&server, true, |sql| server.sql_in("app", sql));
}

/// One node at a time is killed, so that the others keep the quorum.
#[test]
fn bank_on_galera_whose_nodes_are_killed() {
    let mut cluster = Cluster::start();
    for statement in foundation() {
        cluster.nodes[0].sql(&format!("USE app; {statement}"));
    }
    let mut rng = rng();
    let builder = manager_of::<diesel::MysqlConnection>(cluster.urls())
        .check_interval(Duration::from_secs(1));
    let said = run_bank(builder, false, || {
        let victim = rng.random_range(0..3);
        cluster.nodes[victim].kill();
        // A node that comes back while the others have not noticed its end may leave the group without a quorum.
        let others_notice = || {
            let mut others = (0..3).filter(|other| *other != victim).map(|at| &cluster.nodes[at]);
            others.all(|node| node.status("wsrep_cluster_size").as_deref() == Some("2"))
        };
        wait_until("the others are a group", PATIENCE, others_notice);
        cluster.nodes[victim].restart();
        cluster.wait_synced();
        thread::sleep(Duration::from_millis(rng.random_range(200..500)));
    });
    cluster.wait_synced();
    for node in &cluster.nodes {
        audit(&said, |sql| node.sql(&format!("USE app; {sql}")));
    }
}
