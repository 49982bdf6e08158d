//! Errors of provisioning: steps that prepare a VM's disk.

use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, kind_of_io};
use crate::guest::ssh::SshError;

/// Reason why a VM's disk could not be prepared. No VM and no part of the failed step is left.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The guest has no agent, which runs the steps.
    #[error("VM `{vm}` has `provision`, but boots natively, without castra's agent")]
    NoAgent {
        /// The VM.
        vm: String,
    },
    /// A file that a step reads cannot be read.
    #[error("cannot read {}, which a step of VM `{vm}` needs", path.display())]
    Input {
        /// The VM.
        vm: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is none that can be copied.
    #[error("a step of VM `{vm}` cannot copy {}: {reason}", path.display())]
    Unsuitable {
        /// The VM.
        vm: String,
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// A file was changed while it was copied.
    #[error("{} was changed while a step of VM `{vm}` copied it", path.display())]
    Changed {
        /// The VM.
        vm: String,
        /// The file or directory.
        path: PathBuf,
    },
    /// The VM has no steps.
    #[error("VM `{vm}` has no steps in castra.toml")]
    NoSteps {
        /// The VM.
        vm: String,
    },
    /// The VM has fewer steps.
    #[error("VM `{vm}` has no step {number}: its steps are 1 to {of}")]
    NoSuchStep {
        /// The VM.
        vm: String,
        /// The number.
        number: usize,
        /// Number of steps.
        of: usize,
    },
    /// The user has not agreed that steps see variables of castra's environment.
    #[error(
        "castra.toml gives the steps of VM `{vm}` {} of castra's environment",
        variables.join(", ")
    )]
    SecretsNotGranted {
        /// The VM.
        vm: String,
        /// The variables.
        variables: Vec<String>,
    },
    /// The consent cannot be written down.
    #[error("cannot write {}", path.display())]
    Grant {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A secret has no value.
    #[error("step {number} of VM `{vm}` ({text}) needs {name}, which is not set")]
    NoSecret {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// The step as one short line.
        text: String,
        /// The variable.
        name: String,
    },
    /// A secret does not fit into an environment.
    #[error("the value of {name}, for step {number} of VM `{vm}`, is too long for a variable")]
    LongSecret {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// The variable.
        name: String,
    },
    /// The step has failed.
    #[error("step {number} of {of} of VM `{vm}` ({text}) {exit}{}", quoted(output))]
    Failed {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// Exit of the step, as the end of a sentence.
        exit: String,
        /// End of its output.
        output: String,
    },
    /// The guest in which the step was to run did not come up.
    #[error("the VM for step {number} of {of} of VM `{vm}` ({text}) did not start: {cause}")]
    NotStarted {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// The reason.
        cause: String,
    },
    /// The guest was lost while the step ran.
    #[error("the VM was lost in step {number} of {of} of VM `{vm}` ({text})")]
    Lost {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// The reason.
        source: SshError,
    },
    /// The guest's kernel gave up while the step ran.
    #[error("the kernel panicked in step {number} of {of} of VM `{vm}` ({text}): {panic}")]
    Panicked {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// Last words of the kernel.
        panic: String,
    },
    /// The guest did not shut down in order after the step.
    #[error(
        "the VM did not shut down properly after step {number} of {of} of VM `{vm}` ({text}): \
        {cause}"
    )]
    NotStopped {
        /// The VM.
        vm: String,
        /// Number of the step, from 1.
        number: usize,
        /// Number of steps.
        of: usize,
        /// The step as one short line.
        text: String,
        /// The reason.
        cause: String,
    },
}

/// Returns the end of a step's output, indented below the message.
fn quoted(output: &str) -> String {
    match output.is_empty() {
        true => " without any output".to_owned(),
        false => output.lines().fold(":".to_owned(), |text, line| format!("{text}\n  {line}")),
    }
}

impl Explain for ProvisionError {
    fn kind(&self) -> Kind {
        match self {
            Self::Input { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Kind::NotFound
            }
            Self::Input { source, .. } | Self::Grant { source, .. } => kind_of_io(source),
            Self::SecretsNotGranted { .. } => Kind::Permission,
            Self::NoSecret { .. }
            | Self::LongSecret { .. }
            | Self::NoSteps { .. }
            | Self::NoSuchStep { .. } => Kind::Usage,
            Self::NoAgent { .. } | Self::Unsuitable { .. } | Self::Failed { .. } => Kind::Data,
            Self::Changed { .. } => Kind::Busy,
            Self::NotStarted { .. } | Self::Panicked { .. } | Self::NotStopped { .. } => {
                Kind::Unavailable
            }
            Self::Lost { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::SecretsNotGranted { vm, .. } => {
                return Some(format!(
                    "A step can send them anywhere. If you want it, run `castra up {vm} \
                    --allow-secrets` once."
                ));
            }
            Self::NoSecret { name, .. } => {
                return Some(format!(
                    "Nothing has run. Set {name} in castra's environment; an empty one counts as \
                    unset."
                ));
            }
            Self::NoSteps { .. } => "`castra shell` opens a shell in the VM itself.",
            Self::NoSuchStep { vm, of, .. } => {
                return Some(format!(
                    "`castra shell --at-step {} {vm}` shows the disk after the last one.",
                    of + 1
                ));
            }
            Self::LongSecret { .. } => "A variable has room for 127 KiB.",
            Self::Grant { .. } => return None,
            Self::NoAgent { .. } => {
                "Remove `provision` from castra.toml, or use a disk with a kernel that castra can \
                boot."
            }
            Self::Input { .. } => {
                "`provision` in castra.toml names it, relative to castra.toml, or --provision, \
                relative to the working directory."
            }
            Self::Unsuitable { .. } => {
                "Files, directories and links inside the project can be copied, up to 1 GiB and \
                100000 of them. `provision` in castra.toml names them."
            }
            Self::Changed { .. } => "Try again once nothing writes to it.",
            Self::Failed { vm, number, .. } => {
                return Some(format!(
                    "Nothing of this step is kept, and the steps before it are not run again. \
                    `castra shell --at-step {number} {vm}` opens a shell on the disk as it finds \
                    it. Correct it in castra.toml, then: castra up"
                ));
            }
            Self::Lost { source: SshError::Interrupted, .. } => return None,
            Self::NotStarted { .. } => {
                "Nothing of this step is kept. `castra doctor` checks QEMU and this machine."
            }
            Self::Lost { .. } => {
                "Nothing of this step is kept. It may have switched the VM off, rebooted it, or \
                ended castra's agent. Otherwise, `castra doctor` checks QEMU and this machine."
            }
            Self::Panicked { .. } => {
                "Nothing of this step is kept. If the kernel was out of memory, give the VM more: \
                `memory` in castra.toml."
            }
            Self::NotStopped { .. } => {
                "Nothing of this step is kept. It may have started a service that does not stop, \
                or a program that switches the VM off."
            }
        };
        Some(hint.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_the_end_of_its_output() {
        let failed = |output: &str| {
            ProvisionError::Failed {
                vm: "dev".into(),
                number: 2,
                of: 3,
                text: "apk add nginx".into(),
                exit: "failed with exit code 1".into(),
                output: output.into(),
            }
            .to_string()
        };
        let message = "step 2 of 3 of VM `dev` (apk add nginx) failed with exit code 1";
        assert_eq!(failed(""), format!("{message} without any output"));
        assert_eq!(failed("one\ntwo\n"), format!("{message}:\n  one\n  two"));
    }
}
