//! Threads that share one pool over three peers. Each thread has a clone of the pool, and checks out one
//! connection for each unit of work. Nothing needs to be installed:
//!
//! ```sh
//! cargo run --example threads
//! ```
//!
//! The example fails if an order is lost or if a peer gets no work.

#![allow(clippy::disallowed_methods, reason = "applications may start threads")]

mod stand_in;

use std::error::Error;
use std::thread;

use diesel::connection::SimpleConnection;
use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel_peers::PeerManager;
use schema::{orders, stock};

type DbPool = Pool<PeerManager<SqliteConnection>>;
type AnyError = Box<dyn Error + Send + Sync>;

const THREADS: u32 = 6;
const ORDERS_PER_THREAD: u32 = 20;

mod schema {
    diesel::table! { stock (id) { id -> Integer, pieces -> Integer, } }
    diesel::table! { orders (id) { id -> Integer, peer -> Text, } }
}

const TABLES: &str = "CREATE TABLE stock (id INTEGER PRIMARY KEY, pieces INTEGER NOT NULL);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, peer TEXT NOT NULL);
    INSERT INTO stock VALUES (1, 120);";

fn main() -> Result<(), AnyError> {
    let servers = stand_in::OneFile::new()?;
    let manager = PeerManager::<SqliteConnection>::builder()
        .peer("db0", servers.peer("db0")?)
        .peer("db1", servers.peer("db1")?)
        .peer("db2", servers.peer("db2")?)
        // SQLite has one writer at a time: let each connection wait for its turn.
        .on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 30000"))
        .build()?;
    // With as many connections as threads, no thread waits for a connection.
    let pool = Pool::builder().max_size(THREADS).build(manager)?;
    pool.get()?.batch_execute(TABLES)?;

    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || place_orders(&pool))
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics")?;
    }

    let conn = &mut pool.get()?;
    let by_peer = orders::table.group_by(orders::peer).order(orders::peer);
    let served: Vec<(String, i64)> = by_peer.select((orders::peer, count_star())).load(conn)?;
    for (peer, orders) in &served {
        println!("{peer} took {orders} orders");
    }
    let all: i64 = served.iter().map(|(_, orders)| orders).sum();
    let left: i32 = stock::table.select(stock::pieces).get_result(conn)?;
    println!("{all} orders by {THREADS} threads, {left} pieces left");
    if all != i64::from(THREADS * ORDERS_PER_THREAD) || left != 0 || served.len() != 3 {
        return Err("an order was lost, or a peer got no work".into());
    }
    Ok(())
}

fn place_orders(pool: &DbPool) -> Result<(), AnyError> {
    for _ in 0..ORDERS_PER_THREAD {
        // The connection stays with one peer until it is checked in. The next one may lead to another peer.
        let mut conn = pool.get()?;
        let peer = conn.peer().to_owned();
        conn.transaction(|conn| {
            diesel::update(stock::table).set(stock::pieces.eq(stock::pieces - 1)).execute(conn)?;
            diesel::insert_into(orders::table).values(orders::peer.eq(peer)).execute(conn)
        })?;
    }
    Ok(())
}
