//! Threads in which QEMU runs a guest's CPUs under TCG.

use crate::cancel::Cancel;
use crate::layout::CacheLayout;

use super::accelerator::Accelerator;
use super::argv::MachineSpec;
use super::binary::QemuBinary;
use super::version::QemuVersion;

/// Oldest QEMU whose CPUs get a thread each. *Measured* with two CPUs and Linux 6.18: with 7.2, 2
/// of 8 boots died of `Oops: int3` or hung, since the kernel patches code that another CPU runs;
/// with 10.0, 50 boots and 50 restores on a busy machine were clean. None between the two was
/// tried.
const THREAD_EACH: QemuVersion = QemuVersion { major: 10, minor: 0 };

/// Threads for the CPUs of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuThreads {
    /// As the accelerator has it: hardware has one per CPU, and one CPU needs one.
    Default,
    /// All CPUs take turns in one thread.
    Shared,
    /// Each CPU has a thread of its own.
    Each,
}

impl CpuThreads {
    /// Returns the threads for a machine that this QEMU runs.
    pub(super) fn of(
        spec: &MachineSpec,
        qemu: &QemuBinary,
        cache: &CacheLayout,
        cancel: &Cancel,
    ) -> Self {
        match (spec.accelerator, spec.cpus) {
            (Accelerator::Tcg, 2..) => Self::emulated(QemuVersion::remembered(qemu, cache, cancel)),
            _ => Self::Default,
        }
    }

    fn emulated(version: Option<QemuVersion>) -> Self {
        if version.is_some_and(|version| version >= THREAD_EACH) {
            Self::Each
        } else {
            Self::Shared
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_qemu_and_one_of_unknown_version_share_a_thread() {
        let version = |major, minor| Some(QemuVersion { major, minor });
        for old in [None, version(7, 2), version(9, 2)] {
            assert_eq!(CpuThreads::emulated(old), CpuThreads::Shared);
        }
        for new in [version(10, 0), version(10, 1), version(11, 0)] {
            assert_eq!(CpuThreads::emulated(new), CpuThreads::Each);
        }
    }
}
