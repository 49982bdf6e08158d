use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh_sftp::client::error::Error;
use russh_sftp::protocol::{FileAttributes, OpenFlags, StatusCode};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::SshError;
use super::session::{PIECE_BYTES, Session, Sort, Transfers, failed};
use super::{Copied, join, pieces};
use crate::harmless::harmless_text;

/// Most entries of a tree. They are kept in memory until they are copied, and a guest may show more of them than there
/// are.
const MAX_ENTRIES: usize = 1_000_000;

/// Longest path here, in bytes (`PATH_MAX`): a guest may show directories without end.
const MAX_PATH_BYTES: usize = 4096;

/// What a tree holds: where it is in the guest, where it goes, and what is known of it.
#[derive(Default)]
struct Tree {
    directories: Vec<(PathBuf, FileAttributes)>,
    files: Vec<(String, PathBuf, FileAttributes)>,
    links: Vec<(String, PathBuf)>,
    skipped: Vec<PathBuf>,
}

pub(super) async fn run(
    session: &Session,
    remote: &str,
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let found = session.sftp.stat(remote).await.map_err(failed("read", remote))?.attrs;
    let goal = if local.is_dir() { local.join(own_name(session, remote).await?) } else { local.to_owned() };
    let tree = walk(session, remote.to_owned(), goal, found).await?;

    for (goal, _) in &tree.directories {
        make_directory(goal).map_err(unwritable(goal))?;
    }
    let mut transfers = Transfers::new(progress);
    let files = tree.files.len() as u64;
    for (source, goal, found) in tree.files {
        let session = session.clone();
        transfers.start(|arrived| receive_file(session, source, goal, found, arrived)).await?;
    }
    let bytes = transfers.finish().await?;
    // After the files, so that no file is written through a link.
    for (source, goal) in &tree.links {
        make_link(session, source, goal).await?;
    }
    for (goal, found) in tree.directories.iter().rev() {
        keep(goal, found).map_err(unwritable(goal))?;
    }
    Ok(Copied { files, bytes, skipped: tree.skipped })
}

async fn walk(
    session: &Session,
    source: String,
    goal: PathBuf,
    found: FileAttributes,
) -> Result<Tree, SshError> {
    let mut tree = Tree::default();
    let mut left = vec![(source, goal, found)];
    let mut entries = 0;
    while let Some((source, goal, found)) = left.pop() {
        if goal.as_os_str().len() > MAX_PATH_BYTES {
            return Err(refused(source, "its path is too long for this machine"));
        }
        match Sort::of(&found) {
            Sort::Directory => {
                for (name, found) in list(session, &source, MAX_ENTRIES - entries).await? {
                    entries += 1;
                    left.push((join(&source, &name), goal.join(&name), found));
                }
                tree.directories.push((goal, found));
            }
            Sort::File => tree.files.push((source, goal, found)),
            Sort::Link => tree.links.push((source, goal)),
            Sort::Other => tree.skipped.push(PathBuf::from(source)),
        }
    }
    Ok(tree)
}

async fn list(session: &Session, path: &str, most: usize) -> Result<Vec<(String, FileAttributes)>, SshError> {
    let failure = failed("read the directory", path);
    let handle = session.sftp.opendir(path).await.map_err(failure)?.handle;
    let mut entries = Vec::new();
    loop {
        match session.sftp.readdir(&handle).await {
            Ok(some) => {
                for file in
                    some.files.into_iter().filter(|file| file.filename != "." && file.filename != "..")
                {
                    check(&file.filename, path)?;
                    if entries.len() >= most {
                        return Err(refused(path.to_owned(), "there is too much in it for one copy"));
                    }
                    entries.push((file.filename, file.attrs));
                }
            }
            Err(Error::Status(status)) if status.status_code == StatusCode::Eof => break,
            Err(error) => return Err(failure(error)),
        }
    }
    session.sftp.close(handle).await.map_err(failure)?;
    Ok(entries)
}

/// A name that is more than a name would lead out of the goal.
fn check(name: &str, directory: &str) -> Result<(), SshError> {
    if !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) {
        return Ok(());
    }
    Err(refused(harmless_text(&join(directory, name)), "this is no file name"))
}

fn refused(path: String, reason: &str) -> SshError {
    SshError::GuestFile { what: "copy", path, reason: reason.to_owned(), missing: false }
}

/// The last part of a guest's path, even of `.` and `..`.
async fn own_name(session: &Session, path: &str) -> Result<String, SshError> {
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let name = last(path);
    if !matches!(name.as_str(), "" | "." | "..") {
        return Ok(name);
    }
    let real = session.sftp.realpath(path).await.map_err(failed("read", path))?;
    let name = real.files.first().map(|file| last(&file.filename)).unwrap_or_default();
    // The root has no name; its entries go straight into the goal.
    if name.is_empty() {
        return Ok(".".to_owned());
    }
    check(&name, path)?;
    Ok(name)
}

/// A link here, perhaps from an earlier copy, is replaced, never followed.
fn make_directory(goal: &Path) -> io::Result<()> {
    match fs::symlink_metadata(goal) {
        // Whatever its mode is, it must take files now.
        Ok(found) if found.is_dir() => {
            let mode = found.permissions().mode();
            if mode & 0o700 != 0o700 {
                fs::set_permissions(goal, Permissions::from_mode(mode & 0o7777 | 0o700))?;
            }
            return Ok(());
        }
        Ok(found) if found.is_symlink() => fs::remove_file(goal)?,
        _ => {}
    }
    fs::create_dir(goal)
}

async fn make_link(session: &Session, source: &str, goal: &Path) -> Result<(), SshError> {
    let failure = failed("read the link", source);
    let read = session.sftp.readlink(source).await.map_err(failure)?;
    let points_to = read.files.into_iter().next().map(|file| file.filename).unwrap_or_default();
    let make = || {
        if fs::symlink_metadata(goal).is_ok() {
            fs::remove_file(goal)?;
        }
        std::os::unix::fs::symlink(&points_to, goal)
    };
    make().map_err(unwritable(goal))
}

async fn receive_file(
    session: Session,
    source: String,
    goal: PathBuf,
    found: FileAttributes,
    arrived: mpsc::UnboundedSender<u64>,
) -> Result<(), SshError> {
    let failure = failed("read", &source);
    let handle =
        session.sftp.open(&source, OpenFlags::READ, FileAttributes::empty()).await.map_err(failure)?.handle;
    let file = Arc::new(create(&goal).map_err(unwritable(&goal))?);
    let mut tasks = JoinSet::new();
    for (offset, length) in pieces(found.len()) {
        // The semaphore is never closed.
        let permit = Arc::clone(&session.pieces).acquire_owned().await.map_err(|_| SshError::Lost)?;
        while let Some(done) = tasks.try_join_next() {
            finished(done, &source, &goal)?;
        }
        let (session, handle, file) = (session.clone(), handle.clone(), Arc::clone(&file));
        let arrived = arrived.clone();
        tasks.spawn(async move {
            let _permit = permit;
            receive_piece(&session, &handle, &file, offset, length, &arrived).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        finished(done, &source, &goal)?;
    }
    if found.is_empty() {
        // Files of /proc say that they are empty, and are not.
        let rest = receive_rest(&session, &handle, &file, &arrived).await;
        finished(Ok(rest), &source, &goal)?;
    }
    session.sftp.close(handle).await.map_err(failure)?;
    keep(&goal, &found).map_err(unwritable(&goal))
}

/// What can go wrong with one piece: here, or in the guest.
enum Failure {
    Here(io::Error),
    There(Error),
}

async fn receive_piece(
    session: &Session,
    handle: &str,
    file: &File,
    mut offset: u64,
    length: u32,
    arrived: &mpsc::UnboundedSender<u64>,
) -> Result<(), Failure> {
    let mut left = length;
    while left > 0 {
        let data = match session.sftp.read(handle, offset, left).await {
            Ok(data) => data.data,
            // It has become shorter meanwhile.
            Err(Error::Status(status)) if status.status_code == StatusCode::Eof => break,
            Err(error) => return Err(Failure::There(error)),
        };
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX).min(left);
        file.write_all_at(&data[..count as usize], offset).map_err(Failure::Here)?;
        offset += u64::from(count);
        left -= count;
        // Nobody listens any more once another file has failed.
        let _ = arrived.send(u64::from(count));
    }
    Ok(())
}

async fn receive_rest(
    session: &Session,
    handle: &str,
    file: &File,
    arrived: &mpsc::UnboundedSender<u64>,
) -> Result<(), Failure> {
    let mut offset = 0;
    loop {
        match session.sftp.read(handle, offset, PIECE_BYTES).await {
            Ok(data) if data.data.is_empty() => return Ok(()),
            Ok(data) => {
                file.write_all_at(&data.data, offset).map_err(Failure::Here)?;
                offset += data.data.len() as u64;
                let _ = arrived.send(data.data.len() as u64);
            }
            Err(Error::Status(status)) if status.status_code == StatusCode::Eof => return Ok(()),
            Err(error) => return Err(Failure::There(error)),
        }
    }
}

fn finished(
    done: Result<Result<(), Failure>, tokio::task::JoinError>,
    source: &str,
    goal: &Path,
) -> Result<(), SshError> {
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Failure::Here(error))) => Err(unwritable(goal)(error)),
        Ok(Err(Failure::There(error))) => Err(failed("read", source)(error)),
        Err(_) => Err(SshError::Lost),
    }
}

/// A link here is replaced, never followed. Nobody else may read the file before it has its mode.
fn create(goal: &Path) -> io::Result<File> {
    if fs::symlink_metadata(goal).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(goal)?;
    }
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(goal)
}

/// Mode and times. The bits that lend rights (setuid, setgid) are not taken from a guest.
fn keep(goal: &Path, found: &FileAttributes) -> io::Result<()> {
    if let Some(mode) = found.permissions {
        fs::set_permissions(goal, Permissions::from_mode(mode & 0o1777))?;
    }
    let time = |seconds: u32| Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    if let (Some(atime), Some(mtime)) = (found.atime, found.mtime) {
        let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
        rustix::fs::utimensat(CWD, goal, &times, AtFlags::empty())?;
    }
    Ok(())
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> SshError + '_ {
    move |source| SshError::LocalFile { what: "write", path: path.to_owned(), source }
}
