//! Errors of provisioning: steps that prepare a VM's disk.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, kind_of_io};
use crate::guest::ssh::SshError;
use crate::size::ByteSize;

/// Owner of steps, as a message names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepOwner {
    /// A VM, by name.
    Vm(String),
    /// The throw-away VM of a `castra run`.
    Run,
}

impl From<String> for StepOwner {
    fn from(vm: String) -> Self {
        Self::Vm(vm)
    }
}

impl fmt::Display for StepOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "VM `{vm}`"),
            Self::Run => f.write_str("this run"),
        }
    }
}

/// Name of a step in messages: "step 2 of 3 of VM `dev` (apk add nginx)".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepName {
    /// Owner of the step.
    pub vm: StepOwner,
    /// Number of the step, from 1.
    pub number: usize,
    /// Number of steps.
    pub of: usize,
    /// The step as one short line.
    pub text: String,
}

impl fmt::Display for StepName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, number, of, text } = self;
        write!(f, "step {number} of {of} of {vm} ({text})")
    }
}

/// Reason why a VM's disk could not be prepared. No VM and no part of the failed step is left.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The guest has no agent, which runs the steps.
    #[error("{vm} has `provision`, but boots natively, without castra's agent")]
    NoAgent {
        /// Owner of the steps.
        vm: StepOwner,
    },
    /// A file that a step reads cannot be read.
    #[error("cannot read {}, which a step of {vm} needs", path.display())]
    Input {
        /// Owner of the steps.
        vm: StepOwner,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is none that can be copied.
    #[error("a step of {vm} cannot copy {}: {reason}", path.display())]
    Unsuitable {
        /// Owner of the steps.
        vm: StepOwner,
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// A file was changed while it was copied.
    #[error("{} was changed while a step of {vm} copied it", path.display())]
    Changed {
        /// Owner of the steps.
        vm: StepOwner,
        /// The file or directory.
        path: PathBuf,
    },
    /// The VM has no steps.
    #[error("{vm} has no steps in castra.toml")]
    NoSteps {
        /// Owner of the steps.
        vm: StepOwner,
    },
    /// The VM has fewer steps.
    #[error("{vm} has no step {number}: its steps are 1 to {of}")]
    NoSuchStep {
        /// Owner of the steps.
        vm: StepOwner,
        /// The number.
        number: usize,
        /// Number of steps.
        of: usize,
    },
    /// The user has not agreed that steps see variables of castra's environment.
    #[error(
        "castra.toml gives the steps of {vm} {} of castra's environment",
        variables.join(", ")
    )]
    SecretsNotGranted {
        /// Owner of the steps.
        vm: StepOwner,
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
    #[error("step {number} of {vm} ({text}) needs {name}, which is not set")]
    NoSecret {
        /// Owner of the steps.
        vm: StepOwner,
        /// Number of the step, from 1.
        number: usize,
        /// The step as one short line.
        text: String,
        /// The variable.
        name: String,
    },
    /// A secret does not fit into an environment.
    #[error("the value of {name}, for step {number} of {vm}, is too long for a variable")]
    LongSecret {
        /// Owner of the steps.
        vm: StepOwner,
        /// Number of the step, from 1.
        number: usize,
        /// The variable.
        name: String,
    },
    /// The step has failed.
    #[error("{step} {exit}{}", quoted(output))]
    Failed {
        /// The step.
        step: StepName,
        /// Exit of the step, as the end of a sentence.
        exit: String,
        /// End of its output.
        output: String,
    },
    /// The step has left no room on the disk.
    #[error("{step} has filled the disk, which has {size}{}", end_of(output))]
    Full {
        /// The step.
        step: StepName,
        /// Size of the disk.
        size: ByteSize,
        /// End of its output, if it has failed.
        output: String,
    },
    /// The guest in which the step was to run did not come up.
    #[error("the VM for {step} did not start: {cause}")]
    NotStarted {
        /// The step.
        step: StepName,
        /// The reason.
        cause: String,
    },
    /// The guest was lost while the step ran.
    #[error("the VM was lost in {step}")]
    Lost {
        /// The step.
        step: StepName,
        /// The reason.
        source: SshError,
    },
    /// The guest's kernel gave up while the step ran.
    #[error("the kernel panicked in {step}: {panic}")]
    Panicked {
        /// The step.
        step: StepName,
        /// Last words of the kernel.
        panic: String,
    },
    /// The guest did not shut down in order after the step.
    #[error(
        "the VM did not shut down properly after {step}: \
        {cause}"
    )]
    NotStopped {
        /// The step.
        step: StepName,
        /// The reason.
        cause: String,
    },
}

impl ProvisionError {
    /// Returns the error as one of `castra run`, whose VM has a name that no one has chosen.
    pub(in crate::vm) fn of_run(mut self) -> Self {
        match &mut self {
            Self::NoAgent { vm }
            | Self::Input { vm, .. }
            | Self::Unsuitable { vm, .. }
            | Self::Changed { vm, .. }
            | Self::NoSteps { vm }
            | Self::NoSuchStep { vm, .. }
            | Self::SecretsNotGranted { vm, .. }
            | Self::NoSecret { vm, .. }
            | Self::LongSecret { vm, .. } => *vm = StepOwner::Run,
            Self::Failed { step, .. }
            | Self::Full { step, .. }
            | Self::NotStarted { step, .. }
            | Self::Lost { step, .. }
            | Self::Panicked { step, .. }
            | Self::NotStopped { step, .. } => step.vm = StepOwner::Run,
            Self::Grant { .. } => {}
        }
        self
    }
}

/// Returns the end of the output of a step that has failed, as [`quoted`] does.
fn end_of(output: &str) -> String {
    if output.is_empty() { String::new() } else { quoted(output) }
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
            Self::NoAgent { .. }
            | Self::Unsuitable { .. }
            | Self::Failed { .. }
            | Self::Full { .. } => Kind::Data,
            Self::Changed { .. } => Kind::Busy,
            Self::NotStarted { .. } | Self::Panicked { .. } | Self::NotStopped { .. } => {
                Kind::Unavailable
            }
            Self::Lost { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::SecretsNotGranted { vm: StepOwner::Vm(vm), .. } => {
                return Some(format!(
                    "A step can send them anywhere. If you want it, run `castra up {vm} \
                    --allow-secrets` once."
                ));
            }
            Self::SecretsNotGranted { vm: StepOwner::Run, .. } => {
                "A step can send them anywhere. If you want it, run `castra up --allow-secrets` in \
                the project once."
            }
            Self::NoSecret { name, .. } => {
                return Some(format!(
                    "Nothing has run. Set {name} in castra's environment; an empty one counts as \
                    unset."
                ));
            }
            Self::NoSteps { .. } => "`castra shell` opens a shell in the VM itself.",
            Self::NoSuchStep { vm: StepOwner::Vm(vm), of, .. } => {
                return Some(format!(
                    "`castra shell --at-step {} {vm}` shows the disk after the last one.",
                    of + 1
                ));
            }
            Self::NoSuchStep { vm: StepOwner::Run, .. } => return None,
            Self::LongSecret { .. } => "A variable has room for 127 KiB.",
            Self::Grant { .. } => return None,
            Self::NoAgent { vm: StepOwner::Run } => {
                "Run it without --provision, or name an image with a kernel that castra can boot: \
                --image."
            }
            Self::NoAgent { .. } => {
                "Remove `provision` from castra.toml, or use a disk with a kernel that castra can \
                boot."
            }
            Self::Input { vm: StepOwner::Run, .. } => {
                "--provision names it, relative to the working directory, or `provision` of the \
                image, relative to castra.toml."
            }
            Self::Input { .. } => "`provision` in castra.toml names it, relative to castra.toml.",
            Self::Unsuitable { vm: StepOwner::Run, .. } => {
                "A script is a regular file of at most 1 GiB."
            }
            Self::Unsuitable { .. } => {
                "Files, directories and links inside the project can be copied, up to 1 GiB and \
                100000 of them. `provision` in castra.toml names them."
            }
            Self::Changed { .. } => "Try again once nothing writes to it.",
            Self::Failed { step: StepName { vm: StepOwner::Run, .. }, .. } => {
                "Nothing of this step is kept, and the steps before it are not run again. Correct \
                it, then run the same command."
            }
            Self::Failed { step: StepName { vm: StepOwner::Vm(vm), number, .. }, .. } => {
                return Some(format!(
                    "Nothing of this step is kept, and the steps before it are not run again. \
                    `castra shell --at-step {number} {vm}` opens a shell on the disk as it finds \
                    it. Correct it in castra.toml, then: castra up"
                ));
            }
            Self::Full { step: StepName { vm: StepOwner::Run, .. }, .. } => {
                "Nothing of this step is kept. Give the VM a larger disk with --disk, or let the \
                step remove what is not needed."
            }
            Self::Full { .. } => {
                "Nothing of this step is kept. Give the VM a larger disk with `disk` in its \
                [[vms]] of castra.toml, or let the step remove what is not needed."
            }
            Self::Lost { source: SshError::Interrupted, .. } => return None,
            Self::NotStarted { .. } => {
                "Nothing of this step is kept. `castra doctor` checks QEMU and this machine."
            }
            Self::Lost { .. } => {
                "Nothing of this step is kept. It may have switched the VM off, rebooted it, or \
                ended castra's agent. Otherwise, `castra doctor` checks QEMU and this machine."
            }
            Self::Panicked { step: StepName { vm: StepOwner::Run, .. }, .. } => {
                "Nothing of this step is kept. If the kernel was out of memory, give the VM more: \
                --memory."
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

    fn step(vm: StepOwner) -> StepName {
        StepName { vm, number: 2, of: 3, text: "apk add nginx".into() }
    }

    #[test]
    fn no_error_of_a_run_names_its_vm_or_castra_toml() {
        let vm = || StepOwner::Vm("run-1234".into());
        let source = || io::Error::from(io::ErrorKind::NotFound);
        let errors = [
            ProvisionError::NoAgent { vm: vm() },
            ProvisionError::Unsuitable { vm: vm(), path: "a.sh".into(), reason: "it is large" },
            ProvisionError::Changed { vm: vm(), path: "a.sh".into() },
            ProvisionError::Failed { step: step(vm()), exit: "failed".into(), output: "".into() },
            ProvisionError::Full { step: step(vm()), size: ByteSize(1 << 30), output: "".into() },
            ProvisionError::Panicked { step: step(vm()), panic: "Oops".into() },
            ProvisionError::NotStopped { step: step(vm()), cause: "it ended".into() },
        ];
        for error in errors {
            let error = error.of_run();
            let text = format!("{error}. {}", error.hint().unwrap_or_default());
            assert!(text.contains("this run") && !text.contains("run-1234"), "{text}");
            assert!(!text.contains("castra.toml"), "{text}");
        }
        let input = ProvisionError::Input { vm: vm(), path: "a.sh".into(), source: source() };
        assert!(!input.of_run().to_string().contains("run-1234"));
    }

    #[test]
    fn a_failed_step_shows_the_end_of_its_output() {
        let failed = |output: &str| {
            ProvisionError::Failed {
                step: step(StepOwner::Vm("dev".into())),
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
