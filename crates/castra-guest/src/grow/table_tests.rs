use std::fs;
use std::process::Command;

use super::*;

const MIB: u64 = 2048;

/// Raw disk in a file, partitioned by `sfdisk`; removed when dropped.
struct Disk(std::path::PathBuf);

impl Disk {
    fn new(name: &str, mib: u64, script: &str) -> Self {
        let path = std::env::temp_dir().join(format!("castra-table-{}-{name}", std::process::id()));
        let disk = Self(path);
        fs::write(&disk.0, "").expect("created");
        disk.set_size(mib);
        let script_file = disk.0.with_extension("script");
        fs::write(&script_file, script).expect("written");
        let input = fs::File::open(&script_file).expect("opened");
        let mut sfdisk = program("sfdisk");
        let done = sfdisk.arg("--quiet").arg(&disk.0).stdin(input).status();
        fs::remove_file(&script_file).expect("removed");
        assert!(done.expect("sfdisk runs").success());
        disk
    }

    fn set_size(&self, mib: u64) {
        let file = fs::OpenOptions::new().write(true).open(&self.0).expect("opened");
        file.set_len(mib << 20).expect("resized");
    }

    fn grow(&self, number: u32, start: u64, sectors: u64) -> Result<Option<Change>, Unchanged> {
        let whole = fs::read(&self.0).expect("read");
        let disk_sectors = (whole.len() / SECTOR) as u64;
        grow(&whole[..HEAD_BYTES], disk_sectors, Partition { number, start, sectors })
    }

    fn apply(&self, change: &Change) {
        let mut whole = fs::read(&self.0).expect("read");
        let head = (0, change.head.clone());
        for (at, bytes) in change.backup.iter().chain([&head]) {
            let at = usize::try_from(*at).expect("small");
            whole[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fs::write(&self.0, whole).expect("written");
    }

    /// Returns all that `sfdisk` says about the disk, its warnings included.
    fn dump(&self) -> String {
        let output = program("sfdisk").arg("--dump").arg(&self.0).output().expect("runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        let (errors, dump) = (text(output.stderr), text(output.stdout));
        assert_eq!(errors, "");
        dump
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C");
    command
}

const CLOUD: &str = "label: gpt\n\
    1: start=16MiB, size=32MiB, type=linux, name=root\n\
    15: start=1MiB, size=8MiB, type=uefi\n";

#[test]
fn the_last_partition_of_a_gpt_gets_the_rest() {
    let disk = Disk::new("gpt", 64, CLOUD);
    let (start, sectors) = (16 * MIB, 32 * MIB);
    disk.set_size(200);
    let change = disk.grow(1, start, sectors).expect("valid").expect("it grows");
    assert_eq!(change.sectors, (200 - 16 - 1) * MIB);
    let before = fs::read(&disk.0).expect("read");
    // What a power failure leaves after the first half: the old table.
    disk.apply(&Change { head: before[..WRITTEN_BYTES].to_vec(), ..clone(&change) });
    assert!(disk.grow(1, start, sectors).expect("valid").is_some());
    disk.apply(&change);
    let dump = disk.dump();
    assert!(
        dump.contains(&format!("start=       {start}, size=      {}", change.sectors)),
        "{dump}"
    );
    assert!(dump.contains("name=\"root\"") && dump.contains("last-lba: 409566"), "{dump}");
    assert_eq!(disk.grow(1, start, change.sectors), Ok(None));
    let verified = program("sgdisk").arg("-v").arg(&disk.0).output().expect("sgdisk runs");
    let said = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(said.contains("No problems found"), "{said}");
}

fn clone(change: &Change) -> Change {
    let Change { backup, head, sectors } = change;
    Change { backup: backup.clone(), head: head.clone(), sectors: *sectors }
}

#[test]
fn the_last_partition_of_an_mbr_gets_the_rest() {
    let script = "label: dos\nstart=1MiB, size=8MiB, type=83\nstart=9MiB, size=20MiB, type=83\n";
    let disk = Disk::new("mbr", 30, script);
    disk.set_size(100);
    let change = disk.grow(2, 9 * MIB, 20 * MIB).expect("valid").expect("it grows");
    assert_eq!((change.sectors, &change.backup), (91 * MIB, &None));
    disk.apply(&change);
    assert!(disk.dump().contains(&format!("size=      {}", 91 * MIB)));
    assert_eq!(disk.grow(2, 9 * MIB, 91 * MIB), Ok(None));
    assert_eq!(disk.grow(1, MIB, 8 * MIB), Err(Unchanged::Followed));
    assert_eq!(disk.grow(5, MIB, 8 * MIB), Err(Unchanged::Logical));
    assert_eq!(disk.grow(2, 9 * MIB, 20 * MIB), Err(Unchanged::Different));
}

#[test]
fn only_the_last_partition_grows_and_only_a_whole_table_changes() {
    let disk = Disk::new("others", 64, CLOUD);
    disk.set_size(128);
    assert_eq!(disk.grow(15, MIB, 8 * MIB), Err(Unchanged::Followed));
    for (number, start) in [(1, 17 * MIB), (2, 16 * MIB), (0, 16 * MIB), (200, 16 * MIB)] {
        assert_eq!(disk.grow(number, start, 32 * MIB), Err(Unchanged::Different), "{number}");
    }
    let whole = fs::read(&disk.0).expect("read");
    for at in [510, 512, 530, 560, 1024, 1100] {
        let mut head = whole[..HEAD_BYTES].to_vec();
        head[at] ^= 1;
        let partition = Partition { number: 1, start: 16 * MIB, sectors: 32 * MIB };
        assert_eq!(grow(&head, 128 * MIB, partition), Err(Unchanged::NoTable), "{at}");
    }
}

#[test]
fn a_hybrid_mbr_keeps_its_entries() {
    let disk = Disk::new("hybrid", 64, CLOUD);
    let mut whole = fs::read(&disk.0).expect("read");
    let hybrid = [0x80, 0, 2, 0, 0x83, 0xFE, 0xFF, 0xFF, 0, 0x80, 0, 0, 0, 0, 1, 0];
    whole[mbr_entry(1)..mbr_entry(2)].copy_from_slice(&hybrid);
    fs::write(&disk.0, &whole).expect("written");
    disk.set_size(128);
    let change = disk.grow(1, 16 * MIB, 32 * MIB).expect("valid").expect("it grows");
    assert_eq!(change.head[..SECTOR], whole[..SECTOR]);
}
