//! Settings in text form. One table of keys serves every source: URL, environment variables and files.

#[cfg(feature = "serde")]
mod deserialize;
mod environment;
mod hint;
mod multi_host;
mod value;

#[cfg(test)]
mod tests;

#[cfg(feature = "serde")]
pub use deserialize::Config;

use std::env;
use std::ffi::OsString;

use crate::builder::PeerManagerBuilder;
use crate::error::BuildErrorKind;
use crate::peers::peer_config::PeerConfig;
use crate::redact::{may_be_shown, shown_or_redacted};
use environment::apply_environment;
use hint::unknown_key;
use multi_host::default_name;
use value::{InvalidSetting, SettingValue};

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
    pub fn url(self, url: &str) -> Self {
        multi_host::apply_url(self, &Source::File.describe("url"), url)
    }

    /// Reads settings from the environment variables whose names begin with `prefix`.
    ///
    /// With the prefix `SHOP_DB_`, the variable `SHOP_DB_URL` has the form that [`url`](Self::url)
    /// accepts, `SHOP_DB_PASSWORD` is the password for all peers, and `SHOP_DB_CHECK_INTERVAL=10s` sets
    /// `check_interval`. Every variable that begins with the prefix must be a setting; any other is an
    /// error. (In Kubernetes, a service named `shop-db` also sets variables that begin with `SHOP_DB_`:
    /// choose another prefix there.)
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
        apply_environment(self.with_searched_prefix(prefix), prefix, variables)
    }

    /// Applies settings that were read with serde, for example from TOML or figment.
    ///
    /// These settings override the same settings from earlier calls, and later calls override them. [`Config`]
    /// describes the keys.
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        config.apply_to(self)
    }
}

/// The keys that define the peers.
const PEER_KEYS: [&str; 2] = ["url", "peers"];

/// The keys of all other settings that have a text form.
const SETTINGS: [&str; 27] = [
    "pool_name",
    "weight",
    "tier",
    "strategy",
    "balance",
    "rebalance_interval",
    "connection_max_age",
    "user",
    "password",
    "pool_timeout",
    "check_interval",
    "connect_timeout",
    "connect_deadline",
    "ping_timeout",
    "ping_idle",
    "stall_after",
    "check_timeout",
    "tcp_keepalive",
    "tcp_user_timeout",
    "require",
    "galera_donors",
    "recovery",
    "all_down",
    "all_down_interval",
    "all_down_wait",
    "resolve_interval",
    "rng_seed",
];

/// The keys of the pool's own settings, in r2d2 and in Rocket.
const POOL_KEYS: [&str; 8] = [
    "max_size",
    "min_idle",
    "connection_timeout",
    "idle_timeout",
    "max_lifetime",
    "test_on_check_out",
    "pool_size",
    "timeout",
];

/// The settings of a database that belong to Rocket itself, besides `url`.
#[cfg(feature = "rocket")]
pub(crate) const ROCKET_POOL_SIZE: &str = "pool_size";
#[cfg(feature = "rocket")]
pub(crate) const ROCKET_TIMEOUT: &str = "timeout";

/// The builder methods that take a closure, and so have no text form.
const CLOSURE_METHODS: [&str; 6] =
    ["on_connect", "credentials", "health_check", "classify", "event_handler", "resolver"];

const U32_RANGE: &str = "give a whole number from 0 to 4294967295";
const U64_RANGE: &str = "give a whole number from 0 to 18446744073709551615";
const NUMBER_BY_PEER: &str = "give a number for each peer by name, such as `{ db0 = 2, db1 = 1 }`, or as \
                              a string, \"db0=2,db1=1\"";

/// The settings of one source, as they were read.
type Entries = Vec<(String, SettingValue)>;

/// Where settings come from, so that an error can name the place to correct.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Source<'a> {
    File,
    /// The configuration of a database in Rocket, which also contains Rocket's own settings.
    #[cfg(feature = "rocket")]
    Rocket,
    Url,
    Environment {
        prefix: &'a str,
    },
}

impl Source<'_> {
    /// Describes a key for an error text. Does not show a key or a prefix that may be a secret.
    fn describe(self, key: &str) -> String {
        match self {
            Self::Environment { prefix } if !(may_be_shown(prefix) && may_be_shown(key)) => {
                "an environment variable whose name may be a secret (not shown)".to_owned()
            }
            _ if !may_be_shown(key) => "a key that may be a secret (not shown)".to_owned(),
            Self::File => format!("`{key}`"),
            #[cfg(feature = "rocket")]
            Self::Rocket => Self::File.describe(key),
            Self::Url => format!("`{key}` in the URL"),
            Self::Environment { prefix } => {
                format!("the environment variable `{prefix}{}`", key.to_ascii_uppercase())
            }
        }
    }

    fn error(
        self,
        key: &str,
        InvalidSetting { flaw, correction }: InvalidSetting,
    ) -> BuildErrorKind {
        let is_setting = PEER_KEYS.contains(&key) || SETTINGS.contains(&key);
        let setting = is_setting.then(|| key.to_owned());
        BuildErrorKind::Setting { setting, key: self.describe(key), flaw, correction }
    }
}

/// Applies the settings of one source to the builder.
fn apply<C: 'static>(
    mut builder: PeerManagerBuilder<C>,
    source: Source<'_>,
    mut settings: Entries,
) -> PeerManagerBuilder<C> {
    // The peers come first, so that a setting of this source overrides the same setting inside its own URL
    // or table of peers.
    settings.sort_by_key(|(key, _)| !PEER_KEYS.contains(&&**key));
    for (index, (key, value)) in settings.iter().enumerate() {
        if builder.has_error() {
            break;
        }
        let is_first = settings[..index].iter().all(|(earlier, _)| earlier != key);
        let is_url_too = key == "peers" && settings.iter().any(|(key, _)| key == "url");
        let applied = if !is_first {
            Err(InvalidSetting::new("is given twice", "remove one of them"))
        } else if is_url_too {
            Err(InvalidSetting::new("and `url` both define the peers", "remove one of them"))
        } else {
            apply_setting(builder, source, key, value)
        };
        builder = match applied {
            Ok(builder) => builder,
            Err(invalid) => {
                return PeerManagerBuilder::new().with_error(source.error(key, invalid));
            }
        };
    }
    builder
}

fn apply_setting<C: 'static>(
    builder: PeerManagerBuilder<C>,
    source: Source<'_>,
    key: &str,
    value: &SettingValue,
) -> Result<PeerManagerBuilder<C>, InvalidSetting> {
    Ok(match key {
        "url" if matches!(value, SettingValue::List(_) | SettingValue::Table(_)) => {
            return Err(InvalidSetting::new("is not a string", "give several URLs in `peers`"));
        }
        "url" => multi_host::apply_url(builder, &source.describe(key), value.text()?),
        "peers" => builder.peers(peers(value, source)?),
        "weight" => {
            numbers_by_peer(value)?.into_iter().fold(builder, |b, (name, n)| b.weight(name, n))
        }
        "tier" => numbers_by_peer(value)?.into_iter().fold(builder, |b, (name, n)| b.tier(name, n)),
        "pool_name" => builder.pool_name(value.text()?),
        "strategy" => builder.strategy(value.choice()?),
        "balance" => builder.balance(value.choice()?),
        "rebalance_interval" => builder.rebalance_interval(value.duration()?),
        "connection_max_age" => builder.connection_max_age(value.duration()?),
        "user" => builder.user(value.text()?),
        "password" => builder.password(value.text()?),
        "pool_timeout" => builder.pool_timeout(value.duration()?),
        "check_interval" => builder.check_interval(value.duration()?),
        "connect_timeout" => builder.connect_timeout(value.duration()?),
        "connect_deadline" => builder.connect_deadline(value.duration()?),
        "ping_timeout" => builder.ping_timeout(value.duration()?),
        "ping_idle" => builder.ping_idle(value.duration()?),
        "stall_after" => builder.stall_after(value.duration_or_none()?),
        "check_timeout" => builder.check_timeout(value.duration()?),
        "tcp_keepalive" => builder.tcp_keepalive(value.duration_or_none()?),
        "tcp_user_timeout" => builder.tcp_user_timeout(value.duration_with_unit_or_none()?),
        "require" => builder.require(value.choice()?),
        "galera_donors" => builder.galera_donors(value.choice()?),
        "recovery" => builder.recovery(value.choice()?),
        "all_down" => builder.all_down(value.choice()?),
        "all_down_interval" => builder.all_down_interval(value.duration()?),
        "all_down_wait" => builder.all_down_wait(value.duration()?),
        "resolve_interval" => builder.resolve_interval(value.duration_or_none()?),
        "rng_seed" => builder.rng_seed(value.whole(U64_RANGE)?),
        _ => return Err(unknown_key(key, source)),
    })
}

/// Reads the peers: a list of URLs, or a table of peers by name.
fn peers(value: &SettingValue, source: Source<'_>) -> Result<Vec<PeerConfig>, InvalidSetting> {
    match value {
        SettingValue::List(peers) => {
            peers.iter().enumerate().map(|(index, value)| peer(None, value, index)).collect()
        }
        SettingValue::Table(peers) => {
            let named = peers.iter().enumerate();
            named.map(|(index, (name, value))| peer(Some(name), value, index)).collect()
        }
        _ => {
            let correction = match source {
                Source::Environment { prefix } => {
                    let prefix = shown_or_redacted(prefix);
                    format!(
                        "an environment variable can hold neither; set `{prefix}URL` to one URL with \
                         several hosts, such as mysql://user:password@db0,db1/shop",
                    )
                }
                _ => "give a list of URLs, or a table of URLs by peer name, such as `{ db0 = \
                      \"mysql://...\" }`; one URL with several hosts belongs in `url`"
                    .to_owned(),
            };
            Err(InvalidSetting::new("is neither a list nor a table", correction))
        }
    }
}

/// Reads one peer: a URL, or a table that contains a URL.
fn peer(
    name: Option<&String>,
    value: &SettingValue,
    index: usize,
) -> Result<PeerConfig, InvalidSetting> {
    const CORRECTION: &str =
        "give a URL, or a table such as `{ url = \"...\", weight = 1, tier = 0 }`";
    let which = || match name {
        Some(name) if may_be_shown(name) => format!("peer {name:?}"),
        Some(_) => "a peer whose name may be a secret (not shown)".to_owned(),
        None => format!("peer number {}", index + 1),
    };
    let invalid =
        |flaw: &str| InvalidSetting::new(format!("has {flaw} for {}", which()), CORRECTION);
    let whole = |key: &str, value: &SettingValue| {
        value.whole(U32_RANGE).map_err(|InvalidSetting { flaw, correction }| {
            let flaw = format!("has a `{key}` for {} that {flaw}", which());
            InvalidSetting::new(flaw, correction)
        })
    };
    let mut peer = PeerConfig {
        name: name.cloned().unwrap_or_default(),
        url: String::new(),
        weight: None,
        tier: None,
    };
    match value {
        SettingValue::Text(url) => peer.url.clone_from(url),
        SettingValue::Table(settings) => {
            for (key, value) in settings {
                match (&**key, value) {
                    ("url", SettingValue::Text(url)) => peer.url.clone_from(url),
                    ("name", SettingValue::Text(text)) if name.is_none() => {
                        peer.name.clone_from(text);
                    }
                    ("weight", value) => peer.weight = Some(whole("weight", value)?),
                    ("tier", value) => peer.tier = Some(whole("tier", value)?),
                    (key, _) => {
                        let key = shown_or_redacted(key);
                        return Err(invalid(&format!("an unknown or invalid `{key}`")));
                    }
                }
            }
        }
        _ => return Err(invalid("neither a string nor a table")),
    }
    if peer.url.is_empty() {
        return Err(invalid("no `url`"));
    }
    if peer.name.is_empty() {
        peer.name = default_name(&peer.url).unwrap_or_else(|| format!("peer{index}"));
    }
    Ok(peer)
}

/// Reads a number for each of some peers.
fn numbers_by_peer(value: &SettingValue) -> Result<Vec<(String, u32)>, InvalidSetting> {
    let pair =
        |(name, number): (&str, &SettingValue)| Ok((name.to_owned(), number.whole(U32_RANGE)?));
    let invalid = || InvalidSetting::new("is not a list of numbers by peer", NUMBER_BY_PEER);
    match value {
        SettingValue::Table(numbers) => {
            numbers.iter().map(|(name, number)| pair((name, number))).collect()
        }
        // An invalid number in this string could be a part of a URL, so its error must not show it.
        SettingValue::Text(text) if !may_be_shown(&text.replace('=', " ")) => Err(invalid()),
        SettingValue::Text(text) => text
            .split(',')
            .map(|text| {
                let (name, number) = text.rsplit_once('=').ok_or_else(invalid)?;
                pair((name.trim(), &SettingValue::Text(number.to_owned())))
            })
            .collect(),
        _ => Err(invalid()),
    }
}
