//! Redaction of arguments that may contain a password because two of them were mixed up.

/// The replacement for a secret.
const REDACTED: &str = "***";

/// Whether a text may be shown as it was given. A user who mixes up two arguments may give a URL or a conninfo
/// string, which may contain a password, in place of a name or a path. The library applies the same rule.
pub(crate) fn may_be_shown(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // The name of an environment variable, as `SHOP_DB_PASSWORD`, is not a password.
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_plain = is_name || !text.contains("password");
    is_plain && !text.contains("://") && !text.contains(['@', '='])
}

/// The text, or [`REDACTED`] if it may contain a secret.
pub(crate) fn shown_or_redacted(text: &str) -> &str {
    if may_be_shown(text) { text } else { REDACTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_may_contain_a_password_are_redacted() {
        for text in ["", "shop", "default.databases.shop", "/srv/shop.toml", "SHOP_DB_PASSWORD"] {
            assert_eq!(shown_or_redacted(text), text);
        }
        for text in ["mysql://db0/shop", "app:s3cret@db0", "host=db0", "the password is s3cret"] {
            assert_eq!(shown_or_redacted(text), REDACTED, "{text}");
        }
    }
}
