//! Runs a step in its machine: waits for the guest, runs the step's program, shuts the guest down.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _};
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage, Secret};

use crate::config::{ProvisionStep, StepAction};
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::guest::ssh::{
    Command, GuestExit, Interruption, SshError, Stdin, Stream, StreamRequest, Target, capture,
    stream,
};
use crate::guest::{ControlError, ControlPort, HeldPorts, StreamPorts, Streams, VmKeys};
use crate::host::{random_bytes, unix_time};
use crate::qemu::{MachineSpec, MachineStatus, Qcow2Header, end_of_log};
use crate::report::Event;
use crate::sanitize::sanitize_text;
use crate::size::ByteSize;
use crate::template::{StepMachine, TemplateError};
use crate::vm::diagnosis::Words;
use crate::vm::error::{FileAction, ProvisionError, StepName, VmError, VmIoError};
use crate::vm::monitor::RoomWatch;
use crate::vm::start::limits::Limits;
use crate::vm::start::watch::has_given_up;
use crate::wait::connect_at_once;

use super::end::shut_down;
use super::inputs::{self, SCRIPT};
use super::mask::{Mask, Masked};
use super::output::{Lines, Tail};

/// User that runs the steps.
const ROOT: &str = "root";

/// Interval at which the wait for the guest looks at its console.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Unpacks a script from stdin, runs it without input, and removes it whatever it comes to.
const RUN_SCRIPT: &str = "\
directory=$(mktemp -d /tmp/castra-step-XXXXXX) || exit
trap 'rm -rf \"$directory\"' EXIT
tar -xf - -C \"$directory\" || exit
\"$directory/$1\" < /dev/null";

/// Keeps secrets in memory from the disk: no swap, and no dump of a program that crashes.
const KEEP_SECRETS: &str = "\
pattern=/proc/sys/kernel/core_pattern
test ! -e $pattern || echo '|/bin/false' > $pattern || exit
test -e /proc/swaps || exit 0
if { read -r _ && read -r _; } < /proc/swaps; then swapoff -a; fi";

/// Most output that is read of a program of castra's own, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 * 1024;

/// Writes a MiB, and says whether there was room. The numbers of `df` do not: ext4 keeps blocks for
/// itself that not even root gets, and others keep some for root.
const TRY_TO_WRITE: &str = "\
file=/.castra-room-$$
LC_ALL=C dd if=/dev/zero of=$file bs=1024 count=1024 2>&1
rm -f $file";

/// Error of a full filesystem, ENOSPC, in the words of `TRY_TO_WRITE`.
const NO_ROOM: &str = "No space left on device";

/// Unpacks files from stdin in a directory, which is made if it is missing.
const UNPACK: &str = "mkdir -p -- \"$1\" && exec tar -xpf - -C \"$1\"";

/// A step that is about to run.
pub(super) struct StepRun<'a> {
    pub(super) vm: String,
    pub(super) step: &'a ProvisionStep,
    /// Number of the step, from 1.
    pub(super) number: usize,
    /// Number of steps.
    pub(super) of: usize,
    /// Digest of what the step reads, when its layer's key was computed.
    pub(super) inputs: Option<&'a str>,
    pub(super) spec: &'a MachineSpec,
    /// Variables for the step's program.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Variables that are never shown.
    pub(super) secrets: Vec<(OsString, OsString)>,
    /// Secrets of this step and of others, in what it prints.
    pub(super) masked: Masked,
    /// Time limit of the boot; `None` for one that fits.
    pub(super) limit: Option<Duration>,
    pub(super) context: &'a RuntimeContext,
}

impl StepRun<'_> {
    /// Runs the step. Returns once the guest has shut down in order.
    ///
    /// # Errors
    /// [`ProvisionError`], or an interruption.
    pub(super) fn drive(&self, machine: StepMachine<'_>) -> Result<(), VmError> {
        let (mut port, room) = self.start(&machine)?;
        failpoint::reach(Point::StepRun);
        let run = self.run_program(&machine);
        if let (Err(_), Some(panic)) = (&run, room.as_ref().and_then(RoomWatch::panic)) {
            let (step, panic) = (self.name(), panic.to_owned());
            return Err(ProvisionError::Panicked { step, panic }.into());
        }
        run?;
        // QEMU serves one client at a time.
        drop(room);
        let stopped = shut_down(&mut port, machine, &self.context.cancel);
        self.context.cancel.check()?;
        stopped.map_err(|cause| ProvisionError::NotStopped { step: self.name(), cause }.into())
    }

    /// Lets `work` use the machine, with the variables of the step. The guest is not shut down.
    ///
    /// # Errors
    /// [`ProvisionError`], or an interruption.
    pub(super) fn open<T>(
        &self,
        machine: StepMachine<'_>,
        work: &dyn Fn(&Target) -> T,
    ) -> Result<T, VmError> {
        let (_port, _room) = self.start(&machine)?;
        let mut target = self.target(&machine)?;
        self.keep_secrets(&target)?;
        target.environment = [self.environment.clone(), self.secrets.clone()].concat();
        Ok(work(&target))
    }

    /// Waits until programs can run, and watches over the machine from then on.
    fn start(
        &self,
        machine: &StepMachine<'_>,
    ) -> Result<(ControlPort, Option<RoomWatch>), VmError> {
        let port = self.await_guest(machine).map_err(|error| self.not_started(error, machine))?;
        let (disk, reporter) = (machine.files.disk(), self.context.reporter.clone());
        let console = machine.files.console_log();
        let room = connect_at_once(&machine.sockets.qmp())
            .ok()
            .map(|qmp| RoomWatch::start_with_console(qmp, disk, reporter, console));
        Ok((port, room))
    }

    /// Waits until programs can run. Returns the connection over which the guest has said so.
    fn await_guest(&self, machine: &StepMachine<'_>) -> Result<ControlPort, TemplateError> {
        let (accelerator, cpus) = (self.spec.accelerator, self.spec.cpus);
        let limit = Limits::new(accelerator, cpus, self.limit).ready;
        let deadline = machine.started + limit;
        let cancel = &self.context.cancel;
        let mut port = ControlPort::connect(&machine.sockets.control(), deadline, cancel)?;
        port.attach()?;
        let entropy: [u8; 64] = random_bytes().map_err(|source| TemplateError::File {
            action: "read",
            path: "/dev/urandom".into(),
            source,
        })?;
        let now = u64::try_from(unix_time().as_nanos()).unwrap_or(0);
        port.provision(now, Secret::new(entropy.to_vec()))?;
        loop {
            let message = match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
                Err(ControlError::ReadTimeout)
                    if MachineStatus::glance(machine.sockets) == Some(MachineStatus::DiskFull) =>
                {
                    let directory = machine.files.directory().to_owned();
                    return Err(TemplateError::DiskFull { directory });
                }
                Err(ControlError::ReadTimeout) if Instant::now() < deadline => {
                    let words =
                        Words::read(&machine.files.console_log(), &machine.files.qemu_log());
                    let cause = has_given_up(&self.vm, self.spec.memory_mib, accelerator, &words);
                    match cause {
                        Some(cause) => return Err(TemplateError::BootFailed { cause }),
                        None => continue,
                    }
                }
                Err(ControlError::ReadTimeout) => {
                    return Err(TemplateError::SettleTimeout { limit_secs: limit.as_secs() });
                }
                other => other?,
            };
            match message {
                GuestMessage::Provisionable => return Ok(port),
                // Steps may do without a network.
                GuestMessage::Failed { task, reason } if task != AgentTask::Network => {
                    let task = format!("{task:?}").to_lowercase();
                    return Err(TemplateError::Guest { task, reason });
                }
                _ => {}
            }
        }
    }

    fn not_started(&self, error: TemplateError, machine: &StepMachine<'_>) -> VmError {
        let cause = match error {
            TemplateError::Control(ControlError::Closed) => {
                let log = end_of_log(&machine.files.qemu_log());
                format!("QEMU exited {}", sanitize_text(log.trim()))
            }
            TemplateError::SettleTimeout { limit_secs } => {
                format!("its boot was not over after {limit_secs} s")
            }
            error @ TemplateError::DiskFull { .. } => return error.into(),
            error if error.is_interruption() => return error.into(),
            error => error.to_string(),
        };
        ProvisionError::NotStarted { step: self.name(), cause }.into()
    }

    fn run_program(&self, machine: &StepMachine<'_>) -> Result<(), VmError> {
        let target = self.target(machine)?;
        self.keep_secrets(&target)?;
        let environment = [self.environment.clone(), self.secrets.clone()].concat();
        let request = StreamRequest {
            command: Command::Argv(self.argv()?.into_iter().map(Into::into).collect()),
            environment,
            directory: None,
            stdin: match self.pack(machine.files.directory())? {
                Some(archive) => Stdin::Descriptor(OwnedFd::from(archive)),
                None => Stdin::Null,
            },
            interruption: Interruption::Cancel,
        };
        let stream_of = || (Mask::new(self.masked.clone()), Lines::default());
        let (mut streams, mut tail) = ([stream_of(), stream_of()], Tail::default());
        let mut heard = |line: String| {
            self.context.reporter.report(&Event::ProvisionOutput {
                vm: self.vm.clone(),
                step: self.number,
                line: line.clone(),
            });
            tail.push(sanitize_text(&line));
        };
        let exit = stream(&self.context.cancel, &target, request, &mut |from, data| {
            let (mask, lines) = &mut streams[usize::from(from == Stream::Stderr)];
            lines.take(&mask.take(data), &mut heard);
            ControlFlow::Continue(())
        });
        for (mask, lines) in &mut streams {
            lines.take(&mask.end(), &mut heard);
            lines.end(&mut heard);
        }
        let exit = match exit {
            Ok(exit) if exit.is_success() => return self.ensure_room(&target, machine, ""),
            Ok(GuestExit::Code(code)) => format!("failed with exit code {code}"),
            Ok(GuestExit::Signal(name)) => format!("was ended by SIG{}", sanitize_text(&name)),
            Ok(GuestExit::OutputClosed | GuestExit::Interrupted(_)) => "was ended".to_owned(),
            Err(source) => {
                self.context.cancel.check()?;
                return Err(ProvisionError::Lost { step: self.name(), source }.into());
            }
        };
        let output = tail.text();
        self.ensure_room(&target, machine, &output)?;
        Err(ProvisionError::Failed { step: self.name(), exit, output }.into())
    }

    /// Ensures that the step has left room on the disk: each later step, and each VM, would begin
    /// without any. `output` is that of a step that has failed.
    fn ensure_room(
        &self,
        target: &Target,
        machine: &StepMachine<'_>,
        output: &str,
    ) -> Result<(), VmError> {
        let argv = ["/bin/sh", "-c", TRY_TO_WRITE].map(OsString::from).to_vec();
        let has_room = match capture(&self.context.cancel, target, argv, MAX_OUTPUT_BYTES) {
            Ok(captured) => !String::from_utf8_lossy(&captured.stdout).contains(NO_ROOM),
            // A guest that is lost says so when it is to shut down.
            Err(_) => {
                self.context.cancel.check()?;
                true
            }
        };
        if has_room {
            return Ok(());
        }
        let size = ByteSize(Qcow2Header::read(&machine.files.disk())?.virtual_bytes);
        Err(ProvisionError::Full { step: self.name(), size, output: output.to_owned() }.into())
    }

    /// Returns the step as messages name it.
    fn name(&self) -> StepName {
        let (vm, text) = (self.vm.clone().into(), self.step.to_string());
        StepName { vm, number: self.number, of: self.of, text }
    }

    /// Keeps the secrets of the step from the disk that its memory could reach.
    fn keep_secrets(&self, target: &Target) -> Result<(), VmError> {
        if self.secrets.is_empty() {
            return Ok(());
        }
        let argv = ["/bin/sh", "-c", KEEP_SECRETS].map(OsString::from).to_vec();
        let cause = match capture(&self.context.cancel, target, argv, MAX_OUTPUT_BYTES) {
            Ok(captured) if captured.exit.is_success() => return Ok(()),
            Ok(captured) => {
                let said = String::from_utf8_lossy(&captured.stderr);
                format!("its swap cannot be turned off: {}", sanitize_text(said.trim()))
            }
            Err(source) => {
                self.context.cancel.check()?;
                return Err(ProvisionError::Lost { step: self.name(), source }.into());
            }
        };
        Err(ProvisionError::NotStarted { step: self.name(), cause }.into())
    }

    /// Returns the program that runs the step, in the guest.
    fn argv(&self) -> Result<Vec<String>, VmError> {
        let shell = |flags: &str, line: &str, argument: &str| {
            ["/bin/sh", flags, line, "sh", argument].map(str::to_owned).to_vec()
        };
        Ok(match &self.step.action {
            // Ends at the first command that fails.
            StepAction::Run(command) => {
                ["/bin/sh", "-ec", command.as_str()].map(str::to_owned).to_vec()
            }
            StepAction::Script(_) => shell("-c", RUN_SCRIPT, SCRIPT),
            StepAction::Copy { from, to } => {
                let is_directory = inputs::is_directory(from, &self.vm)?;
                shell("-c", UNPACK, &inputs::directory_of(to, is_directory))
            }
        })
    }

    /// Writes what the step reads to a file without a name. Its bytes must be those that the layer
    /// is named by.
    fn pack(&self, directory: &Path) -> Result<Option<File>, VmError> {
        let Some(expected) = self.inputs else { return Ok(None) };
        let failed = |source: io::Error| VmIoError::File {
            action: FileAction::Create,
            path: directory.to_owned(),
            source,
        };
        let file = tempfile::tempfile_in(directory).map_err(failed)?;
        let mut builder = tar::Builder::new(file);
        let packed = inputs::pack(&self.step.action, &self.vm, &mut builder, &self.context.cancel)?;
        let mut file = builder.into_inner().map_err(failed)?;
        if packed.as_deref() != Some(expected) {
            let path = match &self.step.action {
                StepAction::Script(path) | StepAction::Copy { from: path, .. } => {
                    path.root.join(&path.below)
                }
                StepAction::Run(_) => directory.to_owned(),
            };
            return Err(ProvisionError::Changed { vm: self.vm.clone().into(), path }.into());
        }
        file.rewind().map_err(failed)?;
        Ok(Some(file))
    }

    /// Returns the way to the guest: its stream ports alone, since its SSH server accepts no key.
    fn target(&self, machine: &StepMachine<'_>) -> Result<Target, VmError> {
        let count = self.spec.stream_ports.get();
        let ports = StreamPorts { sockets: machine.sockets.clone(), count };
        let failed = |source| {
            VmError::from(ProvisionError::Lost {
                step: self.name(),
                source: SshError::Local { what: "open a stream port", source },
            })
        };
        let held = HeldPorts::hold(&ports, 1).map_err(failed)?;
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        let keys = VmKeys::unsaved()?;
        Ok(Target { streams: Some(Streams::Held(held)), ..keys.target(nowhere, ROOT) })
    }
}
