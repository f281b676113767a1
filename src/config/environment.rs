//! Reads settings from environment variables.

use std::ffi::OsString;

use crate::config::source::{Entries, Source};
use crate::config::value::SettingValue;
use crate::error::{BuildErrorKind, Flaw};

/// Reads the settings from those `variables` whose names begin with `prefix`.
pub(super) fn read(
    prefix: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Entries, BuildErrorKind> {
    if prefix.is_empty() {
        let key = "the prefix of environment variables".to_owned();
        let flaw = Flaw::new("is empty", "give one, such as `SHOP_DB_`");
        return Err(BuildErrorKind::Setting { setting: None, key, flaw });
    }
    let mut entries = Entries::new();
    for (name, value) in variables {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let key = key.to_ascii_lowercase();
        let Ok(value) = value.into_string() else {
            let correction = "use UTF-8, and percent-encode special characters in a URL";
            let flaw = Flaw::new("is not UTF-8", correction);
            return Err(Source::Environment { prefix }.error(&key, flaw));
        };
        entries.push((key, SettingValue::Text(value)));
    }
    // The order of environment variables is arbitrary; sorted, the same error is reported every time.
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(entries)
}
