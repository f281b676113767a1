//! libpq's other form of a URL: `host=db0 dbname=shop password='a b'`.

/// Whether it is of libpq's other form, `host=db0 dbname=shop`. A value in it may hold `://`.
pub(crate) fn is_keywords(url: &str) -> bool {
    let (before, rest) = url.split_once('=').unwrap_or(("", ""));
    let key = before.trim();
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_key && !rest.is_empty()
}

/// `host=db0 password='a b'` taken apart as libpq does. None where it would find a mistake.
pub(super) fn conninfo(text: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        settings.push((key.trim_end().to_owned(), value));
        rest = after.trim_start();
    }
    Some(settings)
}

/// The first value of a text, without its quotes and backslashes, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
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
