use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh_sftp::protocol::{FileAttributes, OpenFlags};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::SshError;
use super::session::{Session, Sort, Transfers, failed};
use super::{Copied, join, pieces};

/// What a tree holds: where it is here, where it goes, and what is known of it.
#[derive(Default)]
struct Tree {
    directories: Vec<(PathBuf, String, Metadata)>,
    files: Vec<(PathBuf, String, Metadata)>,
    links: Vec<(PathBuf, String)>,
    skipped: Vec<PathBuf>,
}

pub(super) async fn run(
    session: &Session,
    local: &Path,
    remote: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let metadata = fs::metadata(local).map_err(unreadable(local))?;
    let into_directory = session.stat(remote).await?.is_some_and(|found| Sort::of(&found) == Sort::Directory);
    let goal = if into_directory { join(remote, &own_name(local)?) } else { remote.to_owned() };
    let mut tree = Tree::default();
    tree.add(local.to_owned(), goal, metadata)?;

    for (_, goal, metadata) in &tree.directories {
        make_directory(session, goal, metadata).await?;
    }
    let mut transfers = Transfers::new(progress);
    let files = tree.files.len() as u64;
    for (source, goal, metadata) in tree.files {
        let session = session.clone();
        transfers.start(|arrived| send_file(session, source, goal, metadata, arrived)).await?;
    }
    let bytes = transfers.finish().await?;
    for (source, goal) in &tree.links {
        make_link(session, source, goal).await?;
    }
    for (_, goal, metadata) in tree.directories.iter().rev() {
        session.sftp.setstat(goal, kept(metadata)).await.map_err(failed("set the mode of", goal))?;
    }
    Ok(Copied { files, bytes, skipped: tree.skipped })
}

impl Tree {
    fn add(&mut self, source: PathBuf, goal: String, metadata: Metadata) -> Result<(), SshError> {
        let sort = metadata.file_type();
        if sort.is_dir() {
            let entries = fs::read_dir(&source).map_err(unreadable(&source))?;
            self.directories.push((source.clone(), goal.clone(), metadata));
            for entry in entries {
                let path = entry.map_err(unreadable(&source))?.path();
                let metadata = fs::symlink_metadata(&path).map_err(unreadable(&path))?;
                let goal = join(&goal, &name_of(&path)?);
                self.add(path, goal, metadata)?;
            }
        } else if sort.is_file() {
            self.files.push((source, goal, metadata));
        } else if sort.is_symlink() {
            self.links.push((source, goal));
        } else {
            self.skipped.push(source);
        }
        Ok(())
    }
}

async fn make_directory(session: &Session, goal: &str, metadata: &Metadata) -> Result<(), SshError> {
    // Whatever its mode will be, it must take files now.
    let open =
        |mode: u32| FileAttributes { permissions: Some(mode & 0o7777 | 0o700), ..FileAttributes::empty() };
    let Err(error) = session.sftp.mkdir(goal, open(metadata.mode())).await else { return Ok(()) };
    let failure = failed("make the directory", goal);
    match session.stat(goal).await? {
        Some(found) if Sort::of(&found) == Sort::Directory => match found.permissions {
            Some(mode) if mode & 0o700 != 0o700 => {
                session.sftp.setstat(goal, open(mode)).await.map(drop).map_err(failure)
            }
            _ => Ok(()),
        },
        _ => Err(failure(error)),
    }
}

async fn make_link(session: &Session, source: &Path, goal: &str) -> Result<(), SshError> {
    let points_to = fs::read_link(source).map_err(unreadable(source))?;
    let points_to = text(&points_to)?;
    // The agent, like OpenSSH, expects the link's target first.
    if session.sftp.symlink(points_to, goal).await.is_ok() {
        return Ok(());
    }
    // Something is there, most likely from an earlier copy. If not, the second attempt says what is wrong.
    let _ = session.sftp.remove(goal).await;
    session.sftp.symlink(points_to, goal).await.map(drop).map_err(failed("make the link", goal))
}

async fn send_file(
    session: Session,
    source: PathBuf,
    goal: String,
    metadata: Metadata,
    arrived: mpsc::UnboundedSender<u64>,
) -> Result<(), SshError> {
    let file = Arc::new(File::open(&source).map_err(unreadable(&source))?);
    let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
    let wanted = FileAttributes { permissions: Some(metadata.mode() & 0o7777), ..FileAttributes::empty() };
    let failure = failed("write", &goal);
    let handle = session.sftp.open(&goal, flags, wanted).await.map_err(failure)?.handle;
    let mut tasks = JoinSet::new();
    for (offset, length) in pieces(metadata.len()) {
        // The semaphore is never closed.
        let permit = Arc::clone(&session.pieces).acquire_owned().await.map_err(|_| SshError::Lost)?;
        while let Some(done) = tasks.try_join_next() {
            finished(done, &goal)?;
        }
        let mut data = vec![0; length as usize];
        file.read_exact_at(&mut data, offset).map_err(unreadable(&source))?;
        let (sftp, handle, arrived) = (Arc::clone(&session.sftp), handle.clone(), arrived.clone());
        tasks.spawn(async move {
            let written = sftp.write(handle, offset, data).await;
            drop(permit);
            // Nobody listens any more once another file has failed.
            let _ = arrived.send(u64::from(length));
            written
        });
    }
    while let Some(done) = tasks.join_next().await {
        finished(done, &goal)?;
    }
    session.sftp.fsetstat(&handle, kept(&metadata)).await.map_err(failure)?;
    session.sftp.close(handle).await.map(drop).map_err(failure)
}

type Written = Result<russh_sftp::protocol::Status, russh_sftp::client::error::Error>;

fn finished(done: Result<Written, tokio::task::JoinError>, goal: &str) -> Result<(), SshError> {
    done.map_err(|_| SshError::Lost)?.map(drop).map_err(failed("write", goal))
}

/// Mode and times. SFTP counts seconds, in 32 bits.
fn kept(metadata: &Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(u32::try_from(time.max(0)).unwrap_or(u32::MAX));
    FileAttributes {
        permissions: Some(metadata.mode() & 0o7777),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::empty()
    }
}

/// The last part of the path, even of `.` and `..`.
fn own_name(path: &Path) -> Result<String, SshError> {
    if path.file_name().is_some() {
        return name_of(path);
    }
    let path = fs::canonicalize(path).map_err(unreadable(path))?;
    if path.file_name().is_some() { name_of(&path) } else { Ok(".".to_owned()) }
}

fn name_of(path: &Path) -> Result<String, SshError> {
    text(Path::new(path.file_name().unwrap_or_default())).map(str::to_owned).map_err(|_| not_text(path))
}

/// The SFTP library knows text only.
fn text(path: &Path) -> Result<&str, SshError> {
    path.to_str().ok_or_else(|| not_text(path))
}

fn not_text(path: &Path) -> SshError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "its name is not UTF-8");
    SshError::LocalFile { what: "copy", path: path.to_owned(), source }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> SshError + '_ {
    move |source| SshError::LocalFile { what: "read", path: path.to_owned(), source }
}
