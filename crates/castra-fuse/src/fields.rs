//! Fields that requests consist of: every access is bounded, and a request that is too short or too
//! long is `EINVAL`.

use rustix::io::Errno;

/// Longest name of a file, in bytes.
pub(crate) const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes.
const MAX_TARGET: usize = 4095;

/// Rest of a request that is being read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    /// Takes a number of 32 bits off the front.
    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a number of 64 bits off the front.
    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes this many bytes off the front.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (first, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(first)
    }

    fn string(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let string = self.bytes(end)?;
        self.bytes(1)?;
        Ok(string)
    }

    /// Takes the name of a file in a directory off the front. Any bytes are a name but those that
    /// would lead elsewhere.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], Errno> {
        match self.string()? {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > MAX_NAME => Err(Errno::NAMETOOLONG),
            name => Ok(name),
        }
    }

    /// Takes the target of a symbolic link off the front. It is not followed here, so it may be any
    /// path.
    pub(crate) fn target(&mut self) -> Result<&'a [u8], Errno> {
        match self.string()? {
            b"" => Err(Errno::NOENT),
            target if target.len() > MAX_TARGET => Err(Errno::NAMETOOLONG),
            target => Ok(target),
        }
    }

    /// Ends the request, which must have been read completely.
    pub(crate) fn end(self) -> Result<(), Errno> {
        if self.0.is_empty() { Ok(()) } else { Err(Errno::INVAL) }
    }
}
