//! Unified kernel images.

/// Makes a PE file with these sections.
pub(crate) fn unified(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const FIRST: usize = 0x1000;
    let mut file = b"MZ".to_vec();
    file.resize(0x80, 0);
    file[0x3c] = 0x80;
    file.extend(b"PE\0\0\x64\x86");
    file.extend((sections.len() as u16).to_le_bytes());
    file.resize(0x80 + 24, 0);
    let mut offset = FIRST;
    for (name, content) in sections {
        let padded = content.len().next_multiple_of(512);
        let mut header = [0_u8; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[8..12].copy_from_slice(&(content.len() as u32).to_le_bytes());
        header[16..20].copy_from_slice(&(padded as u32).to_le_bytes());
        header[20..24].copy_from_slice(&(offset as u32).to_le_bytes());
        file.extend(header);
        offset += padded;
    }
    file.resize(FIRST, 0);
    for (_, content) in sections {
        file.extend(*content);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file
}
