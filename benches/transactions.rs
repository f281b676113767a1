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
    let table = Ledger::table("ledger");
    compare(
        "MariaDB",
        &MariaDb::start(),
        "CREATE TABLE marks (id INT PRIMARY KEY AUTO_INCREMENT)",
        "()",
        &[("with a table", table.clone().into())],
    );
    compare(
        "PostgreSQL",
        &Postgres::start(),
        "CREATE TABLE marks (id SERIAL PRIMARY KEY)",
        "(DEFAULT)",
        &[("with a table", table.into()), ("with transaction ids", Ledger::Xid)],
    );
}

fn compare<S: RealServer>(
    name: &str,
    server: &S,
    create: &str,
    row: &str,
    ledgers: &[(&str, Ledger)],
) {
    let pool = rounds::pool(build(manager_of::<S::Client>([server.url()])), 1, true);
    let mut conn = pool.get().expect("the server is up");
    conn.batch_execute(create).expect("a new database");
    for (_, ledger) in ledgers {
        if let Ledger::Table(table) = ledger {
            conn.batch_execute(&table.create_table()).expect("a new database");
        }
    }
    drop(conn);

    let insert = format!("INSERT INTO marks VALUES {row}");
    let policy = RetryPolicy::new();
    let with_ledger =
        ledgers.iter().map(|(name, ledger)| (*name, policy.clone().ledger(ledger.clone())));
    let policies: Vec<_> =
        [("transaction_with_retry", policy.clone())].into_iter().chain(with_ledger).collect();
    let mut times: Vec<Vec<f64>> = (0..ROUNDS)
        .map(|_| {
            let with_policies =
                policies.iter().map(|(_, policy)| with_policy(&pool, policy, &insert));
            [plain(&pool, &insert)].into_iter().chain(with_policies).collect()
        })
        .collect();
    // The first rounds warm up.
    times.drain(..ROUNDS / 10);
    let names = ["diesel's transaction"].into_iter().chain(policies.iter().map(|(name, _)| *name));
    for (at, what) in names.enumerate() {
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
