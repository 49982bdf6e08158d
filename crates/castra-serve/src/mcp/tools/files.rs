//! `read_file`, `write_file` and `list_files`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::handler::server::tool::schema_for_type;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::schemars::{self, JsonSchema};
use rmcp::{tool, tool_router};
use serde::{Deserialize, Serialize};

use super::{Tools, result};
use crate::envd::{ConnectError, Download, EntryInfo, FileType, Files, Upload, list_directory};
use crate::mcp::capture::whole_end;
use crate::mcp::failure::{Failure, check_range};
use crate::mcp::program::USER;

/// Bytes of a file that are returned, unless the caller says otherwise, and the most.
const DEFAULT_READ_BYTES: usize = 64 * 1024;
const MAX_READ_BYTES: usize = 1024 * 1024;

/// Most entries of a list.
const MAX_ENTRIES: usize = 1000;

/// Deepest list.
const MAX_DEPTH: u32 = 16;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadFile {
    /// Identifier of the sandbox
    sandbox: String,
    /// Path of the file; a relative one begins at /root
    path: String,
    /// First byte to return: 0 by default
    offset: Option<u64>,
    /// Most bytes to return: 65536 by default, at most 1048576
    #[schemars(range(min = 1, max = MAX_READ_BYTES))]
    max_bytes: Option<usize>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteFile {
    /// Identifier of the sandbox
    sandbox: String,
    /// Path of the file; a relative one begins at /root. Missing directories are made
    path: String,
    /// The whole new content
    content: String,
    /// Encoding of the content: utf-8 by default
    encoding: Option<Encoding>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListFiles {
    /// Identifier of the sandbox
    sandbox: String,
    /// Path of the directory: /root by default
    path: Option<String>,
    /// Levels of directories to list: 1 by default, at most 16
    #[schemars(range(min = 1, max = MAX_DEPTH))]
    depth: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum Encoding {
    #[serde(rename = "utf-8", alias = "utf8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct FileContent {
    path: String,
    content: String,
    /// Encoding of the content: base64 for what is no text
    encoding: Encoding,
    /// Bytes of the file that follow
    left_out_bytes: u64,
    /// Size of the file, in bytes
    size_bytes: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Written {
    path: String,
    size_bytes: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct FileList {
    path: String,
    entries: Vec<Entry>,
    /// Number of entries that were left out
    left_out: usize,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Entry {
    path: String,
    #[serde(rename = "type")]
    kind: EntryKind,
    size_bytes: u64,
    /// Type and permissions, such as -rw-r--r--
    permissions: String,
    /// Target of a symbolic link
    target: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum EntryKind {
    File,
    Directory,
    Symlink,
}

#[tool_router(router = files_router, vis = "pub(super)")]
impl Tools {
    /// Reads a file of a sandbox: text as it is, and anything else in base64.
    #[tool(
        annotations(title = "Read a file", read_only_hint = true, open_world_hint = false),
        output_schema = schema_for_type::<FileContent>(),
    )]
    async fn read_file(
        &self,
        Parameters(wanted): Parameters<ReadFile>,
    ) -> Result<CallToolResult, Failure> {
        let offset = wanted.offset.unwrap_or(0);
        let limit = wanted.max_bytes.unwrap_or(DEFAULT_READ_BYTES);
        check_range("max_bytes", limit, 1..=MAX_READ_BYTES)?;
        let files = self.files(&wanted.sandbox).await?;
        let path = files.absolute(&wanted.path).await?;
        let size = match files.kind_and_size(&path).await? {
            Some((FileType::File, size)) => size,
            Some(_) => {
                let message = format!("{path} is a directory; list_files lists it");
                return Err(Failure::new(message));
            }
            None => return Err(Failure::new(format!("{path}: no such file"))),
        };
        let bytes = read(&files, &path, offset, limit).await?;
        let size_bytes = size.max(bytes.len() as u64);
        let read = content(path, bytes, offset, size_bytes);
        let mut text = read.content.clone();
        if read.left_out_bytes > 0 {
            text.push_str(&format!("\n[... {} bytes left out]", read.left_out_bytes));
        }
        result(&read, text)
    }

    /// Writes a file of a sandbox, in place of an earlier one.
    #[tool(
        annotations(title = "Write a file", idempotent_hint = true, open_world_hint = false),
        output_schema = schema_for_type::<Written>(),
    )]
    async fn write_file(
        &self,
        Parameters(wanted): Parameters<WriteFile>,
    ) -> Result<CallToolResult, Failure> {
        let content = match wanted.encoding.unwrap_or(Encoding::Utf8) {
            Encoding::Utf8 => wanted.content.into_bytes(),
            Encoding::Base64 => STANDARD
                .decode(wanted.content.trim())
                .map_err(|error| Failure::new(format!("content is not base64: {error}")))?,
        };
        let files = self.files(&wanted.sandbox).await?;
        let path = files.absolute(&wanted.path).await?;
        let size_bytes = content.len() as u64;
        let mut upload = Upload::begin(&files, &path).await?;
        upload.write(content.into()).await?;
        upload.finish().await?;
        let text = format!("{path}: {size_bytes} bytes");
        result(&Written { path, size_bytes }, text)
    }

    /// Lists a directory of a sandbox.
    #[tool(
        annotations(title = "List files", read_only_hint = true, open_world_hint = false),
        output_schema = schema_for_type::<FileList>(),
    )]
    async fn list_files(
        &self,
        Parameters(wanted): Parameters<ListFiles>,
    ) -> Result<CallToolResult, Failure> {
        let depth = wanted.depth.unwrap_or(1);
        check_range("depth", depth, 1..=MAX_DEPTH)?;
        let mut files = self.files(&wanted.sandbox).await?;
        let path = files.absolute(wanted.path.as_deref().unwrap_or("~")).await?;
        let mut entries = list_directory(&mut files, &path, depth).await?;
        let left_out = entries.len().saturating_sub(MAX_ENTRIES);
        entries.truncate(MAX_ENTRIES);
        let entries: Vec<Entry> = entries.into_iter().map(Entry::from).collect();
        let mut text: String = entries.iter().map(Entry::line).collect();
        if left_out > 0 {
            text.push_str(&format!("[... {left_out} entries left out]\n"));
        }
        if text.is_empty() {
            text = format!("{path} is empty");
        }
        result(&FileList { path, entries, left_out }, text)
    }
}

impl Tools {
    /// Returns the files of a sandbox.
    ///
    /// # Errors
    /// There is no such sandbox, or it is paused or cannot be reached.
    async fn files(&self, id: &str) -> Result<Files, Failure> {
        let session = self.sandbox(id)?.session().await?;
        Ok(Files::of(&session, USER).await?)
    }
}

async fn read(files: &Files, path: &str, offset: u64, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut download = Download::open(files, path, offset).await?;
    let mut bytes = Vec::new();
    while bytes.len() < limit {
        let piece = download.next().await;
        let piece = piece.map_err(|failure| ConnectError::of_path(path, failure))?;
        if piece.is_empty() {
            break;
        }
        let room = limit - bytes.len();
        bytes.extend_from_slice(&piece[..piece.len().min(room)]);
    }
    Ok(bytes)
}

/// Returns what was read of a file, as text if it is some.
fn content(path: String, mut bytes: Vec<u8>, offset: u64, size_bytes: u64) -> FileContent {
    let end = offset.saturating_add(bytes.len() as u64);
    if end < size_bytes {
        // The next part begins with the character that this end would cut.
        bytes.truncate(whole_end(&bytes).len());
    }
    let end = offset.saturating_add(bytes.len() as u64);
    let left_out_bytes = size_bytes.saturating_sub(end);
    let (content, encoding) = match String::from_utf8(bytes) {
        Ok(text) => (text, Encoding::Utf8),
        Err(error) => (STANDARD.encode(error.as_bytes()), Encoding::Base64),
    };
    FileContent { path, content, encoding, left_out_bytes, size_bytes }
}

impl From<EntryInfo> for Entry {
    fn from(info: EntryInfo) -> Self {
        let kind = match FileType::try_from(info.kind) {
            Ok(FileType::Directory) => EntryKind::Directory,
            Ok(FileType::Symlink) => EntryKind::Symlink,
            _ => EntryKind::File,
        };
        Self {
            path: info.path,
            kind,
            size_bytes: u64::try_from(info.size).unwrap_or(0),
            permissions: info.permissions,
            target: info.symlink_target,
        }
    }
}

impl Entry {
    fn line(&self) -> String {
        let target = self.target.iter().map(|target| format!(" -> {target}")).collect::<String>();
        format!("{} {:>10} {}{target}\n", self.permissions, self.size_bytes, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(bytes: &[u8], size_bytes: u64) -> (String, Encoding, u64) {
        let read = content("/a".to_owned(), bytes.to_vec(), 0, size_bytes);
        (read.content, read.encoding, read.left_out_bytes)
    }

    #[test]
    fn text_is_text_and_the_rest_is_base64() {
        assert_eq!(read_of(b"text", 4), ("text".to_owned(), Encoding::Utf8, 0));
        assert_eq!(read_of(b"\xff\x00", 2), ("/wA=".to_owned(), Encoding::Base64, 0));
        // The limit fell in the middle of a character.
        assert_eq!(read_of("aä".as_bytes()[..2].into(), 3), ("a".to_owned(), Encoding::Utf8, 2));
        // The file ends so.
        assert_eq!(read_of(b"a\xc3", 2), ("YcM=".to_owned(), Encoding::Base64, 0));
    }
}
