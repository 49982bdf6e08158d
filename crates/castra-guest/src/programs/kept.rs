//! Programs that outlive the stream that started them. Hosts come and go, follow their output and
//! send them input.
//!
//! ```text
//! stream that starts ──┐                        ┌──► stream that started it
//! streams that control ┴─► stdin  output ─► feed ┴──► streams that follow
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, Received, link};
use castra_wire::ProgramReport;
use castra_wire::stream::{KeptProgram, Refusal};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::exec::{AbortOnDrop, Described, Running, end_of, signal_of};
use super::feed::Feed;
use super::header;
use super::pty::Size;
use super::pump::{self, Input, Pumps};

/// Exit status of a stream that has delivered its orders, and of one whose data the program does
/// not read.
const DELIVERED: u32 = 0;
const UNREAD: u32 = 1;

/// Programs that have ended and are still known, so that a host that lost its stream a moment ago
/// learns the end.
const MAX_ENDED: usize = 32;

/// Kept programs. Clones are the same programs.
#[derive(Clone, Default)]
pub(crate) struct KeptPrograms(Arc<Mutex<All>>);

#[derive(Default)]
struct All {
    /// Programs that run, by their pids.
    running: BTreeMap<u32, Arc<Kept>>,
    /// The last ones that have ended.
    ended: VecDeque<Arc<Kept>>,
}

/// Program to be started and kept.
pub(crate) struct New {
    pub(crate) described: Described,
    pub(crate) tag: String,
    /// Time after which it is killed.
    pub(crate) limit: Option<Duration>,
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
    feed: Arc<Feed>,
    has_ended: watch::Sender<bool>,
}

impl KeptPrograms {
    /// Starts a program whose description is the first data of a stream, and has the stream follow
    /// it. Returns when the stream ends.
    pub(crate) async fn start(&self, new: New, incoming: link::Incoming, outgoing: link::Outgoing) {
        // Fails if the host is gone, as everything below then does.
        let _ = outgoing.opened();
        let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
        match self.start_described(new, &mut incoming, &outgoing).await {
            Some(kept) => kept.serve(incoming, &outgoing).await,
            None => end(&outgoing).await,
        }
    }

    async fn start_described(
        &self,
        New { described, tag, limit }: New,
        incoming: &mut Incoming,
        outgoing: &Outgoing,
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
                    has_terminal: described.terminal.is_some(),
                };
                described.start_as(header, variables).await.map(|running| (running, report, early))
            }
            Err(not_started) => Err(not_started),
        };
        match started {
            Ok((running, report, early)) => self.keep(running, report, early, limit),
            Err(not_started) => {
                not_started.report(outgoing).await;
                None
            }
        }
    }

    /// Keeps a program that runs.
    fn keep(
        &self,
        running: Running,
        mut report: ProgramReport,
        early: Option<Received>,
        limit: Option<Duration>,
    ) -> Option<Arc<Kept>> {
        let Running { child, ended, stdin, outputs, terminal } = running;
        let group = child.pid();
        report.pid = group.as_raw_nonzero().get().cast_unsigned();
        let feed = Arc::new(Feed::default());
        let (has_ended, end_seen) = watch::channel(false);
        let Ok(mut pumps) = Pumps::start(outputs, &feed, &end_seen) else {
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
        let kept =
            self.insert(|number| Kept { report, number, group, stdin, terminal, feed, has_ended });
        tokio::spawn({
            let (kept, all) = (Arc::clone(&kept), self.clone());
            async move {
                let ending = end_of(&child, &ended);
                let status = match limit {
                    None => ending.await,
                    Some(limit) => match timeout(limit, ending).await {
                        Ok(status) => status,
                        Err(_) => {
                            // Fails if it has just ended.
                            let _ = kill_process_group(kept.group, Signal::KILL);
                            end_of(&child, &ended).await
                        }
                    },
                };
                // The process group's number may soon be another's.
                kept.has_ended.send_replace(true);
                drop(feeder);
                let has_terminal = kept.terminal.is_some();
                pumps.drained().await;
                kept.feed.end(status.ok());
                all.retire(&kept);
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
        let number = all.running.values().map(|other| other.number + 1).max().unwrap_or(0);
        let kept = Arc::new(kept(number));
        all.running.insert(kept.report.pid, Arc::clone(&kept));
        kept
    }

    fn retire(&self, kept: &Arc<Kept>) {
        let mut all = self.lock();
        // Its pid may be another's by now.
        let pid = kept.report.pid;
        if all.running.get(&pid).is_some_and(|running| Arc::ptr_eq(running, kept)) {
            all.running.remove(&pid);
        }
        all.ended.push_back(Arc::clone(kept));
        if all.ended.len() > MAX_ENDED {
            all.ended.pop_front();
        }
    }

    /// Has a stream follow a program. Returns when the stream ends.
    pub(crate) async fn follow(
        &self,
        program: &KeptProgram,
        from: Option<u64>,
        incoming: link::Incoming,
        outgoing: link::Outgoing,
    ) {
        let found = self.find(program).or_else(|| from.and_then(|_| self.find_ended(program)));
        let Some(kept) = found else { return refuse(&outgoing) };
        let _ = outgoing.opened();
        let (incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
        tokio::select! {
            () = kept.feed.send(kept.report.pid, from, &outgoing) => end(&outgoing).await,
            () = until_closed(incoming) => {}
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
        let mut reports: Vec<_> = self.lock().running.values().cloned().collect();
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
            KeptProgram::Pid(pid) => all.running.get(pid),
            KeptProgram::Tag(tag) => {
                let tagged = all.running.values().filter(|kept| kept.report.tag == *tag);
                tagged.max_by_key(|kept| kept.number)
            }
        };
        found.cloned()
    }

    fn find_ended(&self, program: &KeptProgram) -> Option<Arc<Kept>> {
        let KeptProgram::Pid(pid) = program else { return None };
        self.lock().ended.iter().rev().find(|kept| kept.report.pid == *pid).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Serves the stream that has started the program: its data is for stdin, and its end leaves
    /// the program alone.
    async fn serve(&self, incoming: Incoming, outgoing: &Outgoing) {
        // All output, from the first byte.
        tokio::select! {
            () = self.feed.send(self.report.pid, Some(0), outgoing) => end(outgoing).await,
            () = self.heed(incoming) => {}
        }
    }

    async fn heed(&self, mut incoming: Incoming) {
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
                    let _ = kill_process_group(self.group, signal);
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

/// Waits for the host to close a stream on which it has nothing to say.
async fn until_closed(mut incoming: Incoming) {
    while let Some(message) = incoming.next().await {
        if matches!(message, Message::Closed) {
            return;
        }
    }
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
