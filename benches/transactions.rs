//! The cost of `transaction_with_retry`, without and with a ledger, compared with a plain transaction of diesel: one
//! `INSERT` each, on one MariaDB and one PostgreSQL server.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench transactions --features mysql,postgres
//! ```

mod rounds;

use diesel::connection::{Connection, SimpleConnection};
use diesel::r2d2::Pool;
use diesel_peers::{Ledger, PeerManager, RetryPolicy};
use rounds::quartiles;
use support::backend::{RealServer, build, manager_of};
use support::mariadb::MariaDb;
use support::postgres::Postgres;

const ROUNDS: usize = 41;
const TRANSACTIONS: usize = 100;

fn main() {
    println!(
        "one thread; median of {ROUNDS} rounds of {TRANSACTIONS} transactions, with quartiles"
    );
    compare(
        "MariaDB",
        &MariaDb::start(),
        "CREATE TABLE marks (id INT PRIMARY KEY AUTO_INCREMENT)",
        "()",
    );
    compare(
        "PostgreSQL",
        &Postgres::start(),
        "CREATE TABLE marks (id SERIAL PRIMARY KEY)",
        "(DEFAULT)",
    );
}

fn compare<S: RealServer>(name: &str, server: &S, create: &str, row: &str) {
    let ledger = Ledger::table("ledger");
    let pool = rounds::pool(build(manager_of::<S::Client>([server.url()])), 1, true);
    let mut conn = pool.get().expect("the server is up");
    conn.batch_execute(create).expect("a new database");
    conn.batch_execute(&ledger.create_table()).expect("a new database");
    drop(conn);

    let insert = format!("INSERT INTO marks VALUES {row}");
    let with_ledger = RetryPolicy::new().ledger(ledger);
    let mut times: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| {
            [
                plain(&pool, &insert),
                with_policy(&pool, &RetryPolicy::new(), &insert),
                with_policy(&pool, &with_ledger, &insert),
            ]
        })
        .collect();
    // The first rounds warm up.
    times.drain(..ROUNDS / 10);
    let names = ["diesel's transaction", "transaction_with_retry", "with a ledger"];
    for (at, what) in names.into_iter().enumerate() {
        let [median, low, high] = quartiles(times.iter().map(|times| times[at] / 1000.0));
        let [ratio, ..] = quartiles(times.iter().map(|times| times[at] / times[0]));
        println!(
            "{name:>10}, {what:<22} {median:>6.0} µs ({low:.0} to {high:.0}), {ratio:.2} times"
        );
    }
}

fn plain<C>(pool: &Pool<PeerManager<C>>, insert: &str) -> f64
where
    C: diesel::r2d2::R2D2Connection + Send + 'static,
{
    rounds::round(1, TRANSACTIONS, |_| {
        let mut conn = pool.get().expect("the server is up");
        conn.transaction(|conn| conn.batch_execute(insert)).expect("the server is up");
    })
}

fn with_policy<C>(pool: &Pool<PeerManager<C>>, policy: &RetryPolicy, insert: &str) -> f64
where
    C: diesel::r2d2::R2D2Connection + Send + 'static,
{
    rounds::round(1, TRANSACTIONS, |_| {
        let mut conn = pool.get().expect("the server is up");
        let outcome = policy.transaction(&mut conn, |conn| conn.batch_execute(insert));
        outcome.into_result().map_err(|error| error.to_string()).expect("the server is up");
    })
}
