//! A connection that is left in PostgreSQL's COPY mode is usable at its next checkout. (diesel's own ping does
//! not return from that mode.)

#![cfg(all(target_os = "linux", feature = "postgres"))]

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::CopyFormat;
use diesel::prelude::*;
use diesel::r2d2::PooledConnection;
use diesel::sql_types::Integer;
use diesel::{ExecuteCopyFromDsl, PgConnection};
use diesel_peers::PeerManager;
use support::backend::{PATIENCE, manager_of, pool_of, status};
use support::postgres::Postgres;
use support::wait_until;

diesel::table! {
    notes (id) {
        id -> Integer,
        name -> Text,
    }
}

type Conn = PooledConnection<PeerManager<PgConnection>>;

/// Runs a query whose prepared statement diesel caches.
fn query(conn: &mut Conn) -> QueryResult<i32> {
    diesel::select(1.into_sql::<Integer>()).get_result(conn)
}

fn reads_a_part(conn: &mut Conn) {
    let conn: &mut PgConnection = conn;
    let mut copy = diesel::copy_to(notes::table)
        .with_format(CopyFormat::Text)
        .load_raw(conn)
        .expect("the server copies");
    copy.read_exact(&mut [0; 10]).expect("there are rows");
}

fn sends_nothing(conn: &mut Conn) {
    conn.batch_execute("SELECT 1; COPY notes FROM STDIN").expect("the server waits for rows");
}

fn panics(conn: &mut Conn) {
    let copy = diesel::copy_from(notes::table)
        .from_raw_data(notes::table, |_| -> diesel::QueryResult<()> { panic!("on purpose") });
    let caught = catch_unwind(AssertUnwindSafe(|| copy.execute(&mut **conn)));
    assert!(caught.is_err(), "the closure panics");
}

#[test]
fn connection_left_in_a_copy_is_usable_at_the_next_checkout() {
    let server = Postgres::start();
    let builder = manager_of::<PgConnection>([server.url()]).ping_idle(Duration::ZERO);
    let (pool, peers) = pool_of(builder, 1);
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute(
        "CREATE TABLE notes (id INT, name TEXT);
         INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i",
    )
    .expect("the server is up");
    drop(conn);
    // A ping that never returns keeps its thread, so each step has a thread of its own.
    let (done, steps) = mpsc::channel();
    for leave in [reads_a_part as fn(&mut Conn), sends_nothing, panics] {
        let (pool, done) = (pool.clone(), done.clone());
        drop(thread::Builder::new().name("copies".into()).spawn(move || {
            let mut conn = pool.get().expect("the peer is up");
            query(&mut conn).expect("the connection works");
            leave(&mut conn);
            drop(conn);
            let mut conn = pool.get().expect("the connection was cleared or replaced");
            let answer = query(&mut conn);
            done.send(answer).expect("the test waits");
        }));
        assert_eq!(steps.recv_timeout(PATIENCE), Ok(Ok(1)), "the connection works");
    }
    assert_eq!(status(&peers, "peer0").connects, 1, "the session was kept");
    // Keeps the pool until the threads have returned their connections.
    let _ = pool.get_timeout(Duration::from_secs(5));
}

/// diesel reports a loss in the middle of a COPY like any error of a query, or reports nothing.
#[test]
fn connection_that_is_lost_in_a_copy_is_replaced() {
    let server = Postgres::start();
    let (pool, peers) = pool_of(manager_of::<PgConnection>([server.url()]), 1);
    let terminate = || {
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
        wait_until("the session ends", PATIENCE, || server.sessions() == 0);
    };
    let mut conn = pool.get().expect("the peer is up");
    conn.batch_execute(
        "CREATE TABLE notes (id INT, name TEXT);
         INSERT INTO notes SELECT i, repeat('x', 100) FROM generate_series(1, 100000) i",
    )
    .expect("the server is up");
    let row = |error: std::io::Error| diesel::result::Error::SerializationError(error.into());
    let copy = diesel::copy_from(notes::table).from_raw_data(notes::table, |sink| {
        terminate();
        // More than the buffers hold.
        (0..100_000).try_for_each(|_| sink.write_all(b"1\tone\n").map_err(row))
    });
    copy.execute(&mut *conn).expect_err("the session was terminated");
    drop(conn);
    assert_eq!(status(&peers, "peer0").queries_lost, 1, "the error of the COPY shows the loss");

    let mut conn = pool.get().expect("the peer is up");
    let mut rows = Vec::new();
    let inner: &mut PgConnection = &mut conn;
    let mut copy = diesel::copy_to(notes::table)
        .with_format(CopyFormat::Text)
        .load_raw(inner)
        .expect("the server copies");
    copy.read_exact(&mut [0; 10]).expect("there are rows");
    terminate();
    copy.read_to_end(&mut rows).expect_err("the session was terminated");
    drop(copy);
    drop(conn);
    wait_until("the connection is closed at its return", PATIENCE, || {
        status(&peers, "peer0").connects == 3
    });
}
