//! Partitioned disks.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::text;

/// sfdisk's name of a GPT.
pub(crate) const GPT: &str = "gpt";
/// sfdisk's name of an MBR.
pub(crate) const MBR: &str = "dos";
/// Unit of all sizes.
const MIB: u64 = 1 << 20;

/// Makes a disk with these images as partitions. In an MBR, the fourth and all that follow are
/// logical ones.
pub(crate) fn partitioned(label: &str, parts: &[&Path], disk: &Path) -> PathBuf {
    let sizes: Vec<u64> =
        parts.iter().map(|part| fs::metadata(part).expect("a file").len().div_ceil(MIB)).collect();
    let total: u64 = sizes.iter().map(|size| size + 1).sum();
    File::create(disk).and_then(|file| file.set_len((total + 4) * MIB)).expect("a file");
    let mut script = format!(
        "label: {label}\nlabel-id: {}\n",
        if label == MBR { "0xcafe0001" } else { "11111111-2222-3333-4444-555555555555" }
    );
    let mut start = 1;
    for (index, (part, size)) in parts.iter().zip(&sizes).enumerate() {
        if label == MBR && index == 3 {
            let _ = writeln!(script, "start={start}MiB, type=5");
        }
        if label == MBR && index >= 3 {
            // Each is preceded by its own record.
            start += 1;
        }
        let _ = writeln!(script, "start={start}MiB, size={size}MiB");
        copy(part, disk, start * MIB);
        start += size;
    }
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel", "--wipe-partitions=never", text(disk)])
        .env("PATH", path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk runs");
    sfdisk.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("written");
    assert!(sfdisk.wait().expect("ends").success(), "{script}");
    disk.to_owned()
}

/// Copies a file into a disk, holes left out.
fn copy(from: &Path, disk: &Path, offset: u64) {
    let mut from = File::open(from).expect("opened");
    let mut disk = File::options().write(true).open(disk).expect("opened");
    let mut block = vec![0; 64 << 10];
    let mut at = offset;
    loop {
        let count = from.read(&mut block).expect("read");
        if count == 0 {
            return;
        }
        if block[..count].iter().any(|byte| *byte != 0) {
            disk.seek(SeekFrom::Start(at)).expect("sought");
            disk.write_all(&block[..count]).expect("written");
        }
        at += count as u64;
    }
}
