//! Castra's own directories, of which no guest sees anything: disks, keys, consents and templates.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use castra_fuse::is_hidden;

use crate::guest::Mount;
use crate::vm::error::MountError;
use crate::vm::project::ProjectRef;

/// Reason why castra's own directories are not mounted.
const OWN: &str = "castra keeps disks and keys there";

/// Returns castra's own directories, as far as they exist: the project's, and this user's state,
/// cache and sockets.
pub(super) fn directories(project: ProjectRef<'_>) -> Vec<PathBuf> {
    let context = project.context;
    let user_state = context.user_state.as_ref().map(|state| state.root());
    let shared = [project.layout.state_root(), context.cache.root(), &context.runtime_root];
    let all = shared.into_iter().chain(user_state);
    all.filter_map(|directory| directory.canonicalize().ok()).collect()
}

/// Checks that a mount, whose directory has no links, shows nothing of castra's own. What is deeper
/// in the directory is hidden from the guest.
///
/// # Errors
/// Returns [`MountError::Unsuitable`].
pub(super) fn check(vm: &str, mount: &Mount, project: ProjectRef<'_>) -> Result<(), MountError> {
    // As in a mount: a project has its VMs in such a directory.
    let is_own = mount.host.iter().any(|part| is_hidden(part.as_bytes()))
        || directories(project).iter().any(|own| mount.host.starts_with(own));
    if is_own {
        let (vm, host) = (vm.to_owned(), mount.host.clone());
        return Err(MountError::Unsuitable { vm, host, reason: OWN });
    }
    Ok(())
}
