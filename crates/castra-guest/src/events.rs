//! Events from the agent's tasks to its main loop.

use castra_wire::{AgentTask, RootGrowth, Session, Stage, StageReached};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::settle::Rest;

/// An event.
#[derive(Debug)]
pub(crate) enum Event {
    /// A step towards [`Stage::Ready`] or one of the other stages, and its time (milliseconds since
    /// the kernel started).
    Reached(Milestone, u64),
    /// The guest is at rest.
    Settled(Rest),
    /// Everything is on the disk, as requested by the host of this session.
    Synced(Option<Session>),
    /// The root filesystem has grown, as requested by the host of this session, or has not.
    RootGrown(Option<Session>, RootGrowth),
    /// A task leaves something to the user.
    Noticed(AgentTask, String),
    /// A task failed, permanently or for now.
    Failed(AgentTask, String),
}

/// Steps of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Milestone {
    /// The root filesystem is mounted.
    RootMounted,
    /// The agent has moved into the real root.
    Root,
    /// The init has done what ordinary commands rely on.
    Usable,
    /// The network is configured.
    Network,
    /// The root filesystem has its final size, or takes too long to grow.
    Size,
    /// The SSH server listens.
    Ssh,
    /// Data disks that were ordered are mounted, as far as they can be.
    Disks,
    /// The guest's own last service is up.
    Services,
}

/// Sender of events, for the agent's tasks.
#[derive(Debug, Clone)]
pub(crate) struct EventSender(UnboundedSender<Event>);

impl EventSender {
    /// Returns a sender and its receiver.
    pub(crate) fn new() -> (Self, UnboundedReceiver<Event>) {
        let (sender, receiver) = unbounded_channel();
        (Self(sender), receiver)
    }

    /// Reports that a milestone has been reached now.
    pub(crate) fn reached(&self, milestone: Milestone) {
        self.send(Event::Reached(milestone, uptime_ms()));
    }

    /// Reports that the guest is at rest.
    pub(crate) fn settled(&self, rest: Rest) {
        self.send(Event::Settled(rest));
    }

    /// Reports that everything has been written to the disk, as requested by the host of this
    /// session.
    pub(crate) fn synced(&self, session: Option<Session>) {
        self.send(Event::Synced(session));
    }

    /// Reports the growth of the root filesystem, as requested by the host of this session.
    pub(crate) fn root_grown(&self, session: Option<Session>, growth: RootGrowth) {
        self.send(Event::RootGrown(session, growth));
    }

    /// Reports what a task leaves to the user.
    pub(crate) fn noticed(&self, task: AgentTask, text: String) {
        self.send(Event::Noticed(task, text));
    }

    /// Reports that a task failed.
    pub(crate) fn failed(&self, task: AgentTask, reason: impl ToString) {
        self.send(Event::Failed(task, reason.to_string()));
    }

    fn send(&self, event: Event) {
        // The main loop lives as long as the process.
        let _ = self.0.send(event);
    }
}

/// Returns a stage, reached now.
pub(crate) fn reached_now(stage: Stage) -> StageReached {
    StageReached { stage, uptime_ms: uptime_ms() }
}

/// Returns the time since the kernel started, in milliseconds.
pub(crate) fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let milliseconds = i128::from(now.tv_sec) * 1000 + i128::from(now.tv_nsec) / 1_000_000;
    u64::try_from(milliseconds).unwrap_or_default()
}
