//! Is there enough room? Asked before the first byte is fetched: failing after an hour of downloading helps nobody.

use std::path::Path;

use super::error::{At, ImageError, Size};

/// Left free in any case, for the manifest, logs and directories.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// # Errors
/// [`ImageError::NoSpace`] if the filesystem of `directory` has less than this left for this user.
pub(super) fn require(directory: &Path, needed_bytes: u64) -> Result<(), ImageError> {
    let status = rustix::fs::statvfs(directory).at("look at", directory)?;
    let available = status.f_bavail.saturating_mul(status.f_frsize);
    let needed = needed_bytes.saturating_add(RESERVE_BYTES);
    if available < needed {
        let (path, needed, available) = (directory.to_owned(), Size(needed), Size(available));
        return Err(ImageError::NoSpace { path, needed, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused_with_numbers() {
        let error = require(Path::new("/"), u64::MAX / 2).expect_err("nobody has that much");
        assert!(matches!(error, ImageError::NoSpace { available: Size(1..), .. }), "{error}");
        assert!(error.to_string().contains("MiB are free"), "{error}");
    }

    #[test]
    fn a_little_is_there() {
        require(Path::new("/"), 1).expect("one byte");
    }
}
