//! A state root that is a symbolic link, for users whose VMs are on a bigger disk.
//!
//! Such a link can also come with a repository, so it proves nothing: its target must be empty, or
//! name this very link in [`LINKED_FROM`], which castra writes at the first use. A repository
//! cannot put a file there.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::out_of_bounds::OutOfBounds;
use crate::files;
use crate::layout::{LINKED_FROM, STATE_DIRECTORY};

/// Longest path that is read from it, in bytes (`PATH_MAX`).
const MAX_PATH_BYTES: u64 = 4096;

/// Mode bits that let the group or others write (`S_IWGRP | S_IWOTH` in `inode(7)`).
const OTHERS_WRITE: u32 = 0o022;

/// Checks that the link and its target belong to this user, that only this user can write to the
/// target, and that the target is empty or this project's.
pub(super) fn check(link: &Path, target: &Path) -> Result<(), OutOfBounds> {
    let refuse = |why: String| {
        let (path, target) = (link.to_owned(), target.to_owned());
        Err(OutOfBounds::StateLink { path, target, why })
    };
    let me = rustix::process::geteuid().as_raw();
    let look = |metadata: std::io::Result<Metadata>| metadata.ok();
    let (Some(of_link), Some(of_target)) =
        (look(fs::symlink_metadata(link)), look(fs::symlink_metadata(target)))
    else {
        return refuse("which does not exist".to_owned());
    };
    if of_link.uid() != me {
        return refuse(format!("and the link belongs to another user (uid {})", of_link.uid()));
    }
    if !of_target.is_dir() {
        return refuse("which is not a directory".to_owned());
    }
    if of_target.uid() != me {
        return refuse(format!("which belongs to another user (uid {})", of_target.uid()));
    }
    if of_target.mode() & OTHERS_WRITE != 0 {
        return refuse("which other users can write to".to_owned());
    }
    if hidden(target) {
        return refuse("which is in a hidden directory".to_owned());
    }
    if is_empty(target) || linked_from(target).as_deref() == Some(link.as_os_str().as_bytes()) {
        return Ok(());
    }
    refuse("which holds files that are not this project's".to_owned())
}

/// Records in an empty target that it belongs to this link.
pub(super) fn claim(link: &Path, target: &Path) -> Result<(), OutOfBounds> {
    check(link, target)?;
    let name = target.join(LINKED_FROM);
    if fs::symlink_metadata(&name).is_ok() {
        return Ok(());
    }
    let written = files::write_atomically(&name, link.as_os_str().as_bytes(), 0o600);
    written.map_err(|error| OutOfBounds::Unresolved {
        path: target.to_owned(),
        reason: error.to_string(),
    })
}

/// Returns `true` for a directory that is empty, or holds only the remains of a [`claim`] that was
/// killed.
fn is_empty(directory: &Path) -> bool {
    let is_leftover = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| {
            entry.file_name().as_bytes().starts_with(files::TEMPORARY.as_bytes())
        })
    };
    fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_leftover))
}

fn linked_from(target: &Path) -> Option<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file: File =
        OpenOptions::new().read(true).custom_flags(flags).open(target.join(LINKED_FROM)).ok()?;
    let metadata = file.metadata().ok()?;
    let is_mine = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
    let mut bytes = Vec::new();
    file.take(MAX_PATH_BYTES).read_to_end(&mut bytes).ok()?;
    is_mine.then_some(bytes)
}

/// Returns `true` for a path with a component that begins with a dot, except a last component
/// `.castra`.
fn hidden(target: &Path) -> bool {
    let ends_as_state = target.ends_with(STATE_DIRECTORY);
    let above = if ends_as_state { target.parent().unwrap_or(target) } else { target };
    above.components().any(|component| component.as_os_str().as_bytes().starts_with(b"."))
}
