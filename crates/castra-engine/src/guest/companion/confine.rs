//! Confinement of a companion: what it answers comes from a guest.

use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Maximum number of descriptors of a companion: a guest may open many files.
const MAX_DESCRIPTORS: u64 = 4096;

/// Limits the process's descriptors, and its files on a crash.
pub(super) fn limit_process() {
    let allowed = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_DESCRIPTORS);
    let most = Some(allowed.min(MAX_DESCRIPTORS));
    // A kernel that refuses leaves the limit that the process has.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Confines the calling thread to files below one directory, where the kernel can do so (Landlock,
/// Linux 5.19 and newer). The server resolves no path that leads elsewhere; this holds even if it
/// had a defect.
#[cfg(target_os = "linux")]
pub(in crate::guest) fn limit_thread(directory: &Path, is_read_only: bool) {
    use landlock::{
        ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
        RulesetAttr as _, RulesetCreatedAttr as _, RulesetError,
    };
    const NEWEST: ABI = ABI::V5;
    let confined = || -> Result<(), RulesetError> {
        // Without this right, which came second, nothing could be moved between directories.
        let all = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?;
        let access = match is_read_only {
            true => AccessFs::from_read(NEWEST),
            false => AccessFs::from_all(NEWEST),
        };
        let Ok(top) = PathFd::new(directory) else { return Ok(()) };
        all.create()?.add_rule(PathBeneath::new(top, access))?.restrict_self()?;
        Ok(())
    };
    if let Err(error) = confined() {
        tracing::debug!(%error, "Landlock does not confine a mount");
    }
}

/// A stand-in: elsewhere the server alone keeps to the directory.
#[cfg(not(target_os = "linux"))]
pub(in crate::guest) fn limit_thread(_directory: &Path, _is_read_only: bool) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_thread_reaches_its_directory_only() {
        let place = tempfile::tempdir().expect("a directory");
        let (inside, outside) = (place.path().join("inside"), place.path().join("outside"));
        for directory in [&inside, &outside] {
            fs::create_dir(directory).expect("made");
            fs::write(directory.join("file"), "x").expect("written");
        }
        let reached = |is_read_only: bool| {
            std::thread::scope(|scope| {
                let confined = scope.spawn(|| {
                    limit_thread(&inside, is_read_only);
                    [
                        fs::read(inside.join("file")).is_ok(),
                        fs::write(inside.join("file"), "y").is_ok(),
                        fs::read(outside.join("file")).is_ok(),
                    ]
                });
                confined.join().expect("ended")
            })
        };
        let of_writer = reached(false);
        assert!(of_writer[0] && of_writer[1]);
        // A kernel without Landlock confines nothing.
        if !of_writer[2] {
            assert_eq!(reached(true), [true, false, false]);
        }
        assert!(fs::read(outside.join("file")).is_ok(), "this thread is not confined");
    }
}
