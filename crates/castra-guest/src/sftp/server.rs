//! Carries out a client's requests on files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use castra_sftp::{Attributes, Code, Flags, MAX_DATA_BYTES, MAX_PACKET_BYTES, Reply, Request};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps};

use super::listing;

/// Extensions of this server, and their versions.
pub(super) const EXTENSIONS: &[(&str, &str)] = &[
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

/// Maximum number of directory entries in one answer. With names of 255 bytes they take less than
/// half of a packet.
const ENTRIES: usize = 128;

/// Files and directories that a client has open.
#[derive(Default)]
pub(super) struct Server {
    open: HashMap<Bytes, Open>,
    next: u64,
}

enum Open {
    File {
        file: File,
        /// Set for a pipe, a terminal or the like, which has no offsets and is read and written in
        /// the order of the requests.
        is_stream: bool,
    },
    Directory(PathBuf, ReadDir),
}

/// A failed request, on its way to the client.
struct Failure(Code, String);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NO_SUCH_FILE,
            io::ErrorKind::PermissionDenied => Code::PERMISSION_DENIED,
            io::ErrorKind::Unsupported => Code::UNSUPPORTED,
            _ => Code::FAILURE,
        };
        Self(code, error.to_string())
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

type Answer = Result<Reply, Failure>;

impl Server {
    /// Carries out a request and returns its reply.
    pub(super) fn answer(&mut self, request: Request) -> Reply {
        self.do_request(request)
            .unwrap_or_else(|Failure(code, words)| Reply::Status(code, words.into_bytes().into()))
    }

    fn do_request(&mut self, request: Request) -> Answer {
        match request {
            Request::Open { path, flags, attributes } => self.open(&path, flags, attributes),
            Request::Close { handle } => {
                self.open.remove(&handle).map(drop).ok_or_else(not_open)?;
                ok()
            }
            Request::Read { handle, offset, length } => self.read(&handle, offset, length),
            Request::Write { handle, offset, data } => self.write(&handle, offset, &data),
            Request::Fstat { handle } => attributes(&self.file(&handle)?.metadata()?),
            Request::Fsetstat { handle, attributes } => set_open(self.file(&handle)?, &attributes),
            Request::Fsync { handle } => done(self.file(&handle)?.sync_all()),
            Request::Opendir { path } => {
                let path = or_here(&path).to_owned();
                let entries = fs::read_dir(&path)?;
                Ok(self.remember(Open::Directory(path, entries)))
            }
            Request::Readdir { handle } => self.readdir(&handle),
            Request::Lstat { path } => attributes(&fs::symlink_metadata(as_path(&path))?),
            Request::Stat { path } => attributes(&fs::metadata(or_here(&path))?),
            Request::Setstat { path, attributes } => set(as_path(&path), &attributes),
            Request::Remove { path } => done(fs::remove_file(as_path(&path))),
            Request::Mkdir { path, attributes } => {
                let mode = Mode::from_raw_mode(attributes.mode.unwrap_or(0o777) & 0o7777);
                rustix::fs::mkdir(as_path(&path), mode)?;
                ok()
            }
            Request::Rmdir { path } => done(fs::remove_dir(as_path(&path))),
            Request::Realpath { path } => path_reply(real(or_here(&path))?),
            Request::Readlink { path } => path_reply(fs::read_link(as_path(&path))?),
            Request::Rename { from, to } => {
                rustix::fs::renameat_with(
                    CWD,
                    as_path(&from),
                    CWD,
                    as_path(&to),
                    RenameFlags::NOREPLACE,
                )?;
                ok()
            }
            Request::PosixRename { from, to } => done(fs::rename(as_path(&from), as_path(&to))),
            Request::Hardlink { from, to } => done(fs::hard_link(as_path(&from), as_path(&to))),
            Request::Symlink { target, link } => {
                done(std::os::unix::fs::symlink(as_path(&target), as_path(&link)))
            }
            Request::Statvfs { path } => Ok(numbers(&space(as_path(&path))?)),
            // The last number is the limit on open handles: none but the kernel's.
            Request::Limits => {
                let data = u64::from(MAX_DATA_BYTES);
                Ok(numbers(&[u64::from(MAX_PACKET_BYTES), data, data, 0]))
            }
            Request::Unknown => Err(Failure(Code::UNSUPPORTED, "unknown request".to_owned())),
        }
    }

    fn remember(&mut self, open: Open) -> Reply {
        self.next += 1;
        let handle = Bytes::from(self.next.to_string());
        self.open.insert(handle.clone(), open);
        Reply::Handle(handle)
    }

    fn file(&self, handle: &Bytes) -> Result<&File, Failure> {
        match self.open.get(handle) {
            Some(Open::File { file, .. }) => Ok(file),
            _ => Err(not_open()),
        }
    }

    fn open(&mut self, path: &[u8], flags: Flags, attributes: Attributes) -> Answer {
        let mut options = OpenOptions::new();
        options
            .read(flags.has(Flags::READ))
            .write(flags.has(Flags::WRITE))
            .append(flags.has(Flags::APPEND));
        options.create(flags.has(Flags::CREATE)).truncate(flags.has(Flags::TRUNCATE));
        options.create_new(flags.has(Flags::CREATE.and(Flags::EXCLUSIVE)));
        options.mode(attributes.mode.unwrap_or(0o666) & 0o7777);
        // The terminal must not become the agent's controlling terminal.
        options.custom_flags(OFlags::NOCTTY.bits().cast_signed());
        let mut file = options.open(as_path(path))?;
        let is_stream = !file.metadata()?.is_file() && file.stream_position().is_err();
        Ok(self.remember(Open::File { file, is_stream }))
    }

    fn read(&mut self, handle: &Bytes, offset: u64, length: u32) -> Answer {
        let Some(Open::File { file, is_stream }) = self.open.get_mut(handle) else {
            return Err(not_open());
        };
        let mut data = vec![0; length.min(MAX_DATA_BYTES) as usize];
        let mut filled = 0;
        while filled < data.len() {
            let rest = &mut data[filled..];
            let count = if *is_stream {
                file.read(rest)
            } else {
                file.read_at(rest, offset + filled as u64)
            };
            match count {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Data read so far is not lost; the next request meets the error again.
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error.into()),
            }
            if *is_stream {
                break;
            }
        }
        if filled == 0 && length > 0 {
            return Err(Failure(Code::EOF, "end of file".to_owned()));
        }
        data.truncate(filled);
        Ok(Reply::Data(data.into()))
    }

    fn write(&mut self, handle: &Bytes, offset: u64, data: &[u8]) -> Answer {
        match self.open.get_mut(handle) {
            Some(Open::File { file, is_stream: true }) => done(file.write_all(data)),
            Some(Open::File { file, is_stream: false }) => done(file.write_all_at(data, offset)),
            _ => Err(not_open()),
        }
    }

    fn readdir(&mut self, handle: &Bytes) -> Answer {
        let Some(Open::Directory(path, entries)) = self.open.get_mut(handle) else {
            return Err(not_open());
        };
        let mut found = Vec::new();
        // Entries that no longer exist are skipped. An answer without entries would signal the
        // end.
        while found.is_empty() {
            let mut seen = 0;
            for entry in entries.take(ENTRIES) {
                seen += 1;
                let name = entry?.file_name();
                if let Ok(metadata) = fs::symlink_metadata(path.join(&name)) {
                    found.push(listing::entry(name.as_bytes(), &metadata));
                }
            }
            if seen == 0 {
                return Err(Failure(Code::EOF, "end of directory".to_owned()));
            }
        }
        Ok(Reply::Names(found))
    }
}

fn not_open() -> Failure {
    Failure(Code::FAILURE, "no such open file".to_owned())
}

fn ok() -> Answer {
    Ok(Reply::Status(Code::OK, Bytes::from_static(b"Ok")))
}

fn done(result: io::Result<()>) -> Answer {
    result.map_err(Failure::from).and_then(|()| ok())
}

fn attributes(metadata: &fs::Metadata) -> Answer {
    Ok(Reply::Attributes(listing::attributes(metadata)))
}

fn path_reply(path: PathBuf) -> Answer {
    Ok(Reply::Names(vec![listing::path(path.into_os_string().into_vec())]))
}

fn numbers(numbers: &[u64]) -> Reply {
    Reply::Extended(
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>().into(),
    )
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Returns the path, or the working directory for an empty path, as in OpenSSH.
fn or_here(path: &[u8]) -> &Path {
    if path.is_empty() { Path::new(".") } else { as_path(path) }
}

fn set(path: &Path, wanted: &Attributes) -> Answer {
    if let Some(size) = wanted.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::chown(path, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = times(wanted) {
        rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
    }
    ok()
}

fn set_open(file: &File, wanted: &Attributes) -> Answer {
    if let Some(size) = wanted.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = wanted.owner {
        std::os::unix::fs::fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = wanted.mode {
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(times) = times(wanted) {
        rustix::fs::futimens(file, &times)?;
    }
    ok()
}

fn times(wanted: &Attributes) -> Option<Timestamps> {
    let time = |seconds: u32| Timespec { tv_sec: i64::from(seconds), tv_nsec: 0 };
    wanted.times.map(|(accessed, modified)| Timestamps {
        last_access: time(accessed),
        last_modification: time(modified),
    })
}

/// Returns the absolute path without links; its last component need not exist.
fn real(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|error| {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(error);
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok(fs::canonicalize(parent)?.join(name))
    })
}

/// Returns the eleven numbers of `statvfs`, in the extension's order.
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
