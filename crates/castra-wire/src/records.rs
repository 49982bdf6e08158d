//! Records of any number in a stream: each is its length, a 32-bit number in network byte order,
//! and so many bytes.

use bytes::{Buf as _, Bytes, BytesMut};

/// Longest record, in bytes.
pub const MAX_RECORD_BYTES: usize = 16 * 1024 * 1024;

/// Size of a record's length, in bytes.
const LENGTH_BYTES: usize = 4;

/// Error for bytes that are no records, or for a record that is none of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a record")]
pub struct RecordError;

/// Decoder of records. Keeps one of them at most, and what has arrived of the next ones.
#[derive(Debug, Default)]
pub struct Records {
    buffer: BytesMut,
}

impl Records {
    /// Takes bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next record, if it is complete.
    ///
    /// # Errors
    /// The record is longer than [`MAX_RECORD_BYTES`].
    pub fn next_record(&mut self) -> Result<Option<Bytes>, RecordError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| RecordError)?;
        if length > MAX_RECORD_BYTES {
            return Err(RecordError);
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Returns `true` if everything that has arrived was taken.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Returns a record of these bytes.
pub(crate) fn record_of(bytes: &[u8]) -> Vec<u8> {
    // A longer one is refused by the other side.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_arrive_in_pieces_of_any_size() {
        let sent: [&[u8]; 3] = [b"one", b"", b"the third"];
        let bytes: Vec<u8> = sent.iter().flat_map(|one| record_of(one)).collect();
        for size in 1..=bytes.len() {
            let (mut records, mut received) = (Records::default(), Vec::new());
            for piece in bytes.chunks(size) {
                records.push(piece);
                while let Some(record) = records.next_record().expect("a record") {
                    received.push(record);
                }
            }
            assert_eq!(received, sent, "{size}");
            assert!(records.is_empty());
        }
    }

    #[test]
    fn a_giant_is_refused_before_it_arrives() {
        let mut records = Records::default();
        records.push(&[0xff; 4]);
        assert_eq!(records.next_record(), Err(RecordError));
    }
}
