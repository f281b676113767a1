//! Predicts which file SQLite would create for a URL.

use std::path::PathBuf;

use crate::url::percent_decoded;

/// Returns the file that SQLite would create for this URL if the file does not exist. `None` if SQLite
/// would create no file.
pub(super) fn file_created_by(url: &str) -> Option<PathBuf> {
    let uri = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("file:"));
    let path = match uri {
        None => url.to_owned(),
        Some(uri) => {
            // SQLite ignores a fragment, and also parameters inside it.
            let uri = uri.split('#').next().unwrap_or_default();
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let mut parameters =
                query.split('&').map(|text| text.split_once('=').unwrap_or((text, "")));
            let mode = parameters.rfind(|(key, _)| decoded(key) == "mode");
            if mode.is_some_and(|(_, mode)| decoded(mode) != "rwc") {
                return None;
            }
            // The path may follow an authority, which SQLite allows to be empty or `localhost`.
            let path = match path.strip_prefix("//") {
                Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
                None => path,
            };
            decoded(path)
        }
    };
    (!path.is_empty() && path != ":memory:").then(|| path.into())
}

/// Decodes percent escapes as SQLite does: the text ends at a NUL.
fn decoded(text: &str) -> String {
    let mut text = percent_decoded(text);
    text.truncate(text.find('\0').unwrap_or(text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_of_writable_files_create_a_file() {
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
            ("file:shop.db#?mode=rw", Some("shop.db")),
            ("sqlite://shop.db#?mode=rw", Some("shop.db")),
            ("file:shop.db#part", Some("shop.db")),
            ("file:a%23b.db?mode=rw#c", None),
            ("file:a%23b%3Fc.db", Some("a#b?c.db")),
            ("file:shop.db?x=1#mode=rw&mode=rw", Some("shop.db")),
            ("file:shop.db?vfs=unix&mode=rw%63", Some("shop.db")),
            ("file:shop.db?m%6Fde=r%77", None),
            ("file:shop.db?mode=rwc%00x", Some("shop.db")),
            ("file:shop.db%00.old", Some("shop.db")),
            ("file::memory:", None),
            (":memory:", None),
            ("", None),
        ] {
            assert_eq!(file_created_by(url), expected.map(PathBuf::from), "{url}");
        }
    }
}
