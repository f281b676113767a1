//! Plain threads that share one pool over three peers: each has a clone of the pool, and checks a
//! connection out for one unit of work. Nothing needs to be installed:
//!
//! ```sh
//! cargo run --example threads
//! ```
//!
//! It fails if an order was lost or a peer was given no work.

#![allow(clippy::disallowed_methods, reason = "an application starts its own threads")]

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
type LoginFailure = Box<dyn Error + Send + Sync>;

const THREADS: u32 = 6;
const ORDERS_OF_EACH: u32 = 20;

mod schema {
    diesel::table! { stock (id) { id -> Integer, pieces -> Integer, } }
    diesel::table! { orders (id) { id -> Integer, peer -> Text, } }
}

const TABLES: &str = "CREATE TABLE stock (id INTEGER PRIMARY KEY, pieces INTEGER NOT NULL);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, peer TEXT NOT NULL);
    INSERT INTO stock VALUES (1, 120);";

fn main() -> Result<(), LoginFailure> {
    let servers = stand_in::OneFile::new()?;
    let manager = PeerManager::<SqliteConnection>::builder()
        .peer("db0", servers.peer("db0")?)
        .peer("db1", servers.peer("db1")?)
        .peer("db2", servers.peer("db2")?)
        // SQLite has one writer at a time: each waits for its turn.
        .on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 30000"))
        .build()?;
    // As many connections as threads: none waits for another's.
    let pool = Pool::builder().max_size(THREADS).build(manager)?;
    pool.get()?.batch_execute(TABLES)?;

    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let pool = pool.clone();
            thread::spawn(move || place_orders(&pool))
        })
        .collect();
    for thread in threads {
        thread.join().expect("none panics")?;
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
    if all != i64::from(THREADS * ORDERS_OF_EACH) || left != 0 || served.len() != 3 {
        return Err("an order was lost, or a peer was given no work".into());
    }
    Ok(())
}

fn place_orders(pool: &DbPool) -> Result<(), LoginFailure> {
    for _ in 0..ORDERS_OF_EACH {
        // One session with one peer for as long as it is held; the next may be with another one.
        let mut conn = pool.get()?;
        let peer = conn.peer().to_owned();
        conn.transaction(|conn| {
            diesel::update(stock::table).set(stock::pieces.eq(stock::pieces - 1)).execute(conn)?;
            diesel::insert_into(orders::table).values(orders::peer.eq(peer)).execute(conn)
        })?;
    }
    Ok(())
}
