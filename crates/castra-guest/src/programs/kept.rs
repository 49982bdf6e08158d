//! Programs that outlive the stream that started them. Hosts come and go, follow their output and
//! send them input; output that nobody follows is dropped, so that no program waits for a host.
//!
//! ```text
//! stream that starts ──┐                 ┌──► stream that started it
//! streams that control ┴─► stdin  output ┴──► streams that follow
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, Received, link};
use castra_wire::stream::{KeptProgram, Refusal};
use castra_wire::ProgramReport;
use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot, watch};

use super::exec::{AbortOnDrop, Described, Running, end_of, report, signal_of};
use super::header;
use super::pty::Size;
use super::pump::{self, Input, Output, Pumps, Sink};
use super::spawn::Ended;

/// Exit status of a stream that has delivered its orders, and of one whose data the program does
/// not read.
const DELIVERED: u32 = 0;
const UNREAD: u32 = 1;

/// Kept programs that run. Clones are the same programs.
#[derive(Clone, Default)]
pub(crate) struct KeptPrograms(Arc<Mutex<BTreeMap<u32, Arc<Kept>>>>);

/// Program to be started and kept.
pub(crate) struct New {
    pub(crate) described: Described,
    pub(crate) tag: String,
}

struct Kept {
    report: ProgramReport,
    /// Number of programs that were started before it.
    number: u64,
    group: Pid,
    /// Way to its stdin, until that has ended.
    stdin: Mutex<Option<mpsc::UnboundedSender<Input>>>,
    /// The terminal's controlling side.
    terminal: Option<OwnedFd>,
    followers: Arc<Followers>,
    has_ended: watch::Sender<bool>,
}

impl KeptPrograms {
    /// Starts a program whose description is the first data of a stream, and has the stream follow
    /// it. Returns when the stream ends.
    pub(crate) async fn start(&self, new: New, incoming: link::Incoming, outgoing: link::Outgoing) {
        // Fails if the host is gone, as everything below then does.
        let _ = outgoing.opened();
        let (mut incoming, outgoing) = (Incoming::from(incoming), Arc::new(outgoing.into()));
        match self.start_described(new, &mut incoming, &outgoing).await {
            Some(kept) => kept.serve(incoming, &outgoing).await,
            None => end(&outgoing).await,
        }
    }

    async fn start_described(
        &self,
        New { described, tag }: New,
        incoming: &mut Incoming,
        outgoing: &Arc<Outgoing>,
    ) -> Option<Arc<Kept>> {
        let user = described.user.name.clone();
        let started = match header::read(incoming).await {
            Ok((header, early)) => {
                let variables = header.environment.clone();
                let report = ProgramReport {
                    pid: 0,
                    tag,
                    user,
                    arguments: header.arguments.clone(),
                    environment: variables.clone(),
                    directory: header.directory.as_ref().map(|it| it.path().to_owned()),
                };
                described.start_as(header, variables).await.map(|running| (running, report, early))
            }
            Err(not_started) => Err(not_started),
        };
        match started {
            Ok((running, report, early)) => self.keep(running, report, early, outgoing).await,
            Err(not_started) => {
                not_started.report(outgoing).await;
                None
            }
        }
    }

    /// Keeps a program that runs.
    async fn keep(
        &self,
        running: Running,
        mut report: ProgramReport,
        early: Option<Received>,
        outgoing: &Arc<Outgoing>,
    ) -> Option<Arc<Kept>> {
        let Running { child, ended, stdin, outputs, terminal } = running;
        let group = child.pid();
        report.pid = group.as_raw_nonzero().get().cast_unsigned();
        let followers = Arc::new(Followers::default());
        let (has_ended, end_seen) = watch::channel(false);
        // Before its output.
        let _ = outgoing.send(pid_bytes(report.pid)).await;
        followers.add(outgoing);
        let Ok(mut pumps) = Pumps::start(outputs, &followers, &end_seen) else {
            child.kill();
            return None;
        };
        let (sender, inputs) = mpsc::unbounded_channel();
        if let Some(early) = early {
            // The receiver is here, so it is taken.
            let _ = sender.send(Input::Data(early));
        }
        let feeder = AbortOnDrop(tokio::spawn(pump::feed(stdin, inputs)));
        let stdin = Mutex::new(Some(sender));
        let kept = self.insert(|number| Kept {
            report,
            number,
            group,
            stdin,
            terminal,
            followers,
            has_ended,
        });
        tokio::spawn({
            let (kept, all) = (Arc::clone(&kept), self.clone());
            async move {
                let status = end_of(&child, &ended).await;
                // The process group's number may soon be another's.
                kept.has_ended.send_replace(true);
                drop(feeder);
                all.lock().remove(&kept.report.pid);
                let has_terminal = kept.terminal.is_some();
                pumps.drained().await;
                kept.followers.end(status.ok()).await;
                drop((child, kept));
                // A terminal ends with its session; pipes stay open as long as a background process
                // holds them.
                if !has_terminal {
                    pumps.finished().await;
                }
            }
        });
        Some(kept)
    }

    fn insert(&self, kept: impl FnOnce(u64) -> Kept) -> Arc<Kept> {
        let mut all = self.lock();
        let number = all.values().map(|other| other.number + 1).max().unwrap_or(0);
        let kept = Arc::new(kept(number));
        all.insert(kept.report.pid, Arc::clone(&kept));
        kept
    }

    /// Has a stream follow a program. Returns when the stream ends.
    pub(crate) async fn follow(
        &self,
        program: &KeptProgram,
        incoming: link::Incoming,
        outgoing: link::Outgoing,
    ) {
        let Some(kept) = self.find(program) else { return refuse(&outgoing) };
        let _ = outgoing.opened();
        let (incoming, outgoing) = (Incoming::from(incoming), Arc::new(outgoing.into()));
        let _ = Outgoing::send(&outgoing, pid_bytes(kept.report.pid)).await;
        if kept.followers.add(&outgoing) {
            follow_until_closed(incoming).await;
            kept.followers.remove(&outgoing);
        } else {
            // It has just ended, and how is gone.
            end(&outgoing).await;
        }
    }

    /// Carries out the orders of a stream.
    pub(crate) async fn control(
        &self,
        program: &KeptProgram,
        ends_stdin: bool,
        incoming: link::Incoming,
        outgoing: link::Outgoing,
    ) {
        let Some(kept) = self.find(program) else { return refuse(&outgoing) };
        let _ = outgoing.opened();
        let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
        let mut is_taken = true;
        while let Some(message) = incoming.next().await {
            match message {
                Message::Data(data) => is_taken &= kept.take(Input::Data(data)),
                Message::EndOfData => {
                    is_taken &= kept.is_written().await;
                    if ends_stdin {
                        kept.end_stdin();
                    }
                    let status = if is_taken { DELIVERED } else { UNREAD };
                    let _ = outgoing.exit_status(status).await;
                    return end(&outgoing).await;
                }
                Message::Closed => return,
                other => kept.obey(&other),
            }
        }
    }

    /// Sends a list of the programs that run.
    pub(crate) async fn list(&self, outgoing: link::Outgoing) {
        let _ = outgoing.opened();
        let outgoing = Outgoing::from(outgoing);
        let mut reports: Vec<_> = self.lock().values().cloned().collect();
        reports.sort_by_key(|kept| kept.number);
        for kept in reports {
            let mut bytes = Bytes::from(kept.report.encode());
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(castra_flow::PACKET_BYTES as usize));
                let _ = outgoing.send(piece).await;
            }
        }
        end(&outgoing).await;
    }

    fn find(&self, program: &KeptProgram) -> Option<Arc<Kept>> {
        let all = self.lock();
        let found = match program {
            KeptProgram::Pid(pid) => all.get(pid),
            KeptProgram::Tag(tag) => {
                let tagged = all.values().filter(|kept| kept.report.tag == *tag);
                tagged.max_by_key(|kept| kept.number)
            }
        };
        found.cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Serves the stream that has started the program: its data is for stdin, and its end leaves
    /// the program alone.
    async fn serve(&self, mut incoming: Incoming, outgoing: &Arc<Outgoing>) {
        while let Some(message) = incoming.next().await {
            match message {
                Message::Data(data) => {
                    // Data that is not read counts as consumed.
                    self.take(Input::Data(data));
                }
                Message::EndOfData => self.end_stdin(),
                Message::Closed => break,
                other => self.obey(&other),
            }
        }
        self.followers.remove(outgoing);
    }

    /// Passes input to the program. Returns `false` if it reads no more.
    fn take(&self, input: Input) -> bool {
        self.stdin().as_ref().is_some_and(|stdin| stdin.send(input).is_ok())
    }

    /// Waits until the program's stdin has taken everything. Returns `false` if it takes no more.
    async fn is_written(&self) -> bool {
        let (written, is_written) = oneshot::channel();
        self.take(Input::Mark(written)) && is_written.await.is_ok()
    }

    fn end_stdin(&self) {
        self.stdin().take();
    }

    fn stdin(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Input>>> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn obey(&self, message: &Message) {
        match message {
            Message::Signal(name) if !*self.has_ended.borrow() => {
                if let Some(signal) = signal_of(name) {
                    // Fails if the group has just ended.
                    let _ = rustix::process::kill_process_group(self.group, signal);
                }
            }
            Message::Resize(window) => {
                if let Some(terminal) = &self.terminal {
                    Size::from(*window).apply(terminal.as_fd());
                }
            }
            _ => {}
        }
    }
}

/// Streams that receive a program's output; `None` once the program has ended.
struct Followers(Mutex<Option<Vec<Arc<Outgoing>>>>);

impl Default for Followers {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Followers {
    /// Adds a stream. Returns `false` if the program has ended.
    fn add(&self, outgoing: &Arc<Outgoing>) -> bool {
        let mut streams = self.lock();
        let Some(streams) = &mut *streams else { return false };
        streams.push(Arc::clone(outgoing));
        true
    }

    fn remove(&self, outgoing: &Arc<Outgoing>) {
        if let Some(streams) = &mut *self.lock() {
            streams.retain(|other| !Arc::ptr_eq(other, outgoing));
        }
    }

    /// Reports the end of the program to all streams, and closes them.
    async fn end(&self, status: Option<Ended>) {
        let streams = self.lock().take();
        for outgoing in streams.into_iter().flatten() {
            if let Some(status) = status {
                report(status, &outgoing).await;
            }
            end(&outgoing).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Arc<Outgoing>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Followers {
    async fn take(&self, kind: Output, bytes: Bytes) -> bool {
        let streams = self.lock().clone();
        for outgoing in streams.into_iter().flatten() {
            if !outgoing.take(kind, bytes.clone()).await {
                self.remove(&outgoing);
            }
        }
        // Without a stream, output is dropped.
        true
    }
}

/// Waits for the host to close a stream on which it has nothing to say.
async fn follow_until_closed(mut incoming: Incoming) {
    while let Some(message) = incoming.next().await {
        if matches!(message, Message::Closed) {
            return;
        }
    }
}

fn pid_bytes(pid: u32) -> Bytes {
    Bytes::copy_from_slice(&pid.to_be_bytes())
}

fn refuse(outgoing: &link::Outgoing) {
    // Fails if the host is gone.
    let _ = outgoing.refuse(Refusal::NotFound);
}

/// Ends a stream. Fails silently if the host is gone.
async fn end(outgoing: &Outgoing) {
    let _ = outgoing.end_data().await;
    let _ = outgoing.close().await;
}
