//! An application that learns only at run time which database it works with: a `MultiConnection` of
//! diesel's in the pool. Without URLs that is SQLite, and nothing needs to be installed:
//!
//! ```sh
//! cargo run --example multi_connection
//! cargo run --example multi_connection --features mysql,postgres -- \
//!     postgres://app:secret@db0/shop postgres://app:secret@db1/shop
//! ```
//!
//! It only reads, and fails if a peer was found down. Mind the enum's limitation: it swallows the
//! cause of a failed login. A wrong password, a dead server and a backend that is not compiled in all
//! read "Invalid connection url for multiconnection".

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

    /// Each login tries one after the other. SQLite is the last: it takes any URL for a file's name.
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

/// The variant tells which SQL to use; what is the same for all goes through the enum.
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
    // The peers of one pool are all of one kind.
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
