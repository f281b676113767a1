//! `PeerConnection` as a database of [`rocket_sync_db_pools`].
//!
//! The guide has a whole application, with its `Rocket.toml` and `Cargo.toml`
//! ([rocket](crate::guide::rocket)).
//!
//! The settings are part of Rocket's configuration, for example in `Rocket.toml`. The keys have the names
//! of [`PeerManagerBuilder`]'s methods, in addition to Rocket's own `pool_size` and `timeout`. Rocket requires
//! a `url`. If the fairing of the [`Registry`] is attached first, a table `peers` can replace it:
//! `peers = { db0 = "...", db1 = { url = "...", weight = 2 } }`.
//!
//! With the feature `status-page`, `.mount("/peers", StatusPage::new())` shows operators the peers of
//! every database in the registry.

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
use crate::config::Config;
use crate::config::keys::{ROCKET_POOL_SIZE as SIZE, ROCKET_TIMEOUT as TIMEOUT};
use crate::manager::PeerManager;
use crate::pool::connection::PeerConnection;
use crate::prime::prime;
use crate::url::dialect::Dialect;
use registry::URL_PLACEHOLDER;

/// The pragmas that Rocket's own databases set on each SQLite connection.
const SQLITE_PRAGMAS: &str = "PRAGMA busy_timeout = 1000; PRAGMA foreign_keys = ON;";

/// The pragma that Rocket's own databases set once, because SQLite stores it in the file.
const SQLITE_FILE_PRAGMA: &str = "PRAGMA journal_mode = WAL";

impl<C: R2D2Connection + Send + 'static> Poolable for PeerConnection<C> {
    type Manager = PeerManager<C>;
    type Error = LaunchError;

    /// Builds the pool of a database: with all its connections open, primed, and registered if the
    /// [`Registry`] is attached.
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
        let settings = if url == URL_PLACEHOLDER { settings.without(&["url"]) } else { settings };

        let mut builder = PeerManager::builder().pool_name(database);
        if Dialect::for_connection::<C>() == Dialect::Sqlite {
            builder = builder.on_connect(|conn: &mut C| {
                conn.batch_execute(SQLITE_PRAGMAS)?;
                // The pragma fails while another connection sets it, which is harmless.
                let _ = conn.batch_execute(SQLITE_FILE_PRAGMA);
                Ok(())
            });
        }
        builder = builder.rocket_config(settings, timeout).ok_or_else(|| {
            let key = format!("`pool_timeout` of database `{database}`");
            FigmentError::from(format!("{key} is not a setting: use Rocket's `{TIMEOUT}`"))
        })?;
        if let Some(Customize(customize)) = rocket.state::<Customize<C>>() {
            builder = customize(database, builder);
        }
        let manager = builder
            .build()
            .map_err(|error| Error::Custom(LaunchError::from_build_error(&error)))?;
        let peers = manager.peers();
        let pool = Pool::builder()
            .max_size(pool_size)
            .connection_timeout(timeout)
            .build(manager)
            .map_err(|error| Error::Custom(LaunchError::from_pool_error(&error, &peers)))?;
        prime(&pool);
        if let Some(registry) = rocket.state::<Registry>() {
            registry.register(database, peers);
        }
        Ok(pool)
    }
}

/// A closure that adds settings in code, such as other closures, to Rocket's configuration. The closure applies
/// to every database with connections of type `C`. Pass the `Customize` to `manage` before the fairing of the
/// database is attached.
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
    /// Creates a customization: `customize` is called for each database, with the name of the database and a
    /// builder that has the settings of Rocket's configuration. Settings made by `customize` override them.
    ///
    /// For SQLite the builder has an `on_connect` that sets Rocket's pragmas; another `on_connect` replaces
    /// it.
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
