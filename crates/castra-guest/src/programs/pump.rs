//! Pumps that copy bytes between a program's descriptors and its channel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castra_flow::{Outgoing, PACKET_BYTES, Received};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Maximum number of bytes read to drain an output after its program has ended: the size of the
/// largest pipe that an unprivileged program can make (`/proc/sys/fs/pipe-max-size`). Anything
/// beyond comes from a background process.
const DRAIN_LIMIT_BYTES: usize = 1024 * 1024;

/// Output that is little for one read. After some, and if more follows within [`SOON`], the pump
/// lets the program write for a [`MOMENT`] first: otherwise the two take turns at each line.
const LITTLE_BYTES: usize = 16 * 1024;
const MOMENT: Duration = Duration::from_millis(1);
const SOON: Duration = Duration::from_millis(2);

/// Output of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Stdout, or the terminal.
    Stdout,
    /// Stderr.
    Stderr,
}

/// Destination of a program's output.
pub(super) trait Sink: Send + Sync + 'static {
    /// Takes bytes of an output, once there is room for them. Returns `false` if it takes no more.
    fn take(&self, kind: Output, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

impl Sink for Outgoing {
    async fn take(&self, kind: Output, bytes: Bytes) -> bool {
        let sent = match kind {
            Output::Stdout => self.send(bytes).await,
            Output::Stderr => self.send_stderr(bytes).await,
        };
        sent.is_ok()
    }
}

/// Data for a program's stdin.
pub(super) enum Input {
    Data(Received),
    /// Request for an answer once everything before it was written.
    Mark(oneshot::Sender<()>),
}

/// Outputs of a program, on their way to the client. Stop when dropped.
pub(crate) struct Pumps {
    tasks: JoinSet<()>,
    drained: Vec<oneshot::Receiver<()>>,
}

impl Pumps {
    /// Starts pumping each output.
    pub(super) fn start(
        outputs: Vec<(Output, OwnedFd)>,
        sink: &Arc<impl Sink>,
        has_ended: &watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let mut pumps = Self { tasks: JoinSet::new(), drained: Vec::new() };
        for (kind, output) in outputs {
            let (sender, receiver) = oneshot::channel();
            let pump = Pump {
                source: asynchronous(output, Interest::READABLE)?,
                kind,
                sink: Arc::clone(sink),
            };
            pumps.tasks.spawn(pump.run(has_ended.clone(), sender));
            pumps.drained.push(receiver);
        }
        Ok(pumps)
    }

    /// Waits until everything that the program wrote before it ended has been sent.
    pub(crate) async fn drained(&mut self) {
        for drained in self.drained.drain(..) {
            // A pump that has ended has sent what it could.
            let _ = drained.await;
        }
    }

    /// Waits until no process holds the outputs open any more.
    pub(crate) async fn finished(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Pump<S> {
    source: AsyncFd<OwnedFd>,
    kind: Output,
    sink: Arc<S>,
}

impl<S: Sink> Pump<S> {
    async fn run(self, mut has_ended: watch::Receiver<bool>, drained: oneshot::Sender<()>) {
        let mut drained = Some(drained);
        let mut buffer = Vec::with_capacity(PACKET_BYTES as usize);
        let mut collector = Collector::default();
        loop {
            tokio::select! {
                ready = self.source.readable() => {
                    let Ok(mut ready) = ready else { return };
                    collector.wait(self.source.get_ref()).await;
                    let read = ready.try_io(|source| Ok(read(source, &mut buffer)?));
                    let Ok(count) = read else { continue };
                    // A terminal whose other side is closed reports EIO.
                    let Ok(count @ 1..) = count else { return };
                    if !self.send(&buffer).await {
                        return;
                    }
                    collector.sent(count);
                }
                changed = has_ended.changed(), if drained.is_some() => {
                    if changed.is_err() || !self.drain(&mut buffer).await {
                        return;
                    }
                    drained.take().map(|drained| drained.send(()));
                }
            }
        }
    }

    /// Sends what is available now. Returns `false` at the end of the output or of the connection.
    async fn drain(&self, buffer: &mut Vec<u8>) -> bool {
        let mut total = 0;
        while total < DRAIN_LIMIT_BYTES {
            match read(&self.source, buffer) {
                Ok(count @ 1..) => {
                    total += count;
                    if !self.send(buffer).await {
                        return false;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Ok(0) | Err(_) => return false,
            }
        }
        true
    }

    async fn send(&self, bytes: &[u8]) -> bool {
        self.sink.take(self.kind, Bytes::copy_from_slice(bytes)).await
    }
}

/// Wait of a pump for a program that writes little at a time.
#[derive(Default)]
struct Collector {
    /// End of the last send, if it was of little.
    sent: Option<Instant>,
    is_enlarged: bool,
}

impl Collector {
    /// Waits a moment before a read that would again find little.
    async fn wait(&mut self, source: &OwnedFd) {
        if self.sent.take().is_some_and(|sent| sent.elapsed() < SOON) {
            if !std::mem::replace(&mut self.is_enlarged, true) {
                // The program need not wait for the pump then. Fails for a terminal.
                let _ = rustix::pipe::fcntl_setpipe_size(source, DRAIN_LIMIT_BYTES);
            }
            sleep(MOMENT).await;
        }
    }

    fn sent(&mut self, bytes: usize) {
        self.sent = (bytes < LITTLE_BYTES).then(Instant::now);
    }
}

/// Reads into an empty buffer what there is, as far as it has room.
fn read(source: impl AsFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    buffer.clear();
    rustix::io::read(source, spare_capacity(buffer))
}

/// Writes the client's data to the program's stdin, and ends stdin when the client has sent
/// everything.
pub(super) async fn feed(stdin: OwnedFd, mut inputs: mpsc::UnboundedReceiver<Input>) {
    let mut next = inputs.recv().await;
    if next.is_none() && end_of_file(&stdin).is_none() {
        return;
    }
    let Ok(stdin) = asynchronous(stdin, Interest::WRITABLE) else { return };
    let mut last = b'\n';
    while let Some(input) = next {
        match input {
            Input::Data(data) => {
                last = data.last().copied().unwrap_or(last);
                if !write_all(&stdin, &data).await {
                    return;
                }
            }
            Input::Mark(written) => {
                // Fails if its sender has gone.
                let _ = written.send(());
            }
        }
        next = inputs.recv().await;
    }
    if let Some(character) = end_of_file(&stdin) {
        // In the middle of a line, the first only passes on the line.
        let typed = if last == b'\n' { &[character][..] } else { &[character; 2] };
        write_all(&stdin, typed).await;
    }
}

/// Writes all bytes. Returns `false` if the program does not read any more.
async fn write_all(stdin: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let Ok(mut ready) = stdin.writable().await else { return false };
        match ready.try_io(|stdin| Ok(rustix::io::write(stdin, bytes)?)) {
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(_)) => return false,
            Err(_would_block) => {}
        }
    }
    true
}

/// Returns the character that ends the input of a terminal on which programs read lines. Closing
/// our side of it would hang up instead.
fn end_of_file(stdin: impl AsFd) -> Option<u8> {
    let modes = rustix::termios::tcgetattr(stdin).ok()?;
    let reads_lines = modes.local_modes.contains(LocalModes::ICANON);
    reads_lines.then(|| modes.special_codes[SpecialCodeIndex::VEOF]).filter(|code| *code != 0)
}

/// Registers a descriptor with the runtime and makes it non-blocking.
pub(crate) fn asynchronous(
    descriptor: OwnedFd,
    interest: Interest,
) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    register(descriptor, interest)
}

/// Registers a descriptor that is not read or written, like [`asynchronous`].
#[expect(
    unsafe_code,
    reason = "tokio cannot know that an OwnedFd always names the same descriptor"
)]
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd owns one descriptor for its whole life.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }
        .map_err(|error| error.into_parts().1)
}
