//! Free space on the disks that Castra writes to.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Area, Finding, Subject};
use crate::size::ByteSize;

/// Space for a first `castra up`, in bytes: download, image, warm template, disk. (*Measured*: 0.5
/// GiB with the default image.)
const FIRST_UP_BYTES: u64 = 700 << 20;
/// Space below which hardly anything works, in bytes.
const LEAST_BYTES: u64 = 100 << 20;
/// Space for sockets and a few small files, in bytes.
const LEAST_RUNTIME_BYTES: u64 = 1 << 20;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let context = subject.context;
    let mut findings = vec![room("cache-space", "the cache", context.cache.root())];
    if let Ok(project) = subject.project {
        let root = project.state_root.path();
        if device(root) != device(context.cache.root()) {
            findings.push(room("project-space", "the project", root));
        }
    }
    let runtime = &context.runtime_root;
    if let Some(free) = free_bytes(runtime).filter(|free| *free < LEAST_RUNTIME_BYTES) {
        let message =
            format!("{} (for sockets) has only {} free", runtime.display(), ByteSize(free));
        findings.push(
            Finding::problem(Area::Space, "runtime-space", message).with_fix("Free some of it."),
        );
    }
    findings
}

fn room(check: &'static str, what: &str, path: &Path) -> Finding {
    let Some(free) = free_bytes(path) else {
        let message = format!("cannot determine the free space for {what} at {}", path.display());
        return Finding::note(Area::Space, check, message);
    };
    let message = format!("{} free for {what} at {}", ByteSize(free), path.display());
    let fix = "`castra image prune` and `castra template prune` free what no project needs, \
        `castra clean` what this one does not.";
    match free {
        0..LEAST_BYTES => Finding::problem(Area::Space, check, message).with_fix(fix),
        LEAST_BYTES..FIRST_UP_BYTES => {
            let message =
                format!("{message}; a first start needs about {}", ByteSize(FIRST_UP_BYTES));
            Finding::warning(Area::Space, check, message).with_fix(fix)
        }
        _ => Finding::good(Area::Space, check, message),
    }
}

/// Returns the space available to this user, in bytes, at a path that need not exist yet.
fn free_bytes(path: &Path) -> Option<u64> {
    let status = rustix::fs::statvfs(&existing(path)?).ok()?;
    Some(status.f_bavail.saturating_mul(status.f_frsize))
}

fn device(path: &Path) -> Option<u64> {
    Some(existing(path)?.metadata().ok()?.dev())
}

fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned)
}
