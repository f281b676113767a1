//! The tables of a TOML file: how they are found, and which of them contain peers.

use std::fs;
use std::path::Path;

use diesel_peers::doctor::shown::{is_printable, may_be_shown};
use toml::{Table, Value};

use crate::error::{RequestError, RequestErrorKind};

/// The key of a URL with several hosts.
pub(crate) const URL: &str = "url";

/// The keys that define the peers in a file.
pub(crate) const PEER_KEYS: [&str; 2] = [URL, "peers"];

pub(crate) fn parse_file(path: &Path) -> Result<Table, RequestError> {
    let text = fs::read_to_string(path)
        .map_err(|error| RequestErrorKind::Unreadable(path.to_owned(), error))?;
    text.parse().map_err(|error: toml::de::Error| {
        // The `Display` of this error quotes the line, which may contain a password.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        RequestErrorKind::InvalidToml {
            path: path.to_owned(),
            line,
            reason: error.message().to_owned(),
        }
        .into()
    })
}

/// Splits the path of a table into its keys, which may be quoted as in a TOML file.
pub(crate) fn parse_table_path(path: &str) -> Option<Vec<String>> {
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

/// Returns the table with this path.
pub(crate) fn find_table<'a>(file: &'a Table, path: &str) -> Result<&'a Table, RequestError> {
    let keys = parse_table_path(path)
        .ok_or_else(|| RequestErrorKind::InvalidTablePath(path.to_owned()))?;
    let mut table = file;
    for key in keys {
        table = table.get(&key).and_then(Value::as_table).ok_or_else(|| {
            let tables = table.iter().filter(|(_, value)| value.is_table());
            let existing = tables.filter_map(|(name, _)| quoted_key(name)).collect();
            let tables = tables_with_peers(file);
            RequestErrorKind::TableNotFound { path: path.to_owned(), key, existing, tables }
        })?;
    }
    Ok(table)
}

/// Returns a key in the form that a path requires, or `None` if the key may be a secret.
fn quoted_key(key: &str) -> Option<String> {
    if !may_be_shown(key) || !key.chars().all(is_printable) {
        return None;
    }
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(is_bare) {
        return Some(key.to_owned());
    }
    Some(format!("\"{}\"", key.replace('\\', r"\\").replace('"', r#"\""#)))
}

pub(crate) fn has_peers(table: &Table) -> bool {
    PEER_KEYS.iter().any(|key| table.contains_key(*key))
}

/// Returns the paths of the tables that contain peers.
pub(crate) fn tables_with_peers(file: &Table) -> Vec<String> {
    let mut found = Vec::new();
    add_tables_with_peers(file, "", &mut found);
    found
}

fn add_tables_with_peers(table: &Table, path: &str, found: &mut Vec<String>) {
    for (key, value) in table {
        let Some((inner, key)) = value.as_table().zip(quoted_key(key)) else { continue };
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        if has_peers(inner) {
            found.push(path);
        } else {
            add_tables_with_peers(inner, &path, found);
        }
    }
}

/// Returns the URL of the first peer, for each form that the key `peers` may have.
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
    fn table_paths_are_split_into_keys() {
        let keys = |path| parse_table_path(path).map(|keys| keys.join("|"));
        for (path, expected) in [
            ("shop", Some("shop")),
            ("default.databases.shop", Some("default|databases|shop")),
            (r#"a."b.c""#, Some("a|b.c")),
            ("", None),
            ("a..b", None),
            ("a = 1\nb", None),
            ("[a]", None),
        ] {
            assert_eq!(keys(path).as_deref(), expected, "the keys of the path {path}");
        }
    }

    #[test]
    fn missing_table_is_reported_with_suggestions() {
        let file: Table = "[default.databases.shop]\nurl = 'x'\n[debug]\n".parse().expect("TOML");
        assert!(find_table(&file, "default.databases.shop").is_ok_and(has_peers));
        let error = find_table(&file, "default.databases.shopp").expect_err("the table is missing");
        let text = "the file has no table `default.databases.shopp`: `shopp` does not exist; existing \
                    tables there: shop; the table `default.databases.shop` contains peers: select it \
                    with `--table`";
        assert_eq!(error.to_string(), text);
        assert_eq!(tables_with_peers(&file), ["default.databases.shop"]);
    }

    #[test]
    fn suggested_paths_are_valid_for_keys_that_need_quotes() {
        for key in ["shop.eu", "", "a b", r#"a"b\c"#, "é"] {
            let inner = Value::Table([("url".to_owned(), Value::from("x"))].into_iter().collect());
            let tables = Value::Table([(key.to_owned(), inner)].into_iter().collect());
            let file: Table = [("databases".to_owned(), tables)].into_iter().collect();
            let found = tables_with_peers(&file);
            assert_eq!(found.len(), 1, "one table is found for the key {key}");
            assert!(
                find_table(&file, &found[0]).is_ok_and(has_peers),
                "the path is valid: {found:?}"
            );
            let error =
                find_table(&file, "databases.none").expect_err("the table is missing").to_string();
            let key = found[0].trim_start_matches("databases.");
            assert!(
                error.contains(&format!("tables there: {key}; ")),
                "the key is listed: {error}"
            );
        }
    }

    #[test]
    fn possible_secrets_are_not_shown() {
        for secret in ["mysql://app:s3cret@db0/shop", "host=h password=s3cret"] {
            let file: Table =
                format!("['{secret}'.b]\nurl = 'x'\n[a.'{secret}']\n").parse().expect("TOML");
            let found = tables_with_peers(&file);
            assert!(found.is_empty(), "paths with a secret are not suggested: {found:?}");
            for path in [secret, &format!("'{secret}'.c"), "b", "a.b", &format!("a.'{secret}'.b")] {
                let error = find_table(&file, path).expect_err("the table is missing").to_string();
                assert!(!error.contains("s3cret"), "the error shows no secret: {error}");
            }
        }
    }

    #[test]
    fn first_peer_is_found_in_every_form() {
        for (peers, expected) in [
            (r#"peers = ["a", "b"]"#, Some("a")),
            (r#"peers = [{ url = "a", name = "x" }]"#, Some("a")),
            (r#"peers = { db0 = "a", db1 = "b" }"#, Some("a")),
            (r#"peers = { db0 = { url = "a" } }"#, Some("a")),
            ("peers = 1", None),
            ("peers = []", None),
        ] {
            let file: Table = peers.parse().expect("TOML");
            assert_eq!(first_peer(&file["peers"]), expected, "the first peer of {peers}");
        }
    }
}
