//! Reads settings from environment variables.

use std::ffi::OsString;

use super::value::{InvalidSetting, SettingValue};
use super::{Entries, Source, apply};
use crate::builder::PeerManagerBuilder;
use crate::error::BuildErrorKind;

/// Applies the settings in those `variables` whose names begin with `prefix` to the builder.
pub(super) fn apply_environment<C: 'static>(
    builder: PeerManagerBuilder<C>,
    prefix: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> PeerManagerBuilder<C> {
    match read_variables(prefix, variables) {
        Ok(settings) => apply(builder, Source::Environment { prefix }, settings),
        Err(error) => builder.with_error(error),
    }
}

fn read_variables(
    prefix: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Entries, BuildErrorKind> {
    if prefix.is_empty() {
        let (key, flaw) = ("the prefix of environment variables".into(), "is empty".into());
        let correction = "give one, such as `SHOP_DB_`".into();
        return Err(BuildErrorKind::Setting { setting: None, key, flaw, correction });
    }
    let mut settings = Entries::new();
    for (name, value) in variables {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let key = key.to_ascii_lowercase();
        let Ok(value) = value.into_string() else {
            let correction = "use UTF-8, and percent-encode special characters in a URL";
            let invalid = InvalidSetting::new("is not UTF-8", correction);
            return Err(Source::Environment { prefix }.error(&key, invalid));
        };
        settings.push((key, SettingValue::Text(value)));
    }
    // The order of environment variables is arbitrary; sorted, the same error is reported every time.
    settings.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(settings)
}
