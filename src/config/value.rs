//! A setting's value as it was read, and what can be made of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Flaw, may_be_shown};
use crate::policy::ParseChoiceError;

/// A value of whatever it was read from. In URLs and in the environment each is a text.
#[derive(Clone, PartialEq)]
#[cfg_attr(not(feature = "serde"), allow(dead_code, reason = "the others are read with serde"))]
pub(crate) enum Value {
    None,
    Bool(bool),
    Whole(u64),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Table(Vec<(String, Value)>),
}

/// What is wrong with a value, and what would be right.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) flaw: Flaw,
    pub(crate) right: Flaw,
}

impl Wrong {
    pub(crate) fn new(flaw: impl Into<Flaw>, right: impl Into<Flaw>) -> Self {
        Self { flaw: flaw.into(), right: right.into() }
    }
}

const TIME: &str = "give a time with its unit, as \"250ms\", \"30s\", \"5min\" or \"1h\", or a number \
                    of seconds";
const TIME_OR_NONE: &str = "give a time with its unit, as \"500ms\" or \"2s\", a number of seconds, or \
                            \"none\"";
const TIME_WITH_UNIT: &str = "give a time with its unit, as \"20s\" or \"20000ms\", or \"none\"; it \
                              stands for milliseconds in libpq, and for seconds elsewhere here";

/// The units of time, longest name first.
const UNITS: [(&str, u64); 5] =
    [("min", 60_000), ("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

impl Value {
    pub(crate) fn duration(&self) -> Result<Duration, Wrong> {
        self.with_unit().or_else(|| self.seconds()).ok_or_else(|| self.wrong(TIME))
    }

    /// A time, or nothing at all.
    pub(crate) fn duration_or_none(&self) -> Result<Option<Duration>, Wrong> {
        if self.is_none() {
            return Ok(None);
        }
        self.with_unit()
            .or_else(|| self.seconds())
            .map(Some)
            .ok_or_else(|| self.wrong(TIME_OR_NONE))
    }

    /// As [`duration_or_none`](Self::duration_or_none), where a bare number might stand for anything.
    pub(crate) fn clear_duration_or_none(&self) -> Result<Option<Duration>, Wrong> {
        if self.is_none() {
            return Ok(None);
        }
        self.with_unit().map(Some).ok_or_else(|| self.wrong(TIME_WITH_UNIT))
    }

    /// A whole number. `right` says which one would do.
    pub(crate) fn whole<T: TryFrom<u64>>(&self, right: &'static str) -> Result<T, Wrong> {
        let whole = match self {
            Self::Whole(whole) => Some(*whole),
            Self::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        whole.and_then(|whole| T::try_from(whole).ok()).ok_or_else(|| self.wrong(right))
    }

    /// A choice, by its name.
    pub(crate) fn choice<T: FromStr<Err = ParseChoiceError>>(&self) -> Result<T, Wrong> {
        // No choice has an empty name.
        let name = if let Self::Text(name) = self { name } else { "" };
        name.parse().map_err(|error: ParseChoiceError| self.wrong(error.to_string()))
    }

    /// A text. It may be a secret: what is there instead is not shown.
    pub(crate) fn text(&self) -> Result<&str, Wrong> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(Wrong::new("is no text", "put it in quotes")),
        }
    }

    fn is_none(&self) -> bool {
        match self {
            Self::None | Self::Bool(false) => true,
            Self::Text(text) => text.trim() == "none",
            _ => false,
        }
    }

    fn with_unit(&self) -> Option<Duration> {
        let Self::Text(text) = self else { return None };
        let text = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?.trim_end(), *unit)))?;
        if let Ok(number) = number.parse::<u64>() {
            return Some(Duration::from_millis(number.saturating_mul(unit)));
        }
        let seconds = Duration::from_millis(unit).as_secs_f64() * decimal(number)?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn seconds(&self) -> Option<Duration> {
        match self {
            Self::Whole(seconds) => Some(Duration::from_secs(*seconds)),
            Self::Number(seconds) => Duration::try_from_secs_f64(*seconds).ok(),
            Self::Text(text) => match text.trim().parse() {
                Ok(seconds) => Some(Duration::from_secs(seconds)),
                Err(_) => Duration::try_from_secs_f64(decimal(text.trim())?).ok(),
            },
            _ => None,
        }
    }

    fn wrong(&self, right: impl Into<Flaw>) -> Wrong {
        Wrong::new(format!("is {self}"), right)
    }
}

/// `1.5`, but not `1e9`, `inf` or `-1`.
fn decimal(text: &str) -> Option<f64> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    text.parse().ok().filter(|_| is_decimal)
}

/// As it may be shown: lists and tables may hold URLs, and a text may be one.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("empty"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) if may_be_shown(value) => write!(f, "{value:?}"),
            Self::Text(_) => f.write_str("a text that may be a secret"),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
        }
    }
}
