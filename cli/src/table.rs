//! The tables of a TOML file, and those of them that hold peers.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

use crate::redaction::may_be_shown;
use crate::request::{Kind, RequestError};

/// The key of a URL with several hosts.
pub(crate) const URL: &str = "url";

/// The keys that name the peers in a file.
pub(crate) const SOURCES: [&str; 2] = [URL, "peers"];

pub(crate) fn parse(path: &Path) -> Result<Table, RequestError> {
    let text =
        fs::read_to_string(path).map_err(|error| Kind::Unreadable(path.to_owned(), error))?;
    text.parse().map_err(|error: toml::de::Error| {
        // Its own text quotes the line, which may hold a password.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Kind::NoToml { path: path.to_owned(), line, what: error.message().to_owned() }.into()
    })
}

/// The keys of a path, each of which may be quoted as in a file.
pub(crate) fn keys_of(path: &str) -> Option<Vec<String>> {
    let mut table: Table = format!("{path} = 0").parse().ok()?;
    let mut keys = Vec::new();
    loop {
        let (key, value) = std::mem::take(&mut table).into_iter().next()?;
        keys.push(key);
        match value {
            Value::Table(inner) => table = inner,
            Value::Integer(0) => return Some(keys),
            _ => return None,
        }
    }
}

/// The table of this path.
pub(crate) fn find<'a>(file: &'a Table, path: &str) -> Result<&'a Table, RequestError> {
    let keys = keys_of(path).ok_or_else(|| Kind::NoPath(path.to_owned()))?;
    let mut table = file;
    for key in keys {
        table = table.get(&key).and_then(Value::as_table).ok_or_else(|| {
            let tables = table.iter().filter(|(_, value)| value.is_table());
            let others = tables.filter_map(|(name, _)| written(name)).collect();
            Kind::NoTable { path: path.to_owned(), key, others, tables: those_with_peers(file) }
        })?;
    }
    Ok(table)
}

/// A key as it stands in a path, if it may be shown.
fn written(key: &str) -> Option<String> {
    if !may_be_shown(key) || key.chars().any(char::is_control) {
        return None;
    }
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(is_bare) {
        return Some(key.to_owned());
    }
    Some(format!("\"{}\"", key.replace('\\', r"\\").replace('"', r#"\""#)))
}

pub(crate) fn has_peers(table: &Table) -> bool {
    SOURCES.iter().any(|key| table.contains_key(*key))
}

/// The tables of a file that hold peers.
pub(crate) fn those_with_peers(file: &Table) -> Vec<String> {
    let mut found = Vec::new();
    look_for_peers(file, "", &mut found);
    found
}

fn look_for_peers(table: &Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let Some((inner, key)) = value.as_table().zip(written(key)) else { continue };
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        if has_peers(inner) {
            found.push(path);
        } else {
            look_for_peers(inner, &path, found);
        }
    }
}

/// The URL of the first of some peers, in each form that they may have.
pub(crate) fn first_peer(peers: &Value) -> Option<&str> {
    let first = match peers {
        Value::Array(peers) => peers.first(),
        Value::Table(peers) => peers.values().next(),
        _ => None,
    }?;
    first.as_str().or_else(|| first.get(URL).and_then(Value::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_tables() {
        let keys = |path| keys_of(path).map(|keys| keys.join("|"));
        for (path, expected) in [
            ("shop", Some("shop")),
            ("default.databases.shop", Some("default|databases|shop")),
            (r#"a."b.c""#, Some("a|b.c")),
            ("", None),
            ("a..b", None),
            ("a = 1\nb", None),
            ("[a]", None),
        ] {
            assert_eq!(keys(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn tables_that_are_not_there() {
        let file: Table = "[default.databases.shop]\nurl = 'x'\n[debug]\n".parse().expect("TOML");
        assert!(find(&file, "default.databases.shop").is_ok_and(has_peers));
        let error = find(&file, "default.databases.shopp").expect_err("it is not there");
        let told = "the file has no table `default.databases.shopp`: there is no `shopp` beside shop; \
                    there are peers in the table `default.databases.shop`: name it, with `--table`";
        assert_eq!(error.to_string(), told);
        assert_eq!(those_with_peers(&file), ["default.databases.shop"]);
    }

    /// What is told can be given.
    #[test]
    fn keys_that_need_quotes() {
        for key in ["shop.eu", "", "a b", r#"a"b\c"#, "é"] {
            let inner = Value::Table([("url".to_owned(), Value::from("x"))].into_iter().collect());
            let tables = Value::Table([(key.to_owned(), inner)].into_iter().collect());
            let file: Table = [("databases".to_owned(), tables)].into_iter().collect();
            let found = those_with_peers(&file);
            assert_eq!(found.len(), 1, "{key}");
            assert!(find(&file, &found[0]).is_ok_and(has_peers), "{found:?}");
            let error = find(&file, "databases.none").expect_err("it is not there").to_string();
            let key = found[0].trim_start_matches("databases.");
            assert!(error.contains(&format!("beside {key}; ")), "{error}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret"] {
            let file: Table =
                format!("['{secret}'.b]\nurl = 'x'\n[a.'{secret}']\n").parse().expect("TOML");
            let found = those_with_peers(&file);
            assert!(found.is_empty(), "{found:?}");
            for path in [secret, &format!("'{secret}'.c"), "b", "a.b", &format!("a.'{secret}'.b")] {
                let told = find(&file, path).expect_err("it is not there").to_string();
                assert!(!told.contains("s3cret"), "{told}");
            }
        }
    }

    #[test]
    fn the_first_of_several_peers() {
        for (peers, expected) in [
            (r#"peers = ["a", "b"]"#, Some("a")),
            (r#"peers = [{ url = "a", name = "x" }]"#, Some("a")),
            (r#"peers = { db0 = "a", db1 = "b" }"#, Some("a")),
            (r#"peers = { db0 = { url = "a" } }"#, Some("a")),
            ("peers = 1", None),
            ("peers = []", None),
        ] {
            let file: Table = peers.parse().expect("TOML");
            assert_eq!(first_peer(&file["peers"]), expected, "{peers}");
        }
    }
}
