//! Sections of a PE file, as far as a unified kernel image needs them. Source: "PE Format" of
//! Microsoft's documentation, and the UAPI group's specification of unified kernel images.

use crate::fields::{le16, le32};

/// Offset of the field that says where the PE header is.
const HEADER_OFFSET: usize = 0x3c;
/// Length of the signature and the COFF header.
const COFF_BYTES: usize = 24;
const SECTION_BYTES: usize = 40;
/// Maximum number of sections that are looked at.
const MAX_SECTIONS: usize = 96;

/// Returns the content of the first section of this name; `None` if there is none, or the file is
/// no PE.
pub(super) fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !file.starts_with(b"MZ") {
        return None;
    }
    let header = file.get(le32(file, HEADER_OFFSET)? as usize..)?;
    if !header.starts_with(b"PE\0\0") {
        return None;
    }
    let count = usize::from(le16(header, 6)?).min(MAX_SECTIONS);
    let table = header.get(COFF_BYTES + usize::from(le16(header, 20)?)..)?;
    let found = table.chunks_exact(SECTION_BYTES).take(count).find(|section| {
        let end = section[..8].iter().position(|byte| *byte == 0).unwrap_or(8);
        &section[..end] == name.as_bytes()
    })?;
    let (size, raw_size) = (le32(found, 8)? as usize, le32(found, 16)? as usize);
    let content = file.get(le32(found, 20)? as usize..)?;
    // What is in the file is padded to its alignment.
    content.get(..size.min(raw_size))
}

#[cfg(test)]
pub(super) fn file_of(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = b"MZ".to_vec();
    file.resize(0x40, 0);
    file[HEADER_OFFSET] = 0x40;
    file.extend(b"PE\0\0\x64\x86");
    file.extend((sections.len() as u16).to_le_bytes());
    file.resize(0x40 + COFF_BYTES, 0);
    let mut offset = file.len() + sections.len() * SECTION_BYTES;
    for (name, content) in sections {
        let mut header = [0; SECTION_BYTES];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for at in [8, 16] {
            header[at..at + 4].copy_from_slice(&(content.len() as u32).to_le_bytes());
        }
        header[20..24].copy_from_slice(&(offset as u32).to_le_bytes());
        file.extend(header);
        offset += content.len();
    }
    sections.iter().for_each(|(_, content)| file.extend(*content));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_inside_the_file_only() {
        let mut file = file_of(&[(".linux", b"kernel"), (".cmdline", b"ro")]);
        assert_eq!(section(&file, ".linux"), Some(&b"kernel"[..]));
        assert_eq!(section(&file, ".cmdline"), Some(&b"ro"[..]));
        assert_eq!(section(&file, ".initrd"), None);
        file.pop();
        assert_eq!(section(&file, ".cmdline"), None);
        for length in 0..file.len() {
            let _ = section(&file[..length], ".cmdline");
        }
    }
}
