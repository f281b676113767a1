//! Settings in text: the one table of their names, whatever they are read from.

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
use crate::error::{Kind, may_be_shown, shown_name, shown_or_struck};
use crate::peers::admission::PeerConfig;
use crate::policy::{AllDown, Balance, Donors, Recovery, Role, Strategy};
use environment::environment;
use hint::unknown;
use multi_host::name_of;
use value::{Value, Wrong};

/// Settings in text. Under the same names as the methods above, and with the same defaults; what is
/// wrong with one is an error of [`build`](Self::build) that names it.
impl<C: 'static> PeerManagerBuilder<C> {
    /// The peers in one URL with several hosts, as libpq, JDBC and MongoDB have them, and any settings:
    /// `mysql://app:secret@db0,db1:3307/shop?check_interval=10s&weight.db0=2&ssl_ca=/etc/ca.pem`. Each
    /// peer is known by its host, with its port if that is written. Parameters that are not settings
    /// go to each peer's URL as they are. For SQLite it is a list of paths,
    /// `file:a/shop.db,b/shop.db?mode=rw`.
    ///
    /// Bare numbers are seconds; other times have a unit (`250ms`, `30s`, `5min`, `1h`).
    /// (`tcp_user_timeout` always needs one: libpq, which knows it too, counts it in milliseconds.)
    ///
    /// The peers replace those that were given before. Of a setting that is given several times the
    /// last one counts; but what [`user`](Self::user) and [`password`](Self::password) say counts more
    /// than the URL, whenever it is said.
    ///
    /// IPv6 hosts stand in brackets (`[::1]:3306`), and what is special in a user or a password is
    /// percent-encoded. A URL of another database than `C`'s is an error of [`build`](Self::build), as is
    /// everything else that is wrong with it.
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
        multi_host::url(self, &Place::File.names("url"), url)
    }

    /// The environment variables that begin with `prefix`: with `SHOP_DB_`, `SHOP_DB_URL` is what
    /// [`url`](Self::url) takes, `SHOP_DB_PASSWORD` the password for all peers, and
    /// `SHOP_DB_CHECK_INTERVAL=10s` sets `check_interval`. Every variable that begins with the prefix
    /// must be a setting.
    ///
    /// `SHOP_DB_WEIGHT=db0=2,db1=1` gives weights, and so do tiers; `peers` cannot stand there. (In
    /// Kubernetes a service `shop-db` sets variables that begin with `SHOP_DB_` as well: choose another
    /// prefix there.)
    ///
    /// What is set there counts from here on: it replaces what was given before, and is replaced by
    /// what is given later. Variables that are not set change nothing; one that is empty is an empty
    /// text. An empty prefix is an error of [`build`](Self::build).
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

    /// Reads settings like [`env`](Self::env), from the given variables instead of the environment: for tests,
    /// and for variables that are filtered or come from elsewhere.
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
        environment(self.looked_in_environment(prefix), prefix, variables)
    }

    /// Settings that were read with serde, from TOML, figment or anything else.
    ///
    /// They replace what was given before, and are replaced by what is given later. What can stand
    /// there is told by [`Config`].
    #[cfg(feature = "serde")]
    #[must_use]
    pub fn config(self, config: Config) -> Self {
        config.give_to(self)
    }
}

/// What names the peers.
const SOURCES: [&str; 2] = ["url", "peers"];

/// Every other setting that can be given in text.
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

/// What belongs to the pool, by r2d2's names and by Rocket's.
const POOLS: [&str; 8] = [
    "max_size",
    "min_idle",
    "connection_timeout",
    "idle_timeout",
    "max_lifetime",
    "test_on_check_out",
    "pool_size",
    "timeout",
];

/// Rocket's own beside `url`.
#[cfg(feature = "rocket")]
pub(crate) const ROCKETS_SIZE: &str = "pool_size";
#[cfg(feature = "rocket")]
pub(crate) const ROCKETS_TIMEOUT: &str = "timeout";

/// What only code can say.
const CLOSURES: [&str; 6] =
    ["on_connect", "credentials", "health_check", "classify", "event_handler", "resolver"];

const STRATEGIES: [(&str, Strategy); 4] = [
    ("least_connections", Strategy::LeastConnections),
    ("random", Strategy::Random),
    ("round_robin", Strategy::RoundRobin),
    ("ordered", Strategy::Ordered),
];
const BALANCES: [(&str, Balance); 2] =
    [("per_checkout", Balance::PerCheckout), ("per_connection", Balance::PerConnection)];
const ROLES: [(&str, Role); 3] =
    [("any", Role::Any), ("read_write", Role::ReadWrite), ("read_only", Role::ReadOnly)];
const DONORS: [(&str, Donors); 3] = [
    ("serve_unless_blocked", Donors::ServeUnlessBlocked),
    ("serve", Donors::Serve),
    ("wait", Donors::Wait),
];
const RECOVERIES: [(&str, Recovery); 2] =
    [("after_check", Recovery::AfterCheck), ("after_interval", Recovery::AfterInterval)];
const ALL_DOWNS: [(&str, AllDown); 2] = [("try", AllDown::Try), ("fail", AllDown::Fail)];

const WHOLE: &str = "give a whole number, 0 or more";
const EACH_PEER: &str = "give a number to each peer by its name, as `{ db0 = 2, db1 = 1 }`, or as text, \
                        \"db0=2,db1=1\"";

/// Settings as they were read.
type Entries = Vec<(String, Value)>;

/// Where settings stand, for who has to mend them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place<'a> {
    File,
    /// Where Rocket's own settings stand as well.
    #[cfg(feature = "rocket")]
    Rocket,
    Url,
    Environment {
        prefix: &'a str,
    },
}

impl Place<'_> {
    fn names(self, key: &str) -> String {
        match self {
            Self::Environment { prefix } if !(may_be_shown(prefix) && may_be_shown(key)) => {
                "an environment variable whose name may be a secret".to_owned()
            }
            _ if !may_be_shown(key) => "a key that may be a secret".to_owned(),
            Self::File => format!("`{key}`"),
            #[cfg(feature = "rocket")]
            Self::Rocket => Self::File.names(key),
            Self::Url => format!("`{key}` in the URL"),
            Self::Environment { prefix } => {
                format!("the environment variable `{prefix}{}`", key.to_ascii_uppercase())
            }
        }
    }

    fn mistake(self, key: &str, Wrong { flaw, right }: Wrong) -> Kind {
        Kind::Setting { key: self.names(key), flaw, right }
    }
}

/// Gives the settings of one place to the builder.
fn apply<C: 'static>(
    mut builder: PeerManagerBuilder<C>,
    place: Place<'_>,
    mut settings: Entries,
) -> PeerManagerBuilder<C> {
    // What stands beside a URL or a peer counts, not what stands in it.
    settings.sort_by_key(|(key, _)| !SOURCES.contains(&&**key));
    for (index, (key, value)) in settings.iter().enumerate() {
        if builder.is_mistaken() {
            break;
        }
        let is_first = settings[..index].iter().all(|(earlier, _)| earlier != key);
        let is_url_too = key == "peers" && settings.iter().any(|(key, _)| key == "url");
        let applied = if !is_first {
            Err(Wrong::new("is given twice", "keep one"))
        } else if is_url_too {
            Err(Wrong::new("and `url` both name the peers", "keep one"))
        } else {
            set(builder, place, key, value)
        };
        builder = match applied {
            Ok(builder) => builder,
            Err(wrong) => return PeerManagerBuilder::new().mistaken(place.mistake(key, wrong)),
        };
    }
    builder
}

/// One setting.
fn set<C: 'static>(
    builder: PeerManagerBuilder<C>,
    place: Place<'_>,
    key: &str,
    value: &Value,
) -> Result<PeerManagerBuilder<C>, Wrong> {
    Ok(match key {
        "url" if matches!(value, Value::List(_) | Value::Table(_)) => {
            return Err(Wrong::new("is no text", "several URLs stand in `peers`"));
        }
        "url" => multi_host::url(builder, &place.names(key), value.text()?),
        "peers" => builder.peers(peers(value, place)?),
        "weight" => per_peer(value)?.into_iter().fold(builder, |b, (name, n)| b.weight(name, n)),
        "tier" => per_peer(value)?.into_iter().fold(builder, |b, (name, n)| b.tier(name, n)),
        "pool_name" => builder.pool_name(value.text()?),
        "strategy" => builder.strategy(value.choice(&STRATEGIES)?),
        "balance" => builder.balance(value.choice(&BALANCES)?),
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
        "tcp_user_timeout" => builder.tcp_user_timeout(value.clear_duration_or_none()?),
        "require" => builder.require(value.choice(&ROLES)?),
        "galera_donors" => builder.galera_donors(value.choice(&DONORS)?),
        "recovery" => builder.recovery(value.choice(&RECOVERIES)?),
        "all_down" => builder.all_down(value.choice(&ALL_DOWNS)?),
        "all_down_interval" => builder.all_down_interval(value.duration()?),
        "all_down_wait" => builder.all_down_wait(value.duration()?),
        "resolve_interval" => builder.resolve_interval(value.duration_or_none()?),
        "rng_seed" => builder.rng_seed(value.whole(WHOLE)?),
        _ => return Err(unknown(key, place)),
    })
}

/// A list of URLs, or a table of peers by their names.
fn peers(value: &Value, place: Place<'_>) -> Result<Vec<PeerConfig>, Wrong> {
    match value {
        Value::List(peers) => {
            peers.iter().enumerate().map(|(index, value)| peer(None, value, index)).collect()
        }
        Value::Table(peers) => {
            let named = peers.iter().enumerate();
            named.map(|(index, (name, value))| peer(Some(name), value, index)).collect()
        }
        _ => {
            let right = match place {
                Place::Environment { prefix } if may_be_shown(prefix) => format!(
                    "only files have them; give `{prefix}URL`, as mysql://user:password@db0,db1/shop",
                ),
                _ => "give a list of URLs, or each peer's URL by its name, as `{ db0 = \
                      \"mysql://...\" }`; one URL with several hosts is `url`"
                    .to_owned(),
            };
            Err(Wrong::new("is neither a list nor a table", right))
        }
    }
}

/// A URL, or a table with one.
fn peer(name: Option<&String>, value: &Value, index: usize) -> Result<PeerConfig, Wrong> {
    const RIGHT: &str = "a peer is its URL, or `{ url = \"...\", weight = 1, tier = 0 }`";
    let wrong = |flaw: &str| {
        let which =
            name.map_or_else(|| format!("number {}", index + 1), |name| shown_name(name).into());
        Wrong::new(format!("has {flaw} for peer {which}"), RIGHT)
    };
    let mut peer = PeerConfig {
        name: name.cloned().unwrap_or_default(),
        url: String::new(),
        weight: None,
        tier: None,
    };
    match value {
        Value::Text(url) => peer.url.clone_from(url),
        Value::Table(settings) => {
            for (key, value) in settings {
                match (&**key, value) {
                    ("url", Value::Text(url)) => peer.url.clone_from(url),
                    ("name", Value::Text(text)) if name.is_none() => peer.name.clone_from(text),
                    ("weight", value) => peer.weight = Some(value.whole(WHOLE)?),
                    ("tier", value) => peer.tier = Some(value.whole(WHOLE)?),
                    (key, _) => {
                        let key = shown_or_struck(key);
                        return Err(wrong(&format!("`{key}`, which is nothing of a peer's,")));
                    }
                }
            }
        }
        _ => return Err(wrong("no text and no table")),
    }
    if peer.url.is_empty() {
        return Err(wrong("no `url`"));
    }
    if peer.name.is_empty() {
        peer.name = name_of(&peer.url).unwrap_or_else(|| format!("peer{index}"));
    }
    Ok(peer)
}

/// A number for each of some peers.
fn per_peer(value: &Value) -> Result<Vec<(String, u32)>, Wrong> {
    let pair = |(name, number): (&str, &Value)| Ok((name.to_owned(), number.whole(WHOLE)?));
    let wrong = || Wrong::new("is no such list", EACH_PEER);
    match value {
        Value::Table(numbers) => {
            numbers.iter().map(|(name, number)| pair((name, number))).collect()
        }
        // What is no number in it might be a part of a URL.
        Value::Text(text) if !may_be_shown(&text.replace('=', " ")) => Err(wrong()),
        Value::Text(text) => text
            .split(',')
            .map(|text| {
                let (name, number) = text.rsplit_once('=').ok_or_else(wrong)?;
                pair((name.trim(), &Value::Text(number.to_owned())))
            })
            .collect(),
        _ => Err(wrong()),
    }
}
