//! Reads a Linux disk from outside, on the host: which system is on it, and its kernel, initramfs
//! and command line.
//!
//! ```text
//! files ─► Image ─► Disk ─► volumes ─► filesystems ─► boot loader's entry ─► System
//!          qcow2    GPT     contents   ext, xfs,      BLS, grub.cfg,         kernel, initramfs,
//!          raw      MBR                btrfs, vfat    extlinux, UKI          command line, files
//!                   LVM
//! ```
//!
//! - **Nothing is written.** A [`Source`] has no operation that writes, and files may be opened for
//!   reading only. Journals are replayed in memory.
//! - **No file of the host is opened.** The caller opens the layers of a disk, and names their
//!   formats. Symbolic links are followed inside a system's own tree.
//! - **A disk may be hostile.** Numbers from it are checked where they are read. Each question has
//!   [`Limits`] of reads, bytes and time, so that loops end; files, tables, directories and links
//!   have maximums; a parser that panics takes its filesystem with it and nothing else.
//!
//! ```no_run
//! use castra_disk::{Disk, Format, Image, Layer, Limits};
//!
//! let file = std::fs::File::open("disk.qcow2")?;
//! let image = Image::open([Layer { file, format: Format::Qcow2 }])?;
//! let mut system = Disk::open(image, Limits::default())?.find_system()?;
//! println!("{} boots with {}", system.os.id, system.command_line);
//! let modules = system.files.read("/lib/modules/6.1.0-13-amd64/modules.dep", 4 << 20)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod boot;
mod budget;
mod disk;
mod fields;
mod filesystem;
mod image;
mod lvm;
mod partition;
mod path;
mod signature;
mod source;
mod tree;

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub use boot::fuzz;
pub use boot::{
    Attempt, CommandLine, CommandLineError, Inspection, InstalledSystem, NoSystem, OsRelease,
    RootFilesystem, RootKeys, Rule, System, UefiLoader,
};
pub use budget::{Exceeded, Limits};
pub use disk::{Disk, Place, Volume};
pub use filesystem::{Entry, Fault, FileKind, Limit};
pub use image::{Format, HeaderError, Image, ImageError, Layer};
pub use signature::{Content, Identity, Kind};
pub use source::Source;
pub use tree::FileTree;
