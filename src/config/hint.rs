//! What was probably meant by a key that is no setting.

use super::value::Wrong;
use super::{CLOSURES, POOLS, Place, SETTINGS, SOURCES};
#[cfg(feature = "rocket")]
use super::{ROCKETS_SIZE, ROCKETS_TIMEOUT};
use crate::error::shown_or_struck;

/// What other software calls our settings.
const OTHERS: [(&str, &str); 10] = [
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

pub(super) fn unknown(key: &str, place: Place<'_>) -> Wrong {
    let flaw = "is no setting";
    if CLOSURES.contains(&key) {
        return Wrong::new(flaw, "it is a closure: set it in code");
    }
    #[cfg(feature = "rocket")]
    if place == Place::Rocket {
        let rockets = match key {
            "max_size" => Some(ROCKETS_SIZE),
            "connection_timeout" => Some(ROCKETS_TIMEOUT),
            _ => similar_in(key, [ROCKETS_SIZE, ROCKETS_TIMEOUT]),
        };
        if let Some(rockets) = rockets {
            return Wrong::new(flaw, format!("Rocket's own is `{rockets}`"));
        }
    }
    if POOLS.contains(&key) {
        return Wrong::new(flaw, "it is the pool's; give it to `Pool::builder()`");
    }
    if let (Place::Environment { prefix }, Some(longer)) = (place, longer_prefix(key)) {
        let prefix = shown_or_struck(prefix);
        let right = format!("give the prefix `{prefix}{}`", longer.to_ascii_uppercase());
        return Wrong::new(flaw, right);
    }
    if let Some((_, setting)) = OTHERS.iter().find(|(other, _)| *other == key) {
        return Wrong::new(flaw, format!("did you mean `{setting}`?"));
    }
    if let Some(setting) = similar(key) {
        return Wrong::new(flaw, format!("did you mean `{setting}`?"));
    }
    if ["user_file", "password_file"].contains(&key) {
        return Wrong::new(flaw, "what stands in a file is read in code: see `credentials`");
    }
    let (sources, settings) = (SOURCES.join(", "), SETTINGS.join(", "));
    Wrong::new(flaw, format!("those that there are: {sources}, {settings}"))
}

/// The setting that was probably meant by a key that is none.
pub(super) fn similar(key: &str) -> Option<&'static str> {
    similar_in(key, SOURCES.into_iter().chain(SETTINGS))
}

fn similar_in(key: &str, names: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    const SHORTEST: usize = 6;
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let key = plain(key);
    names.into_iter().find(|name| {
        let name = plain(name);
        name == key || name.len() >= SHORTEST && distance(&name, &key) <= 2
    })
}

/// What the prefix of environment variables lacks, if a setting follows that.
fn longer_prefix(key: &str) -> Option<&str> {
    let longer = |setting: &str| key.strip_suffix(setting).filter(|rest| rest.ends_with('_'));
    SOURCES.into_iter().chain(SETTINGS).filter_map(longer).min_by_key(|longer| longer.len())
}

/// How many letters have to be changed, left out or put in to make one text of the other.
fn distance(one: &str, other: &str) -> usize {
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
