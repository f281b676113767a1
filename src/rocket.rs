//! `PeerConnection` as a database of [`rocket_sync_db_pools`].
//!
//! ```no_run
//! # #[macro_use] extern crate rocket;
//! # mod application {
//! use diesel::SqliteConnection;
//! use diesel_peers::PeerConnection;
//! use diesel_peers::rocket::Registry;
//! use rocket::State;
//! use rocket_sync_db_pools::database;
//!
//! #[database("shop")]
//! struct Shop(PeerConnection<SqliteConnection>);
//!
//! #[get("/peers")]
//! fn peers(registry: &State<Registry>) -> String {
//!     format!("{:?}", registry.peers("shop").map(|peers| peers.snapshot().peers.len()))
//! }
//!
//! #[launch]
//! fn rocket() -> _ {
//!     // The registry first: it lies ready when the database is set up.
//!     rocket::build().attach(Registry::fairing()).attach(Shop::fairing()).mount("/", routes![peers])
//! }
//! # }
//! # fn main() {}
//! ```
//!
//! Its settings stand in `Rocket.toml`, or wherever else Rocket is configured, under the names of
//! [`PeerManagerBuilder`]'s methods, beside Rocket's own `pool_size` and `timeout`:
//!
//! ```toml
//! [default.databases.shop]
//! url = "mysql://app:secret@db0,db1,db2/shop"
//! pool_size = 12
//! timeout = 10          # seconds, 5 by default: how long a request waits for a connection
//! check_interval = 30   # seconds, or "30s", "500ms"
//! ```
//!
//! Rocket insists on a `url`. With the [`Registry`]'s fairing attached first, the table `peers` takes
//! its place: `peers = { db0 = "...", db1 = { url = "...", weight = 2 } }`.
//!
//! With the feature `status-page`, `.mount("/peers", StatusPage::new())` shows the peers of every
//! database in the registry to an operator.

mod launch_error;
mod registry;
#[cfg(feature = "status-page")]
mod status_page;

use std::fmt;
use std::time::Duration;

use diesel::r2d2::{Pool, R2D2Connection};
use rocket::figment::Error as FigmentError;
use rocket::{Build, Rocket};
use rocket_sync_db_pools::{Config as PoolConfig, Error, PoolResult, Poolable};

pub use launch_error::LaunchError;
pub use registry::Registry;

use crate::builder::PeerManagerBuilder;
use crate::config::{Config, ROCKET_POOL_SIZE as SIZE, ROCKET_TIMEOUT as TIMEOUT};
use crate::dialect::Dialect;
use crate::manager::PeerManager;
use crate::pool::connection::PeerConnection;
use crate::pool::prime::prime;
use registry::PEERS;

/// What Rocket's own databases do with each SQLite connection.
const SQLITE: &str = "PRAGMA busy_timeout = 1000; PRAGMA foreign_keys = ON;";

/// And this with its file, once.
const SQLITE_FILE: &str = "PRAGMA journal_mode = WAL";

impl<C: R2D2Connection + Send + 'static> Poolable for PeerConnection<C> {
    type Manager = PeerManager<C>;
    type Error = LaunchError;

    /// The pool of a database: full, primed, and registered if the [`Registry`] is there.
    fn pool(database: &str, rocket: &Rocket<Build>) -> PoolResult<Self> {
        let figment = PoolConfig::figment(database, rocket);
        let PoolConfig { url, pool_size, timeout } = figment.extract()?;
        for (key, number) in [(SIZE, pool_size), (TIMEOUT, timeout.into())] {
            if number == 0 {
                let error = format!("`{key}` of database `{database}` is 0: give at least 1");
                return Err(FigmentError::from(error).into());
            }
        }
        let timeout = Duration::from_secs(timeout.into());
        let settings = figment.extract::<Config>()?.without(&[SIZE, TIMEOUT]);
        let settings = if url == PEERS { settings.without(&["url"]) } else { settings };

        let mut builder = PeerManager::builder().pool_name(database);
        if Dialect::for_connection::<C>() == Dialect::Sqlite {
            builder = builder.on_connect(|conn: &mut C| {
                conn.batch_execute(SQLITE)?;
                // It fails while another connection does the same.
                let _ = conn.batch_execute(SQLITE_FILE);
                Ok(())
            });
        }
        builder = settings.apply_with_rocket_timeout(builder, timeout).ok_or_else(|| {
            let error =
                format!("`pool_timeout` of database `{database}` is no setting: give `{TIMEOUT}`");
            FigmentError::from(error)
        })?;
        if let Some(Customize(customize)) = rocket.state::<Customize<C>>() {
            builder = customize(database, builder);
        }
        let manager =
            builder.build().map_err(|error| Error::Custom(LaunchError::of_settings(&error)))?;
        let peers = manager.peers();
        let pool = Pool::builder()
            .max_size(pool_size)
            .connection_timeout(timeout)
            .build(manager)
            .map_err(|error| Error::Custom(LaunchError::of_pool(&error, &peers)))?;
        prime(&pool);
        if let Some(registry) = rocket.state::<Registry>() {
            registry.register(database, peers);
        }
        Ok(pool)
    }
}

/// Sets what cannot stand in a file, for every database over connections of type `C`: lies in Rocket's
/// state before that database's fairing is attached.
///
/// ```
/// use diesel::SqliteConnection;
/// use diesel::connection::SimpleConnection;
/// use diesel_peers::rocket::Customize;
///
/// let rocket = rocket::build().manage(Customize::<SqliteConnection>::new(|database, builder| {
///     match database {
///         "shop" => builder.on_connect(|conn| conn.batch_execute("PRAGMA busy_timeout = 5000")),
///         _ => builder,
///     }
/// }));
/// ```
pub struct Customize<C>(Box<CustomizeBuilder<C>>);

type CustomizeBuilder<C> =
    dyn Fn(&str, PeerManagerBuilder<C>) -> PeerManagerBuilder<C> + Send + Sync;

impl<C> Customize<C> {
    /// `customize` is given a database's name, and its settings as they were read; what it sets counts.
    /// For SQLite `on_connect` sets Rocket's pragmas before, which one that is set here replaces.
    pub fn new(
        customize: impl Fn(&str, PeerManagerBuilder<C>) -> PeerManagerBuilder<C> + Send + Sync + 'static,
    ) -> Self {
        Self(Box::new(customize))
    }
}

impl<C> fmt::Debug for Customize<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Customize").finish_non_exhaustive()
    }
}
