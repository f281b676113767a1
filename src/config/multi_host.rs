//! Parses a URL with several hosts: its peers, and any settings among its parameters.

use crate::config::hint::{similar, unknown_key};
use crate::config::keys::{POOL_KEYS, SETTINGS};
use crate::config::source::{Entries, Source};
use crate::config::value::SettingValue;
use crate::error::{BuildErrorKind, Flaw};
use crate::peers::peer_config::PeerConfig;
use crate::url::dialect::Dialect;
use crate::url::{Parameter, Query, Uri, is_conninfo, parameters, percent_decoded};

/// The prefixes of parameters that set a value for a single peer: `weight.db0=2`.
const PER_PEER: [&str; 3] = ["weight.", "tier.", "peer_max_connections."];

/// The parameters that determine the server regardless of the host.
const TARGETS: [&str; 4] = ["host", "hostaddr", "unix_socket", "service"];

const URL_FORM: &str = "give `scheme://user:password@host0:1,host1:2/database?key=value`";

const SQLITE_FORM: &str =
    "give a path, or several separated by commas, such as `file:a/shop.db,b/shop.db?mode=rw`";

const CONNINFO_FORM: &str = "give a URL that begins with `postgres://`, or put the conninfo string into \
                             `peers` in a file, such as `peers = { db0 = \"host=db0 dbname=shop\" }`";

/// Returns the name of a peer that was given without one: its host or its path.
pub(super) fn default_name(url: &str) -> Option<String> {
    if is_path(url) {
        return name_from_path(split_path(url).1).map(str::to_owned);
    }
    Uri::parse(url).ok().map(|uri| name_from_uri(&uri))
}

/// Returns the path, unless it could be a mistyped URL that contains a password.
fn name_from_path(path: &str) -> Option<&str> {
    (!path.contains(['@', ':', '='])).then_some(path)
}

/// Returns the host, which for libpq may be a parameter.
fn name_from_uri(uri: &Uri) -> String {
    let host = &*uri.hosts[0];
    let parameter = ["host", "hostaddr"].into_iter().find_map(|key| uri.parameter(key));
    let given = parameter.and_then(|parameter| parameter.value.as_deref()).unwrap_or_default();
    let host = if host.is_empty() { given } else { host };
    if host.is_empty() { "localhost".to_owned() } else { percent_decoded(host) }
}

/// Splits a URL into one peer per host and the settings, which are removed from the URLs of the peers. `key`
/// describes the URL's own key in errors.
pub(super) fn split(
    key: &str,
    text: &str,
    dialect: Dialect,
) -> Result<(Vec<PeerConfig>, Entries), BuildErrorKind> {
    // A URL that was read from a file or a variable may end in a newline.
    let text = text.trim();
    let error = |flaw: Flaw| {
        let flaw = flaw.or_correction(URL_FORM);
        BuildErrorKind::Setting { setting: Some("url"), key: key.to_owned(), flaw }
    };
    if text.is_empty() {
        return Err(error("is empty".into()));
    }
    match dialect {
        Dialect::Sqlite if !is_path(text) => {
            let flaw = "is not a path, and SQLite would take all of it as the name of a file";
            return Err(error(Flaw::new(flaw, SQLITE_FORM)));
        }
        Dialect::Postgres if is_conninfo(text) => {
            return Err(error(Flaw::new("is a libpq conninfo string, not a URL", CONNINFO_FORM)));
        }
        Dialect::Sqlite | Dialect::Other if is_path(text) => return split_paths(text),
        _ => {}
    }
    let mut uri = Uri::parse(text).map_err(error)?;
    dialect.check_scheme(&uri.scheme).map_err(error)?;
    if uri.userinfo.as_ref().is_some_and(|user| user.contains('@') && user.contains(',')) {
        let correction = "write the user once, before the first host, and write an `@` in a user or a \
                          password as %40";
        return Err(error(Flaw::new("has several `@`", correction)));
    }
    let settings = take_settings(&mut uri.parameters, dialect)?;
    if uri.hosts.len() > 1 {
        if let Some(target) = TARGETS.into_iter().find(|target| uri.parameter(target).is_some()) {
            let flaw = "would connect every peer to the same server";
            let correction = "remove it, or give each peer its own URL in `peers`";
            return Err(Source::Url.error(target, Flaw::new(flaw, correction)));
        }
    }
    let peers = uri.each_host().map(|uri| PeerConfig::new(name_from_uri(&uri), uri.to_string()));
    Ok((peers.collect(), settings))
}

/// Splits a list of SQLite paths into one peer per path and the settings.
fn split_paths(text: &str) -> Result<(Vec<PeerConfig>, Entries), BuildErrorKind> {
    let (scheme, paths, query) = split_path(text);
    let mut parameters = parameters(query);
    let settings = take_settings(&mut parameters, Dialect::Sqlite)?;
    if scheme.is_empty() && !parameters.is_empty() {
        let key = "a parameter".to_owned();
        let flaw = "of the `url` is not a setting, and SQLite reads parameters only after `file:`";
        let flaw = Flaw::new(flaw, "write the path as `file:PATH?mode=rw`");
        return Err(BuildErrorKind::Setting { setting: Some("url"), key, flaw });
    }
    let peer = |(index, path): (usize, &str)| {
        let url = format!("{scheme}{path}{}", Query(&parameters));
        let name =
            name_from_path(paths).map_or_else(|| format!("peer{index}"), |_| path.to_owned());
        PeerConfig::new(name, url)
    };
    Ok((paths.split(',').enumerate().map(peer).collect(), settings))
}

/// Whether the text is a path, in a form that only SQLite accepts.
fn is_path(text: &str) -> bool {
    !text.contains("://") || text.starts_with("sqlite://") || text.starts_with("file:")
}

/// Splits a path into its scheme, the path itself, and the parameters after the `?`.
fn split_path(text: &str) -> (&str, &str, &str) {
    let schemes = ["sqlite://", "file:"];
    let scheme = schemes.into_iter().find(|scheme| text.starts_with(scheme)).unwrap_or("");
    let rest = &text[scheme.len()..];
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    (scheme, path, query)
}

/// Moves the settings out of the parameters of a URL. The remaining parameters are for the client
/// library.
fn take_settings(
    parameters: &mut Vec<Parameter>,
    dialect: Dialect,
) -> Result<Entries, BuildErrorKind> {
    let has_password = parameters.iter().any(|parameter| parameter.key == "password");
    let (ours, others) = parameters.drain(..).partition(|Parameter { key, .. }| {
        SETTINGS.contains(&&**key) || PER_PEER.iter().any(|prefix| key.starts_with(prefix))
    });
    *parameters = others;
    let mut settings = Entries::new();
    for Parameter { key, value } in ours {
        let value = SettingValue::Text(percent_decoded(&value.unwrap_or_default()));
        let Some((setting, peer)) = key.split_once('.') else {
            settings.push((key, value));
            continue;
        };
        let peer = percent_decoded(peer);
        match settings.iter_mut().find(|(key, _)| key == setting) {
            Some((_, SettingValue::Table(numbers))) => {
                if numbers.iter().any(|(earlier, _)| *earlier == peer) {
                    let flaw = Flaw::new("is given twice for the same peer", "remove one of them");
                    return Err(Source::Url.error(setting, flaw));
                }
                numbers.push((peer, value));
            }
            _ => settings.push((setting.to_owned(), SettingValue::Table(vec![(peer, value)]))),
        }
    }
    for parameter in parameters {
        let (key, shown) = (&*parameter.key, parameter.shown(has_password));
        let meant = similar(key).filter(|_| !dialect.parameters().contains(&key));
        let (key, flaw) = if POOL_KEYS.contains(&key) {
            (key, unknown_key(key, Source::Url))
        } else if let Some(meant) = meant {
            (shown, Flaw::new("is not a setting", format!("did you mean `{meant}`?")))
        } else if !dialect.accepts(key) {
            let (accepted, settings) = (dialect.parameters().join(", "), SETTINGS.join(", "));
            let correction = format!("the parameters are {accepted}; the settings are {settings}");
            let what = format!("is neither a setting nor a parameter of a {dialect} URL");
            (shown, Flaw::new(what, correction))
        } else {
            continue;
        };
        return Err(Source::Url.error(key, flaw));
    }
    Ok(settings)
}
