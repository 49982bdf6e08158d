//! Changes of the host that an agent repeats in its guest, so that programs there that watch files
//! are notified.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::mount::MountMessageError;

/// User of the process that repeats changes. No request of this user has an effect on the host.
pub const NUDGER_UID: u32 = 0xffff_fff0;

/// Maximum number of changes in a message.
pub const MAX_CHANGES: usize = 512;

/// Changes of the host in a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Group with which the first one is repeated. The next ones have the next groups.
    pub group: u32,
    /// The changes, in their order.
    pub changes: Vec<Change>,
}

/// A change of the host in a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path of the directory, relative to the mount.
    pub directory: Vec<u8>,
    /// Name in it; empty for the directory itself.
    pub name: Vec<u8>,
    /// Kind of the change.
    pub kind: ChangeKind,
}

/// Kind of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// There is another regular file.
    File {
        /// Set if it was written, too.
        is_written: bool,
        /// Set if it may be a program, which cannot be started while it is open for writing.
        is_executable: bool,
    },
    /// There is another directory.
    Directory,
    /// There is another symbolic link.
    Link,
    /// There is another FIFO.
    Fifo,
    /// There is another socket.
    Socket,
    /// A regular file was written.
    Contents {
        /// Set if it may be a program.
        is_executable: bool,
    },
    /// Attributes are others.
    Attributes {
        /// Set for a regular file, whose contents may be others, too.
        is_file: bool,
    },
    /// The name of something but a directory is gone.
    Removed,
    /// A directory is gone.
    RemovedDirectory,
    /// A file or directory has another name.
    Moved {
        /// Path of the directory in which it is, relative to the mount.
        directory: Vec<u8>,
        /// Its name there.
        name: Vec<u8>,
    },
}

impl Changes {
    /// Returns the encoded changes. Each is its kind, two flags, and its names with their lengths.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u32(self.group);
        for change in &self.changes {
            let (kind, flags) = change.kind.code();
            bytes.put_slice(&[kind, flags]);
            put(&mut bytes, &change.directory);
            put(&mut bytes, &change.name);
            if let ChangeKind::Moved { directory, name } = &change.kind {
                put(&mut bytes, directory);
                put(&mut bytes, name);
            }
        }
        bytes.freeze()
    }

    /// Decodes changes.
    ///
    /// # Errors
    /// [`MountMessageError`] if they are none, or a name is not one of an entry of a directory.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, MountMessageError> {
        let (group, rest) = bytes.split_first_chunk().ok_or(MountMessageError)?;
        bytes = rest;
        let mut changes = Vec::new();
        while let Some(([kind, flags], rest)) = bytes.split_first_chunk() {
            bytes = rest;
            if changes.len() >= MAX_CHANGES {
                return Err(MountMessageError);
            }
            let (directory, name) = (take(&mut bytes)?, take(&mut bytes)?);
            let kind = ChangeKind::of_code(*kind, *flags, &mut bytes)?;
            let is_of_directory = kind == ChangeKind::Attributes { is_file: false };
            let is_possible = is_name(&name) || name.is_empty() && is_of_directory;
            if !is_possible {
                return Err(MountMessageError);
            }
            changes.push(Change { directory, name, kind });
        }
        if !bytes.is_empty() {
            return Err(MountMessageError);
        }
        Ok(Self { group: u32::from_be_bytes(*group), changes })
    }
}

/// Flags of a kind.
const WRITTEN: u8 = 1;
const EXECUTABLE: u8 = 2;
const FILE: u8 = 4;

impl ChangeKind {
    fn code(&self) -> (u8, u8) {
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        match self {
            Self::File { is_written, is_executable } => {
                (1, flag(*is_written, WRITTEN) | flag(*is_executable, EXECUTABLE))
            }
            Self::Directory => (2, 0),
            Self::Link => (3, 0),
            Self::Fifo => (4, 0),
            Self::Socket => (5, 0),
            Self::Contents { is_executable } => (6, flag(*is_executable, EXECUTABLE)),
            Self::Attributes { is_file } => (7, flag(*is_file, FILE)),
            Self::Removed => (8, 0),
            Self::RemovedDirectory => (9, 0),
            Self::Moved { .. } => (10, 0),
        }
    }

    fn of_code(kind: u8, flags: u8, rest: &mut &[u8]) -> Result<Self, MountMessageError> {
        let is_executable = flags & EXECUTABLE != 0;
        Ok(match kind {
            1 => Self::File { is_written: flags & WRITTEN != 0, is_executable },
            2 => Self::Directory,
            3 => Self::Link,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::Contents { is_executable },
            7 => Self::Attributes { is_file: flags & FILE != 0 },
            8 => Self::Removed,
            9 => Self::RemovedDirectory,
            10 => {
                let (directory, name) = (take(rest)?, take(rest)?);
                if !is_name(&name) {
                    return Err(MountMessageError);
                }
                Self::Moved { directory, name }
            }
            _ => return Err(MountMessageError),
        })
    }
}

/// Returns `true` for a name of an entry of a directory.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

fn put(bytes: &mut BytesMut, text: &[u8]) {
    // Linux has no longer paths.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    bytes.put_u16(length);
    bytes.put_slice(&text[..length.into()]);
}

fn take(bytes: &mut &[u8]) -> Result<Vec<u8>, MountMessageError> {
    let (length, rest) = bytes.split_first_chunk().ok_or(MountMessageError)?;
    let length = u16::from_be_bytes(*length).into();
    let (text, rest) = rest.split_at_checked(length).ok_or(MountMessageError)?;
    *bytes = rest;
    Ok(text.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Changes {
        let kinds = [
            ChangeKind::File { is_written: true, is_executable: false },
            ChangeKind::File { is_written: false, is_executable: true },
            ChangeKind::Directory,
            ChangeKind::Link,
            ChangeKind::Fifo,
            ChangeKind::Socket,
            ChangeKind::Contents { is_executable: true },
            ChangeKind::Attributes { is_file: true },
            ChangeKind::Attributes { is_file: false },
            ChangeKind::Removed,
            ChangeKind::RemovedDirectory,
            ChangeKind::Moved { directory: b"c/d".to_vec(), name: b"e".to_vec() },
        ];
        let of_kind = |kind| Change { directory: b"a/b".to_vec(), name: b"\xff".to_vec(), kind };
        Changes { group: 0x8000_0007, changes: kinds.map(of_kind).to_vec() }
    }

    #[test]
    fn changes_survive_encoding() {
        assert_eq!(Changes::decode(&all().encode()), Ok(all()));
        let encoded = all().encode();
        let whole = (4..encoded.len()).filter(|cut| Changes::decode(&encoded[..*cut]).is_ok());
        assert_eq!(whole.count(), all().changes.len(), "a part is whole changes or an error");
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/a", b"a\0"] {
            let mut changes = all();
            changes.changes[0].name = name.to_vec();
            assert_eq!(Changes::decode(&changes.encode()), Err(MountMessageError), "{name:?}");
            let moved = ChangeKind::Moved { directory: Vec::new(), name: name.to_vec() };
            let moved = Change { directory: Vec::new(), name: b"a".to_vec(), kind: moved };
            let moved = Changes { group: 0, changes: vec![moved] };
            assert_eq!(Changes::decode(&moved.encode()), Err(MountMessageError), "{name:?}");
        }
    }
}
