//! Channels, whatever carries them.

use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf as _, Bytes};
use castra_wire::stream::{Refusal, Window};
use russh::{Channel, ChannelId, ChannelMsg, Sig, client, server};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::{Flow, PACKET_BYTES, link, ssh};

/// The number by which SSH knows stderr (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// Error of a channel whose connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection has ended")
    }
}

impl std::error::Error for Gone {}

impl From<Gone> for io::Error {
    fn from(gone: Gone) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, gone)
    }
}

/// A message received on a channel.
#[derive(Debug)]
pub enum Message {
    /// Data; for a program, its stdin or stdout.
    Data(Received),
    /// A program's stderr.
    Stderr(Received),
    /// End of the peer's data.
    EndOfData,
    /// The guest has granted a request.
    Opened,
    /// The guest refuses a request.
    Refused(Refusal),
    /// A signal for the program, by SSH's name.
    Signal(String),
    /// A new size of the program's terminal.
    Resize(Window),
    /// The program's exit code.
    ExitStatus(u32),
    /// Name of the signal that ended the program, or a reason why none was started.
    ExitSignal(String),
    /// The peer has closed the channel.
    Closed,
}

/// The receiving half of a channel. Data that has arrived but was not received when the half is
/// dropped no longer counts.
pub struct Incoming(Source);

enum Source {
    Ssh(ssh::Incoming),
    Link(link::Incoming),
}

impl From<ssh::Incoming> for Incoming {
    fn from(incoming: ssh::Incoming) -> Self {
        Self(Source::Ssh(incoming))
    }
}

impl From<link::Incoming> for Incoming {
    fn from(incoming: link::Incoming) -> Self {
        Self(Source::Link(incoming))
    }
}

impl Incoming {
    /// Receives the next message; `None` once the connection has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        match &mut self.0 {
            Source::Link(incoming) => incoming.next().await,
            Source::Ssh(incoming) => loop {
                match incoming.next().await? {
                    ssh::Message::Data(None, data) => return Some(Message::Data(data)),
                    ssh::Message::Data(Some(STDERR), data) => return Some(Message::Stderr(data)),
                    ssh::Message::Data(Some(_), _) => {}
                    ssh::Message::Other(message) => {
                        if let Some(message) = of_ssh(message) {
                            return Some(message);
                        }
                    }
                }
            },
        }
    }
}

/// Returns a message of SSH's in the terms of all channels, if it has a meaning there.
fn of_ssh(message: ChannelMsg) -> Option<Message> {
    let short = |value| u16::try_from(value).unwrap_or(u16::MAX);
    Some(match message {
        ChannelMsg::Success => Message::Opened,
        ChannelMsg::Failure => Message::Refused(Refusal::Unavailable),
        ChannelMsg::Eof => Message::EndOfData,
        ChannelMsg::Close => Message::Closed,
        ChannelMsg::Signal { signal } => Message::Signal(name_of(&signal)),
        ChannelMsg::ExitStatus { exit_status } => Message::ExitStatus(exit_status),
        ChannelMsg::ExitSignal { signal_name, .. } => Message::ExitSignal(name_of(&signal_name)),
        ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
            Message::Resize(Window {
                columns: short(col_width),
                rows: short(row_height),
                width_px: short(pix_width),
                height_px: short(pix_height),
            })
        }
        _ => return None,
    })
}

/// Returns SSH's name of a signal.
fn name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        // russh names its variants as SSH names the signals.
        known => format!("{known:?}"),
    }
}

/// Data that has arrived. Dropping it reports it as consumed, so that the peer may send more.
#[derive(Debug)]
pub struct Received {
    data: Bytes,
    account: Account,
}

/// Flow control that counts received data.
enum Account {
    Ssh {
        /// Number of bytes that arrived, including those skipped.
        counted: usize,
        id: ChannelId,
        flow: Flow,
    },
    /// Counts when it is dropped.
    Link(#[expect(dead_code, reason = "its drop is its use")] link::Consumption),
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ssh { .. } => "Ssh",
            Self::Link(_) => "Link",
        })
    }
}

impl Received {
    pub(crate) fn of_ssh(data: Bytes, id: ChannelId, flow: Flow) -> Self {
        Self { account: Account::Ssh { counted: data.len(), id, flow }, data }
    }

    pub(crate) fn of_link(data: Bytes, consumption: link::Consumption) -> Self {
        Self { data, account: Account::Link(consumption) }
    }

    /// Drops the first bytes from the front, because they have been used already. They keep
    /// counting until the rest is consumed.
    pub fn skip(&mut self, bytes: usize) {
        self.data.advance(bytes.min(self.data.len()));
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Account::Ssh { counted, id, flow } = &self.account {
            flow.consumed(*id, *counted);
        }
    }
}

/// The sending half of a channel.
pub struct Outgoing(Sink);

enum Sink {
    Server(ssh::Outgoing<server::Msg>, server::Handle),
    Client(ssh::Outgoing<client::Msg>),
    Link(link::Outgoing),
}

impl From<link::Outgoing> for Outgoing {
    fn from(outgoing: link::Outgoing) -> Self {
        Self(Sink::Link(outgoing))
    }
}

impl From<ssh::Outgoing<client::Msg>> for Outgoing {
    fn from(outgoing: ssh::Outgoing<client::Msg>) -> Self {
        Self(Sink::Client(outgoing))
    }
}

/// Splits a channel of an SSH server and starts counting its data.
pub fn split_server(
    channel: Channel<server::Msg>,
    flow: &Flow,
    handle: server::Handle,
) -> (Incoming, Outgoing) {
    let (incoming, outgoing) = ssh::split(channel, flow);
    (incoming.into(), Outgoing(Sink::Server(outgoing, handle)))
}

impl Outgoing {
    /// Sends data once the connection and the peer's window have room for it.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send(&self, data: Bytes) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.send(None, data).await.map_err(gone),
            Sink::Client(outgoing) => outgoing.send(None, data).await.map_err(gone),
            Sink::Link(outgoing) => outgoing.send(data, link::Kind::Data).await,
        }
    }

    /// Sends a program's stderr like [`Self::send`].
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send_stderr(&self, data: Bytes) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.send(Some(STDERR), data).await.map_err(gone),
            Sink::Client(outgoing) => outgoing.send(Some(STDERR), data).await.map_err(gone),
            Sink::Link(outgoing) => outgoing.send(data, link::Kind::Stderr).await,
        }
    }

    /// Reports that no more data follows.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn end_data(&self) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.half().eof().await.map_err(gone),
            Sink::Client(outgoing) => outgoing.half().eof().await.map_err(gone),
            Sink::Link(outgoing) => outgoing.end_data(),
        }
    }

    /// Closes the channel.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn close(&self) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.half().close().await.map_err(gone),
            Sink::Client(outgoing) => outgoing.half().close().await.map_err(gone),
            Sink::Link(outgoing) => outgoing.close(),
        }
    }

    /// Reports a program's exit code.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn exit_status(&self, code: u32) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.half().exit_status(code).await.map_err(gone),
            Sink::Client(outgoing) => outgoing.half().exit_status(code).await.map_err(gone),
            Sink::Link(outgoing) => outgoing.exit_status(code),
        }
    }

    /// Reports the signal that ended a program, or a reason why none was started.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn exit_signal(&self, name: &str, has_core: bool) -> Result<(), Gone> {
        match &self.0 {
            Sink::Server(outgoing, handle) => {
                let (id, name) = (outgoing.half().id(), Sig::Custom(name.to_owned()));
                let sent = handle
                    .exit_signal_request(id, name, has_core, String::new(), String::new())
                    .await;
                sent.map_err(|()| Gone)
            }
            // No client reports how a program ended.
            Sink::Client(_) => Ok(()),
            Sink::Link(outgoing) => outgoing.exit_signal(name),
        }
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn signal(&self, name: &str) -> Result<(), Gone> {
        let sig = || Sig::Custom(name.to_owned());
        match &self.0 {
            Sink::Server(outgoing, _) => outgoing.half().signal(sig()).await.map_err(gone),
            Sink::Client(outgoing) => outgoing.half().signal(sig()).await.map_err(gone),
            Sink::Link(outgoing) => outgoing.signal(name),
        }
    }

    /// Reports a new size of the terminal.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn resize(&self, window: Window) -> Result<(), Gone> {
        let Window { columns, rows, width_px, height_px } = window;
        match &self.0 {
            Sink::Client(outgoing) => {
                let half = outgoing.half();
                let [columns, rows] = [columns.into(), rows.into()];
                half.window_change(columns, rows, width_px.into(), height_px.into())
                    .await
                    .map_err(gone)
            }
            // Only clients have the terminal.
            Sink::Server(..) => Ok(()),
            Sink::Link(outgoing) => outgoing.resize(window),
        }
    }
}

fn gone(_: russh::Error) -> Gone {
    Gone
}

/// Joins a channel and a stream until both directions have ended or the peer closes; each direction
/// may end by itself. Then reports `exit_status`, for a channel on which a program was requested.
pub async fn relay<T>(
    mut incoming: Incoming,
    outgoing: Outgoing,
    stream: T,
    exit_status: Option<u32>,
) where
    T: AsyncRead + AsyncWrite,
{
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (sender, mut received) = mpsc::unbounded_channel();

    // A future that has ended must not be awaited again.
    let is_written = AtomicBool::new(false);
    let mut copy_in = pin!(async {
        let write = async {
            while let Some(data) = received.recv().await {
                let data: Received = data;
                to_stream.write_all(&data).await?;
            }
            to_stream.shutdown().await
        };
        let written = write.await;
        is_written.store(true, Ordering::Relaxed);
        written
    });
    let copy_out = async {
        let mut buffer = vec![0; PACKET_BYTES as usize];
        loop {
            let count = from_stream.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            outgoing.send(Bytes::copy_from_slice(&buffer[..count])).await?;
        }
        Ok::<_, io::Error>(outgoing.end_data().await?)
    };
    let is_closed = tokio::select! {
        () = forward_until_closed(&mut incoming, sender) => true,
        () = until_both_end(&mut copy_in, copy_out) => false,
    };
    if is_closed {
        // The peer wants no more, but data that it sent before may still be in flight.
        if !is_written.load(Ordering::Relaxed) {
            let _ = copy_in.await;
        }
        return;
    }
    // An error means that the connection is gone, and the channel with it.
    if let Some(status) = exit_status {
        let _ = outgoing.exit_status(status).await;
    }
    let _ = outgoing.close().await;
}

/// Waits until both directions have ended. A stream that takes no more may still have data, while
/// one that cannot be read is gone.
async fn until_both_end(
    mut copy_in: impl Future<Output = io::Result<()>> + Unpin,
    copy_out: impl Future<Output = io::Result<()>>,
) {
    let mut copy_out = pin!(copy_out);
    tokio::select! {
        copied = &mut copy_out => {
            if copied.is_ok() {
                let _ = copy_in.await;
            }
        }
        _ = &mut copy_in => drop(copy_out.await),
    }
}

async fn forward_until_closed(incoming: &mut Incoming, sender: mpsc::UnboundedSender<Received>) {
    let mut sender = Some(sender);
    while let Some(message) = incoming.next().await {
        match message {
            Message::Data(data) => {
                if let Some(sender) = &sender {
                    // There is no writer any more: dropping the data counts it as consumed.
                    let _ = sender.send(data);
                }
            }
            Message::EndOfData => sender = None,
            Message::Closed => break,
            _ => {}
        }
    }
}
