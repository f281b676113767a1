//! The keys of settings in text form: the table of all settings, and the keys that belong elsewhere.

use crate::builder::PeerManagerBuilder;
use crate::config::value::SettingValue;
use crate::error::Flaw;
use crate::settings::ledger::Ledger;

/// Gives a setting to the builder, in the type that the builder method takes.
pub(super) type Setter<C> =
    fn(PeerManagerBuilder<C>, &SettingValue) -> Result<PeerManagerBuilder<C>, Flaw>;

macro_rules! settings {
    (|$builder:ident, $value:ident| { $($key:literal => $call:expr,)* }) => {
        /// The keys of all settings that have a text form, other than the peers.
        pub(super) const SETTINGS: &[&str] = &[$($key),*];

        /// Returns the setter of the setting with this key, if there is one.
        pub(super) fn setter<C>(key: &str) -> Option<Setter<C>> {
            Some(match key {
                $($key => |$builder, $value| Ok($call),)*
                _ => return None,
            })
        }
    };
}

// One row for each setting: its key, and the call of the builder method of that name. Errors list the keys
// in this order.
settings!(|builder, value| {
    "pool_name" => builder.pool_name(value.text()?),
    "weight" => value.numbers_by_peer()?.into_iter().fold(builder, |b, (name, n)| b.weight(name, n)),
    "tier" => value.numbers_by_peer()?.into_iter().fold(builder, |b, (name, n)| b.tier(name, n)),
    "max_connections" => builder.max_connections(value.whole(u32::MAX)?),
    "peer_max_connections" => value.numbers_by_peer()?.into_iter().fold(builder, |b, (name, n)| b.peer_max_connections(name, n)),
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
    "pooler_wait" => builder.pooler_wait(value.duration_or_none()?),
    "check_timeout" => builder.check_timeout(value.duration()?),
    "tcp_keepalive" => builder.tcp_keepalive(value.duration_or_none()?),
    "tcp_user_timeout" => builder.tcp_user_timeout(value.duration_with_unit_or_none()?),
    "require" => builder.require(value.choice()?),
    "galera_donors" => builder.galera_donors(value.choice()?),
    "galera_check" => builder.galera_check(value.choice()?),
    "statement_cache" => builder.statement_cache(value.choice()?),
    "retry_attempts" => builder.retry_attempts(value.whole(u32::MAX)?),
    "retry_deadline" => builder.retry_deadline(value.duration()?),
    "ledger" => builder.ledger(Ledger::from_text(value.text()?)),
    "recovery" => builder.recovery(value.choice()?),
    "all_down" => builder.all_down(value.choice()?),
    "all_down_interval" => builder.all_down_interval(value.duration()?),
    "all_down_wait" => builder.all_down_wait(value.duration()?),
    "slow_start" => builder.slow_start(value.duration()?),
    "slow_peers" => builder.slow_peers(value.choice()?),
    "slow_factor" => builder.slow_factor(value.number()?),
    "slow_difference" => builder.slow_difference(value.duration()?),
    "resolve_interval" => builder.resolve_interval(value.duration_or_none()?),
    "rng_seed" => builder.rng_seed(value.whole(u64::MAX)?),
});

/// The keys that define the peers.
pub(super) const PEER_KEYS: [&str; 2] = ["url", "peers"];

/// Returns the keys of the peers and of all settings.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    PEER_KEYS.into_iter().chain(SETTINGS.iter().copied())
}

/// The keys of the pool's own settings, in r2d2 and in Rocket.
pub(super) const POOL_KEYS: [&str; 8] = [
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
pub(super) const CLOSURE_METHODS: [&str; 6] =
    ["on_connect", "credentials", "health_check", "classify", "event_handler", "resolver"];
