//! Settings from whatever serde reads.

use std::fmt;
#[cfg(feature = "rocket")]
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

#[cfg(feature = "rocket")]
use super::ROCKETS_TIMEOUT;
use super::value::Value;
use super::{Entries, Place, apply};
use crate::builder::PeerManagerBuilder;
use crate::error::shown_or_struck;

/// Settings that were read with serde, from TOML, figment or anything else, for
/// [`PeerManagerBuilder::config`](crate::PeerManagerBuilder::config).
///
/// Its keys are the builder's methods: `url` or `peers`, and any others. They are judged by
/// [`build`](crate::PeerManagerBuilder::build); reading fails only where there is no table.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config: diesel_peers::Config = toml::from_str(
///     r#"
///     check_interval = 30
///     strategy = "round_robin"
///
///     [peers]
///     peer0 = "mysql://app:secret@db0/shop"
///     peer1 = { url = "mysql://app:secret@db1/shop", weight = 2 }
///     "#,
/// )?;
/// # #[cfg(feature = "mysql")]
/// # type Connection = diesel::MysqlConnection;
/// # #[cfg(not(feature = "mysql"))]
/// # type Connection = diesel::SqliteConnection;
/// let builder = diesel_peers::PeerManager::<Connection>::builder().config(config);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Config {
    settings: Entries,
}

impl Config {
    /// Gives the settings to the builder.
    pub(super) fn give_to<C: 'static>(
        self,
        builder: PeerManagerBuilder<C>,
    ) -> PeerManagerBuilder<C> {
        apply(builder, Place::File, self.settings)
    }

    /// As [`give_to`](Self::give_to), of settings beside Rocket's own, among which is the pool's timeout.
    /// None if that is given once more, by our name.
    #[cfg(feature = "rocket")]
    pub(crate) fn give_to_of_rocket<C: 'static>(
        self,
        builder: PeerManagerBuilder<C>,
        timeout: Duration,
    ) -> Option<PeerManagerBuilder<C>> {
        let builder = apply(builder, Place::Rocket, self.settings);
        (!builder.is_asked("pool_timeout"))
            .then(|| builder.pool_timeout_as(ROCKETS_TIMEOUT, timeout))
    }

    /// The settings besides these.
    #[cfg(feature = "rocket")]
    pub(crate) fn without(mut self, keys: &[&str]) -> Self {
        self.settings.retain(|(key, _)| !keys.contains(&&**key));
        self
    }
}

/// The names of the settings: values may be secrets, and so may be what is no name of a setting.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Config ")?;
        f.debug_set().entries(self.settings.iter().map(|(key, _)| shown_or_struck(key))).finish()
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(AnyValue)? {
            Value::Table(settings) => Ok(Self { settings }),
            _ => Err(serde::de::Error::custom("the peers' settings are no table")),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        Value::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    /// No setting is negative: as a number that is not whole it gets its error where it is judged.
    #[expect(clippy::cast_precision_loss, reason = "it is only shown")]
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Number(value as f64), Value::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = table.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Table(entries))
    }
}
