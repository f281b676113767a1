//! Settings in text form: every source is read into the same keys and values, which are applied to the builder
//! here.

#[cfg(feature = "serde")]
mod deserialize;
mod environment;
mod hint;
pub(crate) mod keys;
mod multi_host;
mod peer_list;
mod source;
mod value;

#[cfg(test)]
mod tests;

#[cfg(feature = "serde")]
pub use deserialize::Config;

use std::env;
use std::ffi::OsString;
#[cfg(feature = "rocket")]
use std::time::Duration;

use crate::builder::PeerManagerBuilder;
use crate::error::{BuildErrorKind, Flaw};
use crate::url::dialect::Dialect;
use keys::PEER_KEYS;
use source::{Entries, Source};
use value::SettingValue;

/// Settings in text form. A key has the name of the corresponding builder method, and the same default.
/// An invalid setting is an error of [`build`](Self::build) that names the key.
impl<C: 'static> PeerManagerBuilder<C> {
    /// Sets the peers, and optionally other settings, from one URL with several hosts, the form that
    /// libpq, JDBC and MongoDB use:
    /// `mysql://app:secret@db0,db1:3307/shop?check_interval=10s&weight.db0=2&ssl_ca=/etc/ca.pem`.
    ///
    /// Each host becomes a peer. Its name is the host as written, including the port if there is one.
    /// Parameters that are not settings of this crate are passed on in the URL of each peer. For SQLite,
    /// list several paths: `file:a/shop.db,b/shop.db?mode=rw`.
    ///
    /// A number without a unit counts seconds; other durations have a unit (`250ms`, `30s`, `5min`, `1h`).
    /// `tcp_user_timeout` always needs a unit, because libpq has a parameter of the same name that counts
    /// milliseconds.
    ///
    /// The peers of this URL replace all peers that were set earlier. If a setting is given several
    /// times, the last value applies. [`user`](Self::user) and [`password`](Self::password) take
    /// precedence over the user and the password in the URL, in whichever order they are set.
    ///
    /// Write IPv6 hosts in brackets (`[::1]:3306`), and percent-encode special characters in the user and
    /// the password. Any error in the URL, including a scheme that does not fit `C`, is reported by
    /// [`build`](Self::build).
    ///
    /// ```
    /// # use diesel::SqliteConnection;
    /// # use diesel_peers::PeerManager;
    /// let manager = PeerManager::<SqliteConnection>::builder()
    ///     .url("file:a/shop.db,b/shop.db?mode=rw&check_interval=10s&weight.a/shop.db=2")
    ///     .build()?;
    /// # Ok::<_, diesel_peers::BuildError>(())
    /// ```
    #[must_use]
    pub fn url(self, url: impl Into<String>) -> Self {
        apply(self, Source::Named, vec![("url".to_owned(), SettingValue::Text(url.into()))])
    }

    /// Reads settings from the environment variables whose names begin with `prefix`.
    ///
    /// With the prefix `SHOP_DB_`, the variable `SHOP_DB_URL` has the form that [`url`](Self::url)
    /// accepts, `SHOP_DB_PASSWORD` is the password for all peers, and `SHOP_DB_CHECK_INTERVAL=10s` sets
    /// `check_interval`. Every variable that begins with the prefix must be a setting; any other is an
    /// error. (The variables that Kubernetes sets for a service `shop-db`, such as `SHOP_DB_SERVICE_HOST` and
    /// `SHOP_DB_PORT=tcp://..`, are passed over.)
    ///
    /// Weights and tiers are lists: `SHOP_DB_WEIGHT=db0=2,db1=1`. `peers` is not available.
    ///
    /// The variables override the same settings from earlier calls, and later calls override the
    /// variables. A variable that is not set changes nothing; an empty variable is an empty string. An
    /// empty prefix is an error of [`build`](Self::build).
    ///
    /// ```no_run
    /// # use diesel::SqliteConnection;
    /// # use diesel_peers::PeerManager;
    /// let manager = PeerManager::<SqliteConnection>::builder()
    ///     .url("file:a/shop.db,b/shop.db?mode=rw")
    ///     .env("SHOP_DB_")
    ///     .build()?;
    /// # Ok::<_, diesel_peers::BuildError>(())
    /// ```
    #[must_use]
    pub fn env(self, prefix: &str) -> Self {
        self.env_from(prefix, env::vars_os())
    }

    /// Like [`env`](Self::env), but reads the given variables in place of the environment: for tests, and for
    /// settings that are combined from several sources.
    ///
    /// ```
    /// # use std::ffi::OsString;
    /// # use diesel::SqliteConnection;
    /// # use diesel_peers::PeerManager;
    /// let variable = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
    /// let manager = PeerManager::<SqliteConnection>::builder()
    ///     .env_from("SHOP_DB_", [variable("SHOP_DB_URL", "file:a/shop.db,b/shop.db?mode=rw")])
    ///     .build()?;
    /// # Ok::<_, diesel_peers::BuildError>(())
    /// ```
    #[must_use]
    pub fn env_from(
        self,
        prefix: &str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let builder = self.with_searched_prefix(prefix);
        match environment::read(prefix, variables) {
            Ok(entries) => apply(builder, Source::Environment { prefix }, entries),
            Err(error) => builder.with_error(error),
        }
    }

    /// Applies settings that were read with serde, for example from TOML or figment.
    ///
    /// These settings override the same settings from earlier calls, and later calls override them. [`Config`]
    /// describes the keys.
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        apply(self, Source::Named, config.entries)
    }

    /// Like [`config`](Self::config), for the settings of a database in Rocket, whose own `timeout` is
    /// the timeout of the pool. Returns `None` if the settings contain `pool_timeout` as well.
    #[cfg(feature = "rocket")]
    pub(crate) fn rocket_config(self, config: Config, timeout: Duration) -> Option<Self> {
        let builder = apply(self, Source::Rocket, config.entries);
        (!builder.has_pool_timeout())
            .then(|| builder.pool_timeout_as(keys::ROCKET_TIMEOUT, timeout))
    }
}

/// Applies the settings of one source to the builder, unless an earlier setting has an error.
fn apply<C: 'static>(
    builder: PeerManagerBuilder<C>,
    source: Source<'_>,
    entries: Entries,
) -> PeerManagerBuilder<C> {
    if builder.has_error() {
        return builder;
    }
    let applied = try_apply(builder, source, entries);
    applied.unwrap_or_else(|error| PeerManagerBuilder::new().with_error(error))
}

fn try_apply<C: 'static>(
    mut builder: PeerManagerBuilder<C>,
    source: Source<'_>,
    mut entries: Entries,
) -> Result<PeerManagerBuilder<C>, BuildErrorKind> {
    // The peers come first, so that a setting of this source overrides the same setting inside its own URL
    // or table of peers.
    entries.sort_by_key(|(key, _)| !PEER_KEYS.contains(&&**key));
    for (index, (key, value)) in entries.iter().enumerate() {
        let error = |flaw| source.error(key, flaw);
        if entries[..index].iter().any(|(earlier, _)| earlier == key) {
            return Err(error(Flaw::new("is given twice", "remove one of them")));
        }
        builder = match (&**key, value) {
            ("url", SettingValue::List(_) | SettingValue::Table(_)) => {
                return Err(error(Flaw::new("is not a string", "give several URLs in `peers`")));
            }
            ("url", value) => {
                let (key, url) = (source.describe(key), value.text().map_err(error)?);
                let (peers, settings) =
                    multi_host::split(&key, url, Dialect::for_connection::<C>())?;
                try_apply(builder.peers(peers), Source::Url, settings)?
            }
            ("peers", _) if entries.iter().any(|(key, _)| key == "url") => {
                let flaw = Flaw::new("and `url` both define the peers", "remove one of them");
                return Err(error(flaw));
            }
            ("peers", value) => builder.peers(peer_list::read(value, source).map_err(error)?),
            (key, value) => {
                let setter = keys::setter(key).ok_or_else(|| hint::unknown_key(key, source));
                setter.and_then(|set| set(builder, value)).map_err(error)?
            }
        };
    }
    Ok(builder)
}
