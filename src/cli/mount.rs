//! `castra mount` and `castra umount`: directories of this machine in a VM that runs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::guest::{self, Mount, StreamPorts};
use castra_engine::layout::SocketsLayout;
use castra_engine::vm::{self, MountError, VmError};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{CompanionArgs, MountArgs, UmountArgs};
use super::context::CommandContext;
use super::json::MountView;

/// Mounts of a VM after a change of them.
#[derive(Serialize, JsonSchema)]
pub(super) struct Mounts {
    /// The VM.
    vm: String,
    /// Mounts that were made or removed.
    mounts: Vec<MountView>,
}

/// A mount as the command line describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountWord {
    host: PathBuf,
    guest: String,
    read_only: bool,
}

/// Parses `HOST:GUEST[:ro]`. A directory of the host may have colons in its path.
pub(super) fn parse(text: OsString) -> Result<MountWord, &'static str> {
    let bytes = text.into_vec();
    let (rest, read_only) = match (bytes.strip_suffix(b":ro"), bytes.strip_suffix(b":rw")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => (&bytes[..], false),
    };
    let colon = rest.iter().rposition(|byte| *byte == b':').filter(|colon| *colon > 0);
    let colon = colon.ok_or("write HOST:GUEST or HOST:GUEST:ro")?;
    let host = OsString::from_vec(rest[..colon].to_vec()).into();
    let guest = std::str::from_utf8(&rest[colon + 1..]).ok();
    let guest = guest.filter(|guest| guest.starts_with('/'));
    let guest = guest.ok_or("GUEST is an absolute path in the VM")?.to_owned();
    Ok(MountWord { host, guest, read_only })
}

impl MountWord {
    /// Returns the mount, with its directory as seen from the working directory.
    pub(super) fn resolve(&self, vm: &str) -> Result<Mount> {
        let guest = Mount::guest_path(&self.guest).map_err(|problem| {
            let (vm, guest) = (vm.to_owned(), self.guest.clone());
            VmError::from(MountError::GuestPath { vm, guest, problem })
        })?;
        let host = working_directory()?.join(&self.host);
        Ok(Mount { host, guest, read_only: self.read_only, notify: Mount::notifies() })
    }
}

/// Mounts directories in a running VM.
pub(super) fn mount(mount: &MountArgs, context: &CommandContext) -> Result<ExitCode> {
    let mut made = Vec::new();
    for word in &mount.mounts {
        let mounted = vm::mount(&mount.vm, &word.resolve(&mount.vm)?, context.project()?)?;
        context.printer.success(&format!("VM `{}`: {mounted}", mount.vm));
        made.push(MountView::from((mounted, None)));
    }
    context.printer.show(&Mounts { vm: mount.vm.clone(), mounts: made }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Unmounts directories in a running VM.
pub(super) fn umount(umount: &UmountArgs, context: &CommandContext) -> Result<ExitCode> {
    for guest in &umount.guests {
        vm::unmount(&umount.vm, guest, context.project()?)?;
        context.printer.success(&format!("VM `{}`: {guest} is unmounted", umount.vm));
    }
    context.printer.show(&Mounts { vm: umount.vm.clone(), mounts: Vec::new() }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Serves the mounts of a VM: castra starts itself with this.
pub(super) fn companion(companion: &CompanionArgs) -> Result<ExitCode> {
    let sockets = SocketsLayout::new(companion.sockets.clone());
    let ports = StreamPorts { sockets, count: companion.ports };
    Ok(match guest::accompany(&ports) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_parsed_from_its_end() {
        let word = |host: &str, guest: &str, read_only| {
            Ok(MountWord { host: host.into(), guest: guest.into(), read_only })
        };
        assert_eq!(parse(".:/src".into()), word(".", "/src", false));
        assert_eq!(parse("a:b:/src:ro".into()), word("a:b", "/src", true));
        assert_eq!(parse("/x:/src:rw".into()), word("/x", "/src", false));
        for bad in ["", ".", "/src", ":/src", ".:src", ".:", ".:/src:xx"] {
            assert!(parse(bad.into()).is_err(), "{bad}");
        }
    }
}
