//! gzip, xz and zstd.

use std::io::{BufReader, Read};
use std::path::Path;

use super::{Material, TransformError, write_out};
use crate::cancel::Cancel;
use crate::managed::error::ImageError;
use crate::managed::spec::Compression;
use crate::size::ByteSize;

/// Decompresses the material into `output`, which may not become longer than `limit` bytes.
pub(super) fn decompress(
    material: &Material,
    format: Compression,
    output: &Path,
    limit: u64,
    cancel: &Cancel,
) -> Result<Material, ImageError> {
    let input = BufReader::new(material.open()?);
    let failed = |source| TransformError::Compressed {
        path: material.path.clone(),
        format: name(format),
        source,
    };
    let stream: Box<dyn Read> = match format {
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new(input, true)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(input).map_err(failed)?),
    };
    let unpacked = write_out(stream.take(limit.saturating_add(1)), output, cancel, failed)?;
    if unpacked.length > limit {
        let what = material.path.display().to_string();
        return Err(TransformError::TooLarge { what, limit: ByteSize(limit) }.into());
    }
    Ok(unpacked)
}

fn name(format: Compression) -> &'static str {
    match format {
        Compression::Gzip => "gzip",
        Compression::Xz => "xz",
        Compression::Zstd => "zstd",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let directory = tempfile::tempdir().expect("a directory");
        let (packed, output) = (directory.path().join("packed"), directory.path().join("output"));
        let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 20), 1).expect("encodes");
        std::fs::write(&packed, bomb).expect("writes");
        let material = Material::whole(&packed).expect("is there");
        let unpack = |limit| {
            let _ = std::fs::remove_file(&output);
            decompress(&material, Compression::Zstd, &output, limit, &Cancel::new())
        };
        unpack(1 << 20).expect("is not too large");
        let error = unpack((1 << 20) - 1).expect_err("is too large");
        assert!(matches!(error, ImageError::Transform(TransformError::TooLarge { .. })), "{error}");
        assert_eq!(
            std::fs::metadata(&output).expect("is there").len(),
            1 << 20,
            "one byte more than allowed"
        );
    }
}
