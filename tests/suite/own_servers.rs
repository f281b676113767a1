//! Connecting, balancing and marking on the tester's own servers: environment variables hold
//! comma-separated URLs of equivalent servers. Without these variables, on servers that the tests start.
//! Nothing is written to the servers.

#![cfg(any(feature = "mysql", feature = "postgres"))]

use diesel::connection::{Connection, SimpleConnection, TransactionManager};
use diesel::r2d2::R2D2Connection;
use diesel_peers::PeerState;
use support::backend::{Backend, PATIENCE, SOON, links, manager_of, pool_of, state};
use support::port::free_port;
use support::{own_urls, wait_until};

fn pool_serves_from_running_servers_and_marks_an_unreachable_one<B: Backend>(
    variable: &str,
    url_of_port: impl Fn(u16) -> String,
) {
    // The servers run as long as they are held.
    let (urls, _servers) = own_urls(variable).map_or_else(
        || {
            let servers = B::start(2);
            (servers.iter().map(Backend::url).collect::<Vec<_>>(), servers)
        },
        |urls| (urls, Vec::new()),
    );
    let running = urls.len();
    let unused = free_port();
    let urls = urls.into_iter().chain([url_of_port(unused.number())]);
    let builder = manager_of::<B::Connection>(urls).check_interval(SOON);
    let (pool, peers) = pool_of(builder, u32::try_from(2 * running).expect("a few servers"));
    wait_until("each running peer has two connections", PATIENCE, || {
        links(&peers)[..running].iter().all(|links| *links == 2)
    });
    let unreachable = format!("peer{running}");
    wait_until("the unreachable peer is marked down", PATIENCE, || {
        state(&peers, &unreachable).is_marked_down()
    });

    let get = |_| pool.get().expect("the pool has a connection");
    let mut all: Vec<_> = (0..2 * running).map(get).collect();
    for conn in &mut all {
        conn.batch_execute("SELECT 1").expect("the query succeeds");
        conn.ping().expect("the server answers");
        Transactions::<B>::begin_transaction(&mut **conn).expect("a transaction begins");
        conn.batch_execute("SELECT 1").expect("the query succeeds");
        Transactions::<B>::rollback_transaction(&mut **conn).expect("it is rolled back");
    }
    drop(all);
    for status in &peers.snapshot().peers[..running] {
        assert_eq!((status.state, status.connects), (PeerState::Up, 2), "{status:?}");
    }
}

type Transactions<B> = <<B as Backend>::Connection as Connection>::TransactionManager;

#[cfg(feature = "mysql")]
#[test]
fn mysql_pool_serves_from_running_servers_and_marks_an_unreachable_one() {
    use support::mariadb::{MariaDb, url};

    pool_serves_from_running_servers_and_marks_an_unreachable_one::<MariaDb>(
        support::OWN_MYSQL,
        url,
    );
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_pool_serves_from_running_servers_and_marks_an_unreachable_one() {
    use support::postgres::{Postgres, url};

    pool_serves_from_running_servers_and_marks_an_unreachable_one::<Postgres>(
        support::OWN_POSTGRES,
        url,
    );
}
