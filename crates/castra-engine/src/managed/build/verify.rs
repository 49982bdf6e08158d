//! Verification of a finished file before it is published.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::transform::{Product, TransformError, convert};
use crate::files::{self, At, Digest};
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::{ArtifactRole, ManagedArtifactSpec};

/// Verifies a finished file and returns it with its SHA-256 in hexadecimal. Digests that are known
/// already are not computed again.
pub(crate) fn verify(
    job: &Job,
    artifact: &ManagedArtifactSpec,
    made: Product,
) -> Result<(PathBuf, String), ImageError> {
    let file = made.path.as_path();
    job.step(artifact.role, "verifying the finished file");
    match artifact.role {
        ArtifactRole::Rootfs => disk(job, file)?,
        ArtifactRole::Kernel => kernel(file)?,
        ArtifactRole::Initramfs => not_empty(file)?,
    }
    let cancel = &job.context.cancel;
    let sha256 = match made.sha256 {
        Some(sha256) => sha256,
        None => files::sha256(file, cancel)?,
    };
    if let Some(expected) = &artifact.product_digest {
        let found = match expected {
            Digest::Sha256(_) => Digest::Sha256(sha256.clone()),
            Digest::Sha512(_) => files::digest(file, expected, cancel)?,
        };
        if found != *expected {
            let (role, expected) = (artifact.role, expected.clone());
            return Err(TransformError::WrongProduct { role, expected, found }.into());
        }
    }
    Ok((made.path, sha256))
}

fn not_empty(file: &Path) -> Result<(), ImageError> {
    match files::open(file)?.metadata().at("look at", file)?.len() {
        0 => Err(TransformError::Empty { path: file.to_owned() }.into()),
        _ => Ok(()),
    }
}

/// Checks that the disk is a qcow2 that needs no other file: one that names another could make QEMU
/// read anything on this machine.
fn disk(job: &Job, file: &Path) -> Result<(), ImageError> {
    if let Some(problem) = convert::qcow2_problem(file) {
        return Err(TransformError::BadDisk { path: file.to_owned(), problem }.into());
    }
    let info = convert::info(job, file)?;
    let format = (info.format != "qcow2").then(|| format!("is {}, not qcow2", info.format));
    match format.or_else(|| info.leans_on()) {
        Some(problem) => Err(TransformError::BadDisk { path: file.to_owned(), problem }.into()),
        None => Ok(()),
    }
}

/// Checks that a file is a Linux kernel for x86 (a bzImage: `Documentation/arch/x86/boot.rst`,
/// fields `boot_flag` and `header`) or for arm64 (an Image: `Documentation/arch/arm64/booting.rst`,
/// field `magic`).
fn kernel(file: &Path) -> Result<(), ImageError> {
    let has = |magic: &[u8], offset| {
        let mut found = vec![0; magic.len()];
        files::open(file).is_ok_and(|file| file.read_exact_at(&mut found, offset).is_ok())
            && found == magic
    };
    let x86 = has(&[0x55, 0xaa], 0x1fe) && has(b"HdrS", 0x202);
    if x86 || has(b"ARM\x64", 0x38) {
        return Ok(());
    }
    Err(TransformError::BadKernel { path: file.to_owned() }.into())
}
