//! `[[vms.mounts]]`: directories of the host that a VM sees.

use std::ops::Range;

use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::project::{DeclaredMount, MountOrigin};
use super::super::schema::{Fields, Key, Value, key};
use super::{Scope, path};
use crate::guest::{GuestPathProblem, MAX_MOUNTS, Mount};

const HOST: Key = key("host", "\".\"");
const GUEST: Key = key("guest", "\"/src\"");
const READ_ONLY: Key = key("read_only", "true");
const NOTIFY: Key = key("notify", "false");

/// A directory that cannot be mounted.
#[derive(Debug, thiserror::Error)]
enum MountProblem {
    #[error("{} cannot be mounted on: {problem}", quoted(guest))]
    Guest { guest: String, problem: GuestPathProblem },
    #[error("two mounts of {vm} are at {}", quoted(guest))]
    Twice { vm: String, guest: String },
    #[error("a mount of {vm} at {} is inside the one at {}", quoted(inner), quoted(outer))]
    Nested { vm: String, inner: String, outer: String },
    #[error("{vm} has more than {MAX_MOUNTS} mounts")]
    TooMany { vm: String },
}

impl Problem for MountProblem {
    fn label(&self) -> String {
        match self {
            Self::Twice { .. } => "and again here".to_owned(),
            Self::Guest { .. } | Self::Nested { .. } | Self::TooMany { .. } => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Guest { .. } => {
                format!("Write a directory of the VM, for instance {GUEST}; it is made if missing.")
            }
            Self::Twice { .. } | Self::Nested { .. } => {
                "Give each mount a directory of its own in the VM.".to_owned()
            }
            Self::TooMany { .. } => "Mount a directory above them.".to_owned(),
        }
    }
}

/// A mount, and the span of its path in the guest.
type SpannedMount = (Mount, Range<usize>);

/// Reads a VM's mounts.
pub(super) fn read(
    values: &[Value<'_>],
    place: Key,
    vm: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Vec<DeclaredMount> {
    let mounts: Vec<SpannedMount> =
        values.iter().filter_map(|value| read_one(value, place, vm, scope, problems)).collect();
    check_places(&mounts, vm, problems);
    if let Some(value) = values.get(MAX_MOUNTS) {
        problems.error(value.span(), &MountProblem::TooMany { vm: vm.to_owned() });
    }
    let declared = |(mount, _)| DeclaredMount { mount, origin: MountOrigin::File };
    mounts.into_iter().map(declared).collect()
}

fn read_one(
    value: &Value<'_>,
    place: Key,
    vm: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<SpannedMount> {
    let mut fields = Fields::of_element(value, place, format!("a mount of {vm}"), problems)?;
    for key in [HOST, GUEST] {
        if !fields.has(key) {
            fields.missing(key, problems);
        }
    }
    let host = fields.line(HOST, problems);
    let guest = fields.string(GUEST, problems);
    let read_only = fields.boolean(READ_ONLY, problems).is_some_and(|value| *value.get_ref());
    let notify = fields.boolean(NOTIFY, problems).map(|value| *value.get_ref());
    fields.warn_unknown(problems);
    let (host, guest) = (host?, guest?);
    let resolved = path::resolve(host.get_ref(), scope.root, scope.home)
        .map_err(|problem| problems.error(host.span(), &problem));
    let inside = Mount::guest_path(guest.get_ref()).map_err(|problem| {
        let guest_path = (*guest.get_ref()).to_owned();
        problems.error(guest.span(), &MountProblem::Guest { guest: guest_path, problem });
    });
    let notify = notify.unwrap_or(Mount::notifies());
    let mount = Mount { host: resolved.ok()?, guest: inside.ok()?, read_only, notify };
    Some((mount, guest.span()))
}

fn check_places(mounts: &[SpannedMount], vm: &str, problems: &mut Problems) {
    for (index, (mount, span)) in mounts.iter().enumerate() {
        let earlier = mounts[..index].iter().find(|(other, _)| mount.is_entangled_with(other));
        let Some((other, there)) = earlier else { continue };
        let vm = vm.to_owned();
        let problem = if mount.guest == other.guest {
            MountProblem::Twice { vm, guest: mount.guest.clone() }
        } else {
            let (inner, outer) = match mount.guest.len() > other.guest.len() {
                true => (mount.guest.clone(), other.guest.clone()),
                false => (other.guest.clone(), mount.guest.clone()),
            };
            MountProblem::Nested { vm, inner, outer }
        };
        problems.error_because_of(span.clone(), &problem, there.clone(), "the first one");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Surroundings, parse};
    use crate::config::MountOrigin;
    use crate::guest::Mount;

    fn mounts(text: &str) -> Result<Vec<(String, String, bool, bool)>, String> {
        let text = format!("[[vms]]\nname = \"a\"\nbase_image = \"x.qcow2\"\nmounts = [{text}]\n");
        let surroundings = Surroundings {
            home: Some(Path::new("/home/me")),
            known_images: &[],
            allowed_outside: &[],
        };
        let parsed = parse(&text, Path::new("/p/castra.toml"), &surroundings);
        let project = parsed.map_err(|error| error.to_string())?;
        let mounts = project.vms[0].mounts.iter().map(|declared| {
            assert_eq!(declared.origin, MountOrigin::File);
            let mount = &declared.mount;
            let Mount { host, guest, read_only, notify } = mount.clone();
            (host.display().to_string(), guest, read_only, notify)
        });
        Ok(mounts.collect())
    }

    #[test]
    fn a_mount_is_relative_to_the_file() {
        let text = r#"{ host = ".", guest = "/src/" },
            { host = "~/data", guest = "/data", read_only = true, notify = false }"#;
        let expected = [
            ("/p".to_owned(), "/src".to_owned(), false, true),
            ("/home/me/data".to_owned(), "/data".to_owned(), true, false),
        ];
        assert_eq!(mounts(text).expect("is valid"), expected);
    }

    #[test]
    fn what_cannot_be_mounted_is_refused() {
        for (text, message) in [
            (r#"{ host = ".", guest = "src" }"#, "it is not an absolute path"),
            (r#"{ host = ".", guest = "/proc/1" }"#, "it is a directory of the guest's system"),
            (r#"{ guest = "/src" }"#, "has no `host`"),
            (
                r#"{ host = "a", guest = "/src" }, { host = "b", guest = "/src" }"#,
                "two mounts of VM `a` are at `/src`",
            ),
            (
                r#"{ host = "a", guest = "/a/b" }, { host = "b", guest = "/a" }"#,
                "is inside the one at",
            ),
        ] {
            let refused = mounts(text).expect_err("is refused");
            assert!(refused.contains(message), "{text}: {refused}");
        }
    }
}
