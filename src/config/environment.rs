//! Reads settings from environment variables.

use std::ffi::{OsStr, OsString};

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
        if is_of_kubernetes(key, &value) {
            continue;
        }
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

/// Whether Kubernetes sets this variable for a service, after the service's name in capital letters and a `_`.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_of_kubernetes(name: &str, value: &OsStr) -> bool {
    if name == "PORT" {
        // A person who means a setting gives the number of a port.
        let protocol = value.to_str().and_then(|value| value.split_once("://"));
        return protocol.is_some_and(|(protocol, _)| ["tcp", "udp", "sctp"].contains(&protocol));
    }
    if ["SERVICE_HOST", "SERVICE_PORT"].contains(&name) {
        return true;
    }
    if let Some(port) = name.strip_prefix("SERVICE_PORT_") {
        return !port.is_empty();
    }
    let Some((port, protocol)) = name.strip_prefix("PORT_").and_then(|rest| rest.split_once('_'))
    else {
        return false;
    };
    let (protocol, part) = protocol.split_once('_').unwrap_or((protocol, "ADDR"));
    port.parse::<u16>().is_ok()
        && ["TCP", "UDP", "SCTP"].contains(&protocol)
        && ["ADDR", "PORT", "PROTO"].contains(&part)
}
