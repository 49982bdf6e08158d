//! Boot time limits, and when to report a slow boot.
//!
//! The limits are those of an idle machine. On a busy one everything takes longer in proportion,
//! and so may a boot.

use std::time::Duration;

use crate::qemu::Accelerator;
use crate::vm::diagnosis::HostFacts;

/// Time for a guest to be ready. Under TCG 6 s are usual on an idle machine, and ten times that on
/// a busy one.
const BOOT_LIMIT_TCG: Duration = Duration::from_secs(300);
const BOOT_LIMIT_ACCELERATED: Duration = Duration::from_secs(120);
/// Time for the first message of an accelerated guest's agent; one that is silent longer stays so.
const SILENCE_LIMIT_ACCELERATED: Duration = Duration::from_secs(20);

/// Largest factor by which load extends a limit, since a guest that hangs is also waited for so
/// much longer.
const MOST_STRETCH: f64 = 2.0;

/// Factor of its usual time from which on a phase is slow.
const SLOW: u32 = 3;
/// Least time in a phase before it can be reported as slow.
const PATIENCE_TCG: Duration = Duration::from_secs(10);
const PATIENCE_ACCELERATED: Duration = Duration::from_secs(5);
/// Time from which on a phase is slow if nothing is known of earlier boots.
const FIRST_PATIENCE_TCG: Duration = Duration::from_secs(60);
const FIRST_PATIENCE_ACCELERATED: Duration = Duration::from_secs(15);

/// Time limits of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vm) struct Limits {
    /// Time for the agent's first message.
    pub(in crate::vm) hello: Duration,
    /// Time for the stage that is waited for.
    pub(in crate::vm) ready: Duration,
}

impl Limits {
    /// Returns the requested limit, or limits that fit the accelerator, the guest's CPUs and the
    /// host's current load.
    pub(in crate::vm) fn new(accelerator: Accelerator, cpus: u32, asked: Option<Duration>) -> Self {
        Self::on(&HostFacts::load(), accelerator, cpus, asked)
    }

    fn on(host: &HostFacts, accelerator: Accelerator, cpus: u32, asked: Option<Duration>) -> Self {
        if let Some(asked) = asked {
            return Self { hello: asked, ready: asked };
        }
        let stretch = stretch(host, cpus);
        match accelerator {
            Accelerator::Tcg => {
                let ready = BOOT_LIMIT_TCG.mul_f64(stretch);
                Self { hello: ready, ready }
            }
            Accelerator::Kvm | Accelerator::Hvf => Self {
                hello: SILENCE_LIMIT_ACCELERATED.mul_f64(stretch),
                ready: BOOT_LIMIT_ACCELERATED.mul_f64(stretch),
            },
        }
    }
}

/// Returns the factor by which everything takes longer: because of processes that wait for the
/// host's CPUs, or of a guest with more CPUs than the host.
fn stretch(host: &HostFacts, cpus: u32) -> f64 {
    let Some(host_cpus) = host.cpus else { return 1.0 };
    let crowded = f64::from(cpus) / host_cpus as f64;
    host.load_per_cpu().unwrap_or(0.0).max(crowded).clamp(1.0, MOST_STRETCH)
}

/// Returns the time in a phase after which it is reported as slow.
pub(in crate::vm) fn patience(accelerator: Accelerator, usual: Option<Duration>) -> Duration {
    match (usual, least_patience(accelerator)) {
        (Some(usual), least) => least.max(usual * SLOW),
        (None, _) if accelerator == Accelerator::Tcg => FIRST_PATIENCE_TCG,
        (None, _) => FIRST_PATIENCE_ACCELERATED,
    }
}

/// Returns the least such time, before which the usual time need not be looked up.
pub(in crate::vm) fn least_patience(accelerator: Accelerator) -> Duration {
    if accelerator == Accelerator::Tcg { PATIENCE_TCG } else { PATIENCE_ACCELERATED }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(load: f64, cpus: u32, accelerator: Accelerator) -> u64 {
        let host = HostFacts { load: Some(load), cpus: Some(2), ..HostFacts::default() };
        Limits::on(&host, accelerator, cpus, None).ready.as_secs()
    }

    #[test]
    fn limits_grow_with_accelerator_load_and_cpus() {
        assert_eq!(ready(0.1, 1, Accelerator::Tcg), 300);
        assert_eq!(ready(0.1, 1, Accelerator::Kvm), 120);
        assert_eq!(ready(3.0, 1, Accelerator::Tcg), 450);
        assert_eq!(ready(0.1, 4, Accelerator::Tcg), 600);
        assert_eq!(ready(500.0, 64, Accelerator::Tcg), 600);
        let unknown = Limits::on(&HostFacts::default(), Accelerator::Kvm, 64, None);
        assert_eq!(
            unknown,
            Limits { hello: Duration::from_secs(20), ready: Duration::from_secs(120) }
        );
    }

    #[test]
    fn what_is_asked_for_is_not_stretched() {
        let asked = Duration::from_secs(7);
        let busy = HostFacts { load: Some(90.0), cpus: Some(2), ..HostFacts::default() };
        let limits = Limits::on(&busy, Accelerator::Kvm, 9, Some(asked));
        assert_eq!(limits, Limits { hello: asked, ready: asked });
    }

    #[test]
    fn slow_is_three_times_the_usual_and_never_a_moment() {
        let secs = Duration::from_secs;
        assert_eq!(patience(Accelerator::Tcg, Some(secs(8))), secs(24));
        assert_eq!(patience(Accelerator::Tcg, Some(secs(1))), secs(10));
        assert_eq!(patience(Accelerator::Kvm, Some(secs(1))), secs(5));
        assert_eq!(patience(Accelerator::Tcg, None), secs(60));
        assert_eq!(patience(Accelerator::Kvm, None), secs(15));
    }
}
