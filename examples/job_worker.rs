//! Workers that take jobs from a table. One worker panics after it has claimed a job: its claim expires, and
//! another worker does the job. The example ends when all jobs are done, and fails if a job was not done exactly
//! once. Nothing needs to be installed:
//!
//! ```sh
//! cargo run --example job_worker
//! ```

#![allow(clippy::disallowed_methods, reason = "applications may sleep")]

mod stand_in;

use std::error::Error;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel::result::Error::RollbackTransaction;
use diesel::sql_types::BigInt;
use diesel_peers::PeerManager;
use schema::{jobs, letters};

const TABLES: &str = "CREATE TABLE letters (job INTEGER NOT NULL);
    CREATE TABLE jobs (id INTEGER PRIMARY KEY, tries INTEGER DEFAULT 0 NOT NULL,
        free_at BIGINT DEFAULT 0 NOT NULL, done BOOLEAN DEFAULT FALSE NOT NULL);";

mod schema {
    diesel::table! { letters (job) { job -> Integer, } }
    diesel::table! {
        jobs (id) { id -> Integer, tries -> Integer, free_at -> BigInt, done -> Bool, }
    }
}

/// Claims the next free job. Returns the job and the number of this try, or `None` if no job is free.
///
/// No other worker may claim the job between the read and the write, so both are in one transaction. A
/// transaction needs one checkout, because the next checkout may lead to another peer.
fn claim(conn: &mut SqliteConnection) -> QueryResult<Option<(i32, i32)>> {
    // The clock of the database, because the clocks of the workers may differ. A claim is valid for one to two
    // seconds, which is longer than a job takes.
    let (now, later) = (sql::<BigInt>("unixepoch()"), sql::<BigInt>("unixepoch() + 2"));
    // With MySQL or PostgreSQL, use `transaction`, and `.for_update().skip_locked()` on `free`.
    conn.immediate_transaction(|conn| {
        let free = jobs::table.filter(jobs::done.eq(false).and(jobs::free_at.le(now)));
        let free = free.order(jobs::id).select((jobs::id, jobs::tries + 1));
        let Some((job, this_try)) = free.first(conn).optional()? else { return Ok(None) };
        let claimed = (jobs::tries.eq(this_try), jobs::free_at.eq(later));
        diesel::update(jobs::table.find(job)).set(claimed).execute(conn)?;
        Ok(Some((job, this_try)))
    })
}

/// Writes a letter and marks the job as done, in one transaction. After the claim has expired, the transaction
/// is rolled back.
fn work(conn: &mut SqliteConnection, job: i32, this_try: i32) -> QueryResult<()> {
    thread::sleep(Duration::from_millis(5));
    conn.transaction(|conn| {
        diesel::insert_into(letters::table).values(letters::job.eq(job)).execute(conn)?;
        let claimed = jobs::table.find(job).filter(jobs::tries.eq(this_try));
        let done = diesel::update(claimed).set(jobs::done.eq(true)).execute(conn)?;
        if done == 1 { Ok(()) } else { Err(RollbackTransaction) }
    })
}

fn worker(pool: &Pool<PeerManager<SqliteConnection>>) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        // One connection for the claim and the work: replicas may show the claim later than this peer.
        let mut conn = pool.get()?;
        if let Some((job, this_try)) = claim(&mut conn)? {
            assert!((job, this_try) != (13, 1), "this worker dies with job 13");
            // After an error, the claim expires, and another worker tries again.
            println!("job {job}, try {this_try}: {:?}", work(&mut conn, job, this_try));
        } else if jobs::table.filter(jobs::done.eq(false)).count().get_result(&mut conn) == Ok(0) {
            return Ok(());
        }
        drop(conn);
        thread::sleep(Duration::from_millis(5));
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let servers = stand_in::OneFile::new()?;
    let manager = PeerManager::<SqliteConnection>::builder()
        .peer("db0", servers.peer("db0")?)
        .peer("db1", servers.peer("db1")?)
        // SQLite has one writer at a time: let each connection wait for its turn.
        .on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 30000"))
        .build()?;
    let pool = Pool::builder().max_size(4).build(manager)?;
    pool.get()?.batch_execute(TABLES)?;
    let new_jobs: Vec<_> = (1..=40).map(|job| jobs::id.eq(job)).collect();
    diesel::insert_into(jobs::table).values(new_jobs).execute(&mut pool.get()?)?;

    thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| worker(&pool))).collect();
        // `join` returns an error for the worker that panics.
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Result<(), _>>()
    })?;

    let letters = letters::table.select(letters::job).order(letters::job);
    let letters: Vec<i32> = letters.load(&mut pool.get()?)?;
    if letters.into_iter().eq(1..=40) {
        Ok(())
    } else {
        Err("a job was not done exactly once".into())
    }
}
