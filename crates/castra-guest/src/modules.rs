//! The kernel's modules in the root. The host starts the image's kernel, which is not on the disk,
//! while the guest's package manager may replace that kernel's modules by those of another.

use std::fs;
use std::path::Path;

/// Directory of modules, with a subdirectory for each kernel release.
pub(crate) const DIRECTORY: &str = "/lib/modules";

/// Maximum number of releases that are reported.
const MAX_REPORTED: usize = 8;

/// Returns the releases for which `directory` has modules, if it has none for the running kernel,
/// `release`. Returns `None` if it has those, or no modules at all, as with a kernel that needs
/// none.
pub(crate) fn of_other_kernels(directory: &Path, release: &str) -> Option<Vec<String>> {
    if has_modules(&directory.join(release)) {
        return None;
    }
    let entries = fs::read_dir(directory).ok()?.flatten();
    let found = entries.filter(|entry| has_modules(&entry.path()));
    let mut names: Vec<String> =
        found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.truncate(MAX_REPORTED);
    (!names.is_empty()).then_some(names)
}

/// Returns `true` for a directory in which `modprobe` finds modules: a removed package may leave an
/// empty one.
fn has_modules(release: &Path) -> bool {
    ["modules.dep", "kernel"].iter().any(|name| release.join(name).exists())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A temporary directory of modules for these releases, removed when dropped.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, releases: &[&str]) -> Self {
            let root =
                std::env::temp_dir().join(format!("castra-modules-{}-{name}", std::process::id()));
            for release in releases {
                fs::create_dir_all(root.join(release).join("kernel")).expect("a directory");
            }
            fs::create_dir_all(&root).expect("a directory");
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn modules_of_the_running_kernel_are_all_that_is_needed() {
        let root = Root::new("there", &["6.12.1-0-virt", "6.12.9-0-virt"]);
        assert_eq!(of_other_kernels(&root.0, "6.12.1-0-virt"), None);
    }

    #[test]
    fn only_modules_of_other_kernels_are_reported() {
        let root = Root::new("others", &["6.12.9-0-virt", "6.12.5-0-virt"]);
        // Left by a removed package, and not a directory.
        fs::create_dir(root.0.join("6.12.1-0-virt")).expect("a directory");
        fs::write(root.0.join("notes"), "").expect("written");
        let others = of_other_kernels(&root.0, "6.12.1-0-virt").expect("others");
        assert_eq!(others, ["6.12.5-0-virt", "6.12.9-0-virt"]);
    }

    #[test]
    fn a_root_without_modules_needs_none() {
        let root = Root::new("none", &[]);
        assert_eq!(of_other_kernels(&root.0, "6.12.1"), None);
        assert_eq!(of_other_kernels(&root.0.join("nowhere"), "6.12.1"), None);
    }
}
