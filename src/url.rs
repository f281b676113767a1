//! A peer's database URL: a secret that can be used, checked and struck out of texts, never shown.

use std::fmt;
use std::time::Duration;

/// What stands where a secret was.
const REDACTED: &str = "***";

/// Below this length a part of a password is only struck out where it stands as a word of its own:
/// a password `e` would otherwise make every message unreadable.
const SHORT: usize = 4;

/// A peer's URL. `Debug` does not show it, and there is no `Display`.
pub(crate) struct PeerUrl {
    url: String,
    /// Longest first, so that a part of a secret is not all that is struck out of it.
    secrets: Vec<String>,
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl PeerUrl {
    pub(crate) fn new(url: String) -> Self {
        let mut secrets = vec![url.clone()];
        for password in passwords(&url) {
            let decoded = percent_decoded(&password);
            // A client library that splits a URL in the wrong place quotes a piece of the password.
            for whole in [&password, &decoded] {
                secrets.extend(whole.split(|c: char| !c.is_alphanumeric()).map(str::to_owned));
            }
            secrets.extend([password, decoded]);
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self { url, secrets }
    }

    /// Has libpq end a login after so long by itself, in whole seconds, of which it takes two at
    /// least; unless the URL says something else.
    pub(crate) fn with_libpq_timeout(mut self, timeout: Duration) -> Self {
        let seconds = timeout.as_millis().div_ceil(1000).max(2);
        let uri =
            ["postgres://", "postgresql://"].iter().find_map(|way| self.url.strip_prefix(way));
        let joint = match uri {
            Some(rest) => {
                // As libpq reads it: what is before an `@` is a user, unless a `/` comes first.
                let user = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
                let host = user.map_or(rest, |at| &rest[at..]);
                match host.find('?') {
                    None => "?",
                    Some(_) if host.ends_with(['?', '&']) => "",
                    Some(_) => "&",
                }
            }
            // The name of a database alone is no list of settings.
            None if self.url.contains('=') => " ",
            None => return self,
        };
        if !self.url.contains("connect_timeout") {
            self.url = format!("{}{joint}connect_timeout={seconds}", self.url);
        }
        self
    }

    /// The URL itself, for diesel.
    pub(crate) fn expose(&self) -> &str {
        &self.url
    }

    /// `text` without this URL and its passwords: client libraries quote them in their messages.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| strike_out(&text, secret))
    }
}

/// Replaces `secret` in `text`, a short one only where it is a word of its own.
fn strike_out(text: &str, secret: &str) -> String {
    let mut struck = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, found) = rest.split_at(at);
        let after = &found[secret.len()..];
        let is_word =
            !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        struck.push_str(before);
        struck.push_str(if secret.len() >= SHORT || is_word { REDACTED } else { secret });
        rest = after;
    }
    struck + rest
}

/// Every text in `url` that is or may be a password: before the last `@` (one may stand in the
/// password, unescaped), and after each `password` up to the next `key=`. Where a URL is malformed
/// this is rather too much than too little.
fn passwords(url: &str) -> Vec<String> {
    let mut found = Vec::new();
    if let Some((userinfo, _)) = url.rsplit_once('@') {
        let userinfo = userinfo.split_once("://").map_or(userinfo, |(_, userinfo)| userinfo);
        found.extend(userinfo.split_once(':').map(|(_, password)| password.to_owned()));
    }
    let lower = url.to_ascii_lowercase();
    for (at, key) in lower.match_indices("password") {
        if let Some(value) = url[at + key.len()..].trim_start().strip_prefix('=') {
            found.push(before_next_key(value).trim().trim_matches('\'').to_owned());
        }
    }
    found
}

/// `value` up to a separator that is followed by `key=`.
fn before_next_key(value: &str) -> &str {
    let is_key = |rest: &str| {
        let key = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
        key.len() < rest.len() && key.trim_start().starts_with('=')
    };
    let separators = value.char_indices().filter(|(_, c)| *c == '&' || c.is_whitespace());
    let mut ends = separators.filter(|(at, c)| is_key(value[at + c.len_utf8()..].trim_start()));
    ends.next().map_or(value, |(at, _)| &value[..at])
}

/// `text` with `%41` read as `A`; what is no valid escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(escape.unwrap_or(*first));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn redacts(url: &str, text: &str, expected: &str) {
        assert_eq!(PeerUrl::new(url.to_owned()).redact(text), expected, "with the URL {url}");
    }

    #[test]
    fn strikes_out_the_url_and_its_passwords() {
        redacts("mysql://app:s3cret@db/shop", "bad: mysql://app:s3cret@db/shop", "bad: ***");
        redacts("mysql://app:s3cret@db/shop", "password s3cret refused", "password *** refused");
        redacts(
            "mysql://app:p%40ss%2Fw@db/shop",
            "not `p@ss/w` but `p%40ss%2Fw`",
            "not `***` but `***`",
        );
        redacts(
            "postgres://app:p@ssword@db/shop",
            "no such host: ssword@db",
            "no such host: ***@db",
        );
        redacts("host=db password=s3cret user=app", "token s3cret", "token ***");
        redacts("host=db password = 'a b c'", "near a b c", "near ***");
        redacts("postgres://db/shop?user=app&password=s3cret&x=1", "s3cret!", "***!");
        redacts("postgres://db/shop?sslpassword=s3cret", "s3cret", "***");
    }

    #[test]
    fn strikes_out_what_a_library_makes_of_a_malformed_url() {
        redacts(
            "postgres:/app:s3cret@db/shop?x=1",
            "invalid option \"postgres:/app:s3cret@db/shop?x\"",
            "invalid option \"postgres:***@db/shop?x\"",
        );
        redacts(
            "host=db password=correct s3cret user=app",
            "missing \"=\" after \"s3cret\"",
            "missing \"=\" after \"***\"",
        );
        redacts(
            "host=db password='x's3cret",
            "missing \"=\" after \"s3cret\"",
            "missing \"=\" after \"***\"",
        );
        redacts("host=db password=cor\\ s3cret", "near s3cret", "near ***");
        redacts("postgres://app:x@y,s3cret@db", "host name \"s3cret@db\"", "host name \"***@db\"");
        redacts(
            "postgres://app:x@y%2Ds3cret@db",
            "host name \"y-s3cret\"",
            "host name \"***-***\"",
        );
        redacts(
            "postgres://db/shop?password=a&s3cret&x=1",
            "parameter: \"s3cret\"",
            "parameter: \"***\"",
        );
    }

    #[test]
    fn leaves_the_rest_of_a_message_readable() {
        redacts(
            "host=db password=s3cret dbname=shop",
            "no host db, no shop",
            "no host db, no shop",
        );
        redacts("mysql://app:e@db/shop", "the peer refused 'e'", "the peer refused '***'");
        redacts("mysql://app@db/shop", "Unknown server host 'db'", "Unknown server host 'db'");
        redacts("mysql://app:@db/shop", "Access denied", "Access denied");
        redacts("a.db?mode=rw", "unable to open database file", "unable to open database file");
    }

    #[test]
    fn libpq_gets_a_time_out_unless_the_url_has_one() {
        let cases = [
            ("postgres://app:x@db/shop", "postgres://app:x@db/shop?connect_timeout=5"),
            ("postgresql://db/shop?a=b", "postgresql://db/shop?a=b&connect_timeout=5"),
            ("postgres://app:x?y@db", "postgres://app:x?y@db?connect_timeout=5"),
            ("postgres://db/shop?", "postgres://db/shop?connect_timeout=5"),
            ("postgres://db/shop?a=b&", "postgres://db/shop?a=b&connect_timeout=5"),
            ("postgres://db/shop?user=a@b", "postgres://db/shop?user=a@b&connect_timeout=5"),
            ("postgres://app@db/a@b", "postgres://app@db/a@b?connect_timeout=5"),
            ("host=db dbname=shop", "host=db dbname=shop connect_timeout=5"),
            ("postgres://db?connect_timeout=9", "postgres://db?connect_timeout=9"),
            ("shop", "shop"),
        ];
        for (given, expected) in cases {
            let url =
                PeerUrl::new(given.to_owned()).with_libpq_timeout(Duration::from_millis(4_100));
            assert_eq!(url.expose(), expected, "from {given}");
        }
        let url = PeerUrl::new("postgres://db".to_owned());
        let url = url.with_libpq_timeout(Duration::from_millis(1));
        assert!(url.expose().ends_with("=2"), "it takes no less than two seconds");
    }

    #[test]
    fn debug_does_not_show_it() {
        let url = PeerUrl::new("mysql://app:s3cret@db/shop".to_owned());
        assert_eq!(format!("{url:?}"), "***", "a URL is a secret");
    }
}
