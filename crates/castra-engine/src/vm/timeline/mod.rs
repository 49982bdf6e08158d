//! Timeline of a start: its phases, with their beginnings and ends.
//!
//! ```text
//! boot      image [accelerator] [template] overlay  qemu  kernel  initramfs  root agent │ services
//! template  image [accelerator]  template  overlay  qemu  load    personality           │
//! suspended image                          overlay  qemu  load    personality           │
//!           └────────────── castra ──────────────┘                     commands can run ┘
//! ```
//!
//! Each phase begins where the one before it ends. The agent reports the guest's phases in the
//! guest's own time, which [`Stopwatch`] converts into the host's.

mod stopwatch;
mod store;

use serde::{Deserialize, Serialize};

use crate::qemu::Accelerator;

use super::record::{BaseKind, StartKind};

pub(super) use stopwatch::Stopwatch;
pub(super) use store::{find, save, save_if_new, timelines};

/// Phase of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The base image is found, fetched or made.
    Image,
    /// The accelerator is chosen; left out if the choice was known.
    Accelerator,
    /// The layers of its steps and the warm template are found, or made by boots of their own.
    Template,
    /// The VM's disk, its keys and its initramfs are created or checked.
    Overlay,
    /// A failed attempt, before the one that the other phases describe.
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
    /// A system boots by itself, until its own SSH server lets castra in.
    Login,
    /// The guest's own services start, while commands may run already.
    Services,
    /// QEMU loads the saved machine.
    Load,
    /// The guest gets its clock, its name and its keys.
    Personality,
}

impl Phase {
    /// Every phase, in the order in which they occur.
    pub const ALL: [Self; 14] = [
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
        Self::Login,
        Self::Services,
        Self::Load,
        Self::Personality,
    ];

    /// Returns the phase's name in events, files and messages.
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
            Self::Login => "login",
            Self::Services => "services",
            Self::Load => "load",
            Self::Personality => "personality",
        }
    }

    /// Returns the next phase of the guest.
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

/// Beginning and end of a phase, in milliseconds since the start began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSpan {
    /// The phase.
    pub phase: Phase,
    /// Beginning of the phase.
    pub start_ms: u64,
    /// End of the phase; `None` if it was not seen.
    pub end_ms: Option<u64>,
}

impl PhaseSpan {
    /// Returns the time that the phase took, in milliseconds.
    pub fn took_ms(&self) -> Option<u64> {
        self.end_ms.map(|end| end.saturating_sub(self.start_ms))
    }
}

/// Result of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum StartResult {
    /// Commands can run; without an agent, QEMU runs.
    Ready,
    /// QEMU runs, and `up` has not waited for the guest.
    Started,
    /// The start failed.
    Failed {
        /// The reason, in one line.
        reason: String,
    },
}

/// One start of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Time at which it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Time at which QEMU was started, in milliseconds since 1970; the VM's record identifies the
    /// start by it.
    pub qemu_unix_ms: u64,
    /// Kind of start.
    pub kind: StartKind,
    /// Accelerator that runs the CPU.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Base image of its disk.
    pub base: BaseKind,
    /// Version of the castra that started it.
    pub castra_version: String,
    /// Result of the start.
    #[serde(flatten)]
    pub result: StartResult,
    /// Phases, in order.
    pub phases: Vec<PhaseSpan>,
}

impl Timeline {
    /// Returns a phase, if the start went through it.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseSpan> {
        self.phases.iter().find(|span| span.phase == phase)
    }

    /// Returns the milliseconds from its beginning until commands could run; `None` for a failed
    /// start.
    pub fn ready_ms(&self) -> Option<u64> {
        if self.result != StartResult::Ready {
            return None;
        }
        self.phases
            .iter()
            .filter(|span| span.phase != Phase::Services)
            .filter_map(|span| span.end_ms)
            .max()
    }

    /// Returns the milliseconds from its beginning until the last known event.
    pub fn length_ms(&self) -> u64 {
        self.phases.iter().map(|span| span.end_ms.unwrap_or(span.start_ms)).max().unwrap_or(0)
    }

    /// Returns `true` if starts of this sort are comparable with this one.
    pub(super) fn is_like(&self, kind: StartKind, accelerator: Accelerator) -> bool {
        self.kind == kind && self.accelerator == accelerator
    }
}

/// Returns the usual time of a phase: the median of successful starts of the same sort.
pub(super) fn usual_ms(
    kept: &[Timeline],
    phase: Phase,
    kind: StartKind,
    accelerator: Accelerator,
) -> Option<u64> {
    let good = kept.iter().filter(|timeline| timeline.result == StartResult::Ready);
    let alike = good.filter(|timeline| timeline.is_like(kind, accelerator));
    let mut took: Vec<u64> =
        alike.filter_map(|timeline| timeline.phase(phase)?.took_ms()).collect();
    took.sort_unstable();
    took.get(took.len() / 2).copied()
}

#[cfg(test)]
pub(crate) mod tests {
    use crate::report::ImageLabel;

    use super::*;

    /// Returns a boot whose phases end at these times.
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
            base: BaseKind::Managed(ImageLabel {
                id: "alpine-minimal".into(),
                version: "v1".into(),
            }),
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
        let mut timeline =
            boot(1, &[(Phase::Qemu, 100), (Phase::Agent, 900), (Phase::Services, 2000)]);
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
