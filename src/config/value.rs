//! The value of a setting as it was read, and its conversion to the type of the setting.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Flaw;
use crate::redact::may_be_shown;
use crate::settings::policy::ParseChoiceError;

/// A value from any source. Values from URLs and environment variables are always `Text`.
#[derive(Clone, PartialEq)]
#[cfg_attr(not(feature = "serde"), allow(dead_code, reason = "only serde yields the other types"))]
pub(crate) enum SettingValue {
    None,
    Bool(bool),
    Whole(u64),
    Number(f64),
    Text(String),
    List(Vec<SettingValue>),
    Table(Vec<(String, SettingValue)>),
}

const DURATION: &str = "give a duration with a unit, such as \"250ms\", \"30s\", \"5min\" or \"1h\", \
                        or a number of seconds";
const DURATION_OR_NONE: &str = "give a duration with a unit, such as \"500ms\" or \"2s\", a number of \
                                seconds, or \"none\"";
const DURATION_WITH_UNIT: &str = "give a duration with a unit, such as \"20s\" or \"20000ms\", or \
                                  \"none\"; a unit is required because libpq counts milliseconds";
const NUMBER_BY_PEER: &str = "give a number for each peer by name, such as `{ db0 = 2, db1 = 1 }`, or as \
                              a string, \"db0=2,db1=1\"";

/// The units of durations in milliseconds. A unit comes before any unit that is a suffix of it.
const UNITS: [(&str, u64); 5] =
    [("min", 60_000), ("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

impl SettingValue {
    /// Parses a duration. A number without a unit counts seconds.
    pub(crate) fn duration(&self) -> Result<Duration, Flaw> {
        self.parse_duration().ok_or_else(|| self.invalid(DURATION))
    }

    /// Parses a duration, or `none` (in a file also `false`), which disables the setting.
    pub(crate) fn duration_or_none(&self) -> Result<Option<Duration>, Flaw> {
        self.or_none(Self::parse_duration, DURATION_OR_NONE)
    }

    /// Parses a duration that must have a unit, or `none`: for keys that libpq also has, with another
    /// unit.
    pub(crate) fn duration_with_unit_or_none(&self) -> Result<Option<Duration>, Flaw> {
        self.or_none(Self::parse_with_unit, DURATION_WITH_UNIT)
    }

    /// Parses a whole number of up to the largest number of its type.
    pub(crate) fn whole<T: TryFrom<u64> + Copy + fmt::Display>(&self, max: T) -> Result<T, Flaw> {
        let whole = match self {
            Self::Whole(whole) => Some(*whole),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        whole
            .and_then(|whole| T::try_from(whole).ok())
            .ok_or_else(|| self.invalid(format!("give a whole number from 0 to {max}")))
    }

    /// Parses a number, such as `2.5`.
    pub(crate) fn number(&self) -> Result<f64, Flaw> {
        let number = match self {
            #[expect(clippy::cast_precision_loss, reason = "no such number has a meaning")]
            Self::Whole(whole) => Some(*whole as f64),
            Self::Number(number) => Some(*number),
            Self::Text(text) => parse_decimal(text.trim()),
            _ => None,
        };
        number.ok_or_else(|| self.invalid("give a number, such as 3 or 2.5"))
    }

    /// Parses a choice from its name.
    pub(crate) fn choice<T: FromStr<Err = ParseChoiceError>>(&self) -> Result<T, Flaw> {
        // No choice has an empty name.
        let name = if let Self::Text(name) = self { name.trim() } else { "" };
        name.parse().map_err(|error: ParseChoiceError| self.invalid(error.to_string()))
    }

    /// Returns a string. The setting may be a secret, so the error does not show a value of another type.
    pub(crate) fn text(&self) -> Result<&str, Flaw> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Flaw::new("is not a string", "put the value in quotes")),
        }
    }

    /// Parses a number for each of some peers: a table, or a text such as `db0=2,db1=1`.
    pub(crate) fn numbers_by_peer(&self) -> Result<Vec<(String, u32)>, Flaw> {
        let pair = |name: &str, number: &Self| Ok((name.to_owned(), number.whole(u32::MAX)?));
        let invalid = || Flaw::new("is not a list of numbers by peer", NUMBER_BY_PEER);
        match self {
            Self::Table(numbers) => {
                numbers.iter().map(|(name, number)| pair(name, number)).collect()
            }
            // An invalid number in this string could be a part of a URL, so its error must not show it.
            Self::Text(text) if may_be_shown(&text.replace('=', " ")) => text
                .split(',')
                .map(|text| {
                    let (name, number) = text.rsplit_once('=').ok_or_else(invalid)?;
                    pair(name.trim(), &Self::Text(number.to_owned()))
                })
                .collect(),
            _ => Err(invalid()),
        }
    }

    fn or_none(
        &self,
        parse: fn(&Self) -> Option<Duration>,
        correction: &'static str,
    ) -> Result<Option<Duration>, Flaw> {
        match self {
            Self::None | Self::Bool(false) => Ok(None),
            Self::Text(text) if text.trim() == "none" => Ok(None),
            _ => parse(self).map(Some).ok_or_else(|| self.invalid(correction)),
        }
    }

    fn parse_duration(&self) -> Option<Duration> {
        self.parse_with_unit().or_else(|| self.parse_seconds())
    }

    fn parse_with_unit(&self) -> Option<Duration> {
        let Self::Text(text) = self else { return None };
        let text = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit)))?;
        if let Ok(number) = number.parse::<u64>() {
            return Some(Duration::from_millis(number.saturating_mul(unit)));
        }
        let seconds = Duration::from_millis(unit).as_secs_f64() * parse_decimal(number)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn parse_seconds(&self) -> Option<Duration> {
        match self {
            Self::Whole(seconds) => Some(Duration::from_secs(*seconds)),
            Self::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Self::Text(text) => match text.trim().parse() {
                Ok(seconds) => Some(Duration::from_secs(seconds)),
                Err(_) => Duration::try_from_secs_f64(parse_decimal(text.trim())?).ok(),
            },
            _ => None,
        }
    }

    fn invalid(&self, correction: impl Into<Cow<'static, str>>) -> Flaw {
        Flaw::new(format!("is {self}"), correction)
    }
}

/// Parses numbers such as `1.5`, but not `1e9`, `inf` or `-1`.
fn parse_decimal(text: &str) -> Option<f64> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| is_decimal)
}

/// Does not show secrets: lists and tables may contain URLs, and a string may be a URL.
impl fmt::Display for SettingValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("empty"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) if may_be_shown(value) => write!(f, "{value:?}"),
            Self::Text(_) => f.write_str("a string that may be a secret (not shown)"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}
