//! Diagnosis of a failed or slow boot, from the last output of guest and QEMU and from the host's
//! state.
//!
//! [`diagnose`] is pure: the table in [`cases`] goes from the certain to the vague, and the first
//! case that applies is used. [`Trouble`] gathers the evidence, and is shown in errors.

mod cases;
mod host;
mod words;

use std::fmt;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::layout::VmLayout;
use crate::qemu::{Accelerator, QemuBinary, find_missing};
use crate::sanitize::sanitize_text;

use super::timeline::Phase;

pub(super) use host::HostFacts;
pub(super) use words::{Words, last_words};

/// Evidence for a diagnosis.
#[derive(Debug, Clone)]
pub(super) struct Evidence<'a> {
    /// Name of the VM, for commands in advice.
    pub(super) vm: &'a str,
    /// Current phase, or the one in which it ended.
    pub(super) phase: Phase,
    /// End of the guest's console.
    pub(super) console: &'a str,
    /// Output of QEMU on stderr.
    pub(super) qemu: &'a str,
    /// Set once QEMU has ended, by a signal or by itself.
    pub(super) has_ended: bool,
    /// Signal that ended QEMU.
    pub(super) signal: Option<i32>,
    /// Accelerator that runs the CPU.
    pub(super) accelerator: Accelerator,
    /// Memory of the guest in MiB.
    pub(super) memory_mib: u64,
    /// State of the host.
    pub(super) host: &'a HostFacts,
}

/// A probable cause and a way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The cause, as half a sentence.
    pub cause: String,
    /// Advice, as whole sentences.
    pub advice: String,
    /// True if further waiting is pointless.
    pub(super) is_final: bool,
}

impl Diagnosis {
    /// Tries a machine with everything that VMs need in this QEMU, as `castra doctor` does, and
    /// names what is missing. Returns `None` if that machine runs, or if it could not be tried.
    pub(super) fn by_trial(qemu: &QemuBinary, cancel: &Cancel) -> Option<Self> {
        let reason = find_missing(qemu, cancel).ok()??;
        Some(cases::feature_missing(&sanitize_text(&reason)))
    }
}

/// Returns the probable cause, if a case applies.
pub(super) fn diagnose(evidence: &Evidence<'_>) -> Option<Diagnosis> {
    cases::CASES.iter().find_map(|case| case(evidence))
}

/// Report on a failed or slow boot. Displays as the rest of a message that names VM and event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Phase of the boot.
    pub phase: Phase,
    /// Time in that phase, in milliseconds.
    pub in_phase_ms: u64,
    /// Usual time for that phase, from earlier boots, in milliseconds.
    pub usual_ms: Option<u64>,
    /// Last lines of the guest's console and of QEMU's own log, ready to be shown.
    pub words: String,
    /// The probable cause.
    pub diagnosis: Option<Diagnosis>,
}

impl Trouble {
    /// Gathers evidence from the logs and the host about a VM that is in this phase, or was.
    pub(super) fn gather(
        about: &About<'_>,
        phase: Phase,
        in_phase: Duration,
        usual_ms: Option<u64>,
    ) -> Self {
        let words = Words::read(&about.files.console_log(), &about.files.qemu_log());
        let facts = HostFacts::gather(about.files, &words.qemu);
        let diagnosis = diagnose(&Evidence {
            vm: about.vm,
            phase,
            console: &words.console,
            qemu: &words.qemu,
            has_ended: about.has_ended,
            signal: about.signal,
            accelerator: about.accelerator,
            memory_mib: about.memory_mib,
            host: &facts,
        });
        let in_phase_ms = u64::try_from(in_phase.as_millis()).unwrap_or(u64::MAX);
        Self { phase, in_phase_ms, usual_ms, words: last_words(&words), diagnosis }
    }
}

/// The VM that is in trouble.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) vm: &'a str,
    pub(super) files: &'a VmLayout,
    pub(super) accelerator: Accelerator,
    pub(super) memory_mib: u64,
    /// Set once its QEMU has ended.
    pub(super) has_ended: bool,
    pub(super) signal: Option<i32>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in phase `{}` after {}", self.phase.name(), seconds(self.in_phase_ms))?;
        if let Some(usual) = self.usual_ms {
            write!(f, " (usual: {})", seconds(usual))?;
        }
        if !self.words.is_empty() {
            write!(f, "\n{}", self.words)?;
        }
        match &self.diagnosis {
            Some(diagnosis) => write!(f, "\n  probable cause: {}", diagnosis.cause),
            None => Ok(()),
        }
    }
}

/// Formats milliseconds: `0.04 s`, `5.7 s`, `40 s`.
pub(super) fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{:.2} s", ms as f64 / 1e3),
        1_000..10_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => format!("{} s", (ms + 500) / 1_000),
    }
}

#[cfg(test)]
mod tests;
