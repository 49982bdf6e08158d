//! Errors of starting a VM.

use std::path::PathBuf;

use crate::config::CloudInitError;
use crate::context::BadVariable;
use crate::error::{Explain, Kind};
use crate::guest::ssh::SshError;
use crate::qemu::QemuError;
use crate::vm::diagnosis::{Diagnosis, Trouble};

/// Reason why a VM could not be started, or was not ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `CASTRA_ACCELERATOR` names no accelerator.
    #[error(transparent)]
    Variable(#[from] BadVariable),
    /// The guest has no agent that reports its services, so the wait for them is pointless.
    #[error(
        "VM `{vm}` boots natively, without Castra's agent inside, which `--wait services` needs"
    )]
    ServicesUnseen {
        /// The VM.
        vm: String,
    },
    /// No kernel can be read from the VM's disk, and it is to boot with one.
    #[error("VM `{vm}` cannot boot with the kernel of {}: {reason}", disk.display())]
    NoKernel {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The data for cloud-init cannot be read.
    #[error("VM `{vm}` cannot be given its data for cloud-init: {error}")]
    CloudInit {
        /// The VM.
        vm: String,
        /// The reason.
        error: CloudInitError,
    },
    /// The VM has data for cloud-init, and boots in a way in which they do not get to it.
    #[error("VM `{vm}` has `cloud_init`, but its image has a kernel of its own and no cloud-init")]
    NoCloudInit {
        /// The VM.
        vm: String,
    },
    /// Another VM that was started here still runs, although its project is gone from here.
    #[error(
        "VM `{vm}` cannot start here: another VM that was started here is running{}",
        before(predecessor.as_ref())
    )]
    PlaceTaken {
        /// The VM.
        vm: String,
        /// The other VM; `None` if it cannot be seen.
        predecessor: Option<Predecessor>,
    },
    /// QEMU could not be started, and there is a probable cause.
    #[error("{error}\n  probable cause: {}", diagnosis.cause)]
    NotStarted {
        /// The failure of QEMU.
        error: Box<QemuError>,
        /// The probable cause.
        diagnosis: Box<Diagnosis>,
    },
    /// QEMU ended while the guest booted.
    #[error("VM `{vm}` exited while booting, {trouble}")]
    BootDied {
        /// The VM.
        vm: String,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// The guest's own output says that it will never be ready.
    #[error("VM `{vm}` failed to boot {trouble}")]
    BootFailed {
        /// The VM.
        vm: String,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// The guest was not ready in time.
    #[error("VM `{vm}` was not ready after {limit_secs} s, {trouble}")]
    BootTimedOut {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// The agent could not do what commands need.
    #[error("the agent in VM `{vm}` could not {task}: {reason}")]
    AgentFailed {
        /// The VM.
        vm: String,
        /// Task of the agent.
        task: &'static str,
        /// Reason that the agent reported.
        reason: String,
    },
    /// A natively booted system has no SSH server that lets castra in.
    #[error("VM `{vm}` boots natively, and {}", why.in_words(*limit_secs))]
    NoLogin {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
        /// Reason for which there is no login.
        why: NoLogin,
        /// Castra's public key, as a line of `authorized_keys`.
        key: String,
    },
    /// A natively booted system cannot be logged in to.
    #[error("VM `{vm}` boots natively, and {error}")]
    LoginFailed {
        /// The VM.
        vm: String,
        /// The reason.
        error: Box<SshError>,
    },
    /// Commands can run, but not all services of the guest are up.
    #[error("not all services of VM `{vm}` were up after {limit_secs} s; commands can run in it")]
    ServicesTimedOut {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
    },
}

/// Reason for which a system's own SSH server does not let castra in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLogin {
    /// Nothing answers.
    Silent,
    /// Nothing listens.
    Closed,
    /// The key is not accepted.
    Refused,
}

impl NoLogin {
    fn in_words(self, limit_secs: u64) -> String {
        match self {
            Self::Silent => {
                format!("nothing answered at port 22 of its guest within {limit_secs} s")
            }
            Self::Closed => {
                format!("no SSH server answered at port 22 of its guest within {limit_secs} s")
            }
            Self::Refused => "its SSH server does not accept Castra's key".to_owned(),
        }
    }
}

/// A VM whose project was moved or removed while it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// Pid of its QEMU.
    pub pid: i32,
    /// Current directory of its project, if there is one.
    pub project: Option<PathBuf>,
}

impl StartError {
    /// Returns the diagnosis, if there is one.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            Self::BootTimedOut { trouble, .. }
            | Self::BootDied { trouble, .. }
            | Self::BootFailed { trouble, .. } => trouble.diagnosis.as_ref(),
            Self::NotStarted { diagnosis, .. } => Some(diagnosis),
            Self::Variable(_)
            | Self::ServicesUnseen { .. }
            | Self::NoKernel { .. }
            | Self::CloudInit { .. }
            | Self::NoCloudInit { .. }
            | Self::PlaceTaken { .. }
            | Self::AgentFailed { .. }
            | Self::NoLogin { .. }
            | Self::LoginFailed { .. }
            | Self::ServicesTimedOut { .. } => None,
        }
    }

    /// Returns what the diagnosis advises.
    pub(super) fn advice(&self) -> Option<String> {
        self.diagnosis().map(|diagnosis| diagnosis.advice.clone())
    }

    /// Returns the advice, if there is one, and then where there is more to read.
    fn with_advice(&self, logs: String) -> String {
        match self.advice() {
            Some(advice) => format!("{advice}\n{logs}"),
            None => logs,
        }
    }
}

impl Explain for StartError {
    fn kind(&self) -> Kind {
        match self {
            Self::Variable(error) => error.kind(),
            Self::NoKernel { .. } | Self::NoCloudInit { .. } => Kind::Data,
            Self::CloudInit { error, .. } => error.kind(),
            Self::PlaceTaken { .. } => Kind::Busy,
            Self::NotStarted { error, .. } => error.kind(),
            Self::ServicesUnseen { .. }
            | Self::BootDied { .. }
            | Self::BootFailed { .. }
            | Self::BootTimedOut { .. }
            | Self::AgentFailed { .. }
            | Self::NoLogin { .. }
            | Self::ServicesTimedOut { .. } => Kind::Unavailable,
            Self::LoginFailed { error, .. } => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Variable(error) => return error.hint(),
            Self::ServicesUnseen { vm } => format!(
                "Omit `--wait services`: `castra up {vm}` returns once it is running, and `castra \
                console {vm}` shows its serial console."
            ),
            Self::NoKernel { .. } => "A disk with a boot loader boots without Castra's agent: \
                `boot_profile = \"native\"` in its [[vms]]."
                .to_owned(),
            Self::CloudInit { error, .. } => return error.hint(),
            Self::NoCloudInit { .. } => "Choose an image with cloud-init, for \
                instance `managed_image = \"debian-13\"`; `castra image list --available` shows \
                them. Or remove `cloud_init`."
                .to_owned(),
            Self::PlaceTaken { vm, predecessor } => way_past(predecessor.as_ref(), vm),
            Self::NotStarted { .. } => return self.advice(),
            Self::BootDied { vm, .. } => self.with_advice(format!(
                "`castra logs {vm}` shows the console, `castra logs --source qemu {vm}` QEMU's \
                 messages."
            )),
            Self::BootFailed { vm, .. } => {
                self.with_advice(format!("`castra logs {vm}` shows the whole console."))
            }
            Self::BootTimedOut { vm, .. } => self.with_advice(format!(
                "`castra logs {vm}` shows the whole console. A slow machine may need more time: \
                --boot-timeout SECS."
            )),
            Self::AgentFailed { vm, .. } => {
                format!("`castra logs {vm}` shows the guest's console.")
            }
            Self::NoLogin { vm, why: NoLogin::Refused, key, .. } => format!(
                "The VM keeps running. Its server must let root in with a key \
                (`PermitRootLogin`). systemd 252 and cloud-init are given the key; without them, \
                append it to the guest's /root/.ssh/authorized_keys yourself, for instance by \
                `castra console {vm}`:\n{key}"
            ),
            Self::NoLogin { vm, .. } => format!(
                "The VM keeps running. Commands run in it over an SSH server of its own, at an \
                address from DHCP. `castra console {vm}` and `castra logs {vm}` show whether it \
                has booted, if its system uses the serial console; a slow one may need more time: \
                --boot-timeout SECS. `castra up --no-wait {vm}` waits for nothing."
            ),
            Self::LoginFailed { error, .. } => return error.hint(),
            Self::ServicesTimedOut { vm, .. } => {
                format!("`castra logs {vm}` shows what they wait for.")
            }
        })
    }
}

fn before(predecessor: Option<&Predecessor>) -> String {
    match predecessor {
        None => String::new(),
        Some(Predecessor { pid, project: None }) => {
            format!(", whose project is gone (process {pid})")
        }
        Some(Predecessor { pid, project: Some(project) }) => {
            format!(", whose project was moved to {} (process {pid})", project.display())
        }
    }
}

fn way_past(predecessor: Option<&Predecessor>, vm: &str) -> String {
    match predecessor {
        Some(Predecessor { project: Some(project), .. }) => format!(
            "It uses the sockets of this directory, and its QEMU removes the pid file here when \
            it exits. Stop it first: castra down {vm}, in {}.",
            project.display()
        ),
        Some(Predecessor { project: None, .. }) => {
            format!("`castra clean --orphans {vm}` stops it.")
        }
        None => {
            "Look for it with `castra list`, in each container that uses this directory.".into()
        }
    }
}
