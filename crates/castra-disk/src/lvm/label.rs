//! Label of a physical volume, and the text in its metadata area. Source:
//! `lib/format_text/layout.h` and `lib/label/label.c` of LVM2.

use std::io;

use crate::fields::{le32, le64};
use crate::source::{Source, read_up_to};

const SECTOR: usize = 512;
/// Number of sectors in which the label may be.
const LABEL_SECTORS: usize = 4;
const MAGIC: &[u8] = b"LABELONE";
const KIND: &[u8] = b"LVM2 001";
const AREA_MAGIC: &[u8] = b"\x20\x4c\x56\x4d\x32\x20\x78\x5b\x35\x41\x25\x72\x30\x4e\x2a\x3e";
/// Length of the header of a metadata area: the text is in a ring behind it.
const AREA_HEADER_BYTES: u64 = 512;
/// Longest metadata that is read.
const MAX_TEXT_BYTES: u64 = 4 << 20;
/// Maximum number of areas of each kind.
const MAX_AREAS: usize = 16;

/// Content of a label.
pub(super) struct Label {
    /// Identity, without hyphens.
    pub(super) id: String,
    /// Text that describes its group.
    pub(super) metadata: Option<String>,
}

/// Returns the sector of the label and those after it.
pub(super) fn find(beginning: &[u8]) -> Option<&[u8]> {
    let sectors = (0..LABEL_SECTORS).filter_map(|sector| beginning.get(sector * SECTOR..));
    sectors.into_iter().find(|at| at.starts_with(MAGIC) && at.get(24..32) == Some(KIND))
}

/// Reads the label; `None` if there is none.
pub(super) fn read(source: &dyn Source) -> io::Result<Option<Label>> {
    let beginning = read_up_to(source, 0, (LABEL_SECTORS + 1) * SECTOR)?;
    let Some((id, areas)) = find(&beginning).and_then(parse) else { return Ok(None) };
    let mut metadata = None;
    for (offset, length) in areas {
        metadata = text(source, offset, length)?;
        if metadata.is_some() {
            break;
        }
    }
    Ok(Some(Label { id, metadata }))
}

/// Returns the identity and the places of the metadata areas.
fn parse(label: &[u8]) -> Option<(String, Vec<(u64, u64)>)> {
    let header = label.get(le32(label, 20)? as usize..)?;
    let id = String::from_utf8(header.get(..32)?.to_vec()).ok()?;
    // Both lists end with a pair of zeros: data areas, then metadata areas.
    let mut at = 40;
    let mut list = || {
        let mut areas = Vec::new();
        while areas.len() < MAX_AREAS {
            let pair = (le64(header, at)?, le64(header, at + 8)?);
            at += 16;
            if pair.0 == 0 {
                return Some(areas);
            }
            areas.push(pair);
        }
        None
    };
    list()?;
    Some((id, list()?))
}

/// Reads the text of a metadata area; `None` if there is none or it is damaged.
fn text(source: &dyn Source, area: u64, area_bytes: u64) -> io::Result<Option<String>> {
    let header = read_up_to(source, area, AREA_HEADER_BYTES as usize)?;
    let place = || {
        let is_area = header.get(4..20) == Some(AREA_MAGIC) && le64(&header, 24)? == area;
        let (offset, length) = (le64(&header, 40)?, le64(&header, 48)?);
        let is_inside = (AREA_HEADER_BYTES..area_bytes).contains(&offset)
            && length > 0
            && length <= MAX_TEXT_BYTES.min(area_bytes - AREA_HEADER_BYTES);
        (is_area && is_inside).then_some((offset, length))
    };
    let Some((offset, length)) = place() else { return Ok(None) };
    // The ring continues after the area's header.
    let first = length.min(area_bytes - offset);
    let mut bytes = read_up_to(source, area.saturating_add(offset), first as usize)?;
    let rest = (length - first) as usize;
    bytes.extend(read_up_to(source, area.saturating_add(AREA_HEADER_BYTES), rest)?);
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(String::from_utf8(bytes).ok())
}
