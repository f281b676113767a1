//! A bulk load whose server reads nothing for longer than `tcp_user_timeout`, because it waits for a lock, goes
//! on afterwards.

#![cfg(all(target_os = "linux", feature = "postgres"))]

use std::thread;
use std::time::Duration;

use diesel::PgConnection;
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use support::backend::{manager_of, pool_of};
use support::postgres::Postgres;

diesel::table! {
    bulk (id) {
        id -> Integer,
        text -> Text,
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the lock is held for some time")]
fn load_that_waits_for_a_lock_outlives_the_tcp_timeout() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let server = Postgres::start();
    let (pool, _peers) =
        pool_of(manager_of::<PgConnection>([server.url()]).tcp_user_timeout(TIMEOUT), 1);
    let mut conn = pool.get().expect("the server works");
    conn.batch_execute("CREATE TABLE bulk (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        .expect("the user may create tables");
    let mut other = PgConnection::establish(&server.url()).expect("the server works");
    other.batch_execute("BEGIN; INSERT INTO bulk VALUES (0, 'x')").expect("the table exists");
    // 40 MB, more than the kernel buffers. Row 0 waits for the other transaction.
    let mut load = || {
        diesel::copy_from(bulk::table)
            .from_raw_data(bulk::table, |copy| {
                let text = "x".repeat(100_000);
                (0..400)
                    .try_for_each(|id| writeln!(copy, "{id}\t{text}"))
                    .map_err(|error| diesel::result::Error::SerializationError(error.into()))
            })
            .execute(&mut *conn)
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(4 * TIMEOUT);
            other.batch_execute("ROLLBACK").expect("the server works");
        });
        assert_eq!(load(), Ok(400));
    });
}
