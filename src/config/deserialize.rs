//! Reads settings with serde, from any format.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::config::source::Entries;
use crate::config::value::SettingValue;
use crate::redact::shown_or_redacted;

/// Settings that are read with serde, for example from TOML or figment, and passed to
/// [`PeerManagerBuilder::config`](crate::PeerManagerBuilder::config).
///
/// The keys are the names of the builder's methods: `url` or `peers`, and any other settings that are not
/// closures. [`build`](crate::PeerManagerBuilder::build) validates them; deserialization itself only
/// fails if the value is not a table.
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
    pub(super) entries: Entries,
}

#[cfg(feature = "rocket")]
impl Config {
    /// Removes the settings with these keys.
    pub(crate) fn without(mut self, keys: &[&str]) -> Self {
        self.entries.retain(|(key, _)| !keys.contains(&&**key));
        self
    }
}

/// Shows the keys only, because values may be secrets. A key that may be a secret itself is redacted.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Config ")?;
        f.debug_set().entries(self.entries.iter().map(|(key, _)| shown_or_redacted(key))).finish()
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_map(AnyValue)? {
            SettingValue::Table(entries) => Ok(Self { entries }),
            _ => Err(serde::de::Error::custom("the settings of the peers are not a table")),
        }
    }
}

impl<'de> Deserialize<'de> for SettingValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = SettingValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting")
    }

    fn visit_unit<E>(self) -> Result<SettingValue, E> {
        Ok(SettingValue::None)
    }

    fn visit_none<E>(self) -> Result<SettingValue, E> {
        Ok(SettingValue::None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<SettingValue, D::Error> {
        SettingValue::deserialize(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        inner: D,
    ) -> Result<SettingValue, D::Error> {
        SettingValue::deserialize(inner)
    }

    fn visit_bool<E>(self, value: bool) -> Result<SettingValue, E> {
        Ok(SettingValue::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<SettingValue, E> {
        Ok(SettingValue::Whole(value))
    }

    /// Stores a negative number as `Number`. No setting accepts one, so validation reports the error.
    #[expect(clippy::cast_precision_loss, reason = "the number is only shown in an error")]
    fn visit_i64<E>(self, value: i64) -> Result<SettingValue, E> {
        Ok(u64::try_from(value).map_or(SettingValue::Number(value as f64), SettingValue::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<SettingValue, E> {
        Ok(SettingValue::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<SettingValue, E> {
        Ok(SettingValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<SettingValue, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(SettingValue::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<SettingValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = table.next_entry()? {
            entries.push(entry);
        }
        Ok(SettingValue::Table(entries))
    }
}
