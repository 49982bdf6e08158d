//! Output of a kept program: the last of it is kept, and each stream that follows takes it at its
//! own place. A program that writes faster than the slowest of them reads waits; without any, the
//! oldest output is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use castra_flow::Outgoing;
use tokio::sync::Notify;

use super::exec::report;
use super::pump::{Output, Sink};
use super::spawn::Ended;

/// Output that is kept, in bytes. A stream may be so far behind.
const KEPT_BYTES: u64 = 256 * 1024;

/// Output of one program.
#[derive(Default)]
pub(super) struct Feed {
    state: Mutex<State>,
    /// Signals that there is more to take.
    more: Notify,
    /// Signals that there may be room.
    room: Notify,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Piece>,
    /// Bytes of all output until now.
    total: u64,
    /// Places of the streams that follow, by their numbers.
    places: BTreeMap<u64, u64>,
    next: u64,
    /// End of the program; the inner one is missing if the kernel did not say.
    end: Option<Option<Ended>>,
}

struct Piece {
    /// Bytes of all output before it.
    start: u64,
    kind: Output,
    bytes: Bytes,
}

/// Next thing for a stream.
enum Next {
    Piece(Output, Bytes),
    End(Option<Ended>),
    Wait,
}

impl Feed {
    /// Sends the pid and the place, then the output from there, or from now on, and the end.
    /// Returns once that is sent, or the stream has ended.
    pub(super) async fn send(&self, pid: u32, from: Option<u64>, outgoing: &Outgoing) {
        let follower = Follower::of(self, from);
        let mut first = BytesMut::from(&pid.to_be_bytes()[..]);
        first.extend_from_slice(&follower.place().to_be_bytes());
        if outgoing.send(first.freeze()).await.is_err() {
            return;
        }
        loop {
            let more = self.more.notified();
            match follower.next() {
                Next::Piece(kind, bytes) => {
                    let length = bytes.len() as u64;
                    if !outgoing.take(kind, bytes).await {
                        return;
                    }
                    follower.advance(length);
                }
                Next::End(ended) => {
                    if let Some(ended) = ended {
                        report(ended, outgoing).await;
                    }
                    return;
                }
                Next::Wait => more.await,
            }
        }
    }

    /// Notes the end of the program, behind all of its output.
    pub(super) fn end(&self, ended: Option<Ended>) {
        self.lock().end = Some(ended);
        self.more.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Feed {
    async fn take(&self, kind: Output, bytes: Bytes) -> bool {
        loop {
            let room = self.room.notified();
            if self.lock().put(kind, &bytes) {
                self.more.notify_waiters();
                return true;
            }
            room.await;
        }
    }
}

impl State {
    /// Keeps a piece, unless a stream is too far behind. Returns `false` then.
    fn put(&mut self, kind: Output, bytes: &Bytes) -> bool {
        let behind = self.places.values().map(|place| self.total - place).max().unwrap_or(0);
        if behind > 0 && behind + bytes.len() as u64 > KEPT_BYTES {
            return false;
        }
        self.pieces.push_back(Piece { start: self.total, kind, bytes: bytes.clone() });
        self.total += bytes.len() as u64;
        while self.pieces.front().is_some_and(|oldest| self.total - oldest.start > KEPT_BYTES)
            && self.pieces.len() > 1
        {
            self.pieces.pop_front();
        }
        true
    }
}

/// A stream that follows. Its place no longer counts once it is dropped.
struct Follower<'a> {
    feed: &'a Feed,
    number: u64,
}

impl<'a> Follower<'a> {
    fn of(feed: &'a Feed, from: Option<u64>) -> Self {
        let mut state = feed.lock();
        let oldest = state.pieces.front().map_or(state.total, |piece| piece.start);
        let place = from.unwrap_or(state.total).clamp(oldest, state.total);
        let number = state.next;
        state.next += 1;
        state.places.insert(number, place);
        drop(state);
        Self { feed, number }
    }

    fn place(&self) -> u64 {
        self.feed.lock().places.get(&self.number).copied().unwrap_or(0)
    }

    fn next(&self) -> Next {
        let place = self.place();
        let state = self.feed.lock();
        let piece =
            state.pieces.iter().find(|piece| piece.start + piece.bytes.len() as u64 > place);
        match (piece, state.end) {
            (Some(piece), _) => {
                let skipped = usize::try_from(place.saturating_sub(piece.start)).unwrap_or(0);
                Next::Piece(piece.kind, piece.bytes.slice(skipped..))
            }
            (None, Some(ended)) => Next::End(ended),
            (None, None) => Next::Wait,
        }
    }

    fn advance(&self, bytes: u64) {
        if let Some(place) = self.feed.lock().places.get_mut(&self.number) {
            *place += bytes;
        }
        self.feed.room.notify_waiters();
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.feed.lock().places.remove(&self.number);
        self.feed.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(follower: &Follower<'_>) -> String {
        let mut all = String::new();
        while let Next::Piece(_, bytes) = follower.next() {
            all.push_str(std::str::from_utf8(&bytes).expect("is text"));
            follower.advance(bytes.len() as u64);
        }
        all
    }

    fn put(feed: &Feed, text: &'static str) -> bool {
        feed.lock().put(Output::Stdout, &Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn each_stream_takes_the_output_from_its_own_place() {
        let feed = Feed::default();
        assert!(put(&feed, "one") && put(&feed, "two"));
        let (first, late, inside) =
            (Follower::of(&feed, Some(0)), Follower::of(&feed, None), Follower::of(&feed, Some(4)));
        assert!(put(&feed, "three"));
        assert_eq!((late.place(), inside.place()), (6, 4));
        assert_eq!(text(&first), "onetwothree");
        assert_eq!(text(&late), "three");
        assert_eq!(text(&inside), "wothree");
        feed.end(Some(Ended::Status(3)));
        assert!(matches!(first.next(), Next::End(Some(Ended::Status(3)))));
        // One that is said to have more than there is begins at the end.
        assert_eq!(Follower::of(&feed, Some(u64::MAX)).place(), 11);
    }

    #[test]
    fn a_slow_stream_holds_up_the_program_until_it_goes() {
        let feed = Feed::default();
        let piece = Bytes::from(vec![b'x'; 100_000]);
        let put = || feed.lock().put(Output::Stderr, &piece);
        // Without a stream, the oldest goes.
        for _ in 0..10 {
            assert!(put());
        }
        assert!(feed.lock().pieces.len() <= 3);
        let slow = Follower::of(&feed, None);
        assert!(put() && put() && !put());
        drop(slow);
        assert!(put());
    }
}
