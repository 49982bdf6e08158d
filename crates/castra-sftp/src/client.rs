use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufWriter};
use tokio::sync::{mpsc, oneshot};

use crate::{Attributes, Code, Entry, Flags, Reply, Request, VERSION, read_packet, write_packet};

/// Capacity of the queue of packets to write. Callers bound their requests in flight; this only
/// bounds a mistake of theirs.
const QUEUE: usize = 1024;

/// Reason why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The server reported an error.
    #[error("{words}", words = String::from_utf8_lossy(words))]
    Status {
        /// Status code of the protocol.
        code: Code,
        /// The server's message.
        words: Bytes,
    },
    /// The session has ended, because the connection was closed or the server broke the protocol.
    #[error("the SFTP session has ended")]
    Ended,
}

impl Failure {
    /// Returns `true` if the server sent this code.
    pub fn is(&self, wanted: Code) -> bool {
        matches!(self, Self::Status { code, .. } if *code == wanted)
    }
}

/// Requests in flight; `None` once the session has ended.
type Waiting = Arc<Mutex<Option<HashMap<u32, oneshot::Sender<Reply>>>>>;

/// Client end of a session. Requests are written in the order in which they are sent, and any
/// number may be in flight.
#[derive(Debug, Clone)]
pub struct Client {
    packets: mpsc::Sender<Bytes>,
    next: Arc<std::sync::atomic::AtomicU32>,
    waiting: Waiting,
}

/// A request that has been sent and not yet answered.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Reply>);

impl Pending {
    /// Waits for the reply. A status other than success is a failure.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn reply(self) -> Result<Reply, Failure> {
        match self.0.await.map_err(|_| Failure::Ended)? {
            Reply::Status(code, words) if code != Code::OK => Err(Failure::Status { code, words }),
            reply => Ok(reply),
        }
    }

    /// Waits for success.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub async fn done(self) -> Result<(), Failure> {
        match self.reply().await? {
            Reply::Status(..) => Ok(()),
            _ => Err(Failure::Ended),
        }
    }

    /// Waits for data of a file.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub async fn data(self) -> Result<Bytes, Failure> {
        match self.reply().await? {
            Reply::Data(data) => Ok(data),
            _ => Err(Failure::Ended),
        }
    }
}

impl Client {
    /// Starts a session on a stream and spawns two tasks that write and read until either end has
    /// gone.
    ///
    /// # Errors
    /// The stream ended, or the peer is not an SFTP server of version 3.
    pub async fn start<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut input, output) = tokio::io::split(stream);
        let mut output = BufWriter::with_capacity(64 * 1024, output);
        write_packet(&mut output, &Request::init()).await?;
        output.flush().await?;
        let greeting = read_packet(&mut input).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if Reply::parse_version(greeting).map_err(io::Error::other)? < VERSION {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (packets, queue) = mpsc::channel(QUEUE);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(write(queue, output));
        let listener = Arc::clone(&waiting);
        tokio::spawn(async move {
            let _ = listen(&mut input, &listener).await;
            // Pending requests find their senders gone.
            *listener.lock().unwrap_or_else(PoisonError::into_inner) = None;
        });
        Ok(Self { packets, next: Arc::default(), waiting })
    }

    /// Sends a request. Waits only for room in the queue, not for the reply.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn send(&self, request: &Request) -> Result<Pending, Failure> {
        let place = self.packets.reserve().await.map_err(|_| Failure::Ended)?;
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(Failure::Ended),
        };
        place.send(request.encode(id));
        Ok(Pending(receiver))
    }

    /// Sends a request that is answered by a status only, and waits for it.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn done(&self, request: Request) -> Result<(), Failure> {
        self.send(&request).await?.done().await
    }

    /// Opens a file and returns its handle.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn open(
        &self,
        path: Bytes,
        flags: Flags,
        attributes: Attributes,
    ) -> Result<Bytes, Failure> {
        self.handle(Request::Open { path, flags, attributes }).await
    }

    /// Opens a directory and returns its handle.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn opendir(&self, path: Bytes) -> Result<Bytes, Failure> {
        self.handle(Request::Opendir { path }).await
    }

    /// Closes a file or directory.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn close(&self, handle: Bytes) -> Result<(), Failure> {
        self.done(Request::Close { handle }).await
    }

    /// Returns the next entries of a directory, or `None` at its end.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn readdir(&self, handle: Bytes) -> Result<Option<Vec<Entry>>, Failure> {
        match self.send(&Request::Readdir { handle }).await?.reply().await {
            Ok(Reply::Names(entries)) => Ok(Some(entries)),
            Err(failure) if failure.is(Code::EOF) => Ok(None),
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::Ended),
        }
    }

    /// Queries attributes with `Stat`, `Lstat` or `Fstat`.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn attributes(&self, request: Request) -> Result<Attributes, Failure> {
        match self.send(&request).await?.reply().await? {
            Reply::Attributes(attributes) => Ok(attributes),
            _ => Err(Failure::Ended),
        }
    }

    /// Queries a single path with `Realpath` or `Readlink`.
    ///
    /// # Errors
    /// The server refused, or the session has ended.
    pub async fn path(&self, request: Request) -> Result<Bytes, Failure> {
        match self.send(&request).await?.reply().await? {
            Reply::Names(entries) => {
                entries.into_iter().next().map(|entry| entry.name).ok_or(Failure::Ended)
            }
            _ => Err(Failure::Ended),
        }
    }

    async fn handle(&self, request: Request) -> Result<Bytes, Failure> {
        match self.send(&request).await?.reply().await? {
            Reply::Handle(handle) => Ok(handle),
            _ => Err(Failure::Ended),
        }
    }
}

async fn write(
    mut queue: mpsc::Receiver<Bytes>,
    mut output: BufWriter<impl AsyncWrite + Unpin>,
) -> io::Result<()> {
    while let Some(packet) = queue.recv().await {
        write_packet(&mut output, &packet).await?;
        if queue.is_empty() {
            output.flush().await?;
        }
    }
    output.shutdown().await
}

/// Delivers replies to their requests until the stream ends or a packet breaks the protocol.
async fn listen(input: &mut (impl AsyncRead + Unpin), waiting: &Waiting) -> io::Result<()> {
    while let Some(packet) = read_packet(input).await? {
        let (id, reply) = Reply::parse(packet).map_err(io::Error::other)?;
        let sender = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
            .and_then(|map| map.remove(&id));
        // A reply to an unknown request is a defect of the server, which cannot be relied on any
        // more.
        let sender = sender.ok_or_else(|| io::Error::other("a reply without a request"))?;
        // A request that its sender no longer waits for is still answered.
        let _ = sender.send(reply);
    }
    Ok(())
}
