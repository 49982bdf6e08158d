//! The machine: processors, memory, clock.

use std::fs;

use crate::config::defaults;
use crate::host::unix_time;

use super::{Area, Finding};

/// 2026-01-01: a clock that is before the release of this castra is wrong, and certificates will be
/// refused.
const WRITTEN_UNIX_SECS: u64 = 1_767_225_600;

/// Memory that QEMU needs in addition to the guest's, in MiB.
const QEMU_MIB: u64 = 200;

pub(super) fn check() -> Vec<Finding> {
    [Some(system()), Some(processors()), memory(), Some(clock())].into_iter().flatten().collect()
}

fn system() -> Finding {
    let uname = rustix::system::uname();
    let (release, machine) = (uname.release().to_string_lossy(), uname.machine().to_string_lossy());
    let what = format!("{} {release} on {machine}", uname.sysname().to_string_lossy());
    let container = if is_container() { ", in a container" } else { "" };
    if !cfg!(target_os = "linux") {
        return Finding::warning(
            Area::Host,
            "system",
            format!("{what}: Castra has never been tested here"),
        );
    }
    if !cfg!(target_arch = "x86_64") {
        let message = format!("{what}: guests are x86-64 and have to be emulated, which is slow");
        return Finding::warning(Area::Host, "system", message);
    }
    Finding::good(Area::Host, "system", format!("{what}{container}"))
}

/// Returns `true` if there are the marker files of Docker or Podman.
fn is_container() -> bool {
    ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| fs::exists(mark).unwrap_or(false))
}

fn processors() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").ok();
    let load: Option<f64> = load.and_then(|text| text.split(' ').next()?.parse().ok());
    let processors =
        if count == 1 { "1 processor".to_owned() } else { format!("{count} processors") };
    match load {
        Some(load) if load > 2.0 * count as f64 => Finding::warning(
            Area::Host,
            "processors",
            format!("{processors}, with a load of {load:.1}: boots take several times as long"),
        )
        .with_fix(
            "`top` shows what is running. Or give boots more time: castra up --boot-timeout SECS",
        ),
        Some(load) => {
            Finding::good(Area::Host, "processors", format!("{processors}, load {load:.1}"))
        }
        None => Finding::good(Area::Host, "processors", processors),
    }
}

fn memory() -> Option<Finding> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let free = mib_of(&text, "MemAvailable:")?;
    let free = cgroup_limit_mib().map_or(free, |limit| limit.min(free));
    let needed = (defaults::MEMORY_BYTES >> 20) + QEMU_MIB;
    let message = format!("{free} MiB of memory free");
    Some(if free < needed {
        Finding::warning(
            Area::Host,
            "memory",
            format!("{message}; a VM of the default size needs up to {needed} MiB"),
        )
        .with_fix(
            "Give VMs less: `memory = \"512 MiB\"` in castra.toml, or `castra run --memory 512MiB`",
        )
    } else {
        Finding::good(Area::Host, "memory", message)
    })
}

fn mib_of(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}

/// Returns the memory limit of the container, in MiB, if there is one (cgroup v2).
fn cgroup_limit_mib() -> Option<u64> {
    let limit: u64 = fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?.trim().parse().ok()?;
    let used: u64 =
        fs::read_to_string("/sys/fs/cgroup/memory.current").ok()?.trim().parse().unwrap_or(0);
    Some(limit.saturating_sub(used) >> 20)
}

fn clock() -> Finding {
    let now = unix_time().as_secs();
    if now < WRITTEN_UNIX_SECS {
        return Finding::problem(
            Area::Host,
            "clock",
            "the clock is years behind: certificates will be rejected",
        )
        .with_fix("Set it: sudo timedatectl set-ntp true");
    }
    Finding::good(Area::Host, "clock", "the clock is plausible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   19234816 kB\n";
        assert_eq!(mib_of(text, "MemAvailable:"), Some(18_784));
        assert_eq!(mib_of(text, "SwapFree:"), None);
    }
}
