//! Kernels in a VM's directory: the one that boots, and the one of its last boot that became ready,
//! for which its disk may have no room any more.

use std::fs;
use std::path::Path;

use crate::files::{self, sha256_hex, write_atomically};
use crate::guest::{InitrdError, write_with_agent};
use crate::layout::VmLayout;
use crate::trusted;
use crate::vm::error::{FileAction, VmError, VmIoError};
use crate::vm::record::KernelRecord;

use super::pair::Pair;

/// Largest kernel or initramfs that is read back, in bytes: as much as a disk's may have.
const MAX_BYTES: u64 = 1 << 30;

impl Pair {
    /// Writes the files that QEMU reads, with the archive of a seed in the initramfs, and keeps the
    /// pair: it may become the last one that came up. Removes all others but `kept`.
    pub(super) fn provide(
        &self,
        files: &VmLayout,
        kept: Option<&KernelRecord>,
        seed: &[u8],
    ) -> Result<(), VmError> {
        let used: Vec<&str> =
            kept.into_iter().chain([&self.record]).flat_map(KernelRecord::digests).collect();
        for entry in files::readable_entries(&files.kernels()) {
            if !entry.file_name().to_str().is_some_and(|name| used.contains(&name)) {
                // One that cannot be removed only takes space.
                let _ = fs::remove_file(entry.path());
            }
        }
        let parts = [&self.kernel, &self.initramfs, &self.modules];
        for (sha256, bytes) in self.record.digests().zip(parts) {
            write(&files.kernel(sha256), bytes)?;
        }
        Ok(self.write_initramfs(seed, &files.initramfs())?)
    }

    /// Writes the initramfs with the archive of a seed, the agent's modules and the agent.
    pub(super) fn write_initramfs(&self, seed: &[u8], target: &Path) -> Result<(), InitrdError> {
        write_with_agent(&self.initramfs, &[&self.modules, seed], self.memory_bytes, target)
    }

    /// Reads a pair that was kept, for a VM with this much memory; `None` if it is missing or
    /// damaged.
    pub(super) fn kept(files: &VmLayout, record: &KernelRecord, memory_bytes: u64) -> Option<Self> {
        let read = |sha256: &str| {
            let bytes = trusted::read(&files.kernel(sha256), MAX_BYTES).ok()?;
            (sha256_hex(&bytes) == sha256).then_some(bytes)
        };
        Some(Self {
            kernel: read(&record.kernel_sha256)?,
            initramfs: read(&record.initramfs_sha256)?,
            modules: record.modules_sha256.as_deref().map_or(Some(Vec::new()), read)?,
            record: record.clone(),
            memory_bytes,
        })
    }
}

/// Writes a file, unless it is there with this content.
fn write(path: &Path, bytes: &[u8]) -> Result<(), VmIoError> {
    let is_there = || trusted::read(path, bytes.len() as u64).is_ok_and(|found| found == bytes);
    if is_there() {
        return Ok(());
    }
    let failed =
        |source| VmIoError::File { action: FileAction::Write, path: path.to_owned(), source };
    write_atomically(path, bytes, 0o600).map_err(failed)
}

/// Gives a clone a kernel of the VM that it is made from. Without it, the one on its disk is taken.
pub(in crate::vm) fn share_kernel(record: &KernelRecord, from: &VmLayout, to: &VmLayout) {
    for sha256 in record.digests() {
        let _ = files::create_private_directory(&to.kernels())
            .and_then(|()| fs::hard_link(from.kernel(sha256), to.kernel(sha256)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ProjectLayout;

    const MEMORY: u64 = 512 << 20;

    fn pair(kernel: &str, initramfs: &str) -> Pair {
        let (kernel, initramfs) = (kernel.as_bytes().to_vec(), initramfs.as_bytes().to_vec());
        let record = KernelRecord {
            kernel_sha256: sha256_hex(&kernel),
            initramfs_sha256: sha256_hex(&initramfs),
            modules_sha256: None,
            command_line: "ro".parse().expect("a line"),
            version: None,
            os: String::new(),
            rule: String::new(),
            entry: String::new(),
        };
        Pair { kernel, initramfs, modules: Vec::new(), record, memory_bytes: MEMORY }
    }

    #[test]
    fn the_kernel_that_boots_and_the_one_that_came_up_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = ProjectLayout::unchecked(directory.path().to_owned()).vm("web");
        let (old, good, new) = (pair("1", "one"), pair("2", "two"), pair("3", "two"));
        old.provide(&files, None, &[]).expect("written");
        good.provide(&files, Some(&old.record), &[]).expect("written");
        assert!(Pair::kept(&files, &old.record, MEMORY).is_some());
        new.provide(&files, Some(&good.record), &[]).expect("written");
        assert!(Pair::kept(&files, &old.record, MEMORY).is_none(), "not needed any more");
        let read = Pair::kept(&files, &good.record, MEMORY).expect("kept");
        assert_eq!((read.kernel, read.initramfs), (good.kernel.clone(), good.initramfs.clone()));
        assert_eq!(fs::read_dir(files.kernels()).expect("listed").count(), 3);
        let initramfs = fs::read(files.initramfs()).expect("read");
        assert!(initramfs.starts_with(b"two"));

        fs::write(files.kernel(&good.record.kernel_sha256), "9").expect("spoilt");
        assert!(Pair::kept(&files, &good.record, MEMORY).is_none());
        good.provide(&files, None, &[]).expect("written");
        assert!(Pair::kept(&files, &good.record, MEMORY).is_some(), "written again");
    }
}
