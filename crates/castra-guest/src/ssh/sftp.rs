//! SFTP (version 3 with OpenSSH's extensions), on a thread that has the user's rights on files.
//!
//! A thread, not a process: credentials are a thread's own to the kernel, so nothing has to be executed, and no second
//! copy of the agent is needed in memory. Its working directory and umask are its own too (`unshare`), so relative
//! paths start at the user's home.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh_sftp::protocol::{
    Attrs, Data, ExtendedReply, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet, Status,
    StatusCode, Version,
};
use russh_sftp::server::StatusReply;
use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::thread::UnshareFlags;
use tokio::sync::oneshot;

use super::users::User;

/// Largest packet, and largest piece of a file in one; what OpenSSH's server says it takes.
const PACKET_BYTES: u32 = 256 * 1024;
const PIECE_BYTES: u32 = PACKET_BYTES - 1024;

/// Entries of a directory in one answer.
const ENTRIES: usize = 128;

/// The extensions there are, and their versions.
const EXTENSIONS: &[(&str, &str)] = &[
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

/// Starts a server for a user, and returns the client's end of its stream.
///
/// # Errors
/// There is no thread or no socket to be had.
pub(super) fn start(user: Arc<User>) -> io::Result<tokio::net::UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    std::thread::Builder::new().name("castra-sftp".into()).spawn(move || {
        // On failure the stream is dropped, and the client sees the channel end.
        let _ = serve(&user, theirs);
    })?;
    tokio::net::UnixStream::from_std(ours)
}

fn serve(user: &User, stream: UnixStream) -> io::Result<()> {
    own_working_directory()?;
    user.act_in_thread()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if rustix::process::chdir(&user.home).is_err() {
        rustix::process::chdir("/")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let (alive, ended) = oneshot::channel();
        let server = Server { open: HashMap::new(), next: 0, _alive: alive };
        let config = russh_sftp::server::Config { max_client_packet_len: PACKET_BYTES };
        russh_sftp::server::run_with_config(stream, server, config).await;
        // Nothing is ever sent: the server's end drops the sender.
        let _ = ended.await;
        Ok(())
    })
}

/// Takes the calling thread's working directory and umask apart from the process's.
#[expect(unsafe_code, reason = "rustix has no safe unshare, since other flags than this one are dangerous")]
fn own_working_directory() -> io::Result<()> {
    // SAFETY: only descriptor tables (`UnshareFlags::FILES`) are a matter of memory safety.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    Ok(())
}

struct Server {
    open: HashMap<String, Open>,
    next: u64,
    /// Dropped with the server.
    _alive: oneshot::Sender<()>,
}

enum Open {
    File(File),
    Directory(PathBuf, ReadDir),
}

/// What went wrong, on its way to the client.
struct Failure(StatusReply);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => StatusCode::NoSuchFile,
            io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            io::ErrorKind::Unsupported => StatusCode::OpUnsupported,
            _ => StatusCode::Failure,
        };
        Self(code.with_message(error.to_string()))
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<StatusCode> for Failure {
    fn from(code: StatusCode) -> Self {
        Self(code.into())
    }
}

impl From<Failure> for StatusReply {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

impl Server {
    fn remember(&mut self, id: u32, open: Open) -> Handle {
        self.next += 1;
        let handle = self.next.to_string();
        self.open.insert(handle.clone(), open);
        Handle { id, handle }
    }

    fn file(&self, handle: &str) -> Result<&File, Failure> {
        match self.open.get(handle) {
            Some(Open::File(file)) => Ok(file),
            _ => Err(StatusCode::Failure.with_message("no such open file").into()),
        }
    }
}

impl From<StatusReply> for Failure {
    fn from(reply: StatusReply) -> Self {
        Self(reply)
    }
}

impl russh_sftp::server::Handler for Server {
    type Error = Failure;

    fn unimplemented(&self) -> Failure {
        StatusCode::OpUnsupported.into()
    }

    async fn init(
        &mut self,
        _version: u32,
        _extensions: HashMap<String, String>,
    ) -> Result<Version, Failure> {
        let mut version = Version::new();
        version.extensions =
            EXTENSIONS.iter().map(|(name, number)| ((*name).to_owned(), (*number).to_owned())).collect();
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        path: String,
        flags: OpenFlags,
        attributes: FileAttributes,
    ) -> Result<Handle, Failure> {
        let mut options = OpenOptions::from(flags);
        options.mode(attributes.permissions.unwrap_or(0o666) & 0o7777);
        let file = options.open(&path)?;
        Ok(self.remember(id, Open::File(file)))
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Failure> {
        self.open.remove(&handle).ok_or(StatusCode::Failure)?;
        Ok(ok(id))
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Result<Data, Failure> {
        let file = self.file(&handle)?;
        let mut data = vec![0; length.min(PIECE_BYTES) as usize];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        data.truncate(filled);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, Failure> {
        self.file(&handle)?.write_all_at(&data, offset)?;
        Ok(ok(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Failure> {
        Ok(Attrs { id, attrs: attributes(&fs::symlink_metadata(path)?) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Failure> {
        Ok(Attrs { id, attrs: attributes(&fs::metadata(or_here(&path))?) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Failure> {
        Ok(Attrs { id, attrs: attributes(&self.file(&handle)?.metadata()?) })
    }

    async fn setstat(&mut self, id: u32, path: String, wanted: FileAttributes) -> Result<Status, Failure> {
        if let Some(size) = wanted.size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if wanted.uid.is_some() || wanted.gid.is_some() {
            std::os::unix::fs::chown(&path, wanted.uid, wanted.gid)?;
        }
        if let Some(mode) = wanted.permissions {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(times) = times(&wanted) {
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        Ok(ok(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, wanted: FileAttributes) -> Result<Status, Failure> {
        let file = self.file(&handle)?;
        if let Some(size) = wanted.size {
            file.set_len(size)?;
        }
        if wanted.uid.is_some() || wanted.gid.is_some() {
            std::os::unix::fs::fchown(file, wanted.uid, wanted.gid)?;
        }
        if let Some(mode) = wanted.permissions {
            file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        }
        if let Some(times) = times(&wanted) {
            rustix::fs::futimens(file, &times)?;
        }
        Ok(ok(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Failure> {
        let path = PathBuf::from(or_here(&path));
        let entries = fs::read_dir(&path)?;
        Ok(self.remember(id, Open::Directory(path, entries)))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Failure> {
        let Some(Open::Directory(path, entries)) = self.open.get_mut(&handle) else {
            return Err(StatusCode::Failure.with_message("no such open directory").into());
        };
        let mut files = Vec::new();
        for entry in entries.take(ENTRIES) {
            let entry = entry?;
            // An entry that is gone by now is no entry.
            if let Ok(metadata) = fs::symlink_metadata(path.join(entry.file_name())) {
                files.push(Entry::new(entry.file_name().to_string_lossy(), attributes(&metadata)));
            }
        }
        if files.is_empty() { Err(StatusCode::Eof.into()) } else { Ok(Name { id, files }) }
    }

    async fn remove(&mut self, id: u32, path: String) -> Result<Status, Failure> {
        fs::remove_file(path)?;
        Ok(ok(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, wanted: FileAttributes) -> Result<Status, Failure> {
        rustix::fs::mkdir(&path, Mode::from_raw_mode(wanted.permissions.unwrap_or(0o777) & 0o7777))?;
        Ok(ok(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Failure> {
        fs::remove_dir(path)?;
        Ok(ok(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Failure> {
        let path = real(Path::new(or_here(&path)))?;
        Ok(Name { id, files: vec![Entry::dummy(path.to_string_lossy())] })
    }

    async fn rename(&mut self, id: u32, from: String, to: String) -> Result<Status, Failure> {
        rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)?;
        Ok(ok(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Failure> {
        let target = fs::read_link(path)?;
        Ok(Name { id, files: vec![Entry::dummy(target.to_string_lossy())] })
    }

    /// OpenSSH sends the target first, against the draft, and everyone follows OpenSSH.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Failure> {
        std::os::unix::fs::symlink(target, link)?;
        Ok(ok(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Result<Packet, Failure> {
        let mut arguments = Arguments(&data);
        match request.as_str() {
            "posix-rename@openssh.com" => fs::rename(arguments.path()?, arguments.path()?)?,
            "hardlink@openssh.com" => fs::hard_link(arguments.path()?, arguments.path()?)?,
            "fsync@openssh.com" => self.file(arguments.text()?)?.sync_all()?,
            "statvfs@openssh.com" => return Ok(reply(id, &space(arguments.path()?)?)),
            // The last number is the limit on open handles: none but the kernel's.
            "limits@openssh.com" => {
                let piece = u64::from(PIECE_BYTES);
                return Ok(reply(id, &[u64::from(PACKET_BYTES), piece, piece, 0]));
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(Packet::Status(ok(id)))
    }
}

/// The strings of an extended request: a length of four bytes, and the bytes.
struct Arguments<'a>(&'a [u8]);

impl<'a> Arguments<'a> {
    fn bytes(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        self.0 = rest;
        Some(bytes)
    }

    fn path(&mut self) -> Result<&'a Path, Failure> {
        Ok(Path::new(OsStr::from_bytes(self.bytes().ok_or(StatusCode::BadMessage)?)))
    }

    fn text(&mut self) -> Result<&'a str, Failure> {
        let bytes = self.bytes().ok_or(StatusCode::BadMessage)?;
        std::str::from_utf8(bytes).map_err(|_| StatusCode::BadMessage.into())
    }
}

fn ok(id: u32) -> Status {
    Status { id, status_code: StatusCode::Ok, error_message: "Ok".into(), language_tag: "en-US".into() }
}

fn reply(id: u32, numbers: &[u64]) -> Packet {
    Packet::ExtendedReply(ExtendedReply {
        id,
        data: numbers.iter().flat_map(|number| number.to_be_bytes()).collect(),
    })
}

/// An empty path is the working directory, as in OpenSSH.
fn or_here(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

/// Without the names of owners: clients look at the numbers.
fn attributes(metadata: &fs::Metadata) -> FileAttributes {
    let seconds = |time: i64| Some(u32::try_from(time).unwrap_or(0));
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        gid: Some(metadata.gid()),
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
        ..FileAttributes::empty()
    }
}

fn times(wanted: &FileAttributes) -> Option<Timestamps> {
    let time = |seconds: Option<u32>| match seconds {
        Some(seconds) => Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 },
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    (wanted.atime.is_some() || wanted.mtime.is_some())
        .then(|| Timestamps { last_access: time(wanted.atime), last_modification: time(wanted.mtime) })
}

/// The absolute path without links; its last part need not exist.
fn real(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|error| {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok(fs::canonicalize(parent)?.join(name))
    })
}

/// The eleven numbers of `statvfs`, in the extension's order.
fn space(path: &Path) -> Result<[u64; 11], Failure> {
    let space = rustix::fs::statvfs(path)?;
    Ok([
        space.f_bsize,
        space.f_frsize,
        space.f_blocks,
        space.f_bfree,
        space.f_bavail,
        space.f_files,
        space.f_ffree,
        space.f_favail,
        space.f_fsid,
        space.f_flag.bits(),
        space.f_namemax,
    ])
}
