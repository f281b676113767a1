//! Which file SQLite would create that is missing.

use std::path::PathBuf;

use crate::url::percent_decoded;

/// The file of an SQLite URL that is created where it is missing. `None` where none is.
pub(super) fn created_by(url: &str) -> Option<PathBuf> {
    let uri = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("file:"));
    let path = match uri {
        None => url.to_owned(),
        Some(uri) => {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let mut parameters = query.split('&');
            let mode = parameters.rfind(|it| it.starts_with("mode="));
            if mode.is_some_and(|mode| mode != "mode=rwc") {
                return None;
            }
            // An empty host, or `localhost`, may stand before the path.
            let path = match path.strip_prefix("//") {
                Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
                None => path,
            };
            percent_decoded(path)
        }
    };
    (!path.is_empty() && path != ":memory:").then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created() {
        for (url, expected) in [
            ("shop.db", Some("shop.db")),
            ("a b?c.db", Some("a b?c.db")),
            ("file:shop.db", Some("shop.db")),
            ("file:/srv/a%20b.db?cache=private", Some("/srv/a b.db")),
            ("file:///srv/shop.db", Some("/srv/shop.db")),
            ("sqlite:///srv/shop.db", Some("/srv/shop.db")),
            ("sqlite://shop.db", Some("shop.db")),
            ("file:shop.db?mode=rwc", Some("shop.db")),
            ("file:shop.db?mode=rw", None),
            ("file:shop.db?cache=private&mode=ro", None),
            ("file:shop.db?mode=memory", None),
            ("file::memory:", None),
            (":memory:", None),
            ("", None),
        ] {
            assert_eq!(created_by(url), expected.map(PathBuf::from), "{url}");
        }
    }
}
