//! Striking a URL and its passwords out of texts: client libraries quote them in their messages.

use super::uri::percent_decoded;
use crate::error::REDACTED;

/// Below this length a part of a password is only struck out where it stands as a word of its own:
/// a password `e` would otherwise make every message unreadable.
const SHORT: usize = 4;

/// What must not be shown. Longest first, so that a part of a secret is not all that is struck out of
/// it.
#[derive(Clone)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Those of a URL, and what is a password besides.
    pub(super) fn of(url: &str, password: Option<&str>) -> Self {
        let mut secrets = vec![url.to_owned()];
        for password in passwords(url).into_iter().chain(password.map(str::to_owned)) {
            let decoded = percent_decoded(&password);
            // A client library that splits a URL in the wrong place quotes a piece of the password.
            for whole in [&password, &decoded] {
                secrets.extend(whole.split(|c: char| !c.is_alphanumeric()).map(str::to_owned));
            }
            secrets.extend([password, decoded]);
        }
        secrets.retain(|secret| !secret.is_empty());
        Self::sorted(secrets)
    }

    /// These and others.
    pub(super) fn and(&self, others: Self) -> Self {
        let mut secrets = others.0;
        secrets.extend(self.0.iter().cloned());
        Self::sorted(secrets)
    }

    fn sorted(mut secrets: Vec<String>) -> Self {
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets)
    }

    /// `text` without them.
    pub(super) fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| strike_out(&text, secret))
    }
}

/// Replaces `secret` in `text`, a short one only where it is a word of its own.
fn strike_out(text: &str, secret: &str) -> String {
    let mut struck = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, found) = rest.split_at(at);
        let after = &found[secret.len()..];
        struck.push_str(before);
        // Not only in `before`, which begins where the last one was found.
        let is_word =
            !struck.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn redacts(url: &str, text: &str, expected: &str) {
        assert_eq!(Secrets::of(url, None).redact(text), expected, "with the URL {url}");
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
        redacts("mysql://app:s@db/shop", "Access denied", "Access denied");
        redacts("mysql://app@db/shop", "Unknown server host 'db'", "Unknown server host 'db'");
        redacts("mysql://app:@db/shop", "Access denied", "Access denied");
        redacts("a.db?mode=rw", "unable to open database file", "unable to open database file");
    }
}
