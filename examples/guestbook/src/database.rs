//! The database: which one, where its peers are, and its tables.

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

/// Where the SQLite file is, in the folder in which the application runs.
const FOLDER: &str = "guestbook-data";
const NAMES: [&str; 3] = ["db0", "db1", "db2"];

/// A connection to the database, for one request.
#[database("guestbook")]
pub struct GuestBook(PeerConnection<Db>);

/// Which database it is, the URL says. diesel tries one after the other, and SQLite takes any URL for
/// the name of a file: it is the last.
#[derive(diesel::MultiConnection)]
pub enum Db {
    #[cfg(feature = "mysql")]
    Mysql(MysqlConnection),
    Sqlite(SqliteConnection),
}

/// Rocket's own configuration (`Rocket.toml`, the environment), and what is missing there.
pub fn configuration() -> Result<Figment, Box<dyn Error + Send + Sync>> {
    let configured = rocket::Config::figment();
    // Peers of ours would be added to those that are configured, whether these stand in one URL or by
    // name. So the default ones come all together or not at all.
    let has_peers = ["url", "peers"]
        .iter()
        .any(|key| configured.contains(&format!("databases.guestbook.{key}")));
    let mut figment = configured
        // A multiple of the number of peers.
        .join(("databases.guestbook.pool_size", 12));
    if !has_peers {
        // Not for others' peers: it would count more than what stands in their URL.
        figment = figment.join(("databases.guestbook.check_interval", "5s"));
        prepare_file()?;
        for name in NAMES {
            // diesel would create a missing file: empty, and healthy to look at.
            let url = format!("file:{FOLDER}/{name}/../data/guestbook.db?mode=rw");
            figment = figment.join((format!("databases.guestbook.peers.{name}"), url));
        }
    }
    Ok(figment)
}

/// One file under three paths. (Three files would be three databases.)
fn prepare_file() -> Result<(), Box<dyn Error + Send + Sync>> {
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder.join("data"))?;
    // With a write-ahead log those who read and the one who writes do not wait for each other. The
    // file keeps this setting. It is made here, as several connections cannot make it at a time.
    SqliteConnection::establish(&format!("{FOLDER}/data/guestbook.db"))?
        .batch_execute("PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL")?;
    for name in NAMES {
        fs::create_dir_all(folder.join(name))?;
    }
    Ok(())
}

/// What every connection needs.
pub fn customize() -> Customize<Db> {
    Customize::new(|_, peers| {
        peers.on_connect(|conn| match conn {
            #[cfg(feature = "mysql")]
            Db::Mysql(_) => Ok(()),
            // There is one writer at a time: each waits for its turn.
            Db::Sqlite(conn) => conn.batch_execute("PRAGMA busy_timeout = 5000"),
        })
    })
}

/// Creates the tables that are missing, through one peer: all of them serve the same. Without them
/// the application does not start.
pub async fn migrate(rocket: Rocket<Build>) -> fairing::Result {
    let Some(book) = GuestBook::get_one(&rocket).await else { return Err(rocket) };
    match book.run(|conn| conn.run_pending_migrations(MIGRATIONS).map(drop)).await {
        Ok(()) => Ok(rocket),
        Err(error) => {
            error!("the migrations failed: {error}");
            Err(rocket)
        }
    }
}
