//! Times of day as people and programs read them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A time of day in UTC: RFC 3339 by `{}`, and in the form of logs by `{:#}`.
pub(super) struct Utc(pub(super) SystemTime);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (year, month, day) = date(since.as_secs() / 86_400);
        let second = since.as_secs() % 86_400;
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}")?;
        f.write_str(if f.alternate() { " " } else { "T" })?;
        write!(f, "{hour:02}:{minute:02}:{second:02}")?;
        if f.alternate() { Ok(()) } else { write!(f, ".{:03}Z", since.subsec_millis()) }
    }
}

/// Year, month and day, so many days after the first of January 1970. Years are counted from March, so
/// that the day that some of them have more is their last.
fn date(days: u64) -> (u64, u64, u64) {
    /// Days from the first of March of the year 0 to the first of January 1970.
    const BEFORE: u64 = 719_468;
    /// Days in 400 years, after which the calendar repeats.
    const CYCLE: u64 = 146_097;

    let (cycles, day) = ((days + BEFORE) / CYCLE, (days + BEFORE) % CYCLE);
    let year = (day - day / 1_460 + day / 36_524 - day / (CYCLE - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * cycles + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_of_day() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_709_164_800, "2024-02-29T00:00:00.007Z"),
            (1_767_225_599, "2025-12-31T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(7);
            assert_eq!(Utc(at).to_string(), expected);
        }
        assert_eq!(format!("{:#}", Utc(UNIX_EPOCH)), "1970-01-01 00:00:00");
    }
}
