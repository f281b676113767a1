//! The database: its backend, its peers and its migrations.

use std::error::Error;
use std::fs;
use std::path::Path;

#[cfg(feature = "mysql")]
use diesel::MysqlConnection;
use diesel::connection::SimpleConnection;
use diesel::{Connection, SqliteConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_peers::PeerConnection;
use diesel_peers::rocket::Customize;
use rocket::figment::Figment;
use rocket::{Build, Rocket, error, fairing};
use rocket_sync_db_pools::database;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// The folder of the SQLite file, in the working directory.
const FOLDER: &str = "guestbook-data";
const NAMES: [&str; 3] = ["db0", "db1", "db2"];

/// A connection to the database, for one request.
#[database("guestbook")]
pub struct GuestBook(PeerConnection<Db>);

/// A connection to either backend. A login tries the variants in order. SQLite is the last, because it accepts
/// any URL as a file name.
#[derive(diesel::MultiConnection)]
pub enum Db {
    #[cfg(feature = "mysql")]
    Mysql(MysqlConnection),
    Sqlite(SqliteConnection),
}

/// Returns Rocket's configuration (`Rocket.toml`, the environment), with defaults for the database.
pub fn configuration() -> Result<Figment, Box<dyn Error + Send + Sync>> {
    let configured = rocket::Config::figment();
    // Default peers would be added to configured ones, whether these are given as one URL or by name. So there
    // are default peers only if no peer is configured.
    let has_peers = ["url", "peers"]
        .iter()
        .any(|key| configured.contains(&format!("databases.guestbook.{key}")));
    let mut figment = configured
        // A multiple of three, so that three peers have equal shares.
        .join(("databases.guestbook.pool_size", 12));
    if !has_peers {
        // Only for the default peers, because this value takes precedence over a setting in a configured URL.
        figment = figment.join(("databases.guestbook.check_interval", "5s"));
        prepare_file()?;
        for name in NAMES {
            // Without `mode=rw`, SQLite would create a missing file, and the peer would stay up.
            let url = format!("file:{FOLDER}/{name}/../data/guestbook.db?mode=rw");
            figment = figment.join((format!("databases.guestbook.peers.{name}"), url));
        }
    }
    Ok(figment)
}

/// Creates one file and three paths to it. (Three files would be three databases.)
fn prepare_file() -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder.join("data"))?;
    // With a write-ahead log, readers and the writer do not wait for each other. The file keeps this setting,
    // which is made here because several connections cannot make it at the same time.
    SqliteConnection::establish(&format!("{FOLDER}/data/guestbook.db"))?
        .batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL")?;
    for name in NAMES {
        fs::create_dir_all(folder.join(name))?;
    }
    Ok(())
}

/// Prepares each new connection.
pub fn customize() -> Customize<Db> {
    Customize::new(|_, builder| {
        builder.on_connect(|conn| match conn {
            #[cfg(feature = "mysql")]
            Db::Mysql(_) => Ok(()),
            // SQLite has one writer at a time: let each connection wait for its turn.
            Db::Sqlite(conn) => conn.batch_execute("PRAGMA busy_timeout = 5000"),
        })
    })
}

/// Runs the migrations on one peer, because all peers have the same data. The application does not start if
/// they fail.
pub async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    let Some(database) = GuestBook::get_one(&rocket).await else { return Err(rocket) };
    match database.run(|conn| conn.run_pending_migrations(MIGRATIONS).map(drop)).await {
        Ok(()) => Ok(rocket),
        Err(error) => {
            error!("the migrations failed: {error}");
            Err(rocket)
        }
    }
}
