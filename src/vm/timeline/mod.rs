//! Timeline of a start: its phases, and when each began and ended.
//!
//! ```text
//! boot       image  [accelerator] [template] overlay  qemu  kernel  initramfs  root  agent │ services
//! template   image  [accelerator]  template  overlay  qemu  load    personality            │
//! suspended  image                           overlay  qemu  load    personality            │
//!            └────────────── castra ───────────────┘                                       └ commands can run
//! ```
//!
//! Each phase begins where the one before it ends. What the guest goes through is told by its agent in the guest's own time,
//! and put into the host's by [`Stopwatch`].

mod stopwatch;
mod store;

use serde::{Deserialize, Serialize};

use crate::qemu::Accelerator;

use super::record::{BaseKind, StartKind};

pub(super) use stopwatch::Stopwatch;
pub(super) use store::{find, save, save_if_new, timelines};

/// What a start is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The base image is found, fetched or made.
    Image,
    /// How the CPU is to be run is found out; left out where it was known.
    Accelerator,
    /// The warm template is found, or made by a boot of its own.
    Template,
    /// The VM's disk is made or looked at, its keys and its initramfs.
    Overlay,
    /// An attempt that came to nothing, before the one that the other phases tell of.
    Attempt,
    /// QEMU starts, until it answers on its machine protocol.
    Qemu,
    /// Firmware and kernel, until the agent runs as the first process.
    Kernel,
    /// The image's initramfs looks for the disk, until that is mounted as root.
    Initramfs,
    /// The initramfs hands over to the root filesystem's own init.
    Root,
    /// The agent brings up network and SSH, and takes the VM's keys, until commands can run.
    Agent,
    /// The guest's own services start, beside whatever is done in the VM by then.
    Services,
    /// QEMU loads the saved machine.
    Load,
    /// The guest gets its clock, its name and its keys.
    Personality,
}

impl Phase {
    /// All of them, in the order in which they come.
    pub const ALL: [Self; 13] = [
        Self::Image,
        Self::Accelerator,
        Self::Template,
        Self::Overlay,
        Self::Attempt,
        Self::Qemu,
        Self::Kernel,
        Self::Initramfs,
        Self::Root,
        Self::Agent,
        Self::Services,
        Self::Load,
        Self::Personality,
    ];

    /// Its name in events, files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Accelerator => "accelerator",
            Self::Template => "template",
            Self::Overlay => "overlay",
            Self::Attempt => "attempt",
            Self::Qemu => "qemu",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Root => "root",
            Self::Agent => "agent",
            Self::Services => "services",
            Self::Load => "load",
            Self::Personality => "personality",
        }
    }

    /// The phase of the guest's that follows.
    pub(super) fn next(self) -> Option<Self> {
        match self {
            Self::Kernel => Some(Self::Initramfs),
            Self::Initramfs => Some(Self::Root),
            Self::Root => Some(Self::Agent),
            Self::Agent => Some(Self::Services),
            _ => None,
        }
    }
}

/// When a phase began and ended, in milliseconds since the start began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSpan {
    /// The phase.
    pub phase: Phase,
    /// Its beginning.
    pub start_ms: u64,
    /// Its end; nothing if nobody has learnt of it.
    pub end_ms: Option<u64>,
}

impl PhaseSpan {
    /// How long it took.
    pub fn took_ms(&self) -> Option<u64> {
        self.end_ms.map(|end| end.saturating_sub(self.start_ms))
    }
}

/// What a start came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum StartResult {
    /// Commands can run; without an agent, QEMU runs.
    Ready,
    /// QEMU runs, and nobody has waited for the guest.
    Started,
    /// It failed.
    Failed {
        /// What went wrong, in one line.
        reason: String,
    },
}

/// One start of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// When it began, milliseconds since the Unix epoch.
    pub started_unix_ms: u64,
    /// When QEMU was started, by which the VM's record knows it.
    pub qemu_unix_ms: u64,
    /// What it went on from.
    pub kind: StartKind,
    /// How the CPU is run.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// What its disk stands on.
    pub base: BaseKind,
    /// Version of the castra that started it.
    pub castra_version: String,
    /// What it came to.
    #[serde(flatten)]
    pub result: StartResult,
    /// Its phases, in order.
    pub phases: Vec<PhaseSpan>,
}

impl Timeline {
    /// A phase, if it went through that.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseSpan> {
        self.phases.iter().find(|span| span.phase == phase)
    }

    /// Milliseconds from its beginning until commands could run; for a start that failed nothing.
    pub fn ready_ms(&self) -> Option<u64> {
        if self.result != StartResult::Ready {
            return None;
        }
        self.phases.iter().filter(|span| span.phase != Phase::Services).filter_map(|span| span.end_ms).max()
    }

    /// Milliseconds from its beginning until the last thing that is known of it.
    pub fn length_ms(&self) -> u64 {
        self.phases.iter().map(|span| span.end_ms.unwrap_or(span.start_ms)).max().unwrap_or(0)
    }

    /// Whether starts of this sort are alike, so that one tells what to expect of the other.
    pub(super) fn is_like(&self, kind: StartKind, accelerator: Accelerator) -> bool {
        self.kind == kind && self.accelerator == accelerator
    }
}

/// What is usual for a phase: the median of starts of the same sort that went well.
pub(super) fn usual_ms(
    kept: &[Timeline],
    phase: Phase,
    kind: StartKind,
    accelerator: Accelerator,
) -> Option<u64> {
    let good = kept.iter().filter(|timeline| timeline.result == StartResult::Ready);
    let alike = good.filter(|timeline| timeline.is_like(kind, accelerator));
    let mut took: Vec<u64> = alike.filter_map(|timeline| timeline.phase(phase)?.took_ms()).collect();
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::report::ImageLabel;

    use super::*;

    /// A boot whose phases end at these times.
    pub(crate) fn boot(started_unix_ms: u64, ends: &[(Phase, u64)]) -> Timeline {
        let mut start_ms = 0;
        let span = |&(phase, end): &(Phase, u64)| PhaseSpan {
            phase,
            start_ms: std::mem::replace(&mut start_ms, end),
            end_ms: Some(end),
        };
        Timeline {
            phases: ends.iter().map(span).collect(),
            started_unix_ms,
            qemu_unix_ms: started_unix_ms + 10,
            kind: StartKind::Boot,
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 1024,
            base: BaseKind::Managed(ImageLabel { id: "alpine-minimal".into(), version: "v1".into() }),
            castra_version: "0.1.0".into(),
            result: StartResult::Ready,
        }
    }

    #[test]
    fn usual_is_the_median_of_what_is_alike_and_went_well() {
        let mut kept: Vec<Timeline> =
            [30, 10, 20].iter().map(|end| boot(1, &[(Phase::Kernel, *end)])).collect();
        let usual = |kept: &[Timeline], kind| usual_ms(kept, Phase::Kernel, kind, Accelerator::Tcg);
        assert_eq!(usual(&kept, StartKind::Boot), Some(20));
        assert_eq!(usual(&kept, StartKind::Template), None);
        kept[0].result = StartResult::Failed { reason: "x".into() };
        kept[2].accelerator = Accelerator::Kvm;
        assert_eq!(usual(&kept, StartKind::Boot), Some(10));
    }

    #[test]
    fn services_do_not_count_as_ready_and_a_failure_never_is() {
        let mut timeline = boot(1, &[(Phase::Qemu, 100), (Phase::Agent, 900), (Phase::Services, 2000)]);
        assert_eq!((timeline.ready_ms(), timeline.length_ms()), (Some(900), 2000));
        timeline.result = StartResult::Failed { reason: "x".into() };
        assert_eq!(timeline.ready_ms(), None);
    }

    #[test]
    fn the_name_of_a_phase_is_that_in_the_files() {
        for phase in Phase::ALL {
            assert_eq!(serde_json::to_value(phase).expect("is text"), phase.name());
        }
    }
}
