//! Errors of starting and running QEMU, with kinds and hints.

use std::io;
use std::path::PathBuf;

use crate::cancel::Interrupted;
use crate::command::CommandError;
use crate::error::{Explain, Kind, kind_of_io};

use super::disk_error::DiskError;
use super::firmware::{CODE, VARIABLES};
use super::qmp::QmpError;

/// Reason why QEMU could not be started, or did not survive.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// There is no `qemu-system-x86_64`.
    #[error("{program} is not installed: it is not on the PATH")]
    NotInstalled {
        /// Name of the missing program.
        program: String,
    },
    /// `CASTRA_QEMU` names a file that is no program.
    #[error("CASTRA_QEMU names {program}, which is not an executable")]
    NotExecutable {
        /// Value of the variable.
        program: String,
    },
    /// The program exists but does not run.
    #[error("{} cannot be run", program.display())]
    Broken {
        /// The program.
        program: PathBuf,
        /// Failure of the program.
        source: CommandError,
    },
    /// QEMU ended before the machine ran. Its own message is in `stderr`.
    #[error("QEMU exited while starting VM `{vm}`{}", quoted(stderr))]
    Died {
        /// The VM.
        vm: String,
        /// QEMU's output on stderr.
        stderr: String,
        /// Signal that ended it, if one did.
        signal: Option<i32>,
    },
    /// QEMU lives but does not answer on its machine protocol.
    #[error("QEMU of VM `{vm}` is not responding")]
    NotResponding {
        /// The VM.
        vm: String,
        /// Failure on the socket.
        source: QmpError,
    },
    /// The directory for the sockets cannot be used.
    #[error("cannot use {} for sockets", directory.display())]
    SocketDirectory {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The directory for the sockets belongs to another user.
    #[error("{} belongs to another user (uid {owner})", directory.display())]
    ForeignDirectory {
        /// The directory.
        directory: PathBuf,
        /// User id of its owner.
        owner: u32,
    },
    /// A socket's path is longer than the kernel allows.
    #[error(
        "the socket path {} is too long ({bytes} bytes; the system allows {limit})",
        path.display()
    )]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Length of the path, in bytes.
        bytes: usize,
        /// Limit, in bytes.
        limit: usize,
    },
    /// A file that QEMU needs cannot be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Failed action: `write`, `read`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is not a qcow2 image.
    #[error("{} is not a qcow2 image: {reason}", path.display())]
    NotQcow2 {
        /// The file.
        path: PathBuf,
        /// Reason why it is none.
        reason: String,
    },
    /// The kernel is not a Linux kernel.
    #[error("{} is not a Linux kernel for x86", kernel.display())]
    NotLinux {
        /// The kernel.
        kernel: PathBuf,
    },
    /// The disk cannot be used, or must not be.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// `qemu-img` failed.
    #[error("cannot make the disk {}", path.display())]
    MakeDisk {
        /// The disk.
        path: PathBuf,
        /// Failure of qemu-img.
        source: CommandError,
    },
    /// The state of a machine could not be saved.
    #[error("QEMU cannot save the state of VM `{vm}`: {reason}")]
    NotSaved {
        /// The VM.
        vm: String,
        /// QEMU's message.
        reason: String,
    },
    /// There is no UEFI firmware on this machine.
    #[error("no UEFI firmware for QEMU (OVMF) is installed")]
    NoUefi,
    /// Only one of the two variables that name UEFI firmware is set.
    #[error("{set} is set and {unset} is not: UEFI firmware has both, code and variables")]
    HalfOfUefi {
        /// The one that is set.
        set: &'static str,
        /// The one that is not.
        unset: &'static str,
    },
    /// A variable names a file of UEFI firmware that cannot be read.
    #[error("{variable} names {}, which cannot be read", path.display())]
    NamedUefi {
        /// The variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A signal could not be sent.
    #[error("cannot signal QEMU (process {pid})")]
    Signal {
        /// The process.
        pid: i32,
        /// The reason.
        source: io::Error,
    },
    /// The user pressed Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl QemuError {
    /// Returns `true` if QEMU could not bind one of the host's ports.
    pub fn is_port_taken(&self) -> bool {
        // The message of net/slirp.c, unchanged since QEMU 0.10.
        matches!(self, Self::Died { stderr, .. } if stderr.contains("Could not set up host \
            forwarding rule"))
    }
}

impl Explain for QemuError {
    fn kind(&self) -> Kind {
        match self {
            Self::Died { .. } if self.is_port_taken() => Kind::Busy,
            Self::NotInstalled { .. }
            | Self::NotExecutable { .. }
            | Self::Broken { .. }
            | Self::Died { .. }
            | Self::NotResponding { .. }
            | Self::NotSaved { .. }
            | Self::NoUefi
            | Self::NamedUefi { .. } => Kind::Unavailable,
            Self::HalfOfUefi { .. } => Kind::Usage,
            Self::SocketDirectory { source, .. }
            | Self::File { source, .. }
            | Self::Signal { source, .. } => kind_of_io(source),
            Self::ForeignDirectory { .. } => Kind::Permission,
            Self::SocketPathTooLong { .. } | Self::MakeDisk { .. } => Kind::CannotCreate,
            Self::NotQcow2 { .. } | Self::NotLinux { .. } => Kind::Data,
            Self::Disk(error) => error.kind(),
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotInstalled { program } => Some(install_hint(program)),
            Self::NotExecutable { .. } => Some(
                "Correct it, or unset CASTRA_QEMU: then Castra looks for qemu-system-x86_64 on \
                the PATH."
                    .into(),
            ),
            Self::Broken { program, .. } => Some(format!(
                "Try `{} --version` by hand; reinstalling QEMU usually helps.",
                program.display()
            )),
            Self::Died { .. } if self.is_port_taken() => Some(
                "Another program has just taken that port: try again. `ss -ltnup` shows which; a \
                port declared in castra.toml can be changed there."
                    .into(),
            ),
            Self::Died { vm, .. } => {
                Some(format!("`castra logs --source qemu {vm}` shows QEMU's full output."))
            }
            Self::NotResponding { vm, .. } => Some(format!(
                "The machine may be too busy: try again. `castra logs --source qemu {vm}` shows \
                its output; `castra down {vm}` stops it."
            )),
            Self::NotSaved { reason, .. } if reason.contains("No space left") => Some(
                "Free some space on the disk: the saved memory is as large as the memory the \
                guest uses. The VM keeps running."
                    .into(),
            ),
            Self::SocketDirectory { .. } | Self::SocketPathTooLong { .. } => Some(
                "Set XDG_RUNTIME_DIR to a short directory of your own, for instance /tmp/run."
                    .into(),
            ),
            Self::ForeignDirectory { .. } => Some(
                "Set XDG_RUNTIME_DIR to a directory of your own; sockets there could be read by \
                its owner."
                    .into(),
            ),
            Self::NotLinux { .. } => Some(
                "QEMU would load it by another protocol, in which file names have a special \
                meaning. Let the image's disk boot by itself: remove `kernel`, `initramfs` and \
                `command_line` from its description."
                    .into(),
            ),
            Self::NoUefi => Some(uefi_hint()),
            Self::NamedUefi { .. } => Some(format!(
                "Correct it, or unset {CODE} and {VARIABLES}: then Castra looks for installed \
                firmware."
            )),
            Self::HalfOfUefi { unset, .. } => Some(format!(
                "Set {unset}, too, or neither: then Castra looks for installed firmware."
            )),
            Self::Disk(error) => error.hint(),
            Self::NotQcow2 { path, .. } => Some(format!(
                "Convert it first: qemu-img convert -O qcow2 {0} {0}.qcow2, and name that as \
                base_image.",
                path.display()
            )),
            Self::NotSaved { .. }
            | Self::File { .. }
            | Self::MakeDisk { .. }
            | Self::Signal { .. } => None,
            Self::Interrupted(error) => error.hint(),
        }
    }
}

/// Returns advice on installing a program of QEMU's on a machine like this one.
pub(crate) fn install_hint(program: &str) -> String {
    if cfg!(target_os = "macos") {
        return "Install it: `brew install qemu`.".to_owned();
    }
    let [debian, fedora, arch, alpine, suse] = match program {
        "qemu-img" => ["qemu-utils", "qemu-img", "qemu-img", "qemu-img", "qemu-tools"],
        _ => [
            "qemu-system-x86 qemu-utils",
            "qemu-system-x86 qemu-img",
            "qemu-system-x86 qemu-img",
            "qemu-system-x86_64 qemu-img",
            "qemu-x86 qemu-tools",
        ],
    };
    format!(
        "Install it: `apt install {debian}` (Debian, Ubuntu), `dnf install {fedora}` (Fedora), \
        `pacman -S {arch}` (Arch), `apk add {alpine}` (Alpine), `zypper install {suse}` (openSUSE)."
    )
}

/// Returns advice on installing UEFI firmware.
fn uefi_hint() -> String {
    format!(
        "Install it: `apt install ovmf` (Debian, Ubuntu), `dnf install edk2-ovmf` (Fedora), \
        `pacman -S edk2-ovmf` (Arch), `apk add ovmf` (Alpine), `zypper install \
        qemu-ovmf-x86_64` (openSUSE); Homebrew's QEMU brings it. For firmware elsewhere, name its \
        two files in {CODE} and {VARIABLES}."
    )
}

fn quoted(stderr: &str) -> String {
    let said: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &said[said.len().saturating_sub(3)..];
    if last.is_empty() { ", without any output".into() } else { format!(": {}", last.join(" / ")) }
}
