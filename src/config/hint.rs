//! Suggests corrections for keys that are not settings.

use crate::config::keys::{self, CLOSURE_METHODS, POOL_KEYS};
#[cfg(feature = "rocket")]
use crate::config::keys::{ROCKET_POOL_SIZE, ROCKET_TIMEOUT};
use crate::config::source::Source;
use crate::error::Flaw;
use crate::redact::shown_or_redacted;

/// Names that other software uses, and the corresponding settings.
const SYNONYMS: [(&str, &str); 10] = [
    ("pass", "password"),
    ("passwd", "password"),
    ("pwd", "password"),
    ("username", "user"),
    ("host", "url"),
    ("hosts", "url"),
    ("hostname", "url"),
    ("port", "url"),
    ("database", "url"),
    ("dbname", "url"),
];

/// Returns the flaw of a key that is not a setting, with the most likely correction.
pub(super) fn unknown_key(key: &str, source: Source<'_>) -> Flaw {
    Flaw::new("is not a setting", correction(key, source))
}

fn correction(key: &str, source: Source<'_>) -> String {
    if CLOSURE_METHODS.contains(&key) {
        return format!("it is a closure; set it in code, with the builder's `{key}`");
    }
    #[cfg(feature = "rocket")]
    if source == Source::Rocket {
        let rocket_key = match key {
            "max_size" => Some(ROCKET_POOL_SIZE),
            "connection_timeout" => Some(ROCKET_TIMEOUT),
            _ => similar_in(key, [ROCKET_POOL_SIZE, ROCKET_TIMEOUT]),
        };
        if let Some(rocket_key) = rocket_key {
            return format!("use Rocket's `{rocket_key}`");
        }
    }
    if POOL_KEYS.contains(&key) {
        return "it belongs to the pool; set it on `Pool::builder()`".to_owned();
    }
    if let (Source::Environment { prefix }, Some(longer)) = (source, longer_prefix(key)) {
        let (prefix, longer) = (shown_or_redacted(prefix), shown_or_redacted(longer));
        return format!("did you mean the prefix `{prefix}{}`?", longer.to_ascii_uppercase());
    }
    let synonym = SYNONYMS.iter().find(|(synonym, _)| *synonym == key);
    if let Some(setting) = synonym.map(|(_, setting)| *setting).or_else(|| similar(key)) {
        return format!("did you mean `{setting}`?");
    }
    if ["user_file", "password_file"].contains(&key) {
        return "read the file in code, with the builder's `credentials`".to_owned();
    }
    format!("the settings are {}", keys::all().collect::<Vec<_>>().join(", "))
}

/// Returns the setting with a similar name: equal but for case, `_` and `-`, or with few typing errors.
pub(super) fn similar(key: &str) -> Option<&'static str> {
    similar_in(key, keys::all())
}

fn similar_in(key: &str, names: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    /// Shorter names must be equal: with few letters, almost any name is similar.
    const MIN_LENGTH: usize = 6;
    const MAX_DISTANCE: usize = 2;
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let key = plain(key);
    names.into_iter().find(|name| {
        let name = plain(name);
        name == key || name.len() >= MIN_LENGTH && edit_distance(&name, &key) <= MAX_DISTANCE
    })
}

/// Returns the part of the key that is missing from the prefix of environment variables, if the rest of
/// the key is a setting.
fn longer_prefix(key: &str) -> Option<&str> {
    let longer = |setting: &str| key.strip_suffix(setting).filter(|rest| rest.ends_with('_'));
    keys::all().filter_map(longer).min_by_key(|longer| longer.len())
}

/// Returns the Levenshtein distance: the number of letters to replace, remove or insert.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, candidate) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
