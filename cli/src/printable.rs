//! Text from elsewhere, made harmless for a terminal: programs choose their own paths, and peers their words.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Characters that act on a terminal, or that make text look like other text.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The text with every such character written as `\u{…}`.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// One line of JSON with every such character inside its strings written as `\uXXXX`.
#[must_use]
pub fn printable_json(json: &str) -> Cow<'_, str> {
    if !json.contains(acts) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_spelled_out() {
        assert_eq!(printable("/usr/bin/c\u{75}rl"), "/usr/bin/curl");
        assert_eq!(printable("a\u{1b}[2Jb\r\n\u{9b}c"), "a\\u{1b}[2Jb\\u{d}\\u{a}\\u{9b}c");
        assert_eq!(printable("gnp\u{202e}.sh"), "gnp\\u{202e}.sh");
        assert_eq!(printable("grün/日本"), "grün/日本");
    }

    #[test]
    fn json_stays_the_same_json() {
        let text = "x\u{9b}y\u{202e}z\u{e0041}";
        let json = serde_json::to_string(text).unwrap();
        let safe = printable_json(&json);
        assert!(safe.is_ascii(), "{safe}");
        assert_eq!(serde_json::from_str::<String>(&safe).unwrap(), text);
    }
}
