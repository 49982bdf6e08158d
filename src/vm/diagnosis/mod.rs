//! Diagnosis of a failed or slow boot, from the last words of guest and QEMU and from the host's
//! state.
//!
//! [`diagnose`] is pure: the table in [`cases`] goes from the certain to the vague, and the first
//! case that fits is taken. [`Trouble`] gathers the evidence, and is what the errors show.

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

/// What there is to go by.
#[derive(Debug, Clone)]
pub(super) struct Evidence<'a> {
    /// The VM, for commands in advice.
    pub(super) vm: &'a str,
    /// The phase it is in, or was in when it ended.
    pub(super) phase: Phase,
    /// The end of the guest's console.
    pub(super) console: &'a str,
    /// What QEMU wrote on stderr.
    pub(super) qemu: &'a str,
    /// Set once QEMU has ended, by a signal or by itself.
    pub(super) has_ended: bool,
    /// The signal that ended QEMU.
    pub(super) signal: Option<i32>,
    /// How the CPU is run.
    pub(super) accelerator: Accelerator,
    /// The guest's memory.
    pub(super) memory_mib: u64,
    /// The host.
    pub(super) host: &'a HostFacts,
}

/// A probable cause and a way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// The cause, as half a sentence.
    pub cause: String,
    /// What to do, as whole sentences.
    pub advice: String,
    /// Whether waiting on is in vain.
    pub(super) is_final: bool,
}

impl Diagnosis {
    /// Tries a machine with all that VMs need in this QEMU, as `castra doctor` does, and names what is missing. Returns
    /// nothing where that machine runs, or where it could not be tried.
    pub(super) fn by_trial(qemu: &QemuBinary, cancel: &Cancel) -> Option<Self> {
        let reason = find_missing(qemu, cancel).ok()??;
        Some(cases::feature_missing(&sanitize_text(&reason)))
    }
}

/// The probable cause, if there is a case for it.
pub(super) fn diagnose(evidence: &Evidence<'_>) -> Option<Diagnosis> {
    cases::CASES.iter().find_map(|case| case(evidence))
}

/// What there is to be told of a boot that came to nothing. Displays as the rest of a message that names VM and event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The phase it was in.
    pub phase: Phase,
    /// For how long, in milliseconds.
    pub in_phase_ms: u64,
    /// What is usual for that, from earlier boots.
    pub usual_ms: Option<u64>,
    /// The last lines of the guest's console and of QEMU's own log, ready to be shown.
    pub words: String,
    /// The probable cause.
    pub diagnosis: Option<Diagnosis>,
}

impl Trouble {
    /// What the logs and the host tell now of a VM that is in this phase, or was.
    pub(super) fn gather(about: &About<'_>, phase: Phase, in_phase: Duration, usual_ms: Option<u64>) -> Self {
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

/// `0.04 s`, `5.7 s`, `40 s`.
pub(super) fn seconds(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{:.2} s", ms as f64 / 1e3),
        1_000..10_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => format!("{} s", (ms + 500) / 1_000),
    }
}

#[cfg(test)]
mod tests;
