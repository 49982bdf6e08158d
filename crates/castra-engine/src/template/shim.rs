//! The shim that a template's machine boots: a Linux kernel's header with a few instructions, which
//! fetch the kernel from the initramfs.
//!
//! QEMU reads the file of `-kernel` whole into memory of its own, also when it restores a machine
//! that may never reboot: 13 MB and a fifth of its start for Alpine's kernel. It only maps the file
//! of `-initrd`. So a template has its kernel in front of its initramfs, and machines that are
//! restored from it share that memory. A template is itself made by a boot through its shim, so no
//! kernel that this does not fit ever gets one.
//!
//! Offsets and registers are those of the Linux/x86 boot protocol
//! (Documentation/arch/x86/boot.rst).

use std::fs;
use std::path::Path;

use crate::files;
use crate::layout::TemplateLayout;
use crate::qemu::Boot;

use super::error::{TemplateError, file_error};

/// Offsets in a kernel's header.
const SETUP_SECTORS: usize = 0x1f1;
const MARK: usize = 0x202;
const PROTOCOL: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const ENTRY: usize = 0x214;
/// Length of the part that is read.
const HEADER_BYTES: usize = 0x218;

/// Oldest protocol that has a shim, 2.12: that of Linux 3.8, which no distribution's is older than.
const OLDEST_PROTOCOL: (u8, u8) = (2, 12);
/// Flag of a kernel that is loaded at [`LOAD_ADDRESS`].
const LOADED_HIGH: u8 = 1;

const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

/// Address at which QEMU puts the part of the kernel behind its header, and enters it.
const LOAD_ADDRESS: u32 = 0x10_0000;

/// A kernel in two parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shim {
    /// File for `-kernel`.
    pub(super) kernel: Vec<u8>,
    /// Beginning of the file for `-initrd`, in front of the initramfs.
    pub(super) head: Vec<u8>,
}

impl Shim {
    /// Returns the shim of a kernel; `None` for one of another layout.
    pub(super) fn of(kernel: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = kernel.first_chunk()?;
        let fits = header[MARK..].starts_with(b"HdrS")
            && (header[PROTOCOL + 1], header[PROTOCOL]) >= OLDEST_PROTOCOL
            && header[LOAD_FLAGS] & LOADED_HIGH != 0
            && header[ENTRY..].starts_with(&LOAD_ADDRESS.to_le_bytes());
        // Zero means four, for reasons of history.
        let sectors = match header[SETUP_SECTORS] {
            0 => 4,
            some => usize::from(some),
        };
        let (setup, rest) = kernel.split_at_checked((sectors + 1) * SECTOR_BYTES)?;
        if !fits || rest.is_empty() {
            return None;
        }
        let mut head = rest.to_vec();
        head.resize(rest.len().next_multiple_of(PAGE_BYTES), 0);
        let code = code(u32::try_from(head.len()).ok()?);
        Some(Self { kernel: [setup, &code].concat(), head })
    }
}

/// Replaces the kernel and the initramfs of a template's machine by its shim, if it has one.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn install(boot: &Boot, work: &TemplateLayout) -> Result<(), TemplateError> {
    let Boot::Kernel { kernel: image, .. } = boot else { return Ok(()) };
    let (kernel, initramfs) = (work.kernel(), work.initramfs());
    let source = if kernel.exists() { &kernel } else { image };
    let Some(shim) = Shim::of(&read(source)?) else { return Ok(()) };
    write(&initramfs, &[shim.head, read(&initramfs)?].concat())?;
    write(&kernel, &shim.kernel)
}

fn read(path: &Path) -> Result<Vec<u8>, TemplateError> {
    fs::read(path).map_err(file_error("read", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TemplateError> {
    files::write_atomically(path, bytes, 0o600).map_err(file_error("write", path))
}

/// Returns instructions for the protocol's 32-bit entry. They move the first bytes of the initramfs
/// to the load address, and enter them there.
fn code(head_bytes: u32) -> Vec<u8> {
    let [head, words, load] = [head_bytes, head_bytes / 4, LOAD_ADDRESS].map(u32::to_le_bytes);
    [
        &b"\xfa\xfc"[..], // cli; cld
        // The code would overwrite itself here, so the rest of it runs in memory that only the
        // firmware has used.
        b"\xbb\x00\x70\x00\x00",         // mov ebx, 0x7000
        b"\xc7\x03\xf3\xa5\x89\xd6",     // [ebx]: rep movsd; mov esi, edx
        b"\xc7\x43\x04\x31\xff\x31\xdb", // [ebx + 4]: xor edi, edi; xor ebx, ebx
        b"\xc7\x43\x08\xff\xe0\x90\x90", // [ebx + 8]: jmp eax
        // The boot parameters, in which the initramfs begins behind the kernel.
        b"\x89\xf2",                                        // mov edx, esi
        b"\x8b\xb2\x18\x02\x00\x00",                        // mov esi, [edx + ramdisk_image]
        &[b"\x81\x82\x18\x02\x00\x00", &head[..]].concat(), // add [edx + ramdisk_image], head
        &[b"\x81\xaa\x1c\x02\x00\x00", &head[..]].concat(), // sub [edx + ramdisk_size], head
        &[b"\xb9", &words[..]].concat(),                    // mov ecx, words
        &[b"\xb8", &load[..]].concat(),                     // mov eax, load
        b"\x89\xc7\x31\xed\xff\xe3",                        // mov edi, eax; xor ebp, ebp; jmp ebx
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a kernel with this many sectors of setup and bytes behind it.
    fn kernel(sectors: u8, rest: usize) -> Vec<u8> {
        let mut kernel = vec![0; (usize::from(sectors) + 1) * SECTOR_BYTES];
        kernel[SETUP_SECTORS] = sectors;
        kernel[MARK..MARK + 4].copy_from_slice(b"HdrS");
        kernel[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        kernel[LOAD_FLAGS] = LOADED_HIGH;
        kernel[ENTRY..ENTRY + 4].copy_from_slice(&LOAD_ADDRESS.to_le_bytes());
        kernel.extend((0..rest).map(|index| (index % 251) as u8));
        kernel
    }

    #[test]
    fn a_kernel_is_divided_behind_its_setup() {
        let kernel = kernel(39, 10_000);
        let shim = Shim::of(&kernel).expect("fits");
        assert_eq!(shim.kernel[..40 * SECTOR_BYTES], kernel[..40 * SECTOR_BYTES]);
        assert!(shim.kernel.len() < 41 * SECTOR_BYTES);
        assert_eq!(shim.head.len(), 12_288, "whole pages");
        assert_eq!(shim.head[..10_000], kernel[40 * SECTOR_BYTES..]);
        assert!(shim.head[10_000..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn kernels_of_other_layouts_have_none() {
        let good = kernel(4, 100);
        let with = |at: usize, byte: u8| {
            let mut other = good.clone();
            other[at] = byte;
            Shim::of(&other)
        };
        assert!(with(0, 1).is_some());
        assert_eq!(with(MARK, b'h'), None);
        assert_eq!(with(PROTOCOL, 0x0b), None);
        assert_eq!(with(LOAD_FLAGS, 0), None, "loaded low");
        assert_eq!(with(ENTRY + 2, 0x20), None, "entered at another place");
        assert_eq!(with(SETUP_SECTORS, 200), None, "shorter than its setup");
        assert_eq!(Shim::of(&kernel(4, 0)), None);
        for length in [0, MARK, ENTRY, ENTRY + 3, SECTOR_BYTES] {
            assert_eq!(Shim::of(&good[..length]), None);
        }
    }
}
