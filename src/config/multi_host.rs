//! The peers, and any settings, in one URL with several hosts.

use super::hint::{similar, unknown};
use super::value::{Value, Wrong};
use super::{Entries, POOLS, Place, SETTINGS, apply};
use crate::builder::PeerManagerBuilder;
use crate::dialect::Dialect;
use crate::error::{Flaw, Kind};
use crate::peers::admission::PeerConfig;
use crate::url::{Parameter, Query, Uri, is_keywords, parameters, percent_decoded};

/// What stands before a setting that each peer has of its own: `weight.db0=2`.
const PER_PEER: [&str; 2] = ["weight.", "tier."];

/// What leads to one place, whatever the host is.
const PLACES: [&str; 4] = ["host", "hostaddr", "unix_socket", "service"];

const RIGHT: &str = "give `scheme://user:password@host0:1,host1:2/database?key=value`";

const KEYWORDS: &str = "a URL begins with `postgres://`, and keywords stand in a file's `peers`, as \
                        `peers = { db0 = \"host=db0 dbname=shop\" }`";

/// Gives the peers and the settings of a URL to the builder. `key` is what it is called where it stands.
pub(super) fn url<C: 'static>(
    builder: PeerManagerBuilder<C>,
    key: &str,
    text: &str,
) -> PeerManagerBuilder<C> {
    // A file's or a variable's may end in a newline.
    match split(key, text.trim(), Dialect::of::<C>()) {
        Ok((peers, settings)) => apply(builder.peers(peers), Place::Url, settings),
        Err(mistake) => builder.mistaken(mistake),
    }
}

/// What the peer with this URL is known by when it was given no name: where it is.
pub(super) fn name_of(url: &str) -> Option<String> {
    if is_path(url) {
        return name_of_path(path_of(url).1).map(str::to_owned);
    }
    Uri::parse(url).ok().map(|uri| name_of_uri(&uri))
}

/// Nothing that might be a URL with a slip, and hold a password.
fn name_of_path(path: &str) -> Option<&str> {
    (!path.contains(['@', ':', '='])).then_some(path)
}

/// By its host, which for libpq may be a parameter.
fn name_of_uri(uri: &Uri) -> String {
    let host = &*uri.hosts[0];
    let parameter = ["host", "hostaddr"].into_iter().find_map(|key| uri.parameter(key));
    let given = parameter.and_then(|parameter| parameter.value.as_deref()).unwrap_or_default();
    let host = if host.is_empty() { given } else { host };
    if host.is_empty() { "localhost".to_owned() } else { percent_decoded(host) }
}

/// A URL's peers, each with one of its hosts, and its settings, which are left out of theirs.
fn split(key: &str, text: &str, dialect: Dialect) -> Result<(Vec<PeerConfig>, Entries), Kind> {
    let wrong = |flaw, right: &'static str| {
        let (setting, key) = (Some("url".to_owned()), key.to_owned());
        Kind::Setting { setting, key, flaw, right: right.into() }
    };
    let malformed = |flaw: Flaw| wrong(flaw, RIGHT);
    if text.is_empty() {
        return Err(malformed("is empty".into()));
    }
    match dialect {
        Dialect::Sqlite if !is_path(text) => {
            return Err(malformed(
                "is no path: SQLite would take it for the name of a file".into(),
            ));
        }
        Dialect::Postgres if is_keywords(text) => {
            let flaw = "is no URL, but libpq's keywords".into();
            return Err(wrong(flaw, KEYWORDS));
        }
        Dialect::Sqlite | Dialect::Other if is_path(text) => return split_paths(text),
        _ => {}
    }
    let mut uri = Uri::parse(text).map_err(malformed)?;
    dialect.check_scheme(&uri.scheme).map_err(malformed)?;
    if uri.userinfo.as_ref().is_some_and(|user| user.contains('@') && user.contains(',')) {
        return Err(malformed(
            "has several `@`: the user stands before the first host, for all, and an `@` in a user \
             or a password is %40"
                .into(),
        ));
    }
    let settings = take_settings(&mut uri.parameters, dialect)?;
    if uri.hosts.len() > 1 {
        if let Some(place) = PLACES.into_iter().find(|place| uri.parameter(place).is_some()) {
            let flaw = "would lead every peer to the same place";
            let right = "leave it out, or give each peer a URL of its own in `peers`";
            return Err(Place::Url.mistake(place, Wrong::new(flaw, right)));
        }
    }
    let peers = uri.each_host().map(|uri| PeerConfig {
        name: name_of_uri(&uri),
        url: uri.to_string(),
        weight: None,
        tier: None,
    });
    Ok((peers.collect(), settings))
}

/// SQLite's peers are several paths to one file.
fn split_paths(text: &str) -> Result<(Vec<PeerConfig>, Entries), Kind> {
    let (scheme, paths, query) = path_of(text);
    let mut parameters = parameters(query);
    let settings = take_settings(&mut parameters, Dialect::Sqlite)?;
    if scheme.is_empty() && !parameters.is_empty() {
        let key = "a parameter".to_owned();
        let flaw = "of the `url` is no setting, and a bare path has no others".into();
        let (setting, right) = (Some("url".to_owned()), "write `file:PATH?mode=rw`".into());
        return Err(Kind::Setting { setting, key, flaw, right });
    }
    let peer = |(index, path): (usize, &str)| {
        let url = format!("{scheme}{path}{}", Query(&parameters));
        let name = name_of_path(paths).map_or_else(|| format!("peer{index}"), |_| path.to_owned());
        PeerConfig { name, url, weight: None, tier: None }
    };
    Ok((paths.split(',').enumerate().map(peer).collect(), settings))
}

/// Whether SQLite alone takes it.
fn is_path(text: &str) -> bool {
    !text.contains("://") || text.starts_with("sqlite://") || text.starts_with("file:")
}

/// What stands before a path, the path, and what follows its `?`.
fn path_of(text: &str) -> (&str, &str, &str) {
    let schemes = ["sqlite://", "file:"];
    let scheme = schemes.into_iter().find(|scheme| text.starts_with(scheme)).unwrap_or("");
    let rest = &text[scheme.len()..];
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    (scheme, path, query)
}

/// Takes the settings out of a URL's parameters; the others are for the client library.
fn take_settings(parameters: &mut Vec<Parameter>, dialect: Dialect) -> Result<Entries, Kind> {
    let mut settings = Entries::new();
    let has_password = parameters.iter().any(|parameter| parameter.key == "password");
    let (ours, others): (Vec<_>, Vec<_>) = parameters.drain(..).partition(|parameter| {
        let is_per_peer = PER_PEER.iter().any(|prefix| parameter.key.starts_with(prefix));
        SETTINGS.contains(&&*parameter.key) || is_per_peer
    });
    for Parameter { key, value } in ours {
        let value = Value::Text(percent_decoded(&value.unwrap_or_default()));
        match key.split_once('.') {
            None => settings.push((key, value)),
            Some((setting, peer)) => {
                let number = (percent_decoded(peer), value);
                match settings.iter_mut().find(|(key, _)| key == setting) {
                    Some((_, Value::Table(numbers)))
                        if numbers.iter().any(|it| it.0 == number.0) =>
                    {
                        let wrong = Wrong::new("is given twice for one peer", "keep one");
                        return Err(Place::Url.mistake(setting, wrong));
                    }
                    Some((_, Value::Table(numbers))) => numbers.push(number),
                    _ => settings.push((setting.to_owned(), Value::Table(vec![number]))),
                }
            }
        }
    }
    for parameter in &others {
        let key = &parameter.key;
        if POOLS.contains(&&**key) {
            return Err(Place::Url.mistake(key, unknown(key, Place::Url)));
        }
        if let Some(meant) = similar(key).filter(|_| !dialect.parameters().contains(&&**key)) {
            let wrong = Wrong::new("is no setting", format!("did you mean `{meant}`?"));
            return Err(Place::Url.mistake(parameter.shown(has_password), wrong));
        }
        if !dialect.knows(key) {
            let known = dialect.parameters().join(", ");
            let right = format!(
                "a {dialect} URL may have these: {known}; and these: {}",
                SETTINGS.join(", ")
            );
            let wrong = Wrong::new("is neither a setting nor known to the client library", right);
            return Err(Place::Url.mistake(parameter.shown(has_password), wrong));
        }
    }
    *parameters = others;
    Ok(settings)
}
