//! A mount and its successive host processes.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use castra_flow::Message;
use castra_wire::{MAX_MOUNT_STATE_BYTES, MountMessage};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::message::{self, Kind, REQUEST_BYTES};
use super::{Session, device};
use crate::watch::watch as watch_file;

/// Time that requests wait for the next process of the host, after the last one ended. After it,
/// they fail at once.
const GRACE: Duration = Duration::from_secs(4);

/// Events of the device: requests, and its end, which is an error.
const EVENTS: Interest = Interest::READABLE.add(Interest::ERROR);

/// Holder of a mount's device.
pub(super) struct Keeper {
    device: AsyncFd<OwnedFd>,
    path: PathBuf,
    sessions: mpsc::UnboundedReceiver<Session>,
    state: Mutex<State>,
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
        path: PathBuf,
    ) -> Result<(Self, mpsc::UnboundedSender<Session>), String> {
        let device = watch_file(device, EVENTS).map_err(|error| error.to_string())?;
        let (sender, sessions) = mpsc::unbounded_channel();
        Ok((Self { device, path, sessions, state: Mutex::default() }, sender))
    }

    /// Relays requests until the directory is unmounted.
    pub(super) async fn run(mut self, first: Session) {
        let mut next = Some(first);
        loop {
            let end = match next.take() {
                Some(session) => self.relay(session).await,
                None => self.do_without().await,
            };
            match end {
                End::Unmounted => return,
                End::Lost => self.fail_unanswered(),
                End::Replaced(session) => {
                    self.fail_unanswered();
                    next = Some(session);
                }
            }
        }
    }

    /// Relays requests to one process of the host.
    async fn relay(&mut self, session: Session) -> End {
        let Session { mut incoming, outgoing, mut decoder } = session;
        let Self { device, path, sessions, state } = self;
        // One writer, since messages must not be interleaved. What it waits for never keeps answers
        // from being read.
        let (orders, mut queue) = mpsc::unbounded_channel();
        let (draining, mut drain) = watch::channel(false);
        lock(state).is_draining = false;
        let kept = std::mem::take(&mut lock(state).kept);
        if !kept.is_empty() {
            let end = std::iter::once(Bytes::new());
            for part in kept.into_iter().chain(end) {
                let _ = orders.send(MountMessage::State(part));
            }
        }
        let _ = orders.send(MountMessage::Mounted);
        if let Some((_, init)) = &lock(state).init {
            let _ = orders.send(MountMessage::Request(init.clone()));
        }
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
                    read = read(device, &mut buffer), if !*drain.borrow() => match read {
                        Ok(length) => match take(device, state, &buffer[..length]) {
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
                        Ok(Some(MountMessage::Reply(answer))) => deliver(device, state, &answer),
                        Ok(Some(MountMessage::Notice(notice))) => {
                            // The kernel may have forgotten the file.
                            let _ = rustix::io::write(device.get_ref(), &notice);
                        }
                        Ok(Some(MountMessage::Drain)) => {
                            lock(state).is_draining = true;
                            draining.send_replace(true);
                        }
                        Ok(Some(MountMessage::State(part))) if part.is_empty() => {
                            let _ = orders.send(MountMessage::Kept);
                        }
                        Ok(Some(MountMessage::State(part))) => {
                            if !keep(state, part) {
                                return End::Lost;
                            }
                        }
                        Ok(Some(MountMessage::Continue)) => {
                            let mut state = lock(state);
                            state.is_draining = false;
                            state.kept.clear();
                            drop(state);
                            draining.send_replace(false);
                        }
                        Ok(Some(MountMessage::Unmount)) => {
                            let (path, orders) = (path.clone(), orders.clone());
                            // It may wait for answers.
                            tokio::task::spawn_blocking(move || {
                                if let Err(reason) = device::unmount(&path) {
                                    let _ = orders.send(MountMessage::Failed(reason));
                                }
                            });
                        }
                        Ok(Some(_)) | Err(_) => return End::Lost,
                        Ok(None) => break,
                    }
                    if is_drained(state) {
                        let _ = orders.send(MountMessage::Drained);
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
        lock(&self.state).kept.clear();
        let mut buffer = vec![0; REQUEST_BYTES];
        loop {
            tokio::select! {
                Some(session) = self.sessions.recv() => return End::Replaced(session),
                read = read(&self.device, &mut buffer) => match read {
                    Ok(length) => {
                        take(&self.device, &self.state, &buffer[..length]);
                        self.fail_unanswered();
                    }
                    Err(_) => return End::Unmounted,
                },
            }
        }
    }

    /// Ends all requests whose answerer is gone.
    fn fail_unanswered(&self) {
        for unique in lock(&self.state).unanswered.drain() {
            // One that was interrupted is not there any more.
            let _ = rustix::io::write(&self.device, &message::failure(unique, Errno::IO));
        }
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

/// Notes a request that is to be answered, and answers what the relay answers. Returns the message
/// for the host, unless the relay drops it.
fn take(device: &AsyncFd<OwnedFd>, state: &Mutex<State>, request: &[u8]) -> Option<MountMessage> {
    let (unique, kind) = message::describe(request)?;
    let bytes = Bytes::copy_from_slice(request);
    match kind {
        Kind::Init => lock(state).init = Some((unique, bytes.clone())),
        Kind::Answered => drop(lock(state).unanswered.insert(unique)),
        Kind::Unanswered => return Some(MountMessage::Notice(bytes)),
        Kind::Release => {
            let _ = rustix::io::write(device.get_ref(), &message::success(unique));
            return Some(MountMessage::Notice(bytes));
        }
        Kind::Dropped => return None,
    }
    Some(MountMessage::Request(bytes))
}

/// Gives the kernel an answer that it waits for.
fn deliver(device: &AsyncFd<OwnedFd>, state: &Mutex<State>, answer: &[u8]) {
    let Some(unique) = message::answered(answer) else { return };
    {
        let mut state = lock(state);
        let is_first = state.init.as_ref().is_some_and(|(init, _)| *init == unique);
        if is_first && std::mem::replace(&mut state.is_initialised, true) {
            return;
        }
        if !is_first && !state.unanswered.remove(&unique) {
            return;
        }
    }
    match rustix::io::write(device.get_ref(), answer) {
        // It was interrupted.
        Ok(_) | Err(Errno::NOENT) => {}
        // The answer makes no sense, and the kernel still waits.
        Err(_) => {
            let _ = rustix::io::write(device.get_ref(), &message::failure(unique, Errno::IO));
        }
    }
}

/// Returns `true` once when the last request before a pause is answered.
fn is_drained(state: &Mutex<State>) -> bool {
    let mut state = lock(state);
    let is_waited_for = state.is_draining && state.unanswered.is_empty();
    if is_waited_for {
        state.is_draining = false;
    }
    is_waited_for
}

/// Keeps a part of the host's state. Returns `false` if it becomes too long.
fn keep(state: &Mutex<State>, part: Bytes) -> bool {
    let mut state = lock(state);
    state.kept.push(part);
    state.kept.iter().map(Bytes::len).sum::<usize>() <= MAX_MOUNT_STATE_BYTES
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
