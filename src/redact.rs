//! Which texts may be shown, and in which form: a user who mixes up two settings may give a secret in place
//! of a name, and a server may send characters that control a terminal or reorder a line.

use std::borrow::Cow;

/// The replacement for a secret.
pub(crate) const REDACTED: &str = "***";

/// Whether a text may be shown as it was given. A user who mixes up two settings may give a URL or a
/// conninfo string, which may contain a password, in place of a name, a path or a number.
pub(crate) fn may_be_shown(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    // The name of a variable is not a secret: `SHOP_DB_PASSWORD`.
    let is_name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_plain = is_name || !text.contains("password");
    is_plain && !text.contains("://") && !text.contains(['@', '='])
}

/// Whether a peer's name is a URL, the rest of one, or a conninfo string: two arguments were mixed up, and the
/// name may contain a password. (Names with only an `@` or a `=` are valid: sockets and files have such names.)
pub(crate) fn is_mistaken_url(name: &str) -> bool {
    let has_userinfo = name.split_once('@').is_some_and(|(userinfo, _)| userinfo.contains(':'));
    let is_conninfo = name.contains('=') && name.to_ascii_lowercase().contains("password");
    name.contains("://") || has_userinfo || is_conninfo
}

/// Whether a character is visible or a space, and leaves the characters beside it in their order. Control
/// characters are not, nor are those that are invisible (Unicode's default ignorable characters) or end a line.
pub(crate) fn is_printable(c: char) -> bool {
    let is_hidden = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !is_hidden
}

/// Replaces what is not printable in a text of one line.
pub(crate) fn printable(text: &str) -> String {
    let replaced = |c| match c {
        '\t' => ' ',
        c if is_printable(c) => c,
        _ => char::REPLACEMENT_CHARACTER,
    };
    text.chars().map(replaced).collect()
}

/// Returns a text of several lines, as libpq's errors are, as one line, and replaces what is not printable.
pub(crate) fn on_one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(printable).collect::<Vec<_>>().join(", ")
}

/// The text, or [`REDACTED`] if it may contain a secret.
pub(crate) fn shown_or_redacted(text: &str) -> &str {
    if may_be_shown(text) { text } else { REDACTED }
}

/// A peer's name, quoted, or a placeholder if it may contain a secret. Phrased to be read after "peer".
pub(crate) fn shown_name(name: &str) -> Cow<'static, str> {
    if may_be_shown(name) {
        format!("{name:?}").into()
    } else {
        "(name not shown, as it may contain a secret)".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_may_contain_a_secret_are_not_shown() {
        for text in [
            "",
            "db0",
            "30 parsecs",
            "[::1]:5432",
            "/srv/shop.toml",
            "default.databases.shop",
            "DB_PASSWORD",
        ] {
            assert!(may_be_shown(text), "{text}");
        }
        for text in [
            "mysql://db0/shop",
            "mysql:/app:s3cret@db0/shop",
            "app:s3cret@db0",
            "host=h user=app",
            "my Password s3cret",
        ] {
            assert!(!may_be_shown(text), "{text}");
        }
    }

    #[test]
    fn characters_that_control_or_mislead_are_replaced() {
        for plain in
            ["", "Benutzer »app« fehlgeschlagen", "ユーザー 'app'", "e\u{301}", "नमस्ते", "🙂 (111)"]
        {
            assert_eq!(printable(plain), plain);
        }
        for (text, expected) in [
            ("a\rb", "a\u{fffd}b"),
            ("\u{1b}[2J", "\u{fffd}[2J"),
            ("\u{7}\u{9b}", "\u{fffd}\u{fffd}"),
            ("a\nb", "a\u{fffd}b"),
            ("a\tb", "a b"),
            ("\u{202e}nimda", "\u{fffd}nimda"),
            ("ad\u{200b}min\u{feff}", "ad\u{fffd}min\u{fffd}"),
            ("a\u{2028}b\u{e0041}", "a\u{fffd}b\u{fffd}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn lines_are_joined() {
        let text = "server closed the connection unexpectedly\n\tThis probably means\r\n";
        assert_eq!(
            on_one_line(text),
            "server closed the connection unexpectedly, This probably means"
        );
        assert_eq!(on_one_line("a\u{7}"), "a\u{fffd}");
    }

    #[test]
    fn names_that_are_parts_of_a_url_are_recognized() {
        for name in
            ["db0", "[::1]:5432", "/srv/a=b/shop.db", "@abstract", "db/10.0.0.1", "C:/shop.db"]
        {
            assert!(!is_mistaken_url(name), "{name} is a name");
        }
        for name in [
            "mysql://db0/shop",
            "app:s3cret@db0/shop",
            "mysql:/app:s3cret@db0/shop",
            "host=db0 PASSWORD=s3cret",
        ] {
            assert!(is_mistaken_url(name), "{name} may contain a password");
        }
    }
}
