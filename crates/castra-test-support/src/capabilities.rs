//! Powers that processes have by Linux's capabilities (capabilities(7)).

use std::fs;
use std::process::{Command, Stdio};

use crate::Project;

/// Powers that root's QEMU and helpers keep: `CAP_DAC_OVERRIDE` and `CAP_NET_BIND_SERVICE`.
const KEPT: u64 = 1 << 1 | 1 << 10;

/// Insists that a process has only the kept capabilities, and none to pass on.
#[track_caller]
pub fn assert_powerless(status: &str) {
    for (name, most) in [("CapInh", 0), ("CapPrm", KEPT), ("CapEff", KEPT), ("CapAmb", 0)] {
        assert_eq!(set(status, name) & !most, 0, "{name}: {status}");
    }
    if rustix::process::geteuid().is_root() {
        assert_eq!(set(status, "CapBnd") & !KEPT, 0, "CapBnd: {status}");
    }
}

#[track_caller]
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    u64::from_str_radix(line.expect("capabilities"), 16).expect("hexadecimal")
}

/// Returns a `castra` as an old container runtime starts it: all that it has is inheritable, and
/// ambient.
pub fn with_inheritable_capabilities(project: &Project, arguments: &[&str]) -> Command {
    let plain = project.castra(arguments);
    let mut command = Command::new("setpriv");
    // All would be refused if this machine's root does not have them all.
    let own = fs::read_to_string("/proc/self/status").expect("reads");
    let own = set(&own, "CapPrm") & set(&own, "CapBnd");
    let all: Vec<String> = (0..64)
        .filter(|number| own >> number & 1 == 1)
        .map(|number| format!("+cap_{number}"))
        .collect();
    if !all.is_empty() {
        let all = all.join(",");
        command.arg(format!("--inh-caps={all}")).arg(format!("--ambient-caps={all}"));
    }
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.current_dir(project.path()).stdin(Stdio::null());
    command
}
