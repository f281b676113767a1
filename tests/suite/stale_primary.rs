//! A primary that was replaced by its standby and still runs: it accepts logins and reads, and never answers a COMMIT.
//! It decides nothing about a transaction of the new primary.

#![cfg(all(target_os = "linux", feature = "postgres"))]

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error;
use diesel_peers::{Ledger, Outcome, Role};
use support::backend::{PATIENCE, fill, manager_of, pool_of};
use support::cutting_proxy::{Cut, CuttingProxy};
use support::postgres::{self, Postgres};

use crate::transactions::{Kind, mark};

#[test]
fn stale_primary_does_not_resolve_by_a_table() {
    stale_primary_does_not_resolve(Ledger::table("ledger").into());
}

#[test]
fn stale_primary_does_not_resolve_by_transaction_ids() {
    stale_primary_does_not_resolve(Ledger::Xid);
}

fn stale_primary_does_not_resolve(ledger: Ledger) {
    let stale = Postgres::start();
    let new = stale.start_synchronous_standby();
    let mut founder = PgConnection::establish(&stale.url()).expect("the primary is up");
    let create = Ledger::table("ledger").create_table();
    founder
        .batch_execute(&format!("CREATE TABLE marks (id INT PRIMARY KEY); {create}"))
        .expect("a new database");
    let proxy = CuttingProxy::start(new.port());
    let urls = [postgres::url(proxy.port()), stale.url()];
    let builder = manager_of::<PgConnection>(urls)
        .require(Role::ReadWrite)
        .ledger(ledger)
        .retry_deadline(PATIENCE);
    // The history of the ledger is on both.
    let (own, _) =
        pool_of(manager_of::<PgConnection>([stale.url()]).ledger(Ledger::table("ledger")), 1);
    let mut conn = own.get().expect("the primary is up");
    assert_eq!(conn.transaction_with_retry(|conn| mark(conn, 1)), Outcome::Committed(()));
    new.promote();

    let (pool, peers) = pool_of(builder, 2);
    fill(&pool, &peers, &[1, 1]);
    let conns = [(); 2].map(|()| pool.get().expect("both accept logins"));
    // The idle connection to the stale one is the first that the resolution gets.
    let mut conn = conns.into_iter().find(|conn| conn.peer() == "peer0").expect("both have one");
    proxy.cut_at("COMMIT", Cut::BeforeAnswer);
    let mut runs = 0;
    let outcome = conn.transaction_with_retry(|conn| {
        runs += 1;
        mark(conn, 2)?;
        Ok::<_, Error>(())
    });
    assert_eq!((outcome, runs), (Outcome::Committed(()), 1));
    assert!(!proxy.is_pending());
    assert_eq!((new.marks(), stale.marks()), (2, 1));
}
