//! Settings in environment variables.

use std::ffi::OsString;

use super::value::{Value, Wrong};
use super::{Entries, Place, apply};
use crate::builder::PeerManagerBuilder;
use crate::error::Kind;

/// Gives the settings in those `variables` that begin with `prefix` to the builder.
pub(super) fn environment<C: 'static>(
    builder: PeerManagerBuilder<C>,
    prefix: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> PeerManagerBuilder<C> {
    match read(prefix, variables) {
        Ok(settings) => apply(builder, Place::Environment { prefix }, settings),
        Err(mistake) => builder.mistaken(mistake),
    }
}

fn read(
    prefix: &str,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Entries, Kind> {
    if prefix.is_empty() {
        let (key, flaw) = ("the prefix of environment variables".into(), "is empty".into());
        let right = "give one, as `SHOP_DB_`".into();
        return Err(Kind::Setting { setting: None, key, flaw, right });
    }
    let mut settings = Entries::new();
    for (name, value) in variables {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let key = key.to_ascii_lowercase();
        let Ok(value) = value.into_string() else {
            let wrong = Wrong::new("is not UTF-8", "percent-encode what is special in a URL");
            return Err(Place::Environment { prefix }.mistake(&key, wrong));
        };
        settings.push((key, Value::Text(value)));
    }
    // The environment has no order.
    settings.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(settings)
}
