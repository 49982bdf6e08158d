//! What tells one run of this machine from the next.

use std::fs;

/// Names this run of the machine's kernel: another one after each restart (`random(4)`). Nothing where the kernel has no
/// such name, as on macOS.
pub fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
