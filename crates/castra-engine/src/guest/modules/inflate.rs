//! Inflates a module's file. It comes from a disk that may be hostile, so memory is bounded.

use std::io::Read;

use lzma_rust2::Lzma2Reader;

const ELF: &[u8] = b"\x7fELF";
const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const XZ: &[u8] = b"\xfd7zXZ\0";

/// Largest window of zstd and largest dictionary of xz, as a power of two: both are allocated as a
/// whole. The kernel's own build system uses 2 MiB at most.
const MAX_WINDOW_LOG: u32 = 26;

/// Inflates a file to at most `limit` bytes, by what it is and not by its name.
pub(super) fn inflate(file: Vec<u8>, limit: u64) -> Result<Vec<u8>, String> {
    let content = match file.as_slice() {
        content if content.starts_with(ELF) => return Ok(file),
        gzip if gzip.starts_with(GZIP) => read(flate2::read::GzDecoder::new(gzip), limit)?,
        zstd if zstd.starts_with(ZSTD) => {
            let decoder = zstd::Decoder::with_buffer(zstd).and_then(|mut decoder| {
                decoder.window_log_max(MAX_WINDOW_LOG)?;
                Ok(decoder)
            });
            read(decoder.map_err(|error| error.to_string())?.single_frame(), limit)?
        }
        xz if xz.starts_with(XZ) => inflate_xz(xz, limit)?,
        _ => return Err("it is no module".to_owned()),
    };
    if content.starts_with(ELF) { Ok(content) } else { Err("it is no module".to_owned()) }
}

fn read(stream: impl Read, limit: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    stream.take(limit + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > limit { Err("it is too large".to_owned()) } else { Ok(content) }
}

/// Inflates an xz file of one block and without other filters, as `xz` makes them by default. The
/// library's reader of whole files allocates and fills a dictionary of any size.
fn inflate_xz(file: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let malformed = || "it is malformed xz".to_owned();
    let block = XzBlock::parse(file).ok_or_else(malformed)?;
    let mut rest = block.data;
    let content = read(Lzma2Reader::new(&mut rest, block.dictionary_bytes, None), limit)?;
    if block.has_crc32 {
        let padding =
            (block.data.len() - rest.len()).next_multiple_of(4) - (block.data.len() - rest.len());
        let stored = rest.get(padding..padding + 4).ok_or_else(malformed)?;
        let mut crc = flate2::Crc::new();
        crc.update(&content);
        if stored != crc.sum().to_le_bytes() {
            return Err("its checksum is wrong".to_owned());
        }
    }
    Ok(content)
}

/// First block of an xz file.
struct XzBlock<'a> {
    dictionary_bytes: u32,
    /// Set if a CRC32 of the content follows it: what the kernel's build system asks for.
    has_crc32: bool,
    /// Content and all that follows.
    data: &'a [u8],
}

impl<'a> XzBlock<'a> {
    /// Parses both headers (*The .xz File Format*, 2.1.1 and 3.1).
    fn parse(file: &'a [u8]) -> Option<Self> {
        const STREAM_HEADER_BYTES: usize = 12;
        const LZMA2: u8 = 0x21;
        let has_crc32 = *file.get(7)? == 1;
        let block = file.get(STREAM_HEADER_BYTES..)?;
        // 0 would be the index.
        let header_bytes = (usize::from(*block.first()?) + 1) * 4;
        let flags = *block.get(1)?;
        let (filters, has_size) = (flags & 3, [flags & 0x40 != 0, flags & 0x80 != 0]);
        let mut at = 2;
        for _ in has_size.into_iter().filter(|has| *has) {
            // Number of variable length: the last byte has no highest bit.
            at += block.get(at..)?.iter().take(9).position(|byte| byte & 0x80 == 0)? + 1;
        }
        let &[LZMA2, 1, size] = block.get(at..at + 3)? else { return None };
        let dictionary_bytes = match u32::from(size) {
            exponent if exponent / 2 + 11 < MAX_WINDOW_LOG => {
                (2 | (exponent & 1)) << (exponent / 2 + 11)
            }
            _ => return None,
        };
        let data = block.get(header_bytes..)?;
        (filters == 0 && header_bytes > 4).then_some(Self { dictionary_bytes, has_crc32, data })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use lzma_rust2::{CheckType, XzOptions, XzWriter};

    use super::*;

    fn module() -> Vec<u8> {
        let mut module = ELF.to_vec();
        module.extend((0..50_000_u32).flat_map(|n| (n / 7).to_le_bytes()));
        module
    }

    fn xz(content: &[u8], check: CheckType) -> Vec<u8> {
        let mut options = XzOptions::with_preset(6);
        options.set_check_sum_type(check);
        let mut writer = XzWriter::new(Vec::new(), options).expect("starts");
        writer.write_all(content).expect("compresses");
        writer.finish().expect("ends")
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).and_then(|()| encoder.finish()).expect("compresses")
    }

    #[test]
    fn modules_come_in_four_forms() {
        let module = module();
        let forms = [
            module.clone(),
            gzip(&module),
            zstd::encode_all(module.as_slice(), 3).expect("compresses"),
            xz(&module, CheckType::Crc32),
            xz(&module, CheckType::Crc64),
        ];
        for form in forms {
            assert_eq!(inflate(form, 1 << 20).as_ref(), Ok(&module));
        }
    }

    #[test]
    fn bombs_and_other_files_are_refused() {
        let bomb = [ELF, &[0; 100_000]].concat();
        let packed = [
            gzip(&bomb),
            zstd::encode_all(bomb.as_slice(), 3).expect("compresses"),
            xz(&bomb, CheckType::Crc32),
        ];
        for form in packed {
            assert_eq!(inflate(form, 50_000), Err("it is too large".to_owned()));
        }
        assert!(inflate(b"#!/bin/sh".to_vec(), 100).is_err());
        assert!(inflate(gzip(b"#!/bin/sh"), 100).is_err());
        assert!(inflate(Vec::new(), 100).is_err());
    }

    #[test]
    fn spoilt_files_are_refused() {
        let whole = xz(&module(), CheckType::Crc32);
        for length in (6..whole.len()).step_by(97).filter(|length| length + 64 < whole.len()) {
            assert!(inflate(whole[..length].to_vec(), 1 << 20).is_err(), "{length} bytes");
        }
        let mut spoilt = whole.clone();
        let middle = spoilt.len() / 2;
        spoilt[middle] ^= 1;
        assert!(inflate(spoilt, 1 << 20).is_err());
    }

    #[test]
    fn a_huge_dictionary_is_refused() {
        let mut file = xz(&module(), CheckType::Crc32);
        let at = file.windows(2).position(|pair| pair == [0x21, 1]).expect("a filter") + 2;
        file[at] = 40;
        assert_eq!(inflate(file, 1 << 20), Err("it is malformed xz".to_owned()));
    }
}
