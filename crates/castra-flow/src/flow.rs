use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use russh::ChannelId;

use crate::QUEUE_LIMIT_BYTES;

/// Counted beside the payload of each message, so that a flood of tiny ones is held back too.
const MESSAGE_OVERHEAD_BYTES: i64 = 64;

/// The state of one connection's pacing, shared by its stream and its channels.
#[derive(Clone, Default)]
pub struct Flow(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Bytes arrived and not consumed, per channel that somebody listens to. Below zero for a moment when a consumer is
    /// quicker than the count.
    queued: HashMap<ChannelId, i64>,
    /// Their sum.
    total: i64,
    /// Senders that wait for the peer's window.
    starved: usize,
    /// Senders that wait for something else: in practice, for the end of a key exchange.
    stalled: usize,
    aborted: bool,
    session: Option<Waker>,
}

/// What [`Paced`](crate::Paced) may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permits {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) aborted: bool,
}

impl Flow {
    /// The flow of a new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Data of this many bytes has arrived on a channel: call it from the handler's `data` and `extended_data`.
    pub fn arrived(&self, channel: ChannelId, bytes: usize) {
        self.state().count(channel, weight(bytes));
    }

    /// Ends the connection from outside: its next read fails.
    pub fn abort(&self) {
        let mut state = self.state();
        state.aborted = true;
        state.wake();
    }

    /// Whether reading is stopped because our side has not consumed what came. A peer's silence means nothing then.
    pub fn is_reading_stopped(&self) -> bool {
        !self.state().permits().read
    }

    /// From now on the channel's data counts, because somebody takes it.
    pub(crate) fn listen(&self, channel: ChannelId) {
        self.state().queued.insert(channel, 0);
    }

    /// Nobody takes the channel's data any more: `russh` will drop it.
    pub(crate) fn forget(&self, channel: ChannelId) {
        let mut state = self.state();
        let before = state.permits();
        state.total -= state.queued.remove(&channel).unwrap_or(0);
        state.wake_unless(before);
    }

    pub(crate) fn consumed(&self, channel: ChannelId, bytes: usize) {
        let mut state = self.state();
        let before = state.permits();
        state.count(channel, -weight(bytes));
        state.wake_unless(before);
    }

    /// A sender waits for the peer's window as long as the guard lives.
    pub(crate) fn starved(&self) -> Waiting {
        self.waiting(|state| &mut state.starved)
    }

    /// A sender waits, and not for the window, as long as the guard lives.
    pub(crate) fn stalled(&self) -> Waiting {
        self.waiting(|state| &mut state.stalled)
    }

    pub(crate) fn permits(&self) -> Permits {
        self.state().permits()
    }

    /// Like [`Self::permits`], and the task is woken when they change.
    pub(crate) fn poll_permits(&self, context: &Context<'_>) -> Permits {
        let mut state = self.state();
        match &mut state.session {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        state.permits()
    }

    fn waiting(&self, counter: fn(&mut State) -> &mut usize) -> Waiting {
        let mut state = self.state();
        let before = state.permits();
        *counter(&mut state) += 1;
        state.wake_unless(before);
        Waiting { flow: self.clone(), counter }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, channel: ChannelId, bytes: i64) {
        if let Some(queued) = self.queued.get_mut(&channel) {
            *queued += bytes;
            self.total += bytes;
        }
    }

    fn permits(&self) -> Permits {
        let over = self.total > QUEUE_LIMIT_BYTES;
        Permits {
            read: !over || self.starved > 0 || self.stalled > 0,
            write: !over || self.starved == 0,
            aborted: self.aborted,
        }
    }

    fn wake_unless(&mut self, before: Permits) {
        if self.permits() != before {
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.session.take() {
            waker.wake();
        }
    }
}

/// A sender that waits; dropped when it goes on.
pub struct Waiting {
    flow: Flow,
    counter: fn(&mut State) -> &mut usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        let before = state.permits();
        *(self.counter)(&mut state) -= 1;
        state.wake_unless(before);
    }
}

fn weight(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX / 2).saturating_add(MESSAGE_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Permits = Permits { read: true, write: true, aborted: false };

    /// More than may be queued.
    fn too_much() -> usize {
        usize::try_from(QUEUE_LIMIT_BYTES).expect("fits") + 1
    }

    fn channel() -> ChannelId {
        // The type can only be read off the wire.
        russh::keys::ssh_encoding::Decode::decode(&mut &[0, 0, 0, 7][..]).expect("is an id")
    }

    fn flow() -> Flow {
        let flow = Flow::new();
        flow.listen(channel());
        flow
    }

    #[test]
    fn below_the_limit_everything_moves() {
        let flow = flow();
        flow.arrived(channel(), 1000);
        let _starved = flow.starved();
        assert_eq!(flow.permits(), FREE);
    }

    #[test]
    fn past_the_limit_reading_stops_until_enough_is_consumed() {
        let flow = flow();
        flow.arrived(channel(), too_much());
        assert_eq!(flow.permits(), Permits { read: false, ..FREE });
        assert!(flow.is_reading_stopped());
        flow.consumed(channel(), too_much());
        assert_eq!(flow.permits(), FREE);
    }

    #[test]
    fn a_starved_sender_turns_reading_on_and_writing_off() {
        let flow = flow();
        flow.arrived(channel(), too_much());
        let starved = flow.starved();
        assert_eq!(flow.permits(), Permits { write: false, ..FREE });
        drop(starved);
        assert_eq!(flow.permits(), Permits { read: false, ..FREE });
    }

    #[test]
    fn a_stalled_sender_turns_reading_on() {
        let flow = flow();
        flow.arrived(channel(), too_much());
        let _stalled = flow.stalled();
        assert_eq!(flow.permits(), FREE);
    }

    #[test]
    fn a_channel_that_is_gone_holds_nothing_back() {
        let flow = flow();
        flow.arrived(channel(), too_much());
        flow.forget(channel());
        assert_eq!(flow.permits(), FREE);
        flow.arrived(channel(), too_much());
        flow.consumed(channel(), 1);
        assert_eq!(flow.permits(), FREE, "what nobody takes does not count");
    }
}
