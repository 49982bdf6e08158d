//! Masks secrets in the output of a step, wherever the output is cut into pieces.

use std::mem;

/// Text in place of a secret.
const MASK: &[u8] = b"***";

/// Shortest secret that is masked, in bytes: shorter ones are in too many words.
const MIN_BYTES: usize = 4;

/// Returns `true` for a text that is masked. Spaces alone are not.
fn is_long(text: &[u8]) -> bool {
    text.len() >= MIN_BYTES && !text.trim_ascii().is_empty()
}

/// Texts that are masked.
#[derive(Clone, Default)]
pub(super) struct Masked(Vec<Vec<u8>>);

impl Masked {
    /// Returns what is masked of secrets: each one, and each line of one with several.
    pub(super) fn of<'a>(secrets: impl Iterator<Item = &'a [u8]>) -> Self {
        let lines = |secret: &'a [u8]| secret.split(|byte| matches!(byte, b'\n' | b'\r'));
        let parts = secrets.flat_map(|secret| lines(secret).chain([secret]));
        // Spaces around a text are seldom printed with it, and a short text counts with its spaces.
        let text = |part: &'a [u8]| [part.trim_ascii(), part].into_iter().find(|it| is_long(it));
        let mut texts: Vec<_> = parts.filter_map(text).map(<[u8]>::to_vec).collect();
        // The longest first, since a secret may begin with another.
        texts.sort_by(|one, other| (other.len(), one).cmp(&(one.len(), other)));
        texts.dedup();
        Self(texts)
    }

    /// Returns what `bytes` begin with.
    fn find(&self, bytes: &[u8], is_end: bool) -> Found {
        for text in &self.0 {
            if bytes.starts_with(text) {
                return Found::Secret(text.len());
            }
            if !is_end && text.starts_with(bytes) {
                return Found::Unclear;
            }
        }
        Found::Nothing
    }
}

/// Beginning of some output.
enum Found {
    /// A secret of this many bytes.
    Secret(usize),
    /// Output that may become a secret.
    Unclear,
    Nothing,
}

/// One stream of a step's output, in which secrets are masked.
#[derive(Default)]
pub(super) struct Mask {
    masked: Masked,
    /// Output that may be the beginning of a secret.
    held: Vec<u8>,
    /// Number of bytes at its beginning that are part of a secret that is shown as the mask.
    covered: usize,
}

impl Mask {
    pub(super) fn new(masked: Masked) -> Self {
        Self { masked, held: Vec::new(), covered: 0 }
    }

    /// Returns the output that can be shown once `bytes` have arrived.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.masked.0.is_empty() {
            return bytes.to_vec();
        }
        self.held.extend_from_slice(bytes);
        self.show(false)
    }

    /// Returns the rest of the output.
    pub(super) fn end(&mut self) -> Vec<u8> {
        self.show(true)
    }

    /// Shows what is clear. Secrets that overlap are one mask.
    fn show(&mut self, is_end: bool) -> Vec<u8> {
        let held = mem::take(&mut self.held);
        let (mut shown, mut at) = (Vec::with_capacity(held.len()), 0);
        while at < held.len() {
            match self.masked.find(&held[at..], is_end) {
                Found::Secret(length) => {
                    if self.covered <= at {
                        shown.extend_from_slice(MASK);
                    }
                    self.covered = self.covered.max(at + length);
                }
                Found::Unclear => break,
                Found::Nothing => {}
            }
            if at >= self.covered {
                shown.push(held[at]);
            }
            at += 1;
        }
        self.held = held[at..].to_vec();
        self.covered = self.covered.saturating_sub(at);
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the output of these pieces.
    fn shown(secrets: &[&str], pieces: &[&str]) -> String {
        let masked = Masked::of(secrets.iter().map(|secret| secret.as_bytes()));
        let mut mask = Mask::new(masked);
        let mut shown: Vec<u8> =
            pieces.iter().flat_map(|piece| mask.take(piece.as_bytes())).collect();
        shown.extend(mask.end());
        String::from_utf8(shown).expect("text")
    }

    #[test]
    fn secrets_are_masked_however_the_output_is_cut() {
        let text = "a hunter2! hunter hunter22 hunterhunter2 hunte";
        let masked = "a ***! hunter ***2 hunter*** hunte";
        assert_eq!(shown(&["hunter2"], &[text]), masked);
        for at in 0..text.len() {
            assert_eq!(shown(&["hunter2"], &[&text[..at], &text[at..]]), masked, "{at}");
        }
        let each: Vec<String> = text.chars().map(String::from).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        assert_eq!(shown(&["hunter2"], &each), masked);
    }

    #[test]
    fn of_two_secrets_the_longer_one_is_masked() {
        assert_eq!(shown(&["abcd", "abcdef"], &["abcd", "ef abcd", "e abcd"]), "*** ***e ***");
    }

    #[test]
    fn secrets_that_overlap_are_one_mask() {
        let (text, secrets) =
            ("x abcdefghijklmnop y zyzyzyzy z", ["abcd", "bcdefghijklmnop", "zyzyz"]);
        for at in 0..text.len() {
            let cut = [&text[..at], &text[at..]];
            assert_eq!(shown(&secrets, &cut), "x *** y ***y z", "{at}");
        }
        assert_eq!(shown(&["abcd", "bcde"], &["abcabcde", "abcdabcd"]), "abc*********");
    }

    #[test]
    fn a_short_secret_counts_with_its_spaces() {
        assert_eq!(shown(&["  sc \t", "    "], &["[  sc \t] sc     ."]), "[***] sc     .");
    }

    #[test]
    fn a_secret_of_lines_is_masked_as_a_whole_and_line_by_line() {
        let key = "BEGIN KEY\nMIIE\nabc\nEND KEY\n";
        assert_eq!(shown(&[key], &[key]), "***\n");
        assert_eq!(shown(&[key], &["  MIIE\n> END KEY; abc"]), "  ***\n> ***; abc");
    }

    #[test]
    fn nothing_and_short_secrets_mask_nothing() {
        assert_eq!(shown(&[], &["abc"]), "abc");
        assert_eq!(shown(&["", "abc", "\n\n"], &["abc", "\n\nabc"]), "abc\n\nabc");
    }
}
