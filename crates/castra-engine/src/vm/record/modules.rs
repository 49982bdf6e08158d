//! Kernel modules that a guest's disk has lost. Castra starts the image's kernel, which it keeps
//! outside the disk; a package upgrade in the guest replaces the modules, and `modprobe` finds none
//! from then on.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::base::BaseKind;

/// Most kernel releases that are kept of a guest's report.
const MAX_INSTALLED: usize = 8;
/// Longest kernel release in bytes that Linux has (`__NEW_UTS_LEN`).
const MAX_RELEASE_BYTES: usize = 64;

/// Modules of other kernels than the running one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MissingModules {
    /// Release of the running kernel, whose modules are not on the disk.
    pub kernel: String,
    /// Releases whose modules are on the disk.
    pub installed: Vec<String>,
}

impl MissingModules {
    /// Parses a guest's own report, which may be anything. Returns `None` if the kernel's release
    /// is not a valid one, since it becomes part of the commands in advice.
    pub(in crate::vm) fn reported(kernel: String, installed: Vec<String>) -> Option<Self> {
        let installed: Vec<String> = installed
            .into_iter()
            .filter(|release| is_release(release))
            .take(MAX_INSTALLED)
            .collect();
        (is_release(&kernel) && !installed.is_empty()).then_some(Self { kernel, installed })
    }

    /// Returns the commands that put the modules back, in words. A VM of the same image has them on
    /// its disk. A VM that boots the kernel of its disk needs another start: it was reset, or its
    /// kernel is that of an earlier start.
    pub fn way_out(&self, vm: &str, base: &BaseKind, has_own_kernel: bool) -> String {
        if has_own_kernel {
            return format!("`castra restart {vm}` boots the kernel that is on the disk.");
        }
        let kernel = &self.kernel;
        let image = match base {
            BaseKind::Managed(image) => format!(" --image {}@{}", image.id, image.version),
            BaseKind::Path(_) => String::new(),
        };
        format!(
            "`castra run{image} -- tar -C /lib/modules -cf - {kernel} | castra exec {vm} -- tar \
            -C /lib/modules -xf -` restores them; later upgrades do not remove them."
        )
    }
}

/// Displays as the middle of a sentence about a VM.
impl fmt::Display for MissingModules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "runs the image's Linux {}, but its disk has modules only for {}, as after an upgrade \
            of the kernel package: modprobe fails",
            self.kernel,
            self.installed.join(", ")
        )
    }
}

fn is_release(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
    text.len() <= MAX_RELEASE_BYTES
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ImageLabel;

    #[test]
    fn what_a_guest_says_becomes_no_command() {
        let missing = |kernel: &str, installed: &[&str]| {
            MissingModules::reported(
                kernel.into(),
                installed.iter().map(|release| (*release).into()).collect(),
            )
        };
        let found = missing("6.12.1-0-virt", &["6.12.9-0-virt", "; rm -rf ~", "6.12.9+deb~1"])
            .expect("valid names");
        assert_eq!(found.installed, ["6.12.9-0-virt", "6.12.9+deb~1"]);
        let image =
            BaseKind::Managed(ImageLabel { id: "alpine-minimal".into(), version: "v1".into() });
        let way_out = found.way_out("web", &image, false);
        assert!(
            way_out.contains(
                "run --image alpine-minimal@v1 -- tar -C /lib/modules -cf - 6.12.1-0-virt |"
            ),
            "{way_out}"
        );
        assert!(way_out.contains("castra exec web -- tar"), "{way_out}");
        let way_out = found.way_out("web", &image, true);
        assert!(way_out.starts_with("`castra restart web` boots"), "{way_out}");
        for kernel in ["", "-x", "../..", "6.12; reboot", "6.12\n", "$(x)", &"6".repeat(65)] {
            assert_eq!(missing(kernel, &["6.12"]), None, "{kernel}");
        }
        assert_eq!(missing("6.12", &[]), None);
        assert_eq!(missing("6.12", &["a b"]), None);
        assert_eq!(
            missing("6.1", &["6.2"; 100]).expect("valid names").installed.len(),
            MAX_INSTALLED
        );
    }
}
