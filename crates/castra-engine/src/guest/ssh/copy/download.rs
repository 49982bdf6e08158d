//! Copies out of the guest.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use castra_sftp::{Attributes, Code, Failure, Flags, Pending, Request};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::SshError;
use super::Copied;
use super::glob::expand;
use super::landing::{self, Below, Sink};
use super::session::{PIECE_BYTES, Session, Sort, failed};
use super::transfers::Transfers;
use super::tree::{own_name, refused, walk};

/// Bytes requested at the end of a file of the expected size.
const PROBE_BYTES: u32 = 1024;

pub(super) async fn run(
    session: &Session,
    remote: &[u8],
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let sources = expand(session, remote).await?;
    if let [source] = &sources[..] {
        return copy(session, source, local, progress).await;
    }
    if !local.is_dir() {
        return Err(SshError::ManyOntoOne { path: local.to_owned() });
    }
    let mut all = Copied::default();
    for source in sources {
        match copy(session, &source, local, progress).await {
            Ok(mut one) => {
                all.files += one.files;
                all.bytes += one.bytes;
                all.skipped.append(&mut one.skipped);
                all.failed.append(&mut one.failed);
            }
            Err(SshError::Lost) => return Err(SshError::Lost),
            Err(error) => all.failed.push(error),
        }
    }
    Ok(all)
}

async fn copy(
    session: &Session,
    source: &[u8],
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let stat = Request::Stat { path: Bytes::copy_from_slice(source) };
    let found = session.sftp.attributes(stat).await.map_err(failed("read", source))?;
    let inside = if local.is_dir() {
        Some(own_name(session, source).await?.unwrap_or_default())
    } else {
        None
    };
    match (Sort::of(&found), inside) {
        (Sort::Directory, inside) => {
            copy_tree(session, source, found, local, inside, progress).await
        }
        (Sort::File, None) if local.as_os_str().as_bytes().ends_with(b"/") => {
            let source = match local.components().as_path().try_exists() {
                Ok(true) => io::ErrorKind::NotADirectory.into(),
                Ok(false) | Err(_) => {
                    io::Error::new(io::ErrorKind::NotFound, "the directory does not exist")
                }
            };
            Err(SshError::LocalFile { what: "copy into", path: local.to_owned(), source })
        }
        (Sort::File, inside) => {
            let noted = session.interrupted.clone();
            let mode = found.mode.unwrap_or(0o666);
            let (goal, place) = match inside {
                Some(name) => (local.join(as_path(&name)), Some(name)),
                None => (local.to_owned(), None),
            };
            let path = goal.clone();
            // Opening a pipe waits for its reader.
            let opened = tokio::task::spawn_blocking(move || match place {
                Some(name) => {
                    Below::open(path.parent().unwrap_or(&path))?.create_named(&name, mode, noted)
                }
                None => landing::create_at(&path, mode, noted),
            });
            let sink = opened.await.map_err(|_| SshError::Lost)?.map_err(unwritable(&goal))?;
            let mut transfers = Transfers::new(progress);
            let (session, source) = (session.clone(), source.to_vec());
            transfers
                .start(|arrived| receive_file(session, source, found, sink, goal, arrived))
                .await?;
            let mut done = transfers.finish().await?;
            match done.failed.pop() {
                Some(error) => Err(error),
                None => Ok(Copied { files: done.files, bytes: done.bytes, ..Copied::default() }),
            }
        }
        _ => Err(refused(
            source,
            "it is neither a regular file nor a directory; print part of it with `castra exec … \
            cat`",
        )),
    }
}

async fn copy_tree(
    session: &Session,
    source: &[u8],
    found: Attributes,
    local: &Path,
    inside: Option<Vec<u8>>,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let (base, name) = match inside {
        Some(name) => (local, name),
        None => {
            let name = local.file_name().unwrap_or_default().to_owned().into_vec();
            let parent = local.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")), name)
        }
    };
    let tree = walk(session, source, found, base.as_os_str().len() + name.len()).await?;
    let goal = |below: &[u8]| match (&name[..], below) {
        (b"", below) => below.to_vec(),
        (name, b"") => name.to_vec(),
        (name, below) => [name, b"/", below].concat(),
    };
    let place = Arc::new(Below::open(base).map_err(unwritable(base))?);
    let (mut failures, mut made) = (tree.failed, Vec::new());
    // Directories first, so that files find them; without the root there is nothing to copy into.
    for directory in &tree.directories {
        let goal = goal(directory.below());
        match place.make_directory(&goal, directory.attributes.mode.unwrap_or(0o777)) {
            Ok(later) => made.push((goal, later, directory.attributes)),
            Err(error) if directory.below().is_empty() => {
                return Err(unwritable(&place.shown(&goal))(error));
            }
            Err(error) => failures.push(unwritable(&place.shown(&goal))(error)),
        }
    }
    let mut transfers = Transfers::new(progress);
    for file in tree.files {
        let (session, goal, place) = (session.clone(), goal(file.below()), Arc::clone(&place));
        transfers
            .start(|arrived| async move {
                let (found, shown) = (file.attributes, place.shown(&goal));
                let sink = place
                    .create(&goal, found.mode.unwrap_or(0o666), session.interrupted.clone())
                    .map_err(unwritable(&shown))?;
                receive_file(session, file.source, found, sink, shown, arrived).await
            })
            .await?;
    }
    let mut done = transfers.finish().await?;
    failures.append(&mut done.failed);
    for link in &tree.links {
        match make_link(session, &link.source, &place, &goal(link.below())).await {
            Ok(()) => {}
            Err(SshError::Lost) => return Err(SshError::Lost),
            Err(error) => failures.push(error),
        }
    }
    // Modes and times last, children before parents: creating entries needs write permission and
    // changes the directory's time.
    for (goal, later, found) in made.iter().rev() {
        if let Err(error) = place.finish_directory(goal, later, found) {
            failures.push(unwritable(&place.shown(goal))(error));
        }
    }
    let skipped = tree.others.into_iter().map(|other| as_path(&other.source).to_owned()).collect();
    Ok(Copied {
        files: done.files,
        bytes: done.bytes,
        skipped,
        failed: failures,
        ..Copied::default()
    })
}

async fn make_link(
    session: &Session,
    source: &[u8],
    place: &Below,
    goal: &[u8],
) -> Result<(), SshError> {
    let read = Request::Readlink { path: Bytes::copy_from_slice(source) };
    let target = session.sftp.path(read).await.map_err(failed("read the link", source))?;
    place.make_link(goal, &target).map_err(unwritable(&place.shown(goal)))
}

/// Pending requests for one file, in the order of its bytes.
struct Reader<'a> {
    session: &'a Session,
    handle: Bytes,
    /// Offset, length and pending reply of each request, and its permit, which bounds their number.
    asked: VecDeque<(u64, u32, Pending, OwnedSemaphorePermit)>,
}

impl Reader<'_> {
    fn request(&self, offset: u64, length: u32) -> Request {
        Request::Read { handle: self.handle.clone(), offset, length }
    }

    /// Requests a piece if one more may be in flight.
    async fn ask(&mut self, offset: u64, length: u32) -> Result<bool, Failure> {
        let pieces = Arc::clone(&self.session.pieces);
        // Without any permit, wait for one: then others hold them all, and will return them.
        let permit = match self.asked.is_empty() {
            true => pieces.acquire_owned().await.map_err(|_| Failure::Ended)?,
            false => match pieces.try_acquire_owned() {
                Ok(permit) => permit,
                Err(_) => return Ok(false),
            },
        };
        let pending = self.session.sftp.send(&self.request(offset, length)).await?;
        self.asked.push_back((offset, length, pending, permit));
        Ok(true)
    }
}

async fn receive_file(
    session: Session,
    source: Vec<u8>,
    found: Attributes,
    mut sink: Sink,
    goal: PathBuf,
    arrived: mpsc::UnboundedSender<u64>,
) -> Result<(), SshError> {
    let failure = failed("read", &source);
    let path = Bytes::copy_from_slice(&source);
    let handle =
        session.sftp.open(path, Flags::READ, Attributes::default()).await.map_err(failure)?;
    let received = receive(&session, &handle, found.size.unwrap_or(0), &mut sink, &arrived).await;
    // Not waited for: closing a file that was only read cannot lose anything.
    let closed = session.sftp.send(&Request::Close { handle }).await;
    match received {
        Ok(()) => {}
        Err(Trouble::Here(error)) => return Err(unwritable(&goal)(error)),
        Err(Trouble::There(error)) => return Err(failure(error)),
        Err(Trouble::Changed) => return Err(refused(&source, "it changed while it was copied")),
    }
    closed.map_err(failure)?;
    sink.finish(&found).map_err(unwritable(&goal))
}

/// Failure of a piece: on this host, in the guest, or between two pieces.
enum Trouble {
    Here(io::Error),
    There(Failure),
    Changed,
}

/// Reads a file to its end. Its size is a hint for how much to request at once: files of /proc
/// report a size of zero, and others grow and shrink meanwhile.
async fn receive(
    session: &Session,
    handle: &Bytes,
    size: u64,
    sink: &mut Sink,
    arrived: &mpsc::UnboundedSender<u64>,
) -> Result<(), Trouble> {
    let mut reader = Reader { session, handle: handle.clone(), asked: VecDeque::new() };
    let (mut next, mut is_probed, mut is_ended) = (0, false, false);
    loop {
        // Up to the expected end, and one more that should find it.
        while !is_probed && !is_ended {
            let left = size.saturating_sub(next);
            let length = u32::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            // The first read past the end most likely finds nothing, and an emulated guest clears
            // the buffer that it might fill.
            let length = match left {
                0 if next == size && size > 0 => PROBE_BYTES,
                0 => PIECE_BYTES,
                _ => length,
            };
            if !reader.ask(next, length).await.map_err(Trouble::There)? {
                break;
            }
            is_probed = left == 0;
            next += u64::from(length);
        }
        let Some((mut offset, length, pending, _permit)) = reader.asked.pop_front() else {
            return Ok(());
        };
        let mut left = length;
        let mut pending = Some(pending);
        while left > 0 {
            let reply = match pending.take() {
                Some(pending) => pending.data().await,
                None => {
                    let again = session.sftp.send(&reader.request(offset, left)).await;
                    again.map_err(Trouble::There)?.data().await
                }
            };
            let data = match reply {
                Ok(data) if !data.is_empty() => data,
                Ok(_) => break,
                Err(failure) if failure.is(Code::EOF) => break,
                Err(failure) => return Err(Trouble::There(failure)),
            };
            if is_ended {
                return Err(Trouble::Changed);
            }
            // No more than was requested, whatever the guest sends.
            let data = &data[..data.len().min(left as usize)];
            sink.write(data).map_err(Trouble::Here)?;
            offset += data.len() as u64;
            left -= u32::try_from(data.len()).unwrap_or(left);
            // The receiver is gone once the connection is lost.
            let _ = arrived.send(data.len() as u64);
        }
        is_ended |= left > 0;
        if !is_ended && is_probed && reader.asked.is_empty() {
            // The file has grown: continue to its end.
            is_probed = false;
        }
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> SshError + '_ {
    move |source| SshError::LocalFile { what: "write", path: path.to_owned(), source }
}
