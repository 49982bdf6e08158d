//! A mount and its successive host processes.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use castra_flow::Message;
use castra_wire::{Changes, MAX_MOUNT_STATE_BYTES, MountMessage};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::device::Numbers;
use super::message::{self, Kind, REQUEST_BYTES};
use super::nudger::Nudger;
use super::{Session, device};
use crate::kernel_fs::KernelFs;
use crate::watch::watch as watch_file;

/// Time that requests wait for the next process of the host, after the last one ended. After it,
/// they fail at once.
const GRACE: Duration = Duration::from_secs(4);

/// Events of the device: requests, and its end, which is an error.
const EVENTS: Interest = Interest::READABLE.add(Interest::ERROR);

/// Place of a mount, and what is mounted there.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) numbers: Numbers,
}

/// Keeper of a mount, whose end makes everything in the mount fail.
pub(super) struct Keeper {
    mount: Mount,
    sessions: mpsc::UnboundedReceiver<Session>,
}

/// A mount and its device.
struct Mount {
    device: AsyncFd<OwnedFd>,
    place: Place,
    kernel_fs: Arc<KernelFs>,
    state: Mutex<State>,
    /// Repeats changes of the host, once there were any.
    nudger: Mutex<Option<Nudger>>,
}

/// Ways from the messages of the host to the writer of answers.
struct Ways {
    orders: mpsc::UnboundedSender<MountMessage>,
    /// Set while no requests are to be taken.
    draining: watch::Sender<bool>,
    /// Signals that the directory is unmounted.
    gone: mpsc::UnboundedSender<()>,
}

#[derive(Default)]
struct State {
    /// The kernel's first request: each process learns from it what the kernel can do.
    init: Option<(u64, Bytes)>,
    /// Set once the kernel has the answer to it.
    is_initialised: bool,
    /// Numbers of the requests without an answer yet.
    unanswered: HashSet<u64>,
    is_draining: bool,
    /// State of the last process of the host, for the next one. Outdated by anything that the
    /// kernel is answered after it.
    kept: Vec<Bytes>,
}

/// End of a session.
enum End {
    /// The stream has ended.
    Lost,
    /// Another process of the host has taken over.
    Replaced(Session),
    /// The directory is unmounted.
    Unmounted,
}

impl Keeper {
    /// Returns the keeper of a device's mount, and the way to it.
    ///
    /// # Errors
    /// Returns a reason for the user.
    pub(super) fn new(
        device: OwnedFd,
        place: Place,
        kernel_fs: Arc<KernelFs>,
    ) -> Result<(Self, mpsc::UnboundedSender<Session>), String> {
        let device = watch_file(device, EVENTS).map_err(|error| error.to_string())?;
        let (sender, sessions) = mpsc::unbounded_channel();
        let (state, nudger) = (Mutex::default(), Mutex::default());
        let mount = Mount { device, place, kernel_fs, state, nudger };
        Ok((Self { mount, sessions }, sender))
    }

    /// Relays requests until the directory is unmounted.
    pub(super) async fn run(mut self, first: Session) {
        let mut next = Some(first);
        let mut greeting = MountMessage::Mounted;
        loop {
            let end = match next.take() {
                Some(session) => {
                    let greeting = std::mem::replace(&mut greeting, MountMessage::Resumed);
                    self.relay(session, greeting).await
                }
                None => self.do_without().await,
            };
            match end {
                End::Unmounted => return,
                End::Lost => self.mount.fail_unanswered(),
                End::Replaced(session) => {
                    self.mount.fail_unanswered();
                    next = Some(session);
                }
            }
        }
    }

    /// Relays requests to one process of the host.
    async fn relay(&mut self, session: Session, greeting: MountMessage) -> End {
        let Session { mut incoming, outgoing, mut decoder } = session;
        let Self { mount, sessions } = self;
        // One writer, since messages must not be interleaved. What it waits for never keeps answers
        // from being read.
        let (orders, mut queue) = mpsc::unbounded_channel();
        let (draining, mut drain) = watch::channel(false);
        let (gone, mut unmounted) = mpsc::unbounded_channel();
        mount.greet(greeting, &orders);
        let ways = Ways { orders, draining, gone };
        let requests = async {
            let mut buffer = vec![0; REQUEST_BYTES];
            loop {
                let message = tokio::select! {
                    biased;
                    Some(message) = queue.recv() => message,
                    changed = drain.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return End::Lost,
                    },
                    // Other namespaces may still have it: its device does not end by itself.
                    Some(()) = unmounted.recv() => {
                        let _ = outgoing.send(MountMessage::Unmounted.encode()).await;
                        return End::Unmounted;
                    }
                    read = read(&mount.device, &mut buffer), if !*drain.borrow() => match read {
                        Ok(length) => match mount.take(&buffer[..length]) {
                            Some(message) => message,
                            None => continue,
                        },
                        Err(_) => {
                            let _ = outgoing.send(MountMessage::Unmounted.encode()).await;
                            return End::Unmounted;
                        }
                    },
                };
                if outgoing.send(message.encode()).await.is_err() {
                    return End::Lost;
                }
            }
        };
        let answers = async {
            loop {
                let Some(Message::Data(data)) = incoming.next().await else { return End::Lost };
                decoder.push(&data);
                drop(data);
                loop {
                    match decoder.next_message() {
                        Ok(None) => break,
                        Ok(Some(message)) => {
                            if !mount.receive(message, &ways) {
                                return End::Lost;
                            }
                        }
                        Err(_) => return End::Lost,
                    }
                    if mount.is_drained() {
                        let _ = ways.orders.send(MountMessage::Drained);
                    }
                }
            }
        };
        tokio::select! {
            end = requests => end,
            end = answers => end,
            Some(session) = sessions.recv() => End::Replaced(session),
        }
    }

    /// Waits for the next process of the host. Requests wait with it for a while, and then fail.
    async fn do_without(&mut self) -> End {
        tokio::select! {
            Some(session) = self.sessions.recv() => return End::Replaced(session),
            () = sleep(GRACE) => {}
        }
        self.mount.state().kept.clear();
        let mut buffer = vec![0; REQUEST_BYTES];
        loop {
            tokio::select! {
                Some(session) = self.sessions.recv() => return End::Replaced(session),
                read = read(&self.mount.device, &mut buffer) => match read {
                    Ok(length) => {
                        self.mount.take(&buffer[..length]);
                        self.mount.fail_unanswered();
                    }
                    Err(_) => return End::Unmounted,
                },
            }
        }
    }
}

impl Mount {
    /// Begins a session: gives the host the state that the last one left, and says that the
    /// directory is mounted. The kernel's first request is repeated to it.
    fn greet(&self, greeting: MountMessage, orders: &mpsc::UnboundedSender<MountMessage>) {
        let mut state = self.state();
        state.is_draining = false;
        let kept = std::mem::take(&mut state.kept);
        let end = (!kept.is_empty()).then(Bytes::new);
        let parts = kept.into_iter().chain(end).map(MountMessage::State);
        let init = state.init.as_ref().map(|(_, init)| MountMessage::Request(init.clone()));
        for message in parts.chain([greeting]).chain(init) {
            let _ = orders.send(message);
        }
    }

    /// Takes a message of the host. Returns `false` if it makes no sense.
    fn receive(&self, message: MountMessage, ways: &Ways) -> bool {
        match message {
            MountMessage::Reply(answer) => self.deliver(&answer),
            MountMessage::Notice(notice) => {
                // The kernel may have forgotten the file.
                let _ = rustix::io::write(self.device.get_ref(), &notice);
            }
            MountMessage::Drain => {
                self.state().is_draining = true;
                ways.draining.send_replace(true);
            }
            MountMessage::State(part) if part.is_empty() => {
                let _ = ways.orders.send(MountMessage::Kept);
            }
            MountMessage::State(part) => return self.keep(part),
            MountMessage::Continue => {
                let mut state = self.state();
                state.is_draining = false;
                state.kept.clear();
                ways.draining.send_replace(false);
            }
            MountMessage::Unmount => self.unmount(ways),
            MountMessage::Verify => self.verify(ways),
            MountMessage::Changes(changes) => match Changes::decode(&changes) {
                Ok(changes) => self.nudge(changes, ways),
                Err(_) => return false,
            },
            _ => return false,
        }
        true
    }

    /// Unmounts the directory on a thread of its own: it may wait for answers.
    fn unmount(&self, ways: &Ways) {
        let (place, kernel_fs) = (self.place.clone(), Arc::clone(&self.kernel_fs));
        let (orders, gone) = (ways.orders.clone(), ways.gone.clone());
        tokio::task::spawn_blocking(move || {
            match device::unmount(&kernel_fs, &place.path, place.numbers) {
                Ok(()) => drop(gone.send(())),
                Err(reason) => drop(orders.send(MountMessage::Failed(reason))),
            }
        });
    }

    /// Checks that the directory is still mounted.
    fn verify(&self, ways: &Ways) {
        let Place { path, numbers } = self.place.clone();
        let (orders, gone) = (ways.orders.clone(), ways.gone.clone());
        tokio::task::spawn_blocking(move || match Numbers::at(&path) {
            Ok(found) if found == numbers => drop(orders.send(MountMessage::Resumed)),
            _ => drop(gone.send(())),
        });
    }

    /// Has changes of the host repeated, on a thread that waits for answers.
    fn nudge(&self, changes: Changes, ways: &Ways) {
        let mut nudger = self.nudger.lock().unwrap_or_else(PoisonError::into_inner);
        if nudger.is_none() {
            *nudger = Nudger::start(self.place.clone()).ok();
        }
        match &*nudger {
            Some(nudger) => nudger.repeat(changes, ways.orders.clone()),
            None => drop(ways.orders.send(MountMessage::Repeated)),
        }
    }

    /// Ends all requests whose answerer is gone.
    fn fail_unanswered(&self) {
        for unique in self.state().unanswered.drain() {
            // One that was interrupted is not there any more.
            let _ = rustix::io::write(&self.device, &message::failure(unique, Errno::IO));
        }
    }

    /// Notes a request that is to be answered, and answers what the relay answers. Returns the
    /// message for the host, unless the relay drops it.
    fn take(&self, request: &[u8]) -> Option<MountMessage> {
        let (unique, kind) = message::describe(request)?;
        let bytes = Bytes::copy_from_slice(request);
        match kind {
            Kind::Init => self.state().init = Some((unique, bytes.clone())),
            Kind::Answered => drop(self.state().unanswered.insert(unique)),
            Kind::Unanswered => return Some(MountMessage::Notice(bytes)),
            Kind::Release => {
                let _ = rustix::io::write(self.device.get_ref(), &message::success(unique));
                return Some(MountMessage::Notice(bytes));
            }
            Kind::Dropped => return None,
        }
        Some(MountMessage::Request(bytes))
    }

    /// Gives the kernel an answer that it waits for.
    fn deliver(&self, answer: &[u8]) {
        let Some(unique) = message::answered(answer) else { return };
        {
            let mut state = self.state();
            let is_first = state.init.as_ref().is_some_and(|(init, _)| *init == unique);
            if is_first && std::mem::replace(&mut state.is_initialised, true) {
                return;
            }
            if !is_first && !state.unanswered.remove(&unique) {
                return;
            }
        }
        match rustix::io::write(self.device.get_ref(), answer) {
            // It was interrupted.
            Ok(_) | Err(Errno::NOENT) => {}
            // The answer makes no sense, and the kernel still waits.
            Err(_) => {
                let failure = message::failure(unique, Errno::IO);
                let _ = rustix::io::write(self.device.get_ref(), &failure);
            }
        }
    }

    /// Returns `true` once when the last request before a pause is answered.
    fn is_drained(&self) -> bool {
        let mut state = self.state();
        let is_waited_for = state.is_draining && state.unanswered.is_empty();
        if is_waited_for {
            state.is_draining = false;
        }
        is_waited_for
    }

    /// Keeps a part of the host's state. Returns `false` if it becomes too long.
    fn keep(&self, part: Bytes) -> bool {
        let mut state = self.state();
        state.kept.push(part);
        state.kept.iter().map(Bytes::len).sum::<usize>() <= MAX_MOUNT_STATE_BYTES
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the kernel's next request.
///
/// # Errors
/// The directory is unmounted.
async fn read(device: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = device.ready(EVENTS).await?;
        match rustix::io::read(device.get_ref(), &mut *buffer) {
            Ok(length) => return Ok(length),
            Err(Errno::AGAIN) => ready.clear_ready(),
            // The request was interrupted before it was read.
            Err(Errno::INTR | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
