use crate::{DecodeError, MAX_LINE_BYTES};

/// Splitter of a byte stream into lines. Empty lines are skipped: either side may send one to
/// terminate an unfinished line of a former peer.
///
/// Holds at most [`MAX_LINE_BYTES`] and the last chunk, provided that [`Lines::next_line`] is
/// called until it returns `None` before the next [`Lines::push`].
#[derive(Debug, Default)]
pub struct Lines {
    held: Vec<u8>,
    start: usize,
    overlong_bytes: usize,
}

impl Lines {
    /// Returns an empty splitter.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the next bytes of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        self.held.drain(..self.start);
        self.start = 0;
        self.held.extend_from_slice(chunk);
    }

    /// Returns the next complete line, without its newline.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`] at the end of a line longer than [`MAX_LINE_BYTES`], whose bytes
    /// were discarded.
    pub fn next_line(&mut self) -> Option<Result<&[u8], DecodeError>> {
        loop {
            let rest = &self.held[self.start..];
            let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                self.drop_if_overlong();
                return None;
            };
            let line = self.start..self.start + length;
            self.start = line.end + 1;
            let overlong_bytes = std::mem::take(&mut self.overlong_bytes);
            if overlong_bytes + length > MAX_LINE_BYTES {
                return Some(Err(DecodeError::TooLong(overlong_bytes + length)));
            }
            if length > 0 {
                return Some(Ok(&self.held[line]));
            }
        }
    }

    /// Returns `true` if every byte received has been returned as part of a line.
    pub fn is_empty(&self) -> bool {
        self.held.len() == self.start
    }

    fn drop_if_overlong(&mut self) {
        let unfinished = self.held.len() - self.start;
        if self.overlong_bytes > 0 || unfinished > MAX_LINE_BYTES {
            self.overlong_bytes = self.overlong_bytes.saturating_add(unfinished);
            self.held.clear();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(lines: &mut Lines) -> Vec<Result<String, usize>> {
        let mut found = Vec::new();
        while let Some(line) = lines.next_line() {
            found.push(match line {
                Ok(line) => Ok(String::from_utf8_lossy(line).into_owned()),
                Err(DecodeError::TooLong(bytes)) => Err(bytes),
                Err(DecodeError::Malformed(error)) => panic!("no decoding happens here: {error}"),
            });
        }
        found
    }

    #[test]
    fn lines_come_out_whole_however_they_arrive() {
        let stream = b"one\n\n\ntwo\nthr";
        for size in 1..=stream.len() {
            let mut lines = Lines::new();
            let mut found = Vec::new();
            for chunk in stream.chunks(size) {
                lines.push(chunk);
                found.extend(all(&mut lines));
            }
            assert_eq!(found, [Ok("one".to_owned()), Ok("two".to_owned())], "in chunks of {size}");
            lines.push(b"ee\n");
            assert_eq!(all(&mut lines), [Ok("three".to_owned())]);
        }
    }

    #[test]
    fn a_giant_is_dropped_as_it_comes_and_the_next_line_survives() {
        let mut lines = Lines::new();
        let chunk = [b'x'; 4096];
        let total = 100 * 1024 * 1024;
        for _ in 0..total / chunk.len() {
            lines.push(&chunk);
            assert!(all(&mut lines).is_empty());
            assert!(lines.held.len() <= MAX_LINE_BYTES + chunk.len());
        }
        lines.push(b"\nnext\n");
        assert_eq!(all(&mut lines), [Err(total), Ok("next".to_owned())]);
    }

    #[test]
    fn the_longest_allowed_line_is_allowed() {
        let mut lines = Lines::new();
        lines.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert!(all(&mut lines).is_empty());
        lines.push(b"\n");
        assert_eq!(all(&mut lines)[0].as_ref().map(String::len), Ok(MAX_LINE_BYTES));
    }
}
