//! The bank: sixteen threads transfer money between accounts. Each transfer writes its id in the same transaction, so
//! that the audit can compare what was said of each transfer with what the database has.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::r2d2::R2D2Connection;
use diesel_peers::{DoubtReason, EventKind, Ledger, LedgerTable, Outcome, PeerManagerBuilder};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::EndsThreads;
use support::backend::{manager_of, pool_of};

const THREADS: u32 = 16;
/// So many that few transfers are in conflict: the retry budget is for a fifth of them.
const ACCOUNTS: u32 = 1000;
const BALANCE: u32 = 1000;

/// Held by the bank that runs: on a busy machine the nodes of a Galera cluster suspect each other.
static TURN: Mutex<()> = Mutex::new(());

/// Returns the duration of a test.
fn duration() -> Duration {
    let seconds = env::var("DIESEL_PEERS_TEST_SECONDS").ok();
    Duration::from_secs(seconds.map_or(3, |text| text.parse().expect("a number of seconds")))
}

fn ledger() -> LedgerTable {
    Ledger::table("ledger")
}

/// Creates the bank in the database with this URL.
pub(crate) fn create<C: R2D2Connection + Send + 'static>(url: &str) {
    let mut accounts = "INSERT INTO accounts VALUES ".to_owned();
    for account in 0..ACCOUNTS {
        let comma = if account == 0 { "" } else { ", " };
        write!(accounts, "{comma}({account}, {BALANCE})").expect("a string accepts everything");
    }
    let statements = [
        "CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL)".to_owned(),
        "CREATE TABLE transfers (id INT PRIMARY KEY)".to_owned(),
        ledger().create_table(),
        accounts,
    ];
    let (founder, _) = pool_of(manager_of::<C>([url]), 1);
    let mut conn = founder.get().expect("the server is up");
    for statement in statements {
        conn.batch_execute(&statement).expect("a new database");
    }
}

/// Where the outcomes of transfers are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    /// In a table.
    Table,
    /// In a table, whose rows a thread deletes again and again. So an outcome may be forgotten.
    DeletedTable,
    /// In PostgreSQL's own record of its transaction ids, which a crash and a failover may make useless.
    Ids,
}

/// The transfers by what was said of them.
#[derive(Debug, Default)]
pub(crate) struct Said {
    committed: BTreeSet<u32>,
    not_committed: Vec<(u32, String)>,
    forgotten: BTreeSet<u32>,
    failed_checkouts: Vec<String>,
}

/// How much the bank had to do besides.
#[derive(Debug, Default)]
struct Figures {
    runs: AtomicU64,
    doubts: AtomicU64,
    found_committed: AtomicU64,
    found_aborted: AtomicU64,
    downs: AtomicU64,
}

impl Figures {
    fn count(&self, event: &EventKind) {
        let counter = match event {
            EventKind::TransactionInDoubt { .. } => &self.doubts,
            EventKind::TransactionResolved { is_committed: true, .. } => &self.found_committed,
            EventKind::TransactionResolved { is_committed: false, .. } => &self.found_aborted,
            EventKind::Down { .. } => &self.downs,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs the bank beside `adversary`, which is called again and again until the time is over.
pub(crate) fn run<C>(
    builder: PeerManagerBuilder<C>,
    records: Records,
    mut adversary: impl FnMut(),
) -> Said
where
    C: R2D2Connection + Send + 'static,
{
    let figures: Arc<Figures> = Arc::default();
    let counting = figures.clone();
    let builder = builder
        .ledger(if records == Records::Ids { Ledger::Xid } else { ledger().into() })
        .retry_attempts(u32::MAX)
        .retry_deadline(Duration::from_secs(120))
        .event_handler(move |event| counting.count(&event.kind));
    let (pool, peers) = pool_of(builder, THREADS + 1);
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
            let mut conn = match pool.get() {
                Ok(conn) => conn,
                Err(error) => {
                    let mut said = said.lock().expect("no thread panics with the lock");
                    said.failed_checkouts.push(error.to_string());
                    continue;
                }
            };
            let outcome = conn.transaction_with_retry(|conn| {
                figures.runs.fetch_add(1, Ordering::Relaxed);
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
                Outcome::Unknown(doubt)
                    if records != Records::Table
                        && matches!(
                            doubt.reason(),
                            DoubtReason::Forgotten | DoubtReason::OtherIncarnation
                        ) =>
                {
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
        if records == Records::DeletedTable {
            scope.spawn(|| {
                let ledger = ledger();
                while !is_over.load(Ordering::Relaxed) {
                    let Ok(mut conn) = pool.get() else { continue };
                    ledger
                        .clean(&mut conn, Duration::ZERO)
                        .expect("cleaning is run again if it is interrupted");
                }
            });
        }
        let end = Instant::now() + duration();
        while Instant::now() < end {
            adversary();
        }
        drop(ends);
    });
    let said = said.into_inner().expect("no thread panics with the lock");
    println!(
        "{} transfers, {} forgotten, {} checkouts failed, {figures:?}",
        said.committed.len(),
        said.forgotten.len(),
        said.failed_checkouts.len(),
    );
    println!("{}", peers.snapshot());
    said
}

/// Compares what was said with what the database has. `list` returns the answer to a query, one row a line.
pub(crate) fn audit(said: &Said, list: impl Fn(&str) -> String) {
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
    assert!(said.failed_checkouts.is_empty(), "failed: {:?}", said.failed_checkouts);
    assert!(said.committed.len() > 50, "the bank has worked");
}
