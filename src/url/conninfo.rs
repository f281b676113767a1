//! libpq's conninfo strings, its alternative to URLs: `host=db0 dbname=shop password='a b'`.

/// Whether the text is a conninfo string. Its values may contain `://`.
pub(crate) fn is_conninfo(text: &str) -> bool {
    let (before, rest) = text.split_once('=').unwrap_or(("", ""));
    let key = before.trim();
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_key && !rest.is_empty()
}

/// Splits a conninfo string into its settings, as libpq does. Returns `None` if libpq would reject it.
pub(super) fn parse_conninfo(text: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = split_value(after.trim_start())?;
        settings.push((key.trim_end().to_owned(), value));
        rest = after.trim_start();
    }
    Some(settings)
}

/// Splits a text into its first value, without quotes and backslashes, and the rest.
fn split_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut letters = quoted.unwrap_or(text).chars();
    let mut value = String::new();
    loop {
        let before = letters.as_str();
        match letters.next() {
            Some('\\') => value.extend(letters.next()),
            Some('\'') if quoted.is_some() => return Some((value, letters.as_str())),
            Some(letter) if quoted.is_none() && letter.is_whitespace() => {
                return Some((value, before));
            }
            Some(letter) => value.push(letter),
            None if quoted.is_some() => return None,
            None => return Some((value, "")),
        }
    }
}
