//! One mount of a companion.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use castra_flow::link::Link;
use castra_flow::{Incoming, Message, Outgoing};
use castra_wire::stream::{Refusal, Target};
use castra_wire::{MAX_MOUNT_STATE_BYTES, MountDecoder, MountMessage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::changes::{self, Repetition};
use super::pool::{Answer, Pool};
use super::{Mount, MountState};
use crate::sanitize::sanitize_text;

/// Time for the guest to unmount a directory.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// Length of a part of a state, in bytes.
const STATE_PART_BYTES: usize = 512 * 1024;

/// A mount that is served.
pub(in crate::guest) struct Served {
    mount: Mount,
    state: watch::Receiver<State>,
    wishes: mpsc::UnboundedSender<Wish>,
    pool: Arc<OnceLock<Weak<Pool>>>,
    task: JoinHandle<()>,
}

#[derive(Clone, PartialEq, Eq)]
enum State {
    Known(MountState),
    /// The guest has unmounted it.
    Gone,
}

/// Wish of castra's about a mount.
enum Wish {
    Drain(oneshot::Sender<()>),
    Continue,
    Verify(oneshot::Sender<()>),
    Unmount(oneshot::Sender<Result<(), String>>),
}

/// Wishes that the agent is carrying out.
#[derive(Default)]
struct Pending {
    draining: Vec<oneshot::Sender<()>>,
    verifying: Vec<oneshot::Sender<()>>,
    unmounting: Vec<oneshot::Sender<Result<(), String>>>,
}

impl Pending {
    /// Returns the message that has the agent carry out a wish.
    fn begin(&mut self, wish: Wish) -> MountMessage {
        match wish {
            Wish::Drain(done) => {
                self.draining.push(done);
                MountMessage::Drain
            }
            Wish::Continue => MountMessage::Continue,
            Wish::Verify(done) => {
                self.verifying.push(done);
                MountMessage::Verify
            }
            Wish::Unmount(done) => {
                self.unmounting.push(done);
                MountMessage::Unmount
            }
        }
    }
}

/// Answers wishes that are carried out.
fn finish<T: Clone>(pending: &mut Vec<oneshot::Sender<T>>, outcome: &T) {
    for done in pending.drain(..) {
        // Castra may wait no longer.
        let _ = done.send(outcome.clone());
    }
}

/// End of a session with the agent.
enum End {
    /// The agent or its guest is gone.
    Lost,
    /// The directory is not mounted, for this reason.
    Failed(String),
    /// The directory is unmounted.
    Unmounted,
}

impl Served {
    /// Begins to serve a directory in each session of the link.
    pub(in crate::guest) fn start(
        mount: Mount,
        hidden: Vec<PathBuf>,
        link: watch::Receiver<Option<Link>>,
    ) -> Self {
        let (state, states) = watch::channel(State::Known(MountState::Waiting));
        let (wishes, wished) = mpsc::unbounded_channel();
        let pool = Arc::new(OnceLock::new());
        let served = serve(mount.clone(), hidden, link, wished, state, Arc::clone(&pool));
        let task = tokio::spawn(served);
        Self { mount, state: states, wishes, pool, task }
    }

    pub(in crate::guest) fn mount(&self) -> &Mount {
        &self.mount
    }

    pub(in crate::guest) fn state(&self) -> MountState {
        match &*self.state.borrow() {
            State::Known(MountState::Mounted) => {
                let pool = self.pool.get().and_then(Weak::upgrade);
                let unnotified = pool.and_then(|pool| pool.unnotified());
                unnotified.map_or(MountState::Mounted, MountState::Unnotified)
            }
            State::Known(state) => state.clone(),
            State::Gone => MountState::Failed("the guest has unmounted it".into()),
        }
    }

    pub(in crate::guest) fn has_failed(&self) -> bool {
        matches!(self.state(), MountState::Failed(_))
    }

    /// Returns `true` once the guest has unmounted it.
    pub(in crate::guest) fn is_gone(&self) -> bool {
        *self.state.borrow() == State::Gone
    }

    /// Waits until it is mounted or cannot be.
    pub(in crate::guest) fn settled(
        &self,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let is_settled = |state: &State| *state != State::Known(MountState::Waiting);
            let settled = state.wait_for(is_settled).await.map(|state| state.clone());
            match settled {
                Ok(State::Known(MountState::Mounted | MountState::Unnotified(_))) => Ok(()),
                Ok(State::Known(MountState::Failed(reason))) => Err(reason),
                Ok(State::Gone | State::Known(MountState::Waiting)) | Err(_) => {
                    Err("the guest has unmounted it".into())
                }
            }
        }
    }

    /// Has the guest's requests wait, and waits for those that are being answered.
    pub(in crate::guest) fn drain(&self) -> impl Future<Output = ()> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        // If there is no session, there is nothing to wait for.
        let _ = self.wishes.send(Wish::Drain(sender));
        async move { drop(receiver.await) }
    }

    /// Takes requests again.
    pub(in crate::guest) fn resume(&self) {
        let _ = self.wishes.send(Wish::Continue);
    }

    /// Checks that the guest still has it mounted. Returns once it is known: [`Self::is_gone`].
    pub(in crate::guest) fn verify(&self) -> impl Future<Output = ()> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.wishes.send(Wish::Verify(sender));
        async move { drop(receiver.await) }
    }

    /// Unmounts the directory.
    pub(in crate::guest) fn unmount(
        &self,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        let has_failed = self.has_failed();
        let (sender, receiver) = oneshot::channel();
        let _ = self.wishes.send(Wish::Unmount(sender));
        async move {
            if has_failed {
                return Ok(());
            }
            let silent = || Err("the guest's agent does not answer".to_owned());
            let answered = timeout(UNMOUNT_LIMIT, receiver).await;
            answered.map_or_else(|_| silent(), |answer| answer.unwrap_or_else(|_| silent()))
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves a directory until the guest unmounts it.
async fn serve(
    mount: Mount,
    hidden: Vec<PathBuf>,
    mut link: watch::Receiver<Option<Link>>,
    mut wishes: mpsc::UnboundedReceiver<Wish>,
    state: watch::Sender<State>,
    shown: Arc<OnceLock<Weak<Pool>>>,
) {
    let pool = match Pool::start(&mount, &hidden) {
        Ok(pool) => Arc::new(pool),
        Err(error) => {
            let reason = format!("{}: {error}", mount.host.display());
            state.send_replace(State::Known(MountState::Failed(reason)));
            return;
        }
    };
    let _ = shown.set(Arc::downgrade(&pool));
    // The state of an earlier process, for this one before it has its own.
    let mut former = Some(Vec::new());
    loop {
        let Some(session) = next_link(&mut link, &mut wishes).await else { return };
        match converse(&mount, &session, &pool, &mut former, &mut wishes, &state).await {
            End::Lost => drop(state.send_replace(State::Known(MountState::Waiting))),
            End::Failed(reason) => {
                state.send_replace(State::Known(MountState::Failed(sanitize_text(&reason))));
                return;
            }
            End::Unmounted => return drop(state.send_replace(State::Gone)),
        }
        // The next session is another one.
        while link.borrow().is_some() {
            if link.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Waits for a session with the agent. Meanwhile there is nothing to drain or to unmount.
async fn next_link(
    link: &mut watch::Receiver<Option<Link>>,
    wishes: &mut mpsc::UnboundedReceiver<Wish>,
) -> Option<Link> {
    loop {
        tokio::select! {
            found = link.wait_for(Option::is_some) => return found.ok()?.clone(),
            wish = wishes.recv() => match wish? {
                Wish::Drain(drained) => {
                    let _ = drained.send(());
                }
                Wish::Continue => {}
                Wish::Verify(done) => {
                    let _ = done.send(());
                }
                Wish::Unmount(done) => {
                    let _ = done.send(Err("the guest's agent does not answer".into()));
                }
            },
        }
    }
}

/// Takes a part of an earlier process's state. The last one, which is empty, completes it.
async fn receive_state(former: &mut Option<Vec<u8>>, part: &[u8], pool: &Pool) {
    let Some(state) = former else { return };
    if !part.is_empty() && state.len() + part.len() <= MAX_MOUNT_STATE_BYTES {
        state.extend_from_slice(part);
        return;
    }
    if let Some(state) = former.take().filter(|_| part.is_empty()) {
        pool.restore(state).await;
    }
}

/// Splits a state into parts, of which the last is empty.
fn parts(mut state: Bytes) -> impl Iterator<Item = Bytes> {
    let mut has_ended = false;
    std::iter::from_fn(move || {
        let part = state.split_to(state.len().min(STATE_PART_BYTES));
        (!std::mem::replace(&mut has_ended, part.is_empty())).then_some(part)
    })
}

/// Requests the stream of a mount from the agent, and notes in the pool if it knows changes.
async fn request(mount: &Mount, link: &Link, pool: &Pool) -> Result<(Incoming, Outgoing), End> {
    if mount.notify {
        let requested = request_with(mount, link, true).await?;
        pool.set_heard(requested.is_some());
        if let Some(halves) = requested {
            return Ok(halves);
        }
    }
    let halves = request_with(mount, link, false).await?;
    halves.ok_or_else(|| {
        let reason = "the VM was started by an earlier castra, whose agent has no mounts";
        End::Failed(reason.to_owned())
    })
}

/// Requests the stream of a mount, with changes or without. `None` if the agent does not know that.
async fn request_with(
    mount: &Mount,
    link: &Link,
    sends_changes: bool,
) -> Result<Option<(Incoming, Outgoing)>, End> {
    let failed = |reason: &str| Err(End::Failed(reason.to_owned()));
    let (path, is_read_only) = (mount.guest.clone().into(), mount.read_only);
    let Ok(target) = (Target::Mount { path, is_read_only, sends_changes }).encode() else {
        return failed("its path in the guest is too long");
    };
    let (incoming, outgoing) = link.open(target).map_err(|_| End::Lost)?;
    let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    match incoming.next().await {
        Some(Message::Opened) => Ok(Some((incoming, outgoing))),
        Some(Message::Refused(Refusal::Malformed)) => Ok(None),
        Some(Message::Refused(_)) => failed("the guest's agent refuses"),
        _ => Err(End::Lost),
    }
}

/// Answers the requests of one session.
async fn converse(
    mount: &Mount,
    link: &Link,
    pool: &Pool,
    former: &mut Option<Vec<u8>>,
    wishes: &mut mpsc::UnboundedReceiver<Wish>,
    state: &watch::Sender<State>,
) -> End {
    let (mut incoming, outgoing) = match request(mount, link, pool).await {
        Ok(halves) => halves,
        Err(end) => return end,
    };
    let (answers, mut answered) = mpsc::unbounded_channel::<Answer>();
    let mut pending = Pending::default();
    let (orders, mut ordered) = mpsc::unbounded_channel::<MountMessage>();
    let repetition = Repetition::default();
    // One writer, since messages must not be interleaved.
    let send = async {
        loop {
            let (message, _permit) = tokio::select! {
                Some(order) = ordered.recv() => (order, None),
                Some(answer) = answered.recv() => match answer {
                    Answer::Notice(notice) => (MountMessage::Notice(notice.into()), None),
                    Answer::Reply(reply, permit) => {
                        (MountMessage::Reply(reply.into()), Some(permit))
                    }
                },
                else => return End::Lost,
            };
            if outgoing.send(message.encode()).await.is_err() {
                return End::Lost;
            }
            repetition.note_sent(&message);
        }
    };
    let receive = async {
        let mut decoder = MountDecoder::default();
        loop {
            let received = tokio::select! {
                received = incoming.next() => received,
                Some(wish) = wishes.recv() => {
                    let _ = orders.send(pending.begin(wish));
                    continue;
                }
            };
            let Some(Message::Data(data)) = received else { return End::Lost };
            decoder.push(&data);
            drop(data);
            loop {
                match decoder.next_message() {
                    Ok(None) => break,
                    Ok(Some(MountMessage::Request(request))) => {
                        pool.carry_out(request, Some(answers.clone())).await;
                    }
                    Ok(Some(MountMessage::Notice(request))) => pool.carry_out(request, None).await,
                    Ok(Some(MountMessage::State(part))) => {
                        receive_state(former, &part, pool).await;
                    }
                    Ok(Some(MountMessage::Mounted)) => {
                        if former.take().is_none() {
                            pool.forget();
                        }
                        state.send_replace(State::Known(MountState::Mounted));
                    }
                    Ok(Some(MountMessage::Resumed)) => {
                        *former = None;
                        finish(&mut pending.verifying, &());
                        state.send_replace(State::Known(MountState::Mounted));
                    }
                    Ok(Some(MountMessage::Drained)) => {
                        let state = Bytes::from(pool.save().await.unwrap_or_default());
                        for part in parts(state) {
                            let _ = orders.send(MountMessage::State(part));
                        }
                    }
                    Ok(Some(MountMessage::Kept)) => finish(&mut pending.draining, &()),
                    Ok(Some(MountMessage::Repeated)) => repetition.end(),
                    Ok(Some(MountMessage::Unmounted)) => {
                        finish(&mut pending.unmounting, &Ok(()));
                        return End::Unmounted;
                    }
                    Ok(Some(MountMessage::Failed(reason))) if pending.unmounting.is_empty() => {
                        return End::Failed(reason);
                    }
                    Ok(Some(MountMessage::Failed(reason))) => {
                        finish(&mut pending.unmounting, &Err(sanitize_text(&reason)));
                    }
                    Ok(Some(_)) | Err(_) => return End::Lost,
                }
            }
        }
    };
    tokio::select! {
        end = send => end,
        end = receive => end,
        never = changes::send(pool, &orders, &repetition) => match never {},
    }
}
