//! Accelerators are raced, not detected: see [`super::probe`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::host::boot_id;
use crate::layout::CacheLayout;

use super::accelerator::{Accelerator, AcceleratorChoice};
use super::binary::QemuBinary;
use super::error::QemuError;
use super::options::CpuModel;
use super::probe::{self, Outcome};
use super::remembered;

/// Time limit for a candidate. TCG needs 0.15 s; one that needs ten times as long is no gain.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Factor by which hardware must lose. The probe takes little more than QEMU's own start, so only a
/// clear loss counts.
const CLEARLY: u32 = 3;

/// Returns the fastest accelerator that really works here with `qemu`; the probe is written into
/// the directory `scratch`. Raced once per QEMU, kernel and boot, then remembered.
///
/// # Errors
/// [`QemuError::Interrupted`], or [`QemuError::File`] if the probe cannot be written.
pub fn choose_accelerator(
    qemu: &QemuBinary,
    tcg_cpu: &CpuModel,
    cache: &CacheLayout,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<AcceleratorChoice, QemuError> {
    let Some(candidate) = candidate() else {
        return Ok(tcg("the only accelerator on this platform"));
    };
    if let Err(errno) = probe::opens(Path::new(candidate.device)) {
        return Ok(tcg(&why_closed(candidate.device, errno)));
    }
    let key = format!("{} cpu={tcg_cpu} {}", qemu.identity, host_identity());
    let known: BTreeMap<String, AcceleratorChoice> = remembered::read(&cache.accelerators());
    if let Some(choice) = known.get(&key) {
        return Ok(choice.clone());
    }
    let choice = race(qemu, candidate.accelerator, tcg_cpu, scratch, cancel)?;
    remember(&cache.accelerators(), known, key, choice.clone());
    Ok(choice)
}

pub(super) struct Candidate {
    pub(super) accelerator: Accelerator,
    pub(super) device: &'static str,
}

pub(super) fn candidate() -> Option<Candidate> {
    let native = cfg!(target_arch = "x86_64");
    if native && cfg!(target_os = "linux") {
        Some(Candidate { accelerator: Accelerator::Kvm, device: "/dev/kvm" })
    } else if native && cfg!(target_os = "macos") {
        // Hypervisor.framework has no device file; `/dev/null` always opens, so the probe alone
        // decides.
        Some(Candidate { accelerator: Accelerator::Hvf, device: "/dev/null" })
    } else {
        None
    }
}

fn race(
    qemu: &QemuBinary,
    hardware: Accelerator,
    tcg_cpu: &CpuModel,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<AcceleratorChoice, QemuError> {
    let run = |accelerator: Accelerator| {
        probe::probe(
            qemu,
            accelerator,
            &accelerator.cpu(tcg_cpu),
            scratch,
            PROBE_LIMIT,
            &[],
            cancel,
        )
    };
    let (under_hardware, under_tcg) = std::thread::scope(|scope| {
        let hardware = scope.spawn(|| run(hardware));
        let tcg = run(Accelerator::Tcg);
        (hardware.join().unwrap_or_else(|_| Ok(Outcome::Fails("the probe panicked".into()))), tcg)
    });
    Ok(judge(hardware, under_hardware?, under_tcg?))
}

/// Decides which accelerator wins, and why. Pure.
pub(super) fn judge(
    hardware: Accelerator,
    under_hardware: Outcome,
    under_tcg: Outcome,
) -> AcceleratorChoice {
    let name = hardware.name();
    match (under_hardware, under_tcg) {
        (Outcome::Works(fast), Outcome::Works(slow)) if fast > slow * CLEARLY => tcg(&format!(
            "{name} works but is slower here ({} ms against {} ms)",
            fast.as_millis(),
            slow.as_millis()
        )),
        (Outcome::Works(time), _) => AcceleratorChoice {
            accelerator: hardware,
            reason: format!("{name} ran the probe in {} ms", time.as_millis()),
        },
        (Outcome::Fails(why) | Outcome::TooSlow(why), _) => {
            tcg(&format!("{name} does not work here: {why}"))
        }
    }
}

fn tcg(reason: &str) -> AcceleratorChoice {
    AcceleratorChoice { accelerator: Accelerator::Tcg, reason: reason.to_owned() }
}

pub(super) fn why_closed(device: &str, errno: rustix::io::Errno) -> String {
    match errno {
        rustix::io::Errno::NOENT => format!("there is no {device}"),
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
            format!("no permission on {device}; members of its group (usually `kvm`) have it")
        }
        other => format!("{device}: {other}"),
    }
}

/// Identifies the host's kernel and boot, which may change the answer although QEMU does not
/// change.
fn host_identity() -> String {
    let uname = rustix::system::uname();
    format!("kernel={} boot={}", uname.release().to_string_lossy(), boot_id().unwrap_or_default())
}

fn remember(
    path: &Path,
    mut known: BTreeMap<String, AcceleratorChoice>,
    key: String,
    choice: AcceleratorChoice,
) {
    // Answers of other boots and kernels will never be needed again.
    let host = host_identity();
    known.retain(|key, _| key.ends_with(&host));
    known.insert(key, choice);
    remembered::write(path, &known);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn works(ms: u64) -> Outcome {
        Outcome::Works(Duration::from_millis(ms))
    }

    /// A newcomer without the right group gets this reason from `status -v`.
    #[test]
    fn a_device_without_permission_is_named_with_the_way_out() {
        assert_eq!(
            why_closed("/dev/kvm", rustix::io::Errno::ACCESS),
            "no permission on /dev/kvm; members of its group (usually `kvm`) have it"
        );
        assert_eq!(why_closed("/dev/kvm", rustix::io::Errno::NOENT), "there is no /dev/kvm");
    }

    #[test]
    fn hardware_that_is_faster_wins() {
        let choice = judge(Accelerator::Kvm, works(40), works(150));
        assert_eq!(choice.accelerator, Accelerator::Kvm);
    }

    #[test]
    fn hardware_that_is_slower_loses_and_says_so() {
        let choice = judge(Accelerator::Kvm, works(3600), works(160));
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert_eq!(choice.reason, "kvm works but is slower here (3600 ms against 160 ms)");
    }

    #[test]
    fn hardware_that_aborts_loses_with_its_own_words() {
        let died = Outcome::Fails("failed to set MSR 0x10a to 0x69".into());
        let choice = judge(Accelerator::Kvm, died, works(160));
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert_eq!(choice.reason, "kvm does not work here: failed to set MSR 0x10a to 0x69");
    }
}
