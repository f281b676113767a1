//! Queries per second with one thread and with eight. Compares this crate over three MariaDB servers with
//! diesel's own manager on one of them, without its test at checkout, and with diesel's own manager through
//! HAProxy, with the test, where HAProxy balances over the same three servers.
//!
//! ```sh
//! cargo bench -p diesel-peers-tests --bench throughput --features mysql
//! ```
//!
//! The queries are as small as possible, so that the overhead of the pool dominates. Clients and servers share
//! the processors of one machine, on which three servers serve fewer queries than one, because they compete
//! for the caches. More contenders show what costs what: diesel's own manager without its test over the three
//! servers in turn, as three pools, or over one server as three pools; and this crate over one server, as three
//! peers and as the only one. With one thread, three connections in turn are slower than one, because each
//! time another thread of the server has to be woken.

mod rounds;

use diesel::connection::LoadConnection;
use diesel::dsl::select;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, ManageConnection, Pool, R2D2Connection};
use diesel::sql_types::Integer;
use rounds::quartiles;
use support::backend::{build, manager_of, manager_over};
use support::haproxy::HaProxy;
use support::mariadb::MariaDb;

const ROUNDS: usize = 61;
const CONNECTIONS: u32 = 16;
const QUERIES: usize = 200;

fn main() {
    let servers = [MariaDb::start(), MariaDb::start(), MariaDb::start()];
    let proxy = HaProxy::balancing(&servers.each_ref().map(|server| server.port()));
    let single = |url: String, is_tested: bool| {
        rounds::pool(ConnectionManager::<MysqlConnection>::new(url), CONNECTIONS, is_tested)
    };
    let direct = [single(servers[0].url(), false)];
    let in_turn = servers.each_ref().map(|server| single(server.url(), false));
    let same_in_turn = [(); 3].map(|()| single(servers[0].url(), false));
    let proxied = [single(proxy.mysql_url(), true)];
    let one_server = |peers: usize| manager_of(vec![servers[0].url(); peers]);
    let balanced = [manager_over(&servers), one_server(3), one_server(1)];
    let balanced = balanced.map(|builder| [rounds::pool(build(builder), CONNECTIONS, true)]);
    let [over_three, over_one_as_three, over_one] = balanced;

    for threads in [1, 8] {
        let rates = || {
            [
                rate(&over_three, threads),
                rate(&direct, threads),
                rate(&proxied, threads),
                rate(&in_turn, threads),
                rate(&over_one_as_three, threads),
                rate(&same_in_turn, threads),
                rate(&over_one, threads),
            ]
        };
        let mut rates: Vec<_> = (0..ROUNDS).map(|_| rates()).collect();
        // The first rounds warm up.
        rates.drain(..ROUNDS / 10);
        report(threads, &rates);
    }
}

fn report(threads: usize, rates: &[[f64; 7]]) {
    println!(
        "{CONNECTIONS} connections, {threads} threads; median of {ROUNDS} rounds of {QUERIES} queries \
         per thread, with quartiles"
    );
    let names = [
        "this crate, three servers",
        "untested, one server",
        "tested, HAProxy, three servers",
        "untested, three in turn",
        "this crate, one as three peers",
        "untested, one as three in turn",
        "this crate, one as the only peer",
    ];
    for (at, name) in names.into_iter().enumerate() {
        let [median, low, high] = quartiles(rates.iter().map(|rates| rates[at]));
        println!("{name:>33} {median:>7.0} queries per second ({low:.0} to {high:.0})");
    }
    println!("ratios");
    for (one, other) in [(0, 1), (0, 2), (0, 3), (4, 1), (4, 5), (6, 1)] {
        let [median, low, high] = quartiles(rates.iter().map(|rates| rates[one] / rates[other]));
        println!("{:>33} {median:>7.2} of {} ({low:.2} to {high:.2})", names[one], names[other]);
    }
}

/// Queries per second, over the pools in turn.
#[expect(clippy::cast_precision_loss, reason = "a few threads")]
fn rate<M>(pools: &[Pool<M>], threads: usize) -> f64
where
    M: ManageConnection,
    M::Connection: R2D2Connection<Backend = Mysql> + LoadConnection,
{
    let each = rounds::round(threads, QUERIES, |at| {
        let pool = &pools[at % pools.len()];
        let mut conn = pool.get().expect("there are more connections than threads");
        // A prepared statement: one round trip.
        let one = select(1.into_sql::<Integer>()).get_result::<i32>(&mut *conn);
        assert_eq!(one.expect("the servers are running"), 1);
    });
    1e9 * threads as f64 / each
}
