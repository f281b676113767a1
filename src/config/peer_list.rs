//! Reads the setting `peers`.

use crate::config::multi_host::default_name;
use crate::config::source::Source;
use crate::config::value::SettingValue;
use crate::error::Flaw;
use crate::peers::peer_config::PeerConfig;
use crate::redact::{may_be_shown, shown_or_redacted};

/// Reads the peers: a list of URLs, or a table of peers by name.
pub(super) fn read(value: &SettingValue, source: Source<'_>) -> Result<Vec<PeerConfig>, Flaw> {
    match value {
        SettingValue::List(peers) => {
            peers.iter().enumerate().map(|(index, value)| peer(None, value, index)).collect()
        }
        SettingValue::Table(peers) => {
            let named = peers.iter().enumerate();
            named.map(|(index, (name, value))| peer(Some(name), value, index)).collect()
        }
        _ => {
            let correction = match source {
                Source::Environment { prefix } => {
                    let prefix = shown_or_redacted(prefix);
                    format!(
                        "an environment variable can hold neither; set `{prefix}URL` to one URL with \
                         several hosts, such as mysql://user:password@db0,db1/shop",
                    )
                }
                _ => "give a list of URLs, or a table of URLs by peer name, such as `{ db0 = \
                      \"mysql://...\" }`; one URL with several hosts belongs in `url`"
                    .to_owned(),
            };
            Err(Flaw::new("is neither a list nor a table", correction))
        }
    }
}

/// Reads one peer: a URL, or a table that contains a URL.
fn peer(name: Option<&String>, value: &SettingValue, index: usize) -> Result<PeerConfig, Flaw> {
    const CORRECTION: &str =
        "give a URL, or a table such as `{ url = \"...\", weight = 1, tier = 0 }`";
    let which = || match name {
        Some(name) if may_be_shown(name) => format!("peer {name:?}"),
        Some(_) => "a peer whose name may be a secret (not shown)".to_owned(),
        None => format!("peer number {}", index + 1),
    };
    let invalid = |flaw: &str| Flaw::new(format!("has {flaw} for {}", which()), CORRECTION);
    let whole = |key: &str, value: &SettingValue| {
        value.whole(u32::MAX).map_err(|flaw| Flaw {
            what: format!("has a `{key}` for {} that {}", which(), flaw.what).into(),
            ..flaw
        })
    };
    let mut peer = PeerConfig::new(name.cloned().unwrap_or_default(), "");
    match value {
        SettingValue::Text(url) => peer.url.clone_from(url),
        SettingValue::Table(settings) => {
            for (key, value) in settings {
                match (&**key, value) {
                    ("url", SettingValue::Text(url)) => peer.url.clone_from(url),
                    ("name", SettingValue::Text(text)) if name.is_none() => {
                        peer.name.clone_from(text);
                    }
                    ("weight", value) => peer.weight = Some(whole("weight", value)?),
                    ("tier", value) => peer.tier = Some(whole("tier", value)?),
                    ("max_connections", value) => {
                        peer.max_connections = Some(whole("max_connections", value)?);
                    }
                    (key, _) => {
                        let key = shown_or_redacted(key);
                        return Err(invalid(&format!("an unknown or invalid `{key}`")));
                    }
                }
            }
        }
        _ => return Err(invalid("neither a string nor a table")),
    }
    if peer.url.is_empty() {
        return Err(invalid("no `url`"));
    }
    if peer.name.is_empty() {
        peer.name = default_name(&peer.url).unwrap_or_else(|| format!("peer{index}"));
    }
    Ok(peer)
}
