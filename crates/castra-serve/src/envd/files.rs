//! Uploads and downloads.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::Multipart;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use castra_engine::session::sftp::{
    Attributes, Client, Code as Status, Failure, Flags, Pending, Request as Ask,
};
use flate2::write::GzDecoder;
use futures_util::StreamExt as _;
use futures_util::stream::unfold;
use serde_json::json;

use super::enter::{Entered, enter, find};
use super::entry::Files;
use super::error::{Code, ConnectError};
use super::messages::filesystem::FileType;
use super::path_bytes;
use super::signature::{FileQuery, Operation};
use crate::sandboxes::Sandbox;
use crate::server::Shared;

/// Bytes of a file per request, and the requests in flight.
const PIECE_BYTES: u32 = 64 * 1024;
const PIECES: usize = 16;

/// Error of a request for a file, whose status clients know.
struct FileError(StatusCode, String);

impl From<ConnectError> for FileError {
    fn from(error: ConnectError) -> Self {
        let status = match error.code {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Unauthenticated => StatusCode::UNAUTHORIZED,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
            Code::Unavailable => StatusCode::BAD_GATEWAY,
            _ => StatusCode::BAD_REQUEST,
        };
        Self(status, error.message)
    }
}

impl axum::response::IntoResponse for FileError {
    fn into_response(self) -> Response {
        let Self(status, message) = self;
        (status, Json(json!({ "code": status.as_u16(), "message": message }))).into_response()
    }
}

/// Returns the sandbox and the user of a request, which has the sandbox's token or a signature. A
/// signature without a sandbox's name is of the one whose token made it.
async fn admitted(
    shared: &Shared,
    headers: &HeaderMap,
    query: &FileQuery,
    operation: Operation,
) -> Result<(Arc<Sandbox>, String), Response> {
    if query.signature.is_some() {
        let signed = shared.sandboxes.list().into_iter().find(|record| {
            record.access_token.as_ref().is_some_and(|token| query.is_signed(operation, token))
        });
        let Some(record) = signed else {
            let message = "the signature is wrong, or its time is over".to_owned();
            return Err(FileError(StatusCode::UNAUTHORIZED, message).into_response());
        };
        let sandbox = find(shared, &record.id).await?;
        return Ok((sandbox, query.username.clone().unwrap_or_else(|| "user".to_owned())));
    }
    let Entered { sandbox, user, .. } = enter(shared, headers).await?;
    Ok((sandbox, query.username.clone().unwrap_or(user)))
}

pub(super) async fn download(
    State(shared): State<Shared>,
    Query(query): Query<FileQuery>,
    headers: HeaderMap,
) -> Response {
    let admitted = admitted(&shared, &headers, &query, Operation::Read).await;
    let (sandbox, user) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    match send(&sandbox, &user, query.path.as_deref().unwrap_or_default()).await {
        Ok(response) => response,
        Err(error) => FileError::from(error).into_response(),
    }
}

async fn send(sandbox: &Sandbox, user: &str, path: &str) -> Result<Response, ConnectError> {
    let files = Files::open(sandbox, user).await?;
    let path = files.absolute(path).await?;
    match files.kind(&path).await? {
        Some(FileType::File) => {}
        Some(_) => return Err(ConnectError::invalid(format!("{path} is a directory"))),
        None => return Err(ConnectError::new(Code::NotFound, format!("{path}: no such file"))),
    }
    let failed = |failure| ConnectError::of_path(&path, failure);
    let mut download = Download::open(&files, &path, 0).await?;
    // A file that cannot be read is an error, and no empty one.
    let first = download.next().await.map_err(failed)?;
    let pieces = unfold((Some(first), download), |(piece, mut download)| async move {
        let piece = piece?;
        if piece.is_empty() {
            return None;
        }
        Some(match download.next().await {
            Ok(next) => (Ok(piece), (Some(next), download)),
            Err(failure) => (Err(std::io::Error::other(failure)), (None, download)),
        })
    });
    let kind = "application/octet-stream";
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(pieces)).into_response())
}

/// A file on its way out, some pieces ahead of its reader.
pub(crate) struct Download {
    sftp: Client,
    handle: Bytes,
    offset: u64,
    asked: VecDeque<(Pending, u64)>,
    is_over: bool,
}

impl Download {
    /// Opens a file, to be read from an offset on.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) async fn open(files: &Files, path: &str, offset: u64) -> Result<Self, ConnectError> {
        let opened = files.sftp.open(path_bytes(path), Flags::READ, Attributes::default()).await;
        let handle = opened.map_err(|failure| ConnectError::of_path(path, failure))?;
        let sftp = files.sftp.clone();
        Ok(Self { sftp, handle, offset, asked: VecDeque::new(), is_over: false })
    }

    /// Returns the next bytes; none at the end.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) async fn next(&mut self) -> Result<Bytes, Failure> {
        while !self.is_over && self.asked.len() < PIECES {
            let (handle, offset) = (self.handle.clone(), self.offset);
            let request = Ask::Read { handle, offset, length: PIECE_BYTES };
            self.asked.push_back((self.sftp.send(&request).await?, offset));
            self.offset += u64::from(PIECE_BYTES);
        }
        let Some((pending, offset)) = self.asked.pop_front() else { return Ok(Bytes::new()) };
        match pending.data().await {
            Ok(data) => {
                if data.len() < PIECE_BYTES as usize {
                    // Pieces behind a short one are not where they were expected.
                    self.asked.clear();
                    self.offset = offset + data.len() as u64;
                }
                Ok(data)
            }
            Err(failure) if failure.is(Status::EOF) => {
                self.is_over = true;
                self.asked.clear();
                self.sftp.close(self.handle.clone()).await?;
                Ok(Bytes::new())
            }
            Err(failure) => Err(failure),
        }
    }
}

pub(super) async fn upload(
    State(shared): State<Shared>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Response {
    let admitted = admitted(&shared, request.headers(), &query, Operation::Write).await;
    let (sandbox, user) = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => return refused,
    };
    match receive(&sandbox, &user, query.path.as_deref(), request).await {
        Ok(paths) => {
            let written = |path: &String| {
                let name = path.rsplit('/').next().unwrap_or_default();
                json!({ "name": name, "type": "file", "path": path })
            };
            Json(paths.iter().map(written).collect::<Vec<_>>()).into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// Returns the error for a body, with its causes.
fn bad(error: &dyn std::error::Error) -> ConnectError {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let causes: String = causes.map(|cause| format!(": {cause}")).collect();
    ConnectError::invalid(format!("bad body: {error}{causes}"))
}

/// Writes what a request brings. Returns the paths.
async fn receive(
    sandbox: &Sandbox,
    user: &str,
    path: Option<&str>,
    request: Request,
) -> Result<Vec<String>, FileError> {
    let files = Files::open(sandbox, user).await?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("multipart/form-data")) {
        return receive_parts(&files, path, request).await;
    }
    let path = path.ok_or_else(|| ConnectError::invalid("the query has no path"))?;
    let path = files.absolute(path).await?;
    let encoding = request.headers().get(header::CONTENT_ENCODING).cloned();
    let decoder = match encoding.as_ref().map(|encoding| encoding.as_bytes()) {
        None | Some(b"identity") => None,
        Some(b"gzip") => Some(GzDecoder::new(Vec::new())),
        Some(_) => {
            let message = "the only Content-Encoding that is supported is gzip".to_owned();
            return Err(FileError(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    let mut upload = Upload::begin(&files, &path).await?;
    receive_body(&mut upload, request.into_body().into_data_stream(), decoder).await?;
    upload.finish().await?;
    Ok(vec![path])
}

async fn receive_body(
    upload: &mut Upload<'_>,
    mut data: BodyDataStream,
    mut decoder: Option<GzDecoder<Vec<u8>>>,
) -> Result<(), FileError> {
    while let Some(piece) = data.next().await {
        let piece = piece.map_err(|error| bad(&error))?;
        match &mut decoder {
            None => upload.write(piece).await?,
            // In small steps, since a few bytes may become very many.
            Some(decoder) => {
                for step in piece.chunks(1024) {
                    decoder.write_all(step).map_err(|error| bad(&error))?;
                    upload.write(std::mem::take(decoder.get_mut()).into()).await?;
                }
            }
        }
    }
    if let Some(decoder) = decoder {
        let rest = decoder.finish().map_err(|error| bad(&error))?;
        upload.write(rest.into()).await?;
    }
    Ok(())
}

async fn receive_parts(
    files: &Files,
    path: Option<&str>,
    mut request: Request,
) -> Result<Vec<String>, FileError> {
    // Only the sandbox's disk limits a file.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut parts = Multipart::from_request(request, &()).await.map_err(|error| bad(&error))?;
    let mut paths = Vec::new();
    while let Some(mut part) = parts.next_field().await.map_err(|error| bad(&error))? {
        if part.name() != Some("file") {
            continue;
        }
        let named = match (path, part.file_name()) {
            (Some(path), _) if paths.is_empty() => path,
            (None, Some(name)) => name,
            (Some(_), _) => {
                return Err(ConnectError::invalid("there are several files for one path").into());
            }
            (None, None) => return Err(ConnectError::invalid("a file has no name").into()),
        };
        let path = files.absolute(named).await?;
        let mut upload = Upload::begin(files, &path).await?;
        while let Some(piece) = part.chunk().await.map_err(|error| bad(&error))? {
            upload.write(piece).await?;
        }
        upload.finish().await?;
        paths.push(path);
    }
    if paths.is_empty() {
        return Err(ConnectError::invalid("there is no file in the request").into());
    }
    Ok(paths)
}

/// A file on its way in, some pieces ahead of the guest's disk.
pub(crate) struct Upload<'a> {
    sftp: &'a Client,
    path: &'a str,
    handle: Bytes,
    offset: u64,
    sent: VecDeque<Pending>,
}

impl<'a> Upload<'a> {
    /// Makes the file, and the directories above it.
    ///
    /// # Errors
    /// It cannot be made, or is a directory.
    pub(crate) async fn begin(files: &'a Files, path: &'a str) -> Result<Self, ConnectError> {
        if let Some((above, _)) = path.rsplit_once('/').filter(|(above, _)| !above.is_empty()) {
            files.make_directories(above).await?;
        }
        if files.kind(path).await? == Some(FileType::Directory) {
            return Err(ConnectError::invalid(format!("{path} is a directory")));
        }
        let flags = Flags::WRITE.and(Flags::CREATE).and(Flags::TRUNCATE);
        let opened = files.sftp.open(path_bytes(path), flags, Attributes::default()).await;
        let handle = opened.map_err(|failure| ConnectError::of_path(path, failure))?;
        Ok(Self { sftp: &files.sftp, path, handle, offset: 0, sent: VecDeque::new() })
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// Earlier ones could not be written.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), ConnectError> {
        while !bytes.is_empty() {
            let data = bytes.split_to(bytes.len().min(PIECE_BYTES as usize));
            let (handle, offset) = (self.handle.clone(), self.offset);
            self.offset += data.len() as u64;
            let sent = self.sftp.send(&Ask::Write { handle, offset, data }).await;
            self.sent.push_back(sent.map_err(|failure| self.failed(failure))?);
            if self.sent.len() >= PIECES {
                self.await_one().await?;
            }
        }
        Ok(())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) async fn finish(mut self) -> Result<(), ConnectError> {
        while !self.sent.is_empty() {
            self.await_one().await?;
        }
        let closed = self.sftp.close(self.handle.clone()).await;
        closed.map_err(|failure| self.failed(failure))
    }

    async fn await_one(&mut self) -> Result<(), ConnectError> {
        match self.sent.pop_front() {
            Some(sent) => sent.done().await.map_err(|failure| self.failed(failure)),
            None => Ok(()),
        }
    }

    fn failed(&self, failure: Failure) -> ConnectError {
        ConnectError::of_path(self.path, failure)
    }
}
