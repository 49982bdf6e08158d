//! Physical volumes of LVM2: its own programs take block devices only, which need root.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Start of the metadata area, and of the extents.
const AREA: u64 = 4096;
const EXTENTS: u64 = 1 << 20;
const EXTENT_BYTES: u64 = 4 << 20;

/// Makes a physical volume with one logical volume `vg-0/root` of these bytes, in two segments
/// whose order on the disk is reversed.
pub(crate) fn physical_volume(content: &Path, volume: &Path) -> PathBuf {
    let content = fs::read(content).expect("read");
    let extents = (content.len() as u64).div_ceil(EXTENT_BYTES);
    let first = extents / 2;
    let metadata = format!(
        "vg-0 {{\nid = \"{GROUP}\"\nseqno = 2\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \
        \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8192\t\t# 4 Megabytes\nmax_lv = 0\n\
        physical_volumes {{\npv0 {{\nid = \"{HYPHENATED}\"\ndevice = \"/dev/vda2\"\nstatus = \
        [\"ALLOCATABLE\"]\npe_start = {}\npe_count = {extents}\n}}\n}}\nlogical_volumes {{\nroot \
        {{\nid = \"l\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = 2\n\
        segment1 {{\nstart_extent = 0\nextent_count = {first}\ntype = \"striped\"\nstripe_count = \
        1\nstripes = [\n\"pv0\", {}\n]\n}}\nsegment2 {{\nstart_extent = {first}\nextent_count = \
        {}\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", 0\n]\n}}\n}}\n}}\n}}\n\
        # Generated\ndescription = \"Created by 'vgcreate --config \\\"a {{ b\\\"'\"\n\
        contents = \"Text Format Volume Group\"\nversion = 1\n\0",
        EXTENTS / 512,
        extents - first,
        extents - first,
    );
    let mut bytes = vec![0; EXTENTS as usize];
    put(&mut bytes, 512, b"LABELONE");
    put(&mut bytes, 520, &1_u64.to_le_bytes());
    put(&mut bytes, 532, &32_u32.to_le_bytes());
    put(&mut bytes, 536, b"LVM2 001");
    put(&mut bytes, 544, ID.as_bytes());
    let numbers = [EXTENTS + extents * EXTENT_BYTES, EXTENTS, 0, 0, 0, AREA, EXTENTS - AREA, 0, 0];
    numbers.iter().zip(0..).for_each(|(number, index)| {
        put(&mut bytes, 576 + 8 * index, &number.to_le_bytes());
    });
    let area = AREA as usize;
    put(&mut bytes, area + 4, b"\x20LVM2\x20x[5A%r0N*>");
    put(&mut bytes, area + 20, &1_u32.to_le_bytes());
    // The text begins near the end of the ring and continues at its beginning.
    let offset = EXTENTS - AREA - 100;
    let numbers = [AREA, EXTENTS - AREA, offset, metadata.len() as u64];
    numbers.iter().zip(0..).for_each(|(number, index)| {
        put(&mut bytes, area + 24 + 8 * index, &number.to_le_bytes());
    });
    let (end, beginning) = metadata.as_bytes().split_at(100);
    put(&mut bytes, area + offset as usize, end);
    put(&mut bytes, area + 512, beginning);
    let middle = (first * EXTENT_BYTES) as usize;
    let mut file = File::create(volume).expect("a file");
    for part in [&bytes, &content[middle..]] {
        file.write_all(part).expect("written");
    }
    let end = EXTENTS + (extents - first) * EXTENT_BYTES;
    file.set_len(EXTENTS + extents * EXTENT_BYTES).expect("sized");
    super::write_at(volume, end, &content[..middle]);
    volume.to_owned()
}

const GROUP: &str = "g11111-2222-3333-4444-5555-6666-777777";
const ID: &str = "abcdefghijklmnopqrstuvwxyz012345";
const HYPHENATED: &str = "abcdef-ghij-klmn-opqr-stuv-wxyz-012345";

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}
