//! Text from a guest, made safe to show.

/// Longest text that is worth showing, in characters.
const MAX_CHARACTERS: usize = 500;

/// What stands for a character that is not shown.
const REPLACEMENT: char = '\u{FFFD}';

/// Takes away what could drive a terminal or disguise itself in it (control characters, the marks that turn the
/// direction of text, invisible characters), and all that is too long.
pub(super) fn make_harmless(text: &mut String) {
    if text.chars().nth(MAX_CHARACTERS).is_none() && !text.chars().any(is_harmful) {
        return;
    }
    *text = text.chars().take(MAX_CHARACTERS).map(|c| if is_harmful(c) { REPLACEMENT } else { c }).collect();
}

/// The same for a copy of the text.
pub fn harmless_text(text: &str) -> String {
    let mut text = text.to_owned();
    make_harmless(&mut text);
    text
}

/// A log as it can be shown: escape sequences are taken out whole, and only line ends and tabs stay of what controls.
pub fn harmless_log(text: &str) -> String {
    let without_escapes = anstream::adapter::strip_str(text).to_string();
    let keep = |c: char| if is_harmful(c) && c != '\n' && c != '\t' { REPLACEMENT } else { c };
    without_escapes.chars().filter(|c| *c != '\r').map(keep).collect()
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{61C}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_and_disguises_go() {
        assert_eq!(harmless_text("\u{1b}]0;title\u{7}"), "\u{FFFD}]0;title\u{FFFD}");
        assert_eq!(harmless_text("a\r\nb\u{9b}2J"), "a\u{FFFD}\u{FFFD}b\u{FFFD}2J");
        assert_eq!(harmless_text("x\u{202e}y\u{2066}z"), "x\u{FFFD}y\u{FFFD}z");
    }

    #[test]
    fn a_log_keeps_its_lines_and_loses_its_escapes() {
        let log = "\u{1b}[32mok\u{1b}[0m\tdone\r\n\u{1b}]0;title\u{7}next\u{8}\n";
        assert_eq!(harmless_log(log), "ok\tdone\nnext\n");
    }

    #[test]
    fn plain_text_stays() {
        let text = "cannot mount: Größe 10 GiB, «/»";
        assert_eq!(harmless_text(text), text);
    }

    #[test]
    fn endless_text_ends() {
        assert_eq!(harmless_text(&"é".repeat(100_000)).chars().count(), MAX_CHARACTERS);
    }
}
