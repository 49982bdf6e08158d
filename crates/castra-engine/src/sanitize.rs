//! Sanitises foreign text for display: from a guest, from QEMU, from a server, from a file's name.
//!
//! The guest's text is sanitised and shortened where it arrives. Castra's output is sanitised once
//! more where it is printed (`cli/printer.rs`), so that nothing depends on all the places in
//! between.

use std::borrow::Cow;

/// Maximum number of characters that are kept.
const MAX_CHARACTERS: usize = 500;

/// Replacement for a removed character.
const REPLACEMENT: char = '\u{FFFD}';

/// Replaces characters that could control a terminal or be misleading on it (control characters,
/// marks that change the direction of text, invisible characters), and cuts off text that is too
/// long.
pub fn sanitize(text: &mut String) {
    if text.chars().nth(MAX_CHARACTERS).is_none() && !text.chars().any(is_unprintable) {
        return;
    }
    *text = text
        .chars()
        .take(MAX_CHARACTERS)
        .map(|c| if is_unprintable(c) { REPLACEMENT } else { c })
        .collect();
}

/// Returns a sanitised copy of the text, like [`sanitize`].
pub fn sanitize_text(text: &str) -> String {
    let mut text = text.to_owned();
    sanitize(&mut text);
    text
}

/// Sanitises a log for display: removes whole escape sequences, and all control characters except
/// line ends and tabs.
pub fn sanitize_log(text: &str) -> String {
    let without_escapes = anstream::adapter::strip_str(text).to_string();
    let keep = |c: char| if is_unprintable(c) && c != '\n' && c != '\t' { REPLACEMENT } else { c };
    without_escapes.chars().filter(|c| *c != '\r').map(keep).collect()
}

/// Sanitises Castra's own lines; line ends and tabs stay.
pub fn sanitize_lines(text: &str) -> Cow<'_, str> {
    let is_unprintable = |c: char| is_unprintable(c) && c != '\n' && c != '\t';
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_unprintable(c) { REPLACEMENT } else { c }).collect())
}

/// Sanitises styled lines: line ends, tabs and styles stay (`ESC [ … m`, ECMA-48's SGR).
pub fn sanitize_styled(text: &str) -> String {
    let mut sanitized = String::new();
    for (number, part) in text.split('\u{1b}').enumerate() {
        let style = part.strip_prefix('[').and_then(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            rest[end..].starts_with('m').then_some(())
        });
        if number > 0 {
            sanitized.push(if style.is_some() { '\u{1b}' } else { REPLACEMENT });
        }
        sanitized.push_str(&sanitize_lines(part));
    }
    sanitized
}

/// Sanitises a JSON document. JSON's own escaping leaves some characters that a terminal obeys
/// (DEL, and those from U+0080 on); they can only occur in strings, where they may be written as
/// numbers.
pub fn sanitize_json(text: &str) -> String {
    let mut sanitized = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) && c != '\n' {
            sanitized.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            sanitized.push(c);
        }
    }
    sanitized
}

/// Returns `true` if the text contains nothing that this module would replace.
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_unprintable)
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
                | '\u{FEFF}' | '\u{61C}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_and_disguises_go() {
        assert_eq!(sanitize_text("\u{1b}]0;title\u{7}"), "\u{FFFD}]0;title\u{FFFD}");
        assert_eq!(sanitize_text("a\r\nb\u{9b}2J"), "a\u{FFFD}\u{FFFD}b\u{FFFD}2J");
        assert_eq!(sanitize_text("x\u{202e}y\u{2066}z"), "x\u{FFFD}y\u{FFFD}z");
    }

    #[test]
    fn a_log_keeps_its_lines_and_loses_its_escapes() {
        let log = "\u{1b}[32mok\u{1b}[0m\tdone\r\n\u{1b}]0;title\u{7}next\u{8}\n";
        assert_eq!(sanitize_log(log), "ok\tdone\nnext\n");
    }

    #[test]
    fn of_styled_lines_only_the_style_stays() {
        let styled = "\u{1b}[1m\u{1b}[31merror\u{1b}[0m: \u{1b}]0;title\u{7} \
            \u{1b}[2J\u{1b}[?25l\u{9b}1m\u{1b}";
        let expected = "\u{1b}[1m\u{1b}[31merror\u{1b}[0m: \u{FFFD}]0;title\u{FFFD} \
            \u{FFFD}[2J\u{FFFD}[?25l\u{FFFD}1m\u{FFFD}";
        assert_eq!(sanitize_styled(styled), expected);
    }

    #[test]
    fn json_says_the_same_in_printable_characters() {
        let value = serde_json::json!({"name": "a\u{7f}\u{9b}2J\u{202e}b\u{1b}\n\té"});
        let text = sanitize_json(&serde_json::to_string_pretty(&value).expect("JSON"));
        assert!(is_printable(&text.replace('\n', "")), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn plain_text_stays() {
        let text = "cannot mount: Größe 10 GiB, «/»";
        assert_eq!(sanitize_text(text), text);
    }

    #[test]
    fn endless_text_ends() {
        assert_eq!(sanitize_text(&"é".repeat(100_000)).chars().count(), MAX_CHARACTERS);
    }
}
