//! Output of a program, of which the beginning and the end are kept.

use std::collections::VecDeque;

/// Collects output in bounded memory.
pub(super) struct Capture {
    /// Most bytes of the beginning and of the end.
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// All bytes of the output.
    total: u64,
}

/// Output as clients receive it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Captured {
    /// The text, with a note in place of what was left out.
    pub(super) text: String,
    /// Bytes that were left out.
    pub(super) left_out_bytes: u64,
}

impl Capture {
    /// Returns an empty capture of at most this many bytes.
    pub(super) fn up_to(limit_bytes: usize) -> Self {
        Self { half: limit_bytes.div_ceil(2), head: Vec::new(), tail: VecDeque::new(), total: 0 }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.half - self.head.len();
        let (head, rest) = bytes.split_at(bytes.len().min(room));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(self.half)..];
        let excess = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..excess);
        self.tail.extend(rest);
    }

    /// Returns what was kept, as text.
    pub(super) fn finish(self) -> Captured {
        let Self { head, tail, total, .. } = self;
        let tail = Vec::from(tail);
        if (head.len() + tail.len()) as u64 == total {
            let all = [head, tail].concat();
            let text = String::from_utf8_lossy(&all).into_owned();
            return Captured { text, left_out_bytes: 0 };
        }
        let (head, tail) = (whole_end(&head), whole_start(&tail));
        let left_out_bytes = total - (head.len() + tail.len()) as u64;
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        let text = format!("{head}\n[... {left_out_bytes} bytes left out ...]\n{tail}");
        Captured { text, left_out_bytes }
    }
}

/// Returns text without the character that its end cuts off.
pub(super) fn whole_end(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        // Without a length, the error is an end that came too early.
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

/// Returns text without the rest of the character before it.
fn whole_start(bytes: &[u8]) -> &[u8] {
    let is_rest = |byte: &&u8| **byte & 0xc0 == 0x80;
    let rest = bytes.iter().take(3).take_while(is_rest).count();
    &bytes[rest..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(limit_bytes: usize, pieces: &[&[u8]]) -> (String, u64) {
        let mut capture = Capture::up_to(limit_bytes);
        for piece in pieces {
            capture.take(piece);
        }
        let Captured { text, left_out_bytes } = capture.finish();
        (text, left_out_bytes)
    }

    #[test]
    fn output_within_the_limit_is_whole() {
        assert_eq!(captured(8, &[]), (String::new(), 0));
        assert_eq!(captured(8, &[b"abcd", b"efgh"]), ("abcdefgh".to_owned(), 0));
        assert_eq!(captured(8, &["grüß".as_bytes()]), ("grüß".to_owned(), 0));
    }

    #[test]
    fn the_middle_is_left_out() {
        let left_out = |text: &str| (text.to_owned(), 18);
        let expected = left_out("abcd\n[... 18 bytes left out ...]\nwxyz");
        assert_eq!(captured(8, &[b"abcdefghijklmnopqrstuvwxyz"]), expected);
        let bytes: Vec<_> = (b'a'..=b'z').collect();
        let one_by_one: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(captured(8, &one_by_one), expected);
    }

    #[test]
    fn no_character_is_cut() {
        // Two bytes each: the limit falls in the middle of both.
        let text = "ä".repeat(20);
        let expected = "ä\n[... 36 bytes left out ...]\nä";
        assert_eq!(captured(6, &[text.as_bytes()]), (expected.to_owned(), 36));
    }

    #[test]
    fn memory_is_bounded() {
        let mut capture = Capture::up_to(100);
        for _ in 0..1000 {
            capture.take(&[b'x'; 10_000]);
        }
        assert!(capture.head.len() + capture.tail.capacity() < 1000);
        assert_eq!(capture.finish().left_out_bytes, 10_000_000 - 100);
    }
}
