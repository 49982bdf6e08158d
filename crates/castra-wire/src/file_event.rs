//! Reports of what changes in a directory of the guest, each a record.

use crate::records::{RecordError, record_of};

/// A change in a directory that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEvent {
    /// Kind of the change.
    pub kind: FileEventKind,
    /// Path relative to the directory; empty for [`FileEventKind::Lost`].
    pub path: Vec<u8>,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileEventKind {
    /// A file or directory appeared.
    Created,
    /// A file was written.
    Written,
    /// A file or directory is gone.
    Removed,
    /// A file or directory left its name. Its new one, if it is watched, is [`Self::Created`].
    Renamed,
    /// Mode, owner or times were changed.
    Attributes,
    /// The guest could not report some changes.
    Lost,
}

impl FileEvent {
    /// Returns the event as a record.
    pub fn encode(&self) -> Vec<u8> {
        record_of(&[&[self.kind.code()], &*self.path].concat())
    }

    /// Decodes a record.
    ///
    /// # Errors
    /// The bytes are no event.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (code, path) = bytes.split_first().ok_or(RecordError)?;
        Ok(Self { kind: FileEventKind::of_code(*code)?, path: path.to_owned() })
    }
}

impl FileEventKind {
    fn code(self) -> u8 {
        match self {
            Self::Created => 1,
            Self::Written => 2,
            Self::Removed => 3,
            Self::Renamed => 4,
            Self::Attributes => 5,
            Self::Lost => 6,
        }
    }

    fn of_code(code: u8) -> Result<Self, RecordError> {
        Ok(match code {
            1 => Self::Created,
            2 => Self::Written,
            3 => Self::Removed,
            4 => Self::Renamed,
            5 => Self::Attributes,
            6 => Self::Lost,
            _ => return Err(RecordError),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Records;

    #[test]
    fn events_survive_the_wire() {
        let mut records = Records::default();
        for code in 1..=6 {
            let kind = FileEventKind::of_code(code).expect("a kind");
            let sent = FileEvent { kind, path: b"a/\xff".to_vec() };
            records.push(&sent.encode());
            let bytes = records.next_record().expect("a record").expect("is complete");
            assert_eq!(FileEvent::decode(&bytes), Ok(sent));
        }
        assert_eq!(FileEvent::decode(b""), Err(RecordError));
        assert_eq!(FileEvent::decode(b"\x07path"), Err(RecordError));
    }
}
