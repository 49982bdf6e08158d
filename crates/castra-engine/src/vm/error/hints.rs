//! Exit codes and hints of [`VmError`].

use crate::error::{Explain, Kind, kind_of_io};
use crate::qemu::Unbootable;
use crate::qemu::options::UserArguments;
use crate::sockets::PortOwner;
use crate::vm::record::{VmState, hint_of_io};

use super::{Predecessor, VmError};

impl Explain for VmError {
    fn kind(&self) -> Kind {
        if let Some(inner) = self.inner() {
            return inner.kind();
        }
        match self {
            Self::Disk { action: "create", source, .. } if kind_of_io(source) == Kind::Io => {
                Kind::CannotCreate
            }
            Self::CloneExists { .. } => Kind::CannotCreate,
            Self::Disk { source, .. } | Self::Random(source) => kind_of_io(source),
            Self::DiskOutOfBounds { problem, .. } => problem.kind(),
            Self::NotADisk { .. }
            | Self::ImageChanged { .. }
            | Self::BaseChanged { .. }
            | Self::CopyTorn { .. }
            | Self::LayerUnproven { .. }
            | Self::BaseNotAFile { .. }
            | Self::Unbootable { .. }
            | Self::ForeignOverlay { .. }
            | Self::NotResumable { .. } => Kind::Data,
            Self::BaseMissing { .. } => Kind::NotFound,
            Self::BadName { .. } | Self::UnknownAccelerator { .. } => Kind::Usage,
            Self::NotRunning { .. }
            | Self::CloneUnfinished { .. }
            | Self::SocketsGone { .. }
            | Self::NotSuspendable { .. }
            | Self::NotSuspended { .. }
            | Self::Frozen { .. }
            | Self::NoAgent { .. }
            | Self::ServicesUnseen { .. }
            | Self::NoConsole { .. }
            | Self::BootTimedOut { .. }
            | Self::BootDied { .. }
            | Self::BootFailed { .. }
            | Self::AgentFailed { .. }
            | Self::ServicesTimedOut { .. }
            | Self::Unrecorded { .. }
            | Self::GuestSilent { .. }
            | Self::PowerCut { .. }
            | Self::Unkillable { .. } => Kind::Unavailable,
            Self::PortTaken { .. }
            | Self::IsSuspended { .. }
            | Self::ConsoleTaken { .. }
            | Self::Elsewhere { .. }
            | Self::PlaceTaken { .. }
            | Self::DiskInUse { .. } => Kind::Busy,
            Self::DiskFull { .. } => Kind::Io,
            Self::ThrowawayFailed(error) => error.kind(),
            Self::NotStarted { error, .. } => error.kind(),
            Self::StateOfAnother { .. } | Self::PortForbidden { .. } => Kind::Permission,
            // Answered by `inner` above.
            Self::Record(_)
            | Self::Image(_)
            | Self::File(_)
            | Self::Qemu(_)
            | Self::Template(_)
            | Self::Control(_)
            | Self::NetworkDown(_)
            | Self::Initrd(_)
            | Self::Key(_)
            | Self::StateRoot(_)
            | Self::Lock(_)
            | Self::Interrupted(_) => Kind::Internal,
        }
    }

    #[expect(
        clippy::too_many_lines,
        reason = "a table, in which the compiler asks for each new error"
    )]
    fn hint(&self) -> Option<String> {
        match self {
            Self::Record(_)
            | Self::Image(_)
            | Self::File(_)
            | Self::Qemu(_)
            | Self::Template(_)
            | Self::Control(_)
            | Self::NetworkDown(_)
            | Self::Initrd(_)
            | Self::Key(_)
            | Self::StateRoot(_)
            | Self::Lock(_)
            | Self::Interrupted(_) => self.inner().and_then(Explain::hint),
            Self::ThrowawayFailed(error) => {
                // Its record and its logs are gone with it.
                let inner = error.inner().filter(|_| !matches!(**error, Self::Record(_)));
                error.advice().or_else(|| inner.and_then(Explain::hint))
            }
            Self::Unrecorded { vm, .. } => Some(format!(
                "`castra down {vm}` stops it; then `castra up {vm}` starts it with a record."
            )),
            Self::UnknownAccelerator { .. } => {
                Some("Use kvm, hvf or tcg, or unset it to let Castra choose.".into())
            }
            Self::NotRunning { vm, state: VmState::Suspended } => {
                Some(format!("Resume it: castra up {vm}"))
            }
            Self::Frozen { vm, pid } => {
                Some(format!("`kill -CONT {pid}` continues it; `castra down {vm}` stops the VM."))
            }
            Self::BadName { .. } => {
                Some("Use letters, digits, `-`, `_` and `.`, a letter or digit first.".into())
            }
            Self::NotRunning { vm, .. } => Some(format!("Start it: castra up {vm}")),
            Self::ConsoleTaken { vm, .. } => Some(format!(
                "Disconnect there with Ctrl-]. `castra logs -f {vm}` shows the console meanwhile."
            )),
            Self::ServicesUnseen { vm } => Some(format!(
                "Omit `--wait services`: `castra up {vm}` returns once it is running, and `castra \
                console {vm}` shows its serial console."
            )),
            Self::NoAgent { vm } => Some(format!(
                "Forward a port to its own SSH server ([[vms.port_forwards]]) and log in with \
                `ssh`; `castra logs {vm}` shows its console."
            )),
            Self::IsSuspended { vm } => Some(format!(
                "`castra up {vm}` resumes it; `castra down --discard-suspended {vm}` drops its \
                memory and keeps its disk."
            )),
            Self::NotResumable { vm, .. } => Some(format!(
                "Castra has dropped nothing. `castra up --discard-suspended {vm}` gives up the \
                saved memory and boots from the disk, which was synced at the suspend."
            )),
            Self::NotSuspended { vm, .. } => Some(format!(
                "Cloning also copies memory, so the VM must be running or suspended. \
                Start it: castra up {vm}"
            )),
            Self::CloneExists { .. } => Some("Choose another name.".into()),
            Self::CloneUnfinished { vm, of } => Some(format!(
                "Nothing has run in it. `castra clone {of} {vm}` creates it again; `castra clean \
                --disks {vm}` removes it."
            )),
            Self::NotSuspendable { vm } => {
                Some(format!("Start it again first: castra down {vm} && castra up {vm}"))
            }
            Self::SocketsGone { vm, doing: "stop", .. } => Some(format!(
                "They were removed while the VM was running, perhaps by a cleaner of temporary \
                 files or a logout, so its guest cannot be asked to shut down. Shut it down from \
                 inside, or cut its power: castra down --force {vm}"
            )),
            Self::SocketsGone { vm, .. } => Some(format!(
                "They were removed while the VM was running, perhaps by a cleaner of temporary \
                files or a logout. The VM keeps running; `castra restart {vm}` shuts it down and \
                creates new ones."
            )),
            Self::NoConsole { vm, .. } => Some(format!(
                "It was removed while the VM was running, perhaps by a cleaner of temporary files \
                or a logout. The VM keeps running: `castra logs -f {vm}` shows its console, and \
                `castra restart {vm}` creates new sockets."
            )),
            Self::PlaceTaken { vm, predecessor } => Some(match predecessor {
                Some(Predecessor { project: Some(project), .. }) => format!(
                    "It uses the sockets of this directory, and its QEMU removes the pid file \
                    here when it exits. Stop it first: castra down {vm}, in {}.",
                    project.display()
                ),
                Some(_) => format!("`castra clean --orphans {vm}` stops it."),
                None => "Look for it with `castra list`, in each container that uses this \
                    directory."
                    .into(),
            }),
            Self::Elsewhere { vm } => Some(format!(
                "Use castra where the VM was started: `castra down {vm}` there stops it. Nothing \
                has been changed."
            )),
            Self::DiskInUse { .. } => Some(
                "A QEMU has it open, perhaps in another container of this machine. Stop that VM \
                first."
                    .into(),
            ),
            Self::DiskFull { vm, full } => Some(format!(
                "Nothing is lost: free some space on {}, and the next command continues the VM, \
                 for instance `castra up {vm}`. `castra down --force {vm}` would cut its power \
                 instead and lose unwritten data.",
                full.filesystem.display()
            )),
            Self::PowerCut { vm, .. } => Some(format!(
                "`castra up {vm}` boots it from its disk, whose filesystem recovers by its \
                journal; `castra logs {vm}` shows what delayed it. --timeout SECS gives it more \
                time."
            )),
            Self::GuestSilent { vm, .. } => Some(format!(
                "`castra console {vm}` and `castra logs {vm}` show what it is doing. `castra \
                restart {vm}` restarts it."
            )),
            Self::NotADisk { path, .. } => {
                Some(format!("Inspect it, then move it away: mv {0} {0}.kept", path.display()))
            }
            Self::Disk { path, source, .. } => hint_of_io(path, source),
            Self::DiskOutOfBounds { problem, .. } => problem.hint(),
            Self::StateOfAnother { state_root, .. } => Some(format!(
                "Perhaps castra was run with sudo here. Nothing is lost: stop its VMs with `sudo \
                 castra down`, then `sudo chown -R \"$(id -u)\" {}` makes the VMs yours.",
                state_root.display()
            )),
            Self::Unbootable { reason: Unbootable::UefiOnly, .. } => Some(format!(
                "Take the publisher's image for BIOS, install a boot loader for BIOS on it \
                 (`grub-install --target=i386-pc`), or describe the disk with its kernel and \
                 initramfs in `[images.NAME]` of castra.toml. To use a UEFI firmware of your own, \
                 set `{}`: docs/config.md, \"A disk of your own\".",
                UserArguments::VARIABLE
            )),
            Self::Unbootable { .. } => Some(format!(
                "Name a disk that an operating system is installed on, with a boot loader for \
                BIOS. A disk that holds only a filesystem needs a kernel and an initramfs: \
                describe all three in `[images.NAME]` of castra.toml. To use an installer of your \
                own, set `{}`: docs/config.md, \"A disk of your own\".",
                UserArguments::VARIABLE
            )),
            Self::BaseNotAFile { .. } => Some("Name a qcow2 file in `base_image`.".into()),
            Self::ImageChanged { vm, .. } => Some(format!(
                "Name the old image again, or use the new one for a VM with another name. To give \
                 up the disk of `{vm}`: castra down {vm} && castra clean --disks {vm}"
            )),
            Self::BaseChanged { vm, overlay, .. } => Some(format!(
                "Put the original file back. If the data of `{vm}` in {} may go: castra clean \
                --disks {vm} && castra up {vm}",
                overlay.display()
            )),
            Self::CopyTorn { vm, original, .. } => Some(format!(
                "Copy the project again while the VM is stopped or suspended: castra suspend {vm}, \
                in {}.",
                original.display()
            )),
            Self::LayerUnproven { .. } => Some(
                "If the project was copied, copy it again with its timestamps: cp -a, rsync -a or \
                a tar archive in pax format. If the layer was changed, restore it from a backup."
                    .into(),
            ),
            Self::BaseMissing { vm, overlay: Some(overlay), .. } => Some(format!(
                "Put the file back where it was. If the data of `{vm}` in {} may go: castra clean \
                --disks {vm}, and name another base_image.",
                overlay.display()
            )),
            Self::BaseMissing { overlay: None, .. } => {
                Some("base_image in castra.toml must name an existing qcow2 file.".into())
            }
            Self::ForeignOverlay { found, .. } => Some(format!(
                "Name the image that belongs to {} again, or choose another `overlay` in \
                castra.toml. Never rebase the disk onto another image: that destroys its data.",
                found.display()
            )),
            Self::PortTaken { owner: PortOwner::Vm { vm, project: None }, .. } => Some(format!(
                "Stop that VM (castra down {vm}), or choose another host port in castra.toml."
            )),
            Self::PortTaken { owner: PortOwner::Vm { vm, project: Some(project) }, .. } => {
                Some(format!(
                    "Stop that VM (castra down {vm}, in {}), or choose another host port in \
                    castra.toml.",
                    project.display()
                ))
            }
            Self::PortTaken { owner: PortOwner::Process { .. }, .. } => {
                Some("Stop that program, or choose another host port in castra.toml.".into())
            }
            Self::PortTaken { port, .. } => Some(format!(
                "`ss -ltnup 'sport = :{port}'` shows who has it. Stop that program, or choose \
                another host port in castra.toml."
            )),
            Self::PortForbidden { .. } => {
                Some("Choose a host port of 1024 or above in castra.toml.".into())
            }
            Self::ServicesTimedOut { vm, .. } => {
                Some(format!("`castra logs {vm}` shows what they wait for."))
            }
            Self::AgentFailed { vm, .. } => {
                Some(format!("`castra logs {vm}` shows the guest's console."))
            }
            Self::BootTimedOut { vm, .. } => self.with_advice(format!(
                "`castra logs {vm}` shows the whole console. A slow machine may need more time: \
                --boot-timeout SECS."
            )),
            Self::BootFailed { vm, .. } => {
                self.with_advice(format!("`castra logs {vm}` shows the whole console."))
            }
            Self::BootDied { vm, .. } => self.with_advice(format!(
                "`castra logs {vm}` shows the console, `castra logs --source qemu {vm}` QEMU's \
                 messages."
            )),
            Self::NotStarted { .. } => self.advice(),
            Self::Random(_) | Self::Unkillable { .. } => None,
        }
    }
}

impl VmError {
    /// Returns what the diagnosis of a failed start advises.
    fn advice(&self) -> Option<String> {
        self.diagnosis().map(|diagnosis| diagnosis.advice.clone())
    }

    /// Returns the advice, if there is one, and then where there is more to read.
    fn with_advice(&self, logs: String) -> Option<String> {
        Some(match self.advice() {
            Some(advice) => format!("{advice}\n{logs}"),
            None => logs,
        })
    }

    /// Returns the error of another module that this one passes on.
    fn inner(&self) -> Option<&dyn Explain> {
        match self {
            Self::Record(error) => Some(error),
            Self::Image(error) => Some(error.as_ref()),
            Self::File(error) => Some(error),
            Self::Qemu(error) => Some(error),
            Self::Template(error) => Some(error.as_ref()),
            Self::Control(error) => Some(error),
            Self::NetworkDown(error) => Some(error),
            Self::Initrd(error) => Some(error),
            Self::Key(error) => Some(error),
            Self::StateRoot(error) => Some(error),
            Self::Lock(error) => Some(error),
            Self::Interrupted(error) => Some(error),
            _ => None,
        }
    }
}
