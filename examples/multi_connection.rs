//! A pool of diesel's `MultiConnection`, for an application whose database is chosen at run time. Without
//! arguments the database is SQLite, and nothing needs to be installed:
//!
//! ```sh
//! cargo run --example multi_connection
//! cargo run --example multi_connection --features mysql,postgres -- \
//!     postgres://app:secret@db0/shop postgres://app:secret@db1/shop
//! ```
//!
//! The example only reads, and fails if a peer is down. Note a limitation of the enum: it hides the cause of a
//! failed login. For a wrong password, an unreachable server and a backend that is not compiled in, the error is
//! always "Invalid connection url for multiconnection".

mod stand_in;

use std::collections::BTreeMap;
use std::env;
use std::error::Error;

use any::AnyConnection;
use diesel::prelude::*;
use diesel::r2d2::Pool;
use diesel::sql_types::Text;
use diesel_peers::PeerManager;

mod any {
    use diesel::prelude::*;

    /// A login tries the variants in order. SQLite is the last, because it accepts any URL as a file name.
    #[derive(diesel::MultiConnection)]
    pub(crate) enum AnyConnection {
        #[cfg(feature = "mysql")]
        Mysql(MysqlConnection),
        #[cfg(feature = "postgres")]
        Postgres(PgConnection),
        Sqlite(SqliteConnection),
    }
}

#[derive(QueryableByName)]
struct Version {
    #[diesel(sql_type = Text)]
    version: String,
}

/// Returns the version of the server. The SQL depends on the variant, but any variant runs it through the enum.
fn version(conn: &mut AnyConnection) -> QueryResult<String> {
    let query = match conn {
        #[cfg(feature = "mysql")]
        AnyConnection::Mysql(_) => "SELECT concat('MySQL ', version()) AS version",
        #[cfg(feature = "postgres")]
        AnyConnection::Postgres(_) => "SELECT version() AS version",
        AnyConnection::Sqlite(_) => "SELECT 'SQLite ' || sqlite_version() AS version",
    };
    diesel::sql_query(query).get_result(conn).map(|Version { version }| version)
}

fn main() -> Result<(), Box<dyn Error>> {
    let servers = stand_in::OneFile::new()?;
    let mut urls: Vec<String> = env::args().skip(1).collect();
    if urls.is_empty() {
        urls = vec![servers.peer("db0")?, servers.peer("db1")?];
    }
    let connections = u32::try_from(urls.len() * 2)?;
    // All peers of a pool have to be of the same kind.
    let mut builder = PeerManager::<AnyConnection>::builder();
    for (index, url) in urls.into_iter().enumerate() {
        builder = builder.peer(format!("db{index}"), url);
    }
    let manager = builder.build()?;
    let peers = manager.peers();
    let pool = Pool::builder().max_size(connections).build(manager)?;

    let mut served = BTreeMap::new();
    for _ in 0..100 {
        let mut conn = pool.get()?;
        let version = version(&mut conn)?;
        *served.entry(format!("{} is {version}", conn.peer())).or_insert(0) += 1;
    }
    for (peer, times) in served {
        println!("{peer}, and served {times} times");
    }
    let peers = peers.snapshot().peers;
    match peers.iter().find_map(|peer| peer.reason.as_ref().map(|reason| (&peer.name, reason))) {
        Some((name, reason)) => Err(format!("{name} is down: {reason}").into()),
        None => Ok(()),
    }
}
