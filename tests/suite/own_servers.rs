//! The main job, on servers of the tester's own: those that the environment variables name
//! (comma-separated URLs of equivalent servers), else on the bench's. Nothing is written to them.

#![cfg(any(feature = "mysql", feature = "postgres"))]

use diesel::connection::{Connection, SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel_peers::PeerState;
use support::backend::{Backend, PATIENCE, SOON, links, manager_of, pool_of, state};
use support::port::free_port;
use support::{own_urls, wait_until};

fn serve<B: Backend>(var: &str, dead_url: impl Fn(u16) -> String) {
    // The servers live as long as they are held.
    let (urls, _servers) = own_urls(var).map_or_else(
        || {
            let servers = B::start(2);
            (servers.iter().map(Backend::url).collect::<Vec<_>>(), servers)
        },
        |urls| (urls, Vec::new()),
    );
    let living = urls.len();
    let nobody = free_port();
    let all = urls.into_iter().chain([dead_url(nobody.number())]);
    let builder = manager_of::<B::Connection>(all).check_interval(SOON);
    let (pool, peers) = pool_of(builder, u32::try_from(2 * living).expect("a few"));
    wait_until("each living peer has its share", PATIENCE, || {
        links(&peers)[..living].iter().all(|links| *links == 2)
    });
    let dead = format!("peer{living}");
    wait_until("the other is marked", PATIENCE, || state(&peers, &dead) == PeerState::Down);

    let mut all: Vec<_> = (0..2 * living).map(|_| pool.get().expect("there is one")).collect();
    for conn in &mut all {
        conn.batch_execute("SELECT 1").expect("it serves");
        conn.ping().expect("it answers");
        Transactions::<B>::begin_transaction(&mut **conn).expect("it takes work");
        conn.batch_execute("SELECT 1").expect("it serves");
        Transactions::<B>::rollback_transaction(&mut **conn).expect("it is rolled back");
    }
    drop(all);
    for status in &peers.snapshot().peers[..living] {
        assert_eq!((status.state, status.connects), (PeerState::Up, 2), "{status:?}");
    }
}

type Transactions<B> = <<B as Backend>::Connection as Connection>::TransactionManager;

#[cfg(feature = "mysql")]
#[test]
fn mysql() {
    serve::<support::mariadb::MariaDb>(support::OWN_MYSQL, support::mariadb::url);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres() {
    serve::<support::postgres::Postgres>(support::OWN_POSTGRES, support::postgres::url);
}
