//! Helpers for names and times in sentences.

use std::time::Duration;

/// Joins names as `a`, `a and b` or `a, b and c`.
pub(super) fn join_names(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [names @ .., last] => format!("{} and {last}", names.join(", ")),
    }
}

/// Returns the form of a verb whose subject is these names.
pub(super) fn verb_for<'a>(names: &[String], singular: &'a str, plural: &'a str) -> &'a str {
    if names.len() == 1 { singular } else { plural }
}

/// Converts a duration to milliseconds.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
