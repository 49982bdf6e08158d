//! Identifies the current boot of the host.

use std::fs;

/// Returns the ID of the kernel's current boot, which changes with each restart (`random(4)`).
/// Returns `None` if the kernel has none, as on macOS.
pub fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}
