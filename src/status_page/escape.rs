//! Texts of others inside HTML and inside a script's data.

use std::fmt::{self, Write};

/// A text inside an element or a quoted attribute.
pub(super) struct Text<T>(pub(super) T);

impl<T: fmt::Display> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|letter| match letter {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            letter => self.0.write_char(letter),
        })
    }
}

/// JSON inside a `<script>`, which no text in it ends.
pub(super) struct ScriptData<'a>(pub(super) &'a serde_json::Value);

impl fmt::Display for ScriptData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // These stand in JSON's texts alone, where an escape is the same.
        self.0.to_string().chars().try_for_each(|letter| match letter {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => write!(f, "\\u{:04x}", u32::from(letter)),
            letter => f.write_char(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const MALICE: &str = "</script><!--\"' onload='alert(1)' & \u{2028}\u{2029} \\u003c";

    #[test]
    fn nothing_of_a_text_is_html() {
        let escaped = Text(MALICE).to_string();
        assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped}");
        assert!(escaped.starts_with("&lt;/script&gt;&lt;!--&quot;&#39; onload"), "{escaped}");
        assert!(escaped.contains(" &amp; "), "{escaped}");
        assert_eq!(Text(7).to_string(), "7");
    }

    #[test]
    fn nothing_in_json_ends_its_script() {
        let value = json!({ MALICE: [MALICE] });
        let data = ScriptData(&value).to_string();
        assert!(!data.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{data}");
        let read: Value = serde_json::from_str(&data).expect("it is JSON all the same");
        assert_eq!(read, value, "and says the same");
    }
}
