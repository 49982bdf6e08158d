//! Disks that were made to break their reader.

use std::time::{Duration, Instant};

use castra_disk::{Disk, Limits};

/// Asks for the system of a disk that has none. Returns the duration.
fn refuses(bytes: Vec<u8>) -> Duration {
    let start = Instant::now();
    let limits = Limits { time: Duration::from_secs(5), ..Limits::default() };
    if let Ok(disk) = Disk::open(bytes, limits) {
        assert!(disk.find_system().is_err(), "there is no system");
    }
    start.elapsed()
}

#[test]
fn chains_of_extended_partitions_may_be_loops() {
    let mut disk = vec![0; 1 << 20];
    for record in [0, 10] {
        let at = record * 512;
        let entry = if record == 0 { at + 446 } else { at + 462 };
        disk[entry + 4] = 5;
        // The first is at sector 10, and each next one there again.
        disk[entry + 8] = if record == 0 { 10 } else { 0 };
        disk[entry + 9] = 0;
        disk[entry + 12] = 100;
        disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
    }
    // A record that leads to itself has the offset 0, which is unused: make it 1, to a copy.
    disk[10 * 512 + 462 + 8] = 1;
    let copy = disk[10 * 512..11 * 512].to_vec();
    disk[11 * 512..12 * 512].copy_from_slice(&copy);
    disk[11 * 512 + 446 + 4] = 0x83;
    disk[11 * 512 + 446 + 8] = 1;
    disk[11 * 512 + 446 + 12] = 1;
    assert!(refuses(disk) < Duration::from_secs(5));
}
