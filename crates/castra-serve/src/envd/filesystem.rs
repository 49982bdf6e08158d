//! `filesystem.Filesystem`: the files of a sandbox, but for their contents.

use std::time::Duration;

use castra_engine::session::sftp::{Client, Request};

use super::enter::Call;
use super::entry::Files;
use super::error::{Code, ConnectError};
use super::messages::filesystem::{
    EntryInfo, EntryResponse, FileType, ListDirRequest, ListDirResponse, MoveRequest, PathRequest,
};
use super::messages::process::Empty;
use super::{path_bytes, process};

/// Most entries of a list.
const MAX_ENTRIES: usize = 100_000;

/// Time for the removal of a tree.
const REMOVE_LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn stat(call: Call, request: PathRequest) -> Result<EntryResponse, ConnectError> {
    let mut files = Files::open(&call.sandbox, &call.user).await?;
    let path = files.absolute(&request.path).await?;
    Ok(EntryResponse { entry: Some(files.entry(&path).await?) })
}

pub(super) async fn make_dir(
    call: Call,
    request: PathRequest,
) -> Result<EntryResponse, ConnectError> {
    let mut files = Files::open(&call.sandbox, &call.user).await?;
    let path = files.absolute(&request.path).await?;
    if !files.make_directories(&path).await? {
        return Err(ConnectError::new(Code::AlreadyExists, format!("{path} already exists")));
    }
    Ok(EntryResponse { entry: Some(files.entry(&path).await?) })
}

pub(super) async fn rename(
    call: Call,
    request: MoveRequest,
) -> Result<EntryResponse, ConnectError> {
    let mut files = Files::open(&call.sandbox, &call.user).await?;
    let (from, to) =
        (files.absolute(&request.source).await?, files.absolute(&request.destination).await?);
    // A missing source is the better error.
    files.entry(&from).await?;
    if let Some((above, _)) = to.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
        files.make_directories(above).await?;
    }
    let renamed = Request::PosixRename { from: path_bytes(&from), to: path_bytes(&to) };
    files.sftp.done(renamed).await.map_err(|failure| ConnectError::of_path(&to, failure))?;
    Ok(EntryResponse { entry: Some(files.entry(&to).await?) })
}

pub(super) async fn list_dir(
    call: Call,
    request: ListDirRequest,
) -> Result<ListDirResponse, ConnectError> {
    let mut files = Files::open(&call.sandbox, &call.user).await?;
    let root = files.absolute(&request.path).await?;
    let entries = list_directory(&mut files, &root, request.depth).await?;
    Ok(ListDirResponse { entries })
}

/// Returns the entries of a directory and, for more than one level, of those in it, in the order of
/// their paths.
///
/// # Errors
/// There is no such directory, it cannot be read, or it has too many entries.
pub(crate) async fn list_directory(
    files: &mut Files,
    root: &str,
    depth: u32,
) -> Result<Vec<EntryInfo>, ConnectError> {
    match files.kind(root).await? {
        Some(FileType::Directory) => {}
        Some(_) => return Err(ConnectError::invalid(format!("{root} is not a directory"))),
        None => {
            return Err(ConnectError::new(Code::NotFound, format!("{root}: no such directory")));
        }
    }
    let mut entries: Vec<EntryInfo> = Vec::new();
    let mut open = vec![(root.to_owned(), depth.max(1))];
    while let Some((directory, depth)) = open.pop() {
        let found = match read_directory(&files.sftp, &directory).await {
            Ok(found) => found,
            // One below the first may be another user's, or be gone.
            Err(_) if directory != root => continue,
            Err(error) => return Err(error),
        };
        for (name, attributes) in found {
            let path = format!("{}/{name}", directory.trim_end_matches('/'));
            let entry = files.describe(&path, attributes).await?;
            if depth > 1 && entry.kind == FileType::Directory as i32 && !entry.is_symlink {
                open.push((path, depth - 1));
            }
            entries.push(entry);
            if entries.len() > MAX_ENTRIES {
                let message = format!("{root} has more than {MAX_ENTRIES} entries");
                return Err(ConnectError::new(Code::ResourceExhausted, message));
            }
        }
    }
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(entries)
}

async fn read_directory(
    sftp: &Client,
    path: &str,
) -> Result<Vec<(String, castra_engine::session::sftp::Attributes)>, ConnectError> {
    let failed = |failure| ConnectError::of_path(path, failure);
    let handle = sftp.opendir(path_bytes(path)).await.map_err(failed)?;
    let mut found = Vec::new();
    while let Some(entries) = sftp.readdir(handle.clone()).await.map_err(failed)? {
        let named = entries.into_iter().filter(|entry| !matches!(&*entry.name, b"." | b".."));
        found
            .extend(named.map(|entry| {
                (String::from_utf8_lossy(&entry.name).into_owned(), entry.attributes)
            }));
        if found.len() > MAX_ENTRIES {
            break;
        }
    }
    sftp.close(handle).await.map_err(failed)?;
    Ok(found)
}

pub(super) async fn remove(call: Call, request: PathRequest) -> Result<Empty, ConnectError> {
    let files = Files::open(&call.sandbox, &call.user).await?;
    let path = files.absolute(&request.path).await?;
    if path == "/" {
        return Err(ConnectError::invalid("the root directory cannot be removed"));
    }
    // The guest itself is faster than a request for each file. A missing one is as wanted.
    let arguments = ["rm", "-rf", "--", &path].map(Into::into).to_vec();
    process::output(&call.sandbox, &call.user, arguments, REMOVE_LIMIT).await?;
    Ok(Empty::default())
}
