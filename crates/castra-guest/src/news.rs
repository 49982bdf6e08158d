//! What the duties tell the conductor.

use castra_wire::{Errand, Session, Stage, StageReached};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Something happened.
#[derive(Debug)]
pub(crate) enum News {
    /// A step towards [`Stage::Ready`] or one of the other stages, and when (milliseconds since the kernel started).
    Reached(Milestone, u64),
    /// The guest is at rest. Whether the image's sshd was stopped for it.
    Settled(bool),
    /// Everything is on the disk, as the host of this session asked.
    Synced(Option<Session>),
    /// A duty failed, for good or for now.
    Failed(Errand, String),
}

/// The steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// The root filesystem is mounted.
    RootMounted,
    /// The agent has moved into the real root.
    Root,
    /// The network is configured.
    Network,
    /// The root filesystem has its size, or takes too long to get it.
    Size,
    /// The SSH server listens.
    Ssh,
    /// The guest's own last service is up.
    Services,
}

/// Where duties tell their news.
#[derive(Debug, Clone)]
pub(crate) struct Newsroom(UnboundedSender<News>);

impl Newsroom {
    /// A newsroom and the end at which its news come out.
    pub(crate) fn new() -> (Self, UnboundedReceiver<News>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    /// A milestone has been reached now.
    pub(crate) fn reached(&self, milestone: Milestone) {
        self.tell(News::Reached(milestone, uptime_ms()));
    }

    /// The guest has come to rest.
    pub(crate) fn settled(&self, had_sshd: bool) {
        self.tell(News::Settled(had_sshd));
    }

    /// Everything has been written to the disk, as the host of this session asked.
    pub(crate) fn synced(&self, session: Option<Session>) {
        self.tell(News::Synced(session));
    }

    /// A duty failed.
    pub(crate) fn failed(&self, errand: Errand, reason: impl ToString) {
        self.tell(News::Failed(errand, reason.to_string()));
    }

    fn tell(&self, news: News) {
        // The conductor lives as long as the process; without it nobody is left to listen.
        let _ = self.0.send(news);
    }
}

/// This stage, reached now.
pub(crate) fn reached_now(stage: Stage) -> StageReached {
    StageReached { stage, uptime_ms: uptime_ms() }
}

/// Milliseconds since the kernel started.
pub(crate) fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let milliseconds = i128::from(now.tv_sec) * 1000 + i128::from(now.tv_nsec) / 1_000_000;
    u64::try_from(milliseconds).unwrap_or_default()
}
