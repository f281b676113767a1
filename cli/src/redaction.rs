//! Redaction of texts that may hold a password because they stand in the wrong place.

/// The text that replaces a secret.
const REDACTED: &str = "***";

/// Whether a text may be shown as it was given. Users mistake one place for another and give a URL, or
/// libpq's keywords, where a name or a path is expected; and these may hold a password. The library follows
/// the same rule.
pub(crate) fn may_be_shown(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // The name of an environment variable, as `SHOP_DB_PASSWORD`, is not a password.
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_plain = is_name || !text.contains("password");
    is_plain && !text.contains("://") && !text.contains(['@', '='])
}

/// Returns the text itself if it may be shown, or else [`REDACTED`].
pub(crate) fn shown_or_struck(text: &str) -> &str {
    if may_be_shown(text) { text } else { REDACTED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_may_hold_a_password_are_struck_out() {
        for text in ["", "shop", "default.databases.shop", "/srv/shop.toml", "SHOP_DB_PASSWORD"] {
            assert_eq!(shown_or_struck(text), text);
        }
        for text in ["mysql://db0/shop", "app:s3cret@db0", "host=db0", "the password is s3cret"] {
            assert_eq!(shown_or_struck(text), REDACTED, "{text}");
        }
    }
}
