//! Copies into the guest.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use castra_sftp::{Attributes, Failure, Flags, Pending, Request};
use rustix::fs::OFlags;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::SshError;
use super::session::{PIECE_BYTES, Session, Sort, failed, shown};
use super::transfers::Transfers;
use super::{Copied, is_hole, join};
use crate::layout::{STATE_DIRECTORY, is_state_root};

/// Permissions that are kept. Not set-user-id and set-group-id, which would grant the rights of
/// another user.
const FILE_MODE: u32 = 0o777;
const DIRECTORY_MODE: u32 = 0o1777;

/// Entry of a tree: its path here, its path in the guest, and its metadata.
struct Found {
    source: PathBuf,
    goal: Vec<u8>,
    metadata: Metadata,
}

/// Contents of a tree. A directory comes before its entries.
#[derive(Default)]
struct Tree {
    directories: Vec<Found>,
    files: Vec<Found>,
    links: Vec<Found>,
    skipped: Vec<PathBuf>,
    states: Vec<PathBuf>,
    failed: Vec<SshError>,
}

pub(super) async fn run(
    session: &Session,
    local: &Path,
    remote: &[u8],
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let metadata = fs::metadata(local).map_err(unreadable(local))?;
    let into_directory =
        session.stat(remote).await?.is_some_and(|found| Sort::of(&found) == Sort::Directory);
    let goal = if into_directory { join(remote, &own_name(local)?) } else { remote.to_vec() };
    if !into_directory && !metadata.is_dir() && remote.ends_with(b"/") {
        return Err(SshError::GuestFile {
            what: "copy into",
            path: shown(remote),
            reason: "the directory does not exist".to_owned(),
            missing: true,
        });
    }
    let mut transfers = Transfers::new(progress);
    if !metadata.is_dir() {
        // Opened by the given name, following links, whatever its type; a pipe waits for its
        // writer.
        let path = local.to_owned();
        let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
        let file = opened.map_err(|_| SshError::Lost)?.map_err(unreadable(local))?;
        let (session, source) = (session.clone(), local.to_owned());
        transfers.start(|arrived| send_file(session, source, file, goal, arrived)).await?;
        let mut done = transfers.finish().await?;
        return match done.failed.pop() {
            Some(error) => Err(error),
            None => Ok(Copied { files: done.files, bytes: done.bytes, ..Copied::default() }),
        };
    }
    let tree = Tree::of(local, goal, metadata)?;
    send_tree(session, tree, transfers).await
}

async fn send_tree(
    session: &Session,
    tree: Tree,
    mut transfers: Transfers<'_>,
) -> Result<Copied, SshError> {
    let mut failures = tree.failed;
    for (number, directory) in tree.directories.iter().enumerate() {
        match make_directory(session, &directory.goal, &directory.metadata).await {
            Ok(()) => {}
            Err(error) if number == 0 || matches!(error, SshError::Lost) => return Err(error),
            Err(error) => failures.push(error),
        }
    }
    for Found { source, goal, .. } in tree.files {
        let session = session.clone();
        transfers
            .start(|arrived| async move {
                // The file's type may have changed since it was listed.
                let flags =
                    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
                let opened = OpenOptions::new().read(true).custom_flags(flags).open(&source);
                let file = opened.map_err(unreadable(&source))?;
                send_file(session, source, file, goal, arrived).await
            })
            .await?;
    }
    let mut done = transfers.finish().await?;
    failures.append(&mut done.failed);
    for link in &tree.links {
        match make_link(session, &link.source, &link.goal).await {
            Ok(()) => {}
            Err(SshError::Lost) => return Err(SshError::Lost),
            Err(error) => failures.push(error),
        }
    }
    for directory in tree.directories.iter().rev() {
        let path = Bytes::copy_from_slice(&directory.goal);
        let attributes = kept(&directory.metadata, DIRECTORY_MODE);
        match session.sftp.done(Request::Setstat { path, attributes }).await {
            Ok(()) => {}
            Err(Failure::Ended) => return Err(SshError::Lost),
            Err(failure) => failures.push(failed("set the mode of", &directory.goal)(failure)),
        }
    }
    let (skipped, states) = (tree.skipped, tree.states);
    Ok(Copied {
        files: done.files,
        bytes: done.bytes,
        skipped,
        states,
        failed: failures,
        incomplete: Vec::new(),
    })
}

impl Tree {
    /// Lists a tree. Records entries that cannot be listed, unless that is the root.
    fn of(root: &Path, goal: Vec<u8>, metadata: Metadata) -> Result<Self, SshError> {
        let mut tree = Self::default();
        let mut left = vec![Found { source: root.to_owned(), goal, metadata }];
        while let Some(found) = left.pop() {
            let sort = found.metadata.file_type();
            if sort.is_dir() {
                let is_root = tree.directories.is_empty();
                if !is_root && is_state(&found.source) {
                    tree.states.push(found.source);
                    continue;
                }
                match children(&found, &mut tree.failed) {
                    Ok(mut children) => left.append(&mut children),
                    Err(error) if is_root => return Err(unreadable(root)(error)),
                    Err(error) => tree.failed.push(unreadable(&found.source)(error)),
                }
                tree.directories.push(found);
            } else if sort.is_file() {
                tree.files.push(found);
            } else if sort.is_symlink() {
                tree.links.push(found);
            } else {
                tree.skipped.push(found.source);
            }
        }
        Ok(tree)
    }
}

fn children(directory: &Found, failures: &mut Vec<SshError>) -> io::Result<Vec<Found>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(&directory.source)? {
        let entry = entry?;
        let (source, goal) = (entry.path(), join(&directory.goal, entry.file_name().as_bytes()));
        match entry.metadata() {
            Ok(metadata) => children.push(Found { source, goal, metadata }),
            Err(error) => failures.push(unreadable(&source)(error)),
        }
    }
    Ok(children)
}

/// Returns `true` for a state directory of Castra's, recognised by its name or its contents.
fn is_state(path: &Path) -> bool {
    path.file_name() == Some(OsStr::new(STATE_DIRECTORY)) || is_state_root(path)
}

async fn make_directory(
    session: &Session,
    goal: &[u8],
    metadata: &Metadata,
) -> Result<(), SshError> {
    // Whatever its final mode, files must be created in it now.
    let open = |mode: u32| Attributes::of_mode(mode & DIRECTORY_MODE | 0o700);
    let path = Bytes::copy_from_slice(goal);
    let made = session
        .sftp
        .done(Request::Mkdir { path: path.clone(), attributes: open(metadata.mode()) })
        .await;
    let Err(error) = made else { return Ok(()) };
    let failure = failed("create the directory", goal);
    match session.stat(goal).await? {
        Some(found) if Sort::of(&found) == Sort::Directory => match found.mode {
            Some(mode) if mode & 0o700 != 0o700 => session
                .sftp
                .done(Request::Setstat { path, attributes: open(mode) })
                .await
                .map_err(failure),
            _ => Ok(()),
        },
        Some(_) => Err(SshError::GuestFile {
            what: "create the directory",
            path: shown(goal),
            reason: "it exists and is not a directory".to_owned(),
            missing: false,
        }),
        None => Err(failure(error)),
    }
}

async fn make_link(session: &Session, source: &Path, goal: &[u8]) -> Result<(), SshError> {
    let target =
        Bytes::from(fs::read_link(source).map_err(unreadable(source))?.into_os_string().into_vec());
    let link = Bytes::copy_from_slice(goal);
    let make = Request::Symlink { target, link: link.clone() };
    if session.sftp.done(make.clone()).await.is_ok() {
        return Ok(());
    }
    // Something exists there, most likely from an earlier copy. If not, the second attempt reports
    // the reason.
    let _ = session.sftp.done(Request::Remove { path: link }).await;
    session.sftp.done(make).await.map_err(failed("create the link", goal))
}

/// An open file of the guest.
struct Opened {
    handle: Bytes,
    /// Set if this copy created the file, which then gets the mode of its source. An existing file
    /// keeps its own, as with `cp`.
    is_new: bool,
    /// Set for a regular file, which gets a length and times, and in which zeros become holes.
    /// Anything else is only written to.
    is_file: bool,
}

impl Opened {
    async fn at(session: &Session, path: &Bytes, mode: u32) -> Result<Self, Failure> {
        let flags = Flags::WRITE.and(Flags::CREATE);
        let wanted = Attributes::of_mode(mode & FILE_MODE);
        match session.sftp.open(path.clone(), flags.and(Flags::EXCLUSIVE), wanted).await {
            Ok(handle) => return Ok(Self { handle, is_new: true, is_file: true }),
            // The file exists, or else the second attempt reports the reason.
            Err(Failure::Status { .. }) => {}
            Err(Failure::Ended) => return Err(Failure::Ended),
        }
        let handle = session.sftp.open(path.clone(), flags.and(Flags::TRUNCATE), wanted).await?;
        let found = session.sftp.attributes(Request::Fstat { handle: handle.clone() }).await?;
        Ok(Self { handle, is_new: false, is_file: Sort::of(&found) == Sort::File })
    }
}

async fn send_file(
    session: Session,
    source: PathBuf,
    file: File,
    goal: Vec<u8>,
    arrived: mpsc::UnboundedSender<u64>,
) -> Result<(), SshError> {
    let metadata = file.metadata().map_err(unreadable(&source))?;
    let failure = failed("write", &goal);
    let path = Bytes::copy_from_slice(&goal);
    // A pipe's own mode means nothing for its contents.
    let mode = if metadata.is_file() { metadata.mode() } else { 0o644 };
    let opened = Opened::at(&session, &path, mode).await.map_err(failure)?;
    if opened.is_new {
        session.begin(path.clone());
    }
    let sent = send(&session, &opened, &source, file, &goal, &arrived).await;
    let finished = match sent {
        Ok(length) => finish(&session, &opened, &metadata, length).await.map_err(failure),
        Err(error) => {
            let _ = session.sftp.close(opened.handle).await;
            if opened.is_new {
                let _ = session.sftp.done(Request::Remove { path: path.clone() }).await;
            }
            Err(error)
        }
    };
    session.finish(&path);
    finished
}

async fn finish(
    session: &Session,
    opened: &Opened,
    metadata: &Metadata,
    length: u64,
) -> Result<(), Failure> {
    let handle = opened.handle.clone();
    let mut attributes = kept(metadata, FILE_MODE);
    attributes.size = Some(length);
    if !opened.is_new {
        attributes.mode = None;
    }
    if !metadata.is_file() {
        (attributes.mode, attributes.times) = (None, None);
    }
    // Both are sent before either is answered.
    let set = match opened.is_file {
        true => Some(
            session.sftp.send(&Request::Fsetstat { handle: handle.clone(), attributes }).await?,
        ),
        false => None,
    };
    let closed = session.sftp.send(&Request::Close { handle }).await?;
    if let Some(set) = set {
        set.done().await?;
    }
    closed.done().await
}

/// Sends a file to its end, whatever its reported size, and returns its length.
async fn send(
    session: &Session,
    opened: &Opened,
    source: &Path,
    file: File,
    goal: &[u8],
    arrived: &mpsc::UnboundedSender<u64>,
) -> Result<u64, SshError> {
    let is_quick = file.metadata().is_ok_and(|found| found.is_file());
    let file = Arc::new(file);
    let failure = failed("write", goal);
    let mut written: VecDeque<(Pending, u64, OwnedSemaphorePermit)> = VecDeque::new();
    let mut offset = 0;
    loop {
        let permit = loop {
            let pieces = Arc::clone(&session.pieces);
            if written.is_empty() {
                // Others hold all permits, and will return them.
                break pieces.acquire_owned().await.map_err(|_| SshError::Lost)?;
            }
            if let Ok(permit) = pieces.try_acquire_owned() {
                break permit;
            }
            confirm(&mut written, arrived).await.map_err(failure)?;
        };
        let data = piece(&file, is_quick).await.map_err(unreadable(source))?;
        if data.is_empty() {
            break;
        }
        let length = data.len() as u64;
        if opened.is_file && is_hole(&data) {
            let _ = arrived.send(length);
        } else {
            let request = Request::Write { handle: opened.handle.clone(), offset, data };
            let pending = session.sftp.send(&request).await.map_err(failure)?;
            written.push_back((pending, length, permit));
        }
        offset += length;
    }
    while !written.is_empty() {
        confirm(&mut written, arrived).await.map_err(failure)?;
    }
    Ok(offset)
}

/// Waits for the oldest write.
async fn confirm(
    written: &mut VecDeque<(Pending, u64, OwnedSemaphorePermit)>,
    arrived: &mpsc::UnboundedSender<u64>,
) -> Result<(), Failure> {
    let Some((pending, length, _permit)) = written.pop_front() else { return Ok(()) };
    pending.done().await?;
    // The receiver is gone once the connection is lost.
    let _ = arrived.send(length);
    Ok(())
}

/// Reads the next piece; an empty one is the end. Data of a pipe or terminal may take long to
/// arrive, so a thread waits for it.
async fn piece(file: &Arc<File>, is_quick: bool) -> io::Result<Bytes> {
    let read = |file: Arc<File>| {
        let mut data = vec![0; PIECE_BYTES as usize];
        let mut filled = 0;
        while filled < data.len() {
            match (&*file).read(&mut data[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        data.truncate(filled);
        Ok(Bytes::from(data))
    };
    if is_quick {
        return read(Arc::clone(file));
    }
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || read(file)).await.map_err(io::Error::other)?
}

/// Returns mode and times for SFTP, which counts seconds in 32 bits.
fn kept(metadata: &Metadata, mask: u32) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        mode: Some(metadata.mode() & mask),
        times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
        ..Attributes::default()
    }
}

/// Returns the last component of the path, even of `.` and `..`; `.` for the root.
fn own_name(path: &Path) -> Result<Vec<u8>, SshError> {
    if let Some(name) = path.file_name() {
        return Ok(name.as_bytes().to_vec());
    }
    let path = fs::canonicalize(path).map_err(unreadable(path))?;
    Ok(path.file_name().map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec()))
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> SshError + '_ {
    move |source| SshError::LocalFile { what: "read", path: path.to_owned(), source }
}
