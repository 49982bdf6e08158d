//! Changes of the host on their way to the guest's programs that watch files.

use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use castra_wire::{Change, ChangeKind, Changes, MountMessage};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::pool::Pool;

/// Time in which changes are collected: an editor makes several at once, and the guest's own are
/// known by then.
const SETTLE: Duration = Duration::from_millis(30);

// The requests of the guest's nudger are those without effect, and its messages are not too long.
const _: () = assert!(castra_fuse::NUDGER == castra_wire::NUDGER_UID);
const _: () = assert!(castra_fuse::MAX_CHANGES < castra_wire::MAX_CHANGES);

/// Repetition of changes by the agent.
#[derive(Debug, Default)]
pub(super) struct Repetition {
    is_under_way: AtomicBool,
    done: Notify,
}

impl Repetition {
    /// Notes that a message is sent.
    pub(super) fn note_sent(&self, message: &MountMessage) {
        if matches!(message, MountMessage::Changes(_)) {
            self.is_under_way.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that the agent has repeated changes. At another time, that is no reason for more.
    pub(super) fn end(&self) {
        if self.is_under_way.swap(false, Ordering::Relaxed) {
            self.done.notify_one();
        }
    }
}

/// Sends changes to the agent, one message at a time: the kernel keeps a bounded number of those
/// that are not sent yet.
pub(super) async fn send(
    pool: &Pool,
    orders: &mpsc::UnboundedSender<MountMessage>,
    repetition: &Repetition,
) -> Infallible {
    let Some(watched) = pool.watched() else { return pending().await };
    loop {
        match watched.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return pending().await,
        }
        sleep(SETTLE).await;
        loop {
            let Some(changes) = pool.changes().await else { return pending().await };
            let (has_more, is_empty) = (changes.has_more, changes.changes.is_empty());
            if !is_empty {
                let _ = orders.send(MountMessage::Changes(encoded(changes)));
                repetition.done.notified().await;
            }
            if !has_more {
                break;
            }
            if is_empty {
                // A file that the guest is writing.
                sleep(SETTLE).await;
            }
        }
    }
}

fn encoded(changes: castra_fuse::Changes) -> bytes::Bytes {
    let group = changes.group;
    let changes = changes.changes.into_iter().map(|change| {
        let castra_fuse::Change { directory, name, kind } = change;
        Change { directory, name, kind: in_wire(kind) }
    });
    Changes { group, changes: changes.collect() }.encode()
}

fn in_wire(kind: castra_fuse::ChangeKind) -> ChangeKind {
    use castra_fuse::ChangeKind as Kind;
    match kind {
        Kind::File { is_written, is_executable } => ChangeKind::File { is_written, is_executable },
        Kind::Directory => ChangeKind::Directory,
        Kind::Link => ChangeKind::Link,
        Kind::Fifo => ChangeKind::Fifo,
        Kind::Socket => ChangeKind::Socket,
        Kind::Contents { is_executable } => ChangeKind::Contents { is_executable },
        Kind::Attributes { is_file } => ChangeKind::Attributes { is_file },
        Kind::Removed => ChangeKind::Removed,
        Kind::RemovedDirectory => ChangeKind::RemovedDirectory,
        Kind::Moved { directory, name } => ChangeKind::Moved { directory, name },
    }
}
