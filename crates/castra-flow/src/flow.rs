use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use russh::ChannelId;
use tokio::sync::watch;

use crate::{KEPT_LIMIT_BYTES, QUEUE_LIMIT_BYTES, SERVER_WINDOW_BYTES};

/// Overhead added to the payload of each message, in bytes, so that a flood of tiny messages is
/// held back too.
const MESSAGE_OVERHEAD_BYTES: i64 = 64;

/// Bytes that `russh` grants at a time past the limit. It asks again once these have arrived; with
/// a smaller grant it would not ask.
const TRICKLE_BYTES: u32 = 2;

/// Queue length from which a peer must have used up its window and trickles: the limit plus the
/// window.
const TRICKLE_FROM_BYTES: i64 = QUEUE_LIMIT_BYTES + SERVER_WINDOW_BYTES as i64;

/// State of one connection's pacing, shared by its stream and its channels.
#[derive(Clone)]
pub struct Flow {
    state: Arc<Mutex<State>>,
    /// Number of buffered bytes that the socket has not taken yet.
    kept: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    /// Set if the peer's window bounds how much it can send before we consume it.
    bounded: bool,
    /// Bytes that have arrived and not been consumed, per channel that has a receiver. Briefly
    /// negative when a consumer is quicker than the count.
    queued: HashMap<ChannelId, i64>,
    /// Sum over all channels.
    total: i64,
    /// Number of senders that wait for the peer's window.
    starved: usize,
    /// Number of senders that wait for the session loop, which is in a key exchange.
    stalled: usize,
    aborted: bool,
    session: Option<Waker>,
}

/// Pace at which [`Paced`](crate::Paced) may read now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Read everything.
    Freely,
    /// Read a little at a time: the data fills memory, but what a sender waits for may be behind
    /// it.
    Slowly,
    /// Read nothing until our side has consumed what has arrived.
    Stopped,
    /// Never read again.
    Aborted,
}

impl Flow {
    /// Returns the flow of a server's new connection, whose client has a window of
    /// [`SERVER_WINDOW_BYTES`].
    pub fn of_server() -> Self {
        Self::new(true)
    }

    /// Returns the flow of a client's new connection, whose server has a window of
    /// [`crate::CLIENT_WINDOW_BYTES`].
    pub fn of_client() -> Self {
        Self::new(false)
    }

    fn new(bounded: bool) -> Self {
        let state = State { bounded, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), kept: watch::Sender::new(0) }
    }

    /// Counts `bytes` that have arrived on a channel. To be called from the handler's `data` and
    /// `extended_data`.
    pub fn arrived(&self, channel: ChannelId, bytes: usize) {
        self.state().count(channel, weight(bytes));
    }

    /// Ends the connection from outside: its next read fails.
    pub fn abort(&self) {
        let mut state = self.state();
        state.aborted = true;
        state.wake();
    }

    /// Returns `true` while reading is stopped because our side has not consumed what arrived. The
    /// peer's silence means nothing then.
    pub fn is_reading_stopped(&self) -> bool {
        self.reading() == Reading::Stopped
    }

    /// Returns the server's window from now on, for the handler's `adjust_window`.
    pub fn window_to_grant(&self) -> u32 {
        if self.state().is_over() { TRICKLE_BYTES } else { SERVER_WINDOW_BYTES }
    }

    /// Waits until the socket has taken enough of what was sent before.
    pub(crate) async fn room_to_send(&self) {
        // An error would mean that this flow is gone, and it is not.
        let _ = self.kept.subscribe().wait_for(|kept| *kept < KEPT_LIMIT_BYTES).await;
    }

    /// Sets the number of bytes that are buffered for the socket.
    pub(crate) fn keeps(&self, bytes: usize) {
        self.kept.send_if_modified(|kept| std::mem::replace(kept, bytes) != bytes);
    }

    /// Starts counting the channel's data, which has a receiver from now on.
    pub(crate) fn listen(&self, channel: ChannelId) {
        self.state().queued.insert(channel, 0);
    }

    /// Stops counting the channel's data: it has no receiver any more, so `russh` drops it.
    pub(crate) fn forget(&self, channel: ChannelId) {
        let mut state = self.state();
        let before = state.reading();
        state.total -= state.queued.remove(&channel).unwrap_or(0);
        state.wake_unless(before);
    }

    pub(crate) fn consumed(&self, channel: ChannelId, bytes: usize) {
        let mut state = self.state();
        let before = state.reading();
        state.count(channel, -weight(bytes));
        state.wake_unless(before);
    }

    /// Marks a sender as waiting for the peer's window while the guard lives.
    pub(crate) fn starved(&self) -> Waiting {
        self.waiting(|state| &mut state.starved)
    }

    /// Marks a sender as waiting for the session loop while the guard lives.
    pub(crate) fn stalled(&self) -> Waiting {
        self.waiting(|state| &mut state.stalled)
    }

    fn reading(&self) -> Reading {
        self.state().reading()
    }

    /// Returns the pace at which to read now; the task is woken when that changes.
    pub(crate) fn poll_reading(&self, context: &Context<'_>) -> Reading {
        let mut state = self.state();
        match &mut state.session {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        state.reading()
    }

    fn waiting(&self, counter: fn(&mut State) -> &mut usize) -> Waiting {
        let mut state = self.state();
        let before = state.reading();
        *counter(&mut state) += 1;
        state.wake_unless(before);
        Waiting { flow: self.clone(), counter }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, channel: ChannelId, bytes: i64) {
        if let Some(queued) = self.queued.get_mut(&channel) {
            *queued += bytes;
            self.total += bytes;
        }
    }

    fn is_over(&self) -> bool {
        self.total > QUEUE_LIMIT_BYTES
    }

    fn reading(&self) -> Reading {
        match self {
            Self { aborted: true, .. } => Reading::Aborted,
            _ if !self.is_over() => Reading::Freely,
            // A grant to a client comes as soon as its server reads, and that never depends on the
            // client's reading.
            Self { stalled: 0, .. } if self.starved == 0 || !self.bounded => Reading::Stopped,
            Self { total, .. } if *total > TRICKLE_FROM_BYTES => Reading::Slowly,
            _ => Reading::Freely,
        }
    }

    fn wake_unless(&mut self, before: Reading) {
        if self.reading() != before {
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.session.take() {
            waker.wake();
        }
    }
}

/// Guard of a sender that waits; dropped when the wait is over.
pub struct Waiting {
    flow: Flow,
    counter: fn(&mut State) -> &mut usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        let before = state.reading();
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

    fn channel() -> ChannelId {
        // The type can only be read off the wire.
        russh::keys::ssh_encoding::Decode::decode(&mut &[0, 0, 0, 7][..]).expect("is an id")
    }

    /// Returns a flow with one more unconsumed byte than `bytes`.
    fn flow(bytes: i64) -> Flow {
        let flow = Flow::of_server();
        flow.listen(channel());
        flow.arrived(channel(), usize::try_from(bytes + 1).expect("fits"));
        flow
    }

    #[test]
    fn below_the_limit_everything_moves() {
        let flow = flow(1000);
        let _starved = flow.starved();
        assert_eq!(flow.reading(), Reading::Freely);
        assert_eq!(flow.window_to_grant(), SERVER_WINDOW_BYTES);
    }

    #[test]
    fn past_the_limit_reading_stops_until_enough_is_consumed() {
        let flow = flow(QUEUE_LIMIT_BYTES);
        assert_eq!(flow.reading(), Reading::Stopped);
        assert!(flow.is_reading_stopped());
        assert_eq!(flow.window_to_grant(), TRICKLE_BYTES);
        flow.consumed(channel(), usize::try_from(QUEUE_LIMIT_BYTES + 1).expect("fits"));
        assert_eq!(flow.reading(), Reading::Freely);
    }

    #[test]
    fn who_waits_for_the_peer_reads_on_and_slowly_in_the_end() {
        let flow = flow(QUEUE_LIMIT_BYTES);
        for wait in [Flow::starved, Flow::stalled] {
            let waiting = wait(&flow);
            assert_eq!(flow.reading(), Reading::Freely);
            drop(waiting);
            assert_eq!(flow.reading(), Reading::Stopped);
        }
        let _starved = flow.starved();
        flow.arrived(channel(), SERVER_WINDOW_BYTES as usize);
        assert_eq!(flow.reading(), Reading::Slowly);
    }

    #[test]
    fn a_client_that_waits_for_a_grant_reads_no_further() {
        let flow = Flow::of_client();
        flow.listen(channel());
        flow.arrived(channel(), usize::try_from(QUEUE_LIMIT_BYTES + 1).expect("fits"));
        let _starved = flow.starved();
        assert_eq!(flow.reading(), Reading::Stopped);
        let _stalled = flow.stalled();
        assert_eq!(flow.reading(), Reading::Freely);
    }

    #[test]
    fn a_channel_that_is_gone_holds_nothing_back() {
        let flow = flow(QUEUE_LIMIT_BYTES);
        flow.forget(channel());
        assert_eq!(flow.reading(), Reading::Freely);
        flow.arrived(channel(), 2 * SERVER_WINDOW_BYTES as usize);
        flow.consumed(channel(), 1);
        assert_eq!(flow.reading(), Reading::Freely, "what is not taken does not count");
    }

    #[tokio::test]
    async fn senders_wait_for_the_socket() {
        let flow = Flow::of_server();
        flow.room_to_send().await;
        flow.keeps(KEPT_LIMIT_BYTES);
        let waits =
            tokio::time::timeout(std::time::Duration::from_millis(20), flow.room_to_send()).await;
        assert!(waits.is_err());
        flow.keeps(KEPT_LIMIT_BYTES - 1);
        flow.room_to_send().await;
    }
}
