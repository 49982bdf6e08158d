//! Header of the SSH subsystem [`EXEC_SUBSYSTEM`], which carries a command as an array, so that no
//! shell has to parse it from a line.
//!
//! The client requests the subsystem and sends the header as the first data of the channel; all
//! data after it is the command's stdin. All numbers are `u32`, big-endian:
//!
//! ```text
//! length of everything that follows, in bytes
//! number of arguments   { length of the argument, argument }…
//! number of variables   { length of the name, name, length of the value, value }…
//! kind of the directory, length of its path, path        (only if there is one)
//! ```
//!
//! Output, end of file and exit status are those of any SSH command. If nothing was run, the exit
//! signal gives the reason: [`TOO_LONG_SIGNAL`] or [`MALFORMED_SIGNAL`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Name of the subsystem. An agent that does not know it refuses it.
pub const EXEC_SUBSYSTEM: &str = "exec@castra";

/// Name of the exit signal for arguments and variables that the guest's kernel has no room for.
pub const TOO_LONG_SIGNAL: &str = "too-long@castra";

/// Name of the exit signal for a malformed header.
pub const MALFORMED_SIGNAL: &str = "malformed@castra";

/// Longest header, in bytes, without its length field. Linux never accepts more than 6 MiB of
/// arguments, whatever its settings.
pub const MAX_EXEC_HEADER_BYTES: usize = 8 * 1024 * 1024;

/// Size of a number, in bytes.
const NUMBER_BYTES: usize = 4;

/// A command, its arguments and its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecHeader {
    /// The command and its arguments, without NUL. Empty only for a login shell.
    pub arguments: Vec<OsString>,
    /// Variables of its environment. Names hold no `=`, neither holds NUL.
    pub environment: Vec<(OsString, OsString)>,
    /// Directory in which it starts; `None` for its user's home. An older agent takes a header
    /// that has one for malformed.
    pub directory: Option<StartDirectory>,
}

/// Directory in which a command starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartDirectory {
    /// A directory inside a mount. If it is not there or not mounted, the command starts in its
    /// user's home.
    Mounted(OsString),
    /// Any directory, relative to the user's home. If it cannot be entered, the command does not
    /// start.
    Named(OsString),
}

impl StartDirectory {
    /// Returns the path in the guest.
    pub fn path(&self) -> &OsStr {
        let (Self::Mounted(path) | Self::Named(path)) = self;
        path
    }

    fn kind(&self) -> usize {
        match self {
            Self::Mounted(_) => 1,
            Self::Named(_) => 2,
        }
    }
}

/// Reason why bytes are not a valid header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExecHeaderError {
    /// The header is longer than [`MAX_EXEC_HEADER_BYTES`].
    #[error("the header is longer than {MAX_EXEC_HEADER_BYTES} bytes")]
    TooLong,
    /// The lengths are inconsistent, or the header holds what no command can receive.
    #[error("not a header")]
    Malformed,
}

impl ExecHeader {
    /// Returns the encoded header, preceded by its length.
    ///
    /// # Errors
    /// [`ExecHeaderError::TooLong`] past [`MAX_EXEC_HEADER_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, ExecHeaderError> {
        let mut bytes = vec![0; NUMBER_BYTES];
        put_number(&mut bytes, self.arguments.len())?;
        for argument in &self.arguments {
            put(&mut bytes, argument)?;
        }
        put_number(&mut bytes, self.environment.len())?;
        for (name, value) in &self.environment {
            put(&mut bytes, name)?;
            put(&mut bytes, value)?;
        }
        if let Some(directory) = &self.directory {
            put_number(&mut bytes, directory.kind())?;
            put(&mut bytes, directory.path())?;
        }
        let length = bytes.len() - NUMBER_BYTES;
        if length > MAX_EXEC_HEADER_BYTES {
            return Err(ExecHeaderError::TooLong);
        }
        bytes[..NUMBER_BYTES].copy_from_slice(&number(length)?);
        Ok(bytes)
    }

    /// Decodes a header from `bytes`, which are everything after its length field.
    ///
    /// # Errors
    /// [`ExecHeaderError::Malformed`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExecHeaderError> {
        let mut rest = bytes;
        let mut arguments = Vec::new();
        for _ in 0..take_number(&mut rest)? {
            arguments.push(take(&mut rest)?);
        }
        let mut environment = Vec::new();
        for _ in 0..take_number(&mut rest)? {
            environment.push((take(&mut rest)?, take(&mut rest)?));
        }
        let directory = if rest.is_empty() {
            None
        } else {
            Some(match (take_number(&mut rest)?, take(&mut rest)?) {
                (1, path) if !path.is_empty() => StartDirectory::Mounted(path),
                (2, path) if !path.is_empty() => StartDirectory::Named(path),
                _ => return Err(ExecHeaderError::Malformed),
            })
        };
        let is_name = |name: &OsStr| !name.is_empty() && !name.as_bytes().contains(&b'=');
        let is_usable = rest.is_empty() && environment.iter().all(|(name, _)| is_name(name));
        if is_usable {
            Ok(Self { arguments, environment, directory })
        } else {
            Err(ExecHeaderError::Malformed)
        }
    }
}

/// Returns the length of the header that begins with these bytes, or `None` if there are too few
/// bytes to know.
///
/// # Errors
/// [`ExecHeaderError::TooLong`] past [`MAX_EXEC_HEADER_BYTES`].
pub fn exec_header_bytes(start: &[u8]) -> Result<Option<usize>, ExecHeaderError> {
    let Some(length) = start.first_chunk::<NUMBER_BYTES>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_EXEC_HEADER_BYTES {
        return Err(ExecHeaderError::TooLong);
    }
    Ok(Some(NUMBER_BYTES + length))
}

fn number(number: usize) -> Result<[u8; NUMBER_BYTES], ExecHeaderError> {
    Ok(u32::try_from(number).map_err(|_| ExecHeaderError::TooLong)?.to_be_bytes())
}

pub(crate) fn put_number(bytes: &mut Vec<u8>, value: usize) -> Result<(), ExecHeaderError> {
    bytes.extend(number(value)?);
    Ok(())
}

pub(crate) fn put(bytes: &mut Vec<u8>, text: &OsStr) -> Result<(), ExecHeaderError> {
    put_number(bytes, text.len())?;
    bytes.extend(text.as_bytes());
    Ok(())
}

pub(crate) fn take_number(rest: &mut &[u8]) -> Result<usize, ExecHeaderError> {
    let (number, after) =
        rest.split_first_chunk::<NUMBER_BYTES>().ok_or(ExecHeaderError::Malformed)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| ExecHeaderError::Malformed)
}

pub(crate) fn take(rest: &mut &[u8]) -> Result<OsString, ExecHeaderError> {
    let length = take_number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(ExecHeaderError::Malformed)?;
    *rest = after;
    if text.contains(&0) {
        Err(ExecHeaderError::Malformed)
    } else {
        Ok(OsString::from_vec(text.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(arguments: &[&[u8]], environment: &[(&[u8], &[u8])]) -> ExecHeader {
        let owned = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        ExecHeader {
            arguments: arguments.iter().map(|argument| owned(argument)).collect(),
            environment: environment
                .iter()
                .map(|(name, value)| (owned(name), owned(value)))
                .collect(),
            directory: None,
        }
    }

    fn header_at(directory: StartDirectory) -> ExecHeader {
        ExecHeader { directory: Some(directory), ..header(&[b"pwd"], &[(b"A", b"1")]) }
    }

    #[test]
    fn a_header_survives_the_wire() {
        let sent = header(&[b"printf", b"", b"it's\n\xff"], &[(b"A", b""), (b"B\xfe", b"x=\xff")]);
        let bytes = sent.encode().expect("encodes");
        assert_eq!(exec_header_bytes(&bytes), Ok(Some(bytes.len())));
        assert_eq!(exec_header_bytes(&bytes[..3]), Ok(None));
        assert_eq!(ExecHeader::decode(&bytes[4..]), Ok(sent));
        let path = OsString::from_vec(b"/src/\xff".to_vec());
        for directory in [StartDirectory::Mounted(path.clone()), StartDirectory::Named(path)] {
            let sent = header_at(directory);
            let bytes = sent.encode().expect("encodes");
            assert_eq!(ExecHeader::decode(&bytes[4..]), Ok(sent));
        }
    }

    #[test]
    fn what_no_command_can_get_is_refused() {
        let bad = [
            header(&[b"a\0b"], &[]),
            header(&[b"a"], &[(b"", b"value")]),
            header(&[b"a"], &[(b"NA=ME", b"value")]),
            header(&[b"a"], &[(b"NAME", b"\0")]),
            header_at(StartDirectory::Named("".into())),
            header_at(StartDirectory::Mounted("/a\0b".into())),
        ];
        for header in bad {
            let bytes = header.encode().expect("encodes");
            assert_eq!(
                ExecHeader::decode(&bytes[4..]),
                Err(ExecHeaderError::Malformed),
                "{header:?}"
            );
        }
    }

    #[test]
    fn a_part_of_a_header_is_none_and_neither_is_more() {
        let mut bytes =
            header(&[b"a", b"b"], &[(b"A", b"1")]).encode().expect("encodes").split_off(4);
        for length in 0..bytes.len() {
            assert_eq!(
                ExecHeader::decode(&bytes[..length]),
                Err(ExecHeaderError::Malformed),
                "{length}"
            );
        }
        bytes.push(0);
        assert_eq!(ExecHeader::decode(&bytes), Err(ExecHeaderError::Malformed));
    }

    #[test]
    fn giants_are_refused_before_they_are_sent_and_before_they_are_read() {
        let giant = vec![b'x'; MAX_EXEC_HEADER_BYTES];
        assert_eq!(header(&[&giant], &[]).encode(), Err(ExecHeaderError::TooLong));
        assert_eq!(exec_header_bytes(&[0xff; 4]), Err(ExecHeaderError::TooLong));
    }
}
