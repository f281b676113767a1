//! Workers that take jobs from a table. One panics with a job in hand: its claim runs out, and
//! another worker does the job. It ends when all jobs are done, and fails if one was done twice or
//! not at all. Nothing needs to be installed: `cargo run --example job_worker`

#![allow(clippy::disallowed_methods, reason = "an application has its own pace")]

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

/// A job, and which try this is. It reads and then writes, and nobody may come in between: that takes
/// a transaction, and so one checkout, since the next may lead to another peer.
fn claim(conn: &mut SqliteConnection) -> QueryResult<Option<(i32, i32)>> {
    // By the database's clock, as the workers' may differ. A claim outlasts a job: a second or two.
    let (now, later) = (sql::<BigInt>("unixepoch()"), sql::<BigInt>("unixepoch() + 2"));
    // With MySQL or PostgreSQL it is `transaction`, and `.for_update().skip_locked()` on `free`.
    conn.immediate_transaction(|conn| {
        let free = jobs::table.filter(jobs::done.eq(false).and(jobs::free_at.le(now)));
        let free = free.order(jobs::id).select((jobs::id, jobs::tries + 1));
        let Some((job, this_try)) = free.first(conn).optional()? else { return Ok(None) };
        let claimed = (jobs::tries.eq(this_try), jobs::free_at.eq(later));
        diesel::update(jobs::table.find(job)).set(claimed).execute(conn)?;
        Ok(Some((job, this_try)))
    })
}

/// Writes a letter, and marks the job. Who comes after the claim ran out leaves neither behind.
fn work(conn: &mut SqliteConnection, job: i32, this_try: i32) -> QueryResult<()> {
    thread::sleep(Duration::from_millis(5));
    conn.transaction(|conn| {
        diesel::insert_into(letters::table).values(letters::job.eq(job)).execute(conn)?;
        let ours = jobs::table.find(job).filter(jobs::tries.eq(this_try));
        let done = diesel::update(ours).set(jobs::done.eq(true)).execute(conn)?;
        if done == 1 { Ok(()) } else { Err(RollbackTransaction) }
    })
}

fn worker(pool: &Pool<PeerManager<SqliteConnection>>) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        // Held for the claim and the work: this peer knows of the claim, others perhaps not yet.
        let mut conn = pool.get()?;
        if let Some((job, this_try)) = claim(&mut conn)? {
            assert!((job, this_try) != (13, 1), "this worker dies with job 13");
            // After an error the claim runs out, and somebody tries again.
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
        // SQLite has one writer at a time: each waits for its turn.
        .on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 30000"))
        .build()?;
    let pool = Pool::builder().max_size(4).build(manager)?;
    pool.get()?.batch_execute(TABLES)?;
    let new: Vec<_> = (1..=40).map(|job| jobs::id.eq(job)).collect();
    diesel::insert_into(jobs::table).values(new).execute(&mut pool.get()?)?;

    thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| worker(&pool))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect::<Result<(), _>>()
    })?;

    let letters = letters::table.select(letters::job).order(letters::job);
    let letters: Vec<i32> = letters.load(&mut pool.get()?)?;
    if letters.into_iter().eq(1..=40) { Ok(()) } else { Err("not each job was done once".into()) }
}
