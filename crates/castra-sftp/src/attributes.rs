use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Malformed;
use crate::fields::{take_string, take_u32, take_u64};

const SIZE: u32 = 0x1;
const OWNER: u32 = 0x2;
const MODE: u32 = 0x4;
const TIMES: u32 = 0x8;
const EXTENDED: u32 = 0x8000_0000;

/// Attributes of a file. Each is optional, in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Length in bytes.
    pub size: Option<u64>,
    /// User and group IDs.
    pub owner: Option<(u32, u32)>,
    /// Type and permissions, as `st_mode` has them.
    pub mode: Option<u32>,
    /// Times of access and modification, in seconds since the Unix epoch.
    pub times: Option<(u32, u32)>,
}

impl Attributes {
    /// Returns attributes with a mode and nothing else.
    pub fn of_mode(mode: u32) -> Self {
        Self { mode: Some(mode), ..Self::default() }
    }

    pub(crate) fn take(bytes: &mut Bytes) -> Result<Self, Malformed> {
        let flags = take_u32(bytes)?;
        let mut attributes = Self::default();
        if flags & SIZE != 0 {
            attributes.size = Some(take_u64(bytes)?);
        }
        if flags & OWNER != 0 {
            attributes.owner = Some((take_u32(bytes)?, take_u32(bytes)?));
        }
        if flags & MODE != 0 {
            attributes.mode = Some(take_u32(bytes)?);
        }
        if flags & TIMES != 0 {
            attributes.times = Some((take_u32(bytes)?, take_u32(bytes)?));
        }
        if flags & EXTENDED != 0 {
            // Name-value pairs, none of which Castra knows. Each takes at least eight bytes, so
            // a large count ends with the packet.
            for _ in 0..take_u32(bytes)? {
                take_string(bytes)?;
                take_string(bytes)?;
            }
        }
        Ok(attributes)
    }

    pub(crate) fn put(&self, packet: &mut BytesMut) {
        let flag = |is_there: bool, flag: u32| if is_there { flag } else { 0 };
        packet.put_u32(
            flag(self.size.is_some(), SIZE)
                | flag(self.owner.is_some(), OWNER)
                | flag(self.mode.is_some(), MODE)
                | flag(self.times.is_some(), TIMES),
        );
        if let Some(size) = self.size {
            packet.put_u64(size);
        }
        if let Some((user, group)) = self.owner {
            packet.put_u32(user);
            packet.put_u32(group);
        }
        if let Some(mode) = self.mode {
            packet.put_u32(mode);
        }
        if let Some((accessed, modified)) = self.times {
            packet.put_u32(accessed);
            packet.put_u32(modified);
        }
    }
}
