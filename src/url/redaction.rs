//! Redaction of a URL and its passwords from texts: client libraries quote them in their messages.

use super::uri::percent_decoded;
use crate::redact::REDACTED;

/// The length in bytes from which a part of a password is redacted everywhere. A shorter part is redacted
/// only where it is a whole word: a password `e` would otherwise make every message unreadable.
const MIN_LENGTH: usize = 4;

/// The texts that must not be shown. Longest first, so that a part of a secret is not replaced before
/// the whole secret.
#[derive(Clone)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Collects the secrets of a URL, and of a password that the URL does not contain literally.
    pub(super) fn new(url: &str, password: Option<&str>) -> Self {
        let mut secrets = vec![url.to_owned()];
        for password in passwords(url).into_iter().chain(password.map(str::to_owned)) {
            let decoded = percent_decoded(&password);
            // A client library that splits a URL in the wrong place quotes a part of the password.
            for whole in [&password, &decoded] {
                secrets.extend(whole.split(|c: char| !c.is_alphanumeric()).map(str::to_owned));
            }
            secrets.extend([password, decoded]);
        }
        secrets.retain(|secret| !secret.is_empty());
        Self::sorted(secrets)
    }

    /// Returns these secrets and the others.
    pub(super) fn merged_with(&self, others: Self) -> Self {
        let mut secrets = others.0;
        secrets.extend(self.0.iter().cloned());
        Self::sorted(secrets)
    }

    fn sorted(mut secrets: Vec<String>) -> Self {
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets)
    }

    /// Replaces every secret in `text`.
    pub(super) fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| redact_secret(&text, secret))
    }
}

/// Replaces `secret` in `text`; a short secret only where it is a whole word.
fn redact_secret(text: &str, secret: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(secret) {
        let (before, found) = rest.split_at(at);
        let after = &found[secret.len()..];
        redacted.push_str(before);
        // `before` begins after the last occurrence, so only `redacted` shows what precedes the secret.
        let is_word =
            !redacted.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        redacted.push_str(if secret.len() >= MIN_LENGTH || is_word { REDACTED } else { secret });
        rest = after;
    }
    redacted + rest
}

/// Returns every part of `url` that is or may be a password: the part before the last `@` (the password
/// may contain an unescaped `@`), and the part after each `password` up to the next `key=`. For a
/// malformed URL this is rather too much than too little.
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

/// Returns `value` up to the first separator that is followed by `key=`.
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
    fn assert_redacts(url: &str, text: &str, expected: &str) {
        assert_eq!(Secrets::new(url, None).redact(text), expected, "with the URL {url}");
    }

    #[test]
    fn url_and_its_passwords_are_redacted() {
        assert_redacts("mysql://app:s3cret@db/shop", "bad: mysql://app:s3cret@db/shop", "bad: ***");
        assert_redacts(
            "mysql://app:s3cret@db/shop",
            "password s3cret refused",
            "password *** refused",
        );
        assert_redacts(
            "mysql://app:p%40ss%2Fw@db/shop",
            "not `p@ss/w` but `p%40ss%2Fw`",
            "not `***` but `***`",
        );
        assert_redacts(
            "postgres://app:p@ssword@db/shop",
            "no such host: ssword@db",
            "no such host: ***@db",
        );
        assert_redacts("host=db password=s3cret user=app", "token s3cret", "token ***");
        assert_redacts("host=db password = 'a b c'", "near a b c", "near ***");
        assert_redacts("postgres://db/shop?user=app&password=s3cret&x=1", "s3cret!", "***!");
        assert_redacts("postgres://db/shop?sslpassword=s3cret", "s3cret", "***");
    }

    #[test]
    fn parts_that_a_library_quotes_of_a_malformed_url_are_redacted() {
        assert_redacts(
            "postgres:/app:s3cret@db/shop?x=1",
            "invalid option \"postgres:/app:s3cret@db/shop?x\"",
            "invalid option \"postgres:***@db/shop?x\"",
        );
        assert_redacts(
            "host=db password=correct s3cret user=app",
            "missing \"=\" after \"s3cret\"",
            "missing \"=\" after \"***\"",
        );
        assert_redacts(
            "host=db password='x's3cret",
            "missing \"=\" after \"s3cret\"",
            "missing \"=\" after \"***\"",
        );
        assert_redacts("host=db password=cor\\ s3cret", "near s3cret", "near ***");
        assert_redacts(
            "postgres://app:x@y,s3cret@db",
            "host name \"s3cret@db\"",
            "host name \"***@db\"",
        );
        assert_redacts(
            "postgres://app:x@y%2Ds3cret@db",
            "host name \"y-s3cret\"",
            "host name \"***-***\"",
        );
        assert_redacts(
            "postgres://db/shop?password=a&s3cret&x=1",
            "parameter: \"s3cret\"",
            "parameter: \"***\"",
        );
    }

    #[test]
    fn rest_of_a_message_stays_readable() {
        assert_redacts(
            "host=db password=s3cret dbname=shop",
            "no host db, no shop",
            "no host db, no shop",
        );
        assert_redacts("mysql://app:e@db/shop", "the peer refused 'e'", "the peer refused '***'");
        assert_redacts("mysql://app:s@db/shop", "Access denied", "Access denied");
        assert_redacts(
            "mysql://app@db/shop",
            "Unknown server host 'db'",
            "Unknown server host 'db'",
        );
        assert_redacts("mysql://app:@db/shop", "Access denied", "Access denied");
        assert_redacts(
            "a.db?mode=rw",
            "unable to open database file",
            "unable to open database file",
        );
    }
}
