//! The user's consent that VMs see directories of the host.
//!
//! A VM that can write to a project can leave programs there that run on the host, such as git's
//! hooks, and one that can read other directories can send them away. So only directories of the
//! project that a VM can read and not write need no consent.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::context::RuntimeContext;
use crate::guest::Mount;
use crate::vm::consents;

/// A consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    /// Directory of the project.
    project: Box<Path>,
    /// Directory that its VMs may see.
    host: Box<Path>,
    /// VMs may write there.
    writable: bool,
    /// The user has named it on the command line, for a VM as long as that runs: a `castra.toml`
    /// cannot refer to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_hand: bool,
}

/// Returns `true` if VMs of the project may have this mount, whose directory has no links. One that
/// the user made by hand counts for a running VM (`is_running`) only, whose record has it.
pub(super) fn is_granted(
    mount: &Mount,
    is_running: bool,
    project: &Path,
    context: &RuntimeContext,
) -> bool {
    if mount.read_only && is_own_part(&mount.host, project, context) {
        return true;
    }
    let Some(path) = context.user_state.as_ref().map(|state| state.mounts()) else { return false };
    consents::read::<Grant>(&path).into_iter().any(|grant| {
        *grant.project == *project
            && *grant.host == *mount.host
            && (grant.writable || mount.read_only)
            && (is_running || !grant.by_hand)
    })
}

/// Writes down that VMs of the project may have this mount: all of them, or those in which the user
/// has mounted it by hand.
///
/// # Errors
/// The file cannot be written.
pub(super) fn grant(
    mount: &Mount,
    by_hand: bool,
    project: &Path,
    context: &RuntimeContext,
) -> io::Result<()> {
    let Some(path) = context.user_state.as_ref().map(|state| state.mounts()) else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "HOME is not set"));
    };
    if is_granted(mount, by_hand, project, context) {
        return Ok(());
    }
    let grant = Grant {
        project: project.into(),
        host: mount.host.as_path().into(),
        writable: !mount.read_only,
        by_hand,
    };
    consents::add(&path, &grant)
}

/// Returns `true` for a part of the project, unless that is the home directory or contains it: then
/// everything would be a part of it.
fn is_own_part(host: &Path, project: &Path, context: &RuntimeContext) -> bool {
    let home = context.environment.home().ok().and_then(|home| home.canonicalize().ok());
    let is_home = home.is_some_and(|home| home.starts_with(project));
    host.starts_with(project) && !is_home
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;

    fn context(home: &Path) -> RuntimeContext {
        let environment = Environment::of([("HOME", home)]);
        RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home")
    }

    fn mount(host: PathBuf, read_only: bool) -> Mount {
        Mount { host, guest: "/src".into(), read_only, notify: true }
    }

    #[test]
    fn a_project_may_show_itself_and_nothing_else_without_consent() {
        let home = tempfile::tempdir().expect("a directory");
        let home = home.path().canonicalize().expect("a path");
        let context = context(&home);
        let project = home.join("project");
        let granted = |host: PathBuf, read_only| {
            is_granted(&mount(host, read_only), false, &project, &context)
        };
        assert!(granted(project.clone(), true) && granted(project.join("src"), true));
        assert!(!granted(project.clone(), false), "it could leave git hooks");
        assert!(!granted(home.clone(), true) && !granted(home.join("project2"), true));
        assert!(
            !is_granted(&mount(home.join("a"), true), false, &home, &context),
            "a project of all"
        );
    }

    #[test]
    fn a_consent_is_for_one_directory_of_one_project() {
        let home = tempfile::tempdir().expect("a directory");
        let home = home.path().canonicalize().expect("a path");
        let context = context(&home);
        let (project, data) = (home.join("project"), home.join("data"));
        let granted = |mount: &Mount, project: &Path| is_granted(mount, false, project, &context);
        grant(&mount(data.clone(), true), false, &project, &context).expect("written");
        assert!(granted(&mount(data.clone(), true), &project));
        assert!(!granted(&mount(data.clone(), false), &project));
        assert!(!granted(&mount(data.join("a"), true), &project));
        assert!(!granted(&mount(data.clone(), true), &home.join("other")));
        grant(&mount(data.clone(), false), false, &project, &context).expect("written");
        assert!(granted(&mount(data, false), &project));
    }

    #[test]
    fn what_was_mounted_by_hand_is_not_a_files_to_mount() {
        let home = tempfile::tempdir().expect("a directory");
        let home = home.path().canonicalize().expect("a path");
        let context = context(&home);
        let (project, data) = (home.join("project"), mount(home.join("data"), true));
        grant(&data, true, &project, &context).expect("written");
        assert!(is_granted(&data, true, &project, &context), "for a VM that runs");
        assert!(!is_granted(&data, false, &project, &context), "for a castra.toml");
        grant(&data, false, &project, &context).expect("written");
        assert!(is_granted(&data, false, &project, &context), "agreed to later");
    }
}
