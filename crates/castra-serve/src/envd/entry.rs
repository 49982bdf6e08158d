//! Files of a sandbox, as clients see them.

use std::collections::HashMap;

use bytes::Bytes;
use castra_engine::session::sftp::{Attributes, Client, Code as Status, Failure, Flags, Request};
use castra_engine::session::{GuestSession, SessionError};

use super::error::ConnectError;
use super::messages::filesystem::{EntryInfo, FileType, Time};
use super::path_bytes;
use crate::sandboxes::Sandbox;

/// `S_IFMT` and its values, which SFTP shares with Linux.
const TYPE_BITS: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// Longest `/etc/passwd` and `/etc/group` that are read, in bytes.
const MAX_NAMES_BYTES: u32 = 256 * 1024;

/// Files of a sandbox, with a user's rights.
pub(crate) struct Files {
    pub(crate) sftp: Client,
    /// Names of users and of groups by their numbers.
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Files {
    /// Returns the files of a sandbox.
    ///
    /// # Errors
    /// The sandbox cannot be reached, or has no such user.
    pub(crate) async fn open(sandbox: &Sandbox, user: &str) -> Result<Self, ConnectError> {
        Ok(Self::of(&*sandbox.session().await?, user).await?)
    }

    /// Returns the files that a session reaches.
    ///
    /// # Errors
    /// The guest has no such user, or cannot be reached.
    pub(crate) async fn of(session: &GuestSession, user: &str) -> Result<Self, SessionError> {
        let sftp = session.files(user).await?;
        Ok(Self { sftp, users: HashMap::new(), groups: HashMap::new() })
    }

    /// Returns an absolute path, without `.` and `..`. A relative one begins at the user's home.
    ///
    /// # Errors
    /// The path is empty or has a NUL.
    pub(crate) async fn absolute(&self, path: &str) -> Result<String, ConnectError> {
        if path.is_empty() || path.contains('\0') {
            return Err(ConnectError::invalid("the path is empty, or has a NUL"));
        }
        let relative = path.strip_prefix("~/").or_else(|| (path == "~").then_some("."));
        if relative.is_none() && path.starts_with('/') {
            return Ok(normal(path));
        }
        let home = self.sftp.path(Request::Realpath { path: Bytes::from_static(b".") }).await;
        let home = home.map_err(|failure| ConnectError::of_path(path, failure))?;
        let home = String::from_utf8_lossy(&home).into_owned();
        Ok(normal(&format!("{home}/{}", relative.unwrap_or(path))))
    }

    /// Returns an entry by its absolute path.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub(super) async fn entry(&mut self, path: &str) -> Result<EntryInfo, ConnectError> {
        let request = Request::Lstat { path: path_bytes(path) };
        let attributes = self.sftp.attributes(request).await;
        let attributes = attributes.map_err(|failure| ConnectError::of_path(path, failure))?;
        self.describe(path, attributes).await
    }

    /// Returns an entry with these attributes.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) async fn describe(
        &mut self,
        path: &str,
        attributes: Attributes,
    ) -> Result<EntryInfo, ConnectError> {
        let mode = attributes.mode.unwrap_or(0);
        let is_symlink = mode & TYPE_BITS == LINK;
        let mut symlink_target = None;
        if is_symlink {
            let target = self.sftp.path(Request::Readlink { path: path_bytes(path) }).await;
            symlink_target = target.ok().map(|it| String::from_utf8_lossy(&it).into_owned());
        }
        let (user, group) = attributes.owner.unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        Ok(EntryInfo {
            name: if name.is_empty() { "/" } else { name }.to_owned(),
            // Not the type of its target: some clients know a link by this alone.
            kind: kind_of(mode) as i32,
            path: path.to_owned(),
            size: i64::try_from(attributes.size.unwrap_or(0)).unwrap_or(i64::MAX),
            mode: mode & 0o777,
            permissions: permissions(mode),
            owner: self.user(user).await,
            group: self.group(group).await,
            modified_time: attributes
                .times
                .map(|(_, modified)| Time { seconds: modified.into(), nanos: 0 }),
            symlink_target,
            is_symlink,
        })
    }

    /// Makes a directory and those above it. Returns `false` if it is there already.
    ///
    /// # Errors
    /// One of them cannot be made, or is no directory.
    pub(super) async fn make_directories(&self, path: &str) -> Result<bool, ConnectError> {
        let mut missing = vec![];
        let mut at = path;
        loop {
            match self.kind(at).await? {
                Some(FileType::Directory) => break,
                Some(_) => {
                    return Err(ConnectError::invalid(format!("{at} is not a directory")));
                }
                None => missing.push(at),
            }
            match at.rsplit_once('/') {
                Some((above, _)) if !above.is_empty() => at = above,
                _ => break,
            }
        }
        for path in missing.iter().rev() {
            let attributes = Attributes::of_mode(0o755);
            let request = Request::Mkdir { path: path_bytes(path), attributes };
            match self.sftp.done(request).await {
                Ok(()) => {}
                // Another client may have been faster.
                Err(_) if self.kind(path).await? == Some(FileType::Directory) => {}
                Err(failure) => return Err(ConnectError::of_path(path, failure)),
            }
        }
        Ok(!missing.is_empty())
    }

    /// Returns the type of a file, links followed, or `None` if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) async fn kind(&self, path: &str) -> Result<Option<FileType>, ConnectError> {
        Ok(self.kind_and_size(path).await?.map(|(kind, _)| kind))
    }

    /// Returns the type and size in bytes of a file, links followed, or `None` if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) async fn kind_and_size(
        &self,
        path: &str,
    ) -> Result<Option<(FileType, u64)>, ConnectError> {
        match self.sftp.attributes(Request::Stat { path: path_bytes(path) }).await {
            Ok(attributes) => {
                let kind = kind_of(attributes.mode.unwrap_or(0));
                Ok(Some((kind, attributes.size.unwrap_or(0))))
            }
            Err(failure) if failure.is(Status::NO_SUCH_FILE) => Ok(None),
            Err(failure) => Err(ConnectError::of_path(path, failure)),
        }
    }

    async fn user(&mut self, number: u32) -> String {
        if self.users.is_empty() {
            self.users = self.names("/etc/passwd").await;
        }
        self.users.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }

    async fn group(&mut self, number: u32) -> String {
        if self.groups.is_empty() {
            self.groups = self.names("/etc/group").await;
        }
        self.groups.get(&number).cloned().unwrap_or_else(|| number.to_string())
    }

    async fn names(&self, path: &str) -> HashMap<u32, String> {
        let text = self.read(path, MAX_NAMES_BYTES).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let named = |line: &str| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            Some((fields.nth(1)?.parse().ok()?, name))
        };
        // The first of several names counts, as everywhere.
        text.lines().rev().filter_map(named).collect()
    }

    async fn read(&self, path: &str, limit_bytes: u32) -> Result<Vec<u8>, Failure> {
        let handle = self.sftp.open(path_bytes(path), Flags::READ, Attributes::default()).await?;
        let mut bytes = Vec::new();
        while bytes.len() < limit_bytes as usize {
            let offset = bytes.len() as u64;
            let request = Request::Read { handle: handle.clone(), offset, length: 32 * 1024 };
            match self.sftp.send(&request).await?.data().await {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(failure) if failure.is(Status::EOF) => break,
                Err(failure) => return Err(failure),
            }
        }
        self.sftp.close(handle).await?;
        Ok(bytes)
    }
}

/// Returns an absolute path without `.`, `..` and double slashes.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn kind_of(mode: u32) -> FileType {
    match mode & TYPE_BITS {
        DIRECTORY => FileType::Directory,
        LINK => FileType::Symlink,
        // Devices and pipes are files to clients.
        _ => FileType::File,
    }
}

/// Returns a mode as Go's `FileMode` writes it, which clients show.
fn permissions(mode: u32) -> String {
    let kind = match mode & TYPE_BITS {
        DIRECTORY => 'd',
        LINK => 'L',
        _ => '-',
    };
    let bits = (0..9).rev().zip("rwxrwxrwx".chars());
    std::iter::once(kind)
        .chain(bits.map(|(bit, name)| if mode & (1 << bit) == 0 { '-' } else { name }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_normal() {
        for (path, expected) in
            [("/a//b/./c", "/a/b/c"), ("/../../etc", "/etc"), ("/", "/"), ("/a/../b/", "/b")]
        {
            assert_eq!(normal(path), expected);
        }
    }

    #[test]
    fn modes_are_written_as_clients_know_them() {
        assert_eq!(permissions(0o100_644), "-rw-r--r--");
        assert_eq!(permissions(0o040_755), "drwxr-xr-x");
        assert_eq!(permissions(0o120_777), "Lrwxrwxrwx");
    }
}
