//! A command in a VM.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::ops::ControlFlow;

use super::guest::{Guest, ROOT, Recorded, Way, reach};
use crate::context::working_directory;
use crate::error::Result;
use crate::guest::Mount;
use crate::guest::ssh::{
    self, ExecRequest, GuestExit, Interruption, SshError, StartDirectory, Stdio, Stream,
    StreamRequest, Target, Tty,
};
use crate::vm::ProjectRef;

/// Most bytes of each stream that are kept, unless another limit is set.
const OUTPUT_BYTES: usize = 16 << 20;

/// Exit and output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit of the command.
    pub exit: GuestExit,
    /// Bytes written to stdout.
    pub stdout: Vec<u8>,
    /// Bytes written to stderr.
    pub stderr: Vec<u8>,
    /// True if one of the streams had more than was kept.
    pub truncated: bool,
}

impl Output {
    /// Returns stdout as text. Bytes that are not UTF-8 are replaced.
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Returns stderr as text. Bytes that are not UTF-8 are replaced.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

/// Beginning of a command's output, up to a limit for each stream.
#[doc(hidden)]
#[derive(Debug)]
pub struct Kept {
    limit_bytes: usize,
    /// Bytes of stdout.
    pub stdout: Vec<u8>,
    /// Bytes of stderr.
    pub stderr: Vec<u8>,
    /// True if one of the streams had more.
    pub truncated: bool,
}

impl Kept {
    /// Returns an empty beginning of streams of which so many bytes are kept each.
    pub fn up_to(limit_bytes: usize) -> Self {
        Self { limit_bytes, stdout: Vec::new(), stderr: Vec::new(), truncated: false }
    }

    /// Keeps bytes of a stream, and drops what is beyond the limit.
    pub fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let room = bytes.len().min(self.limit_bytes - kept.len());
        kept.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
    }
}

/// Settings of a command.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    command: ssh::Command,
    environment: Vec<(OsString, OsString)>,
    directory: Directory,
    user: String,
    stdin: Source,
    limit_bytes: usize,
    tty: Option<Tty>,
    interruption: Interruption,
}

/// Directory in which a command starts.
#[derive(Debug, Clone)]
enum Directory {
    /// The user's home.
    Home,
    /// The one that a mount makes of this process's working directory, or else the home.
    Corresponding,
    Named(OsString),
}

/// Source of a command's input.
#[derive(Debug, Clone)]
enum Source {
    Null,
    Inherited,
    Bytes(Vec<u8>),
}

impl Settings {
    pub(super) fn of_argv<I, S>(command: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Self::of(ssh::Command::Argv(command.into_iter().map(Into::into).collect()))
    }

    pub(super) fn of(command: ssh::Command) -> Self {
        Self {
            command,
            environment: Vec::new(),
            directory: Directory::Home,
            user: ROOT.to_owned(),
            stdin: Source::Null,
            limit_bytes: OUTPUT_BYTES,
            tty: None,
            interruption: Interruption::Cancel,
        }
    }

    pub(super) fn output(&self, guest: &dyn Guest) -> Result<Output> {
        let mut kept = Kept::up_to(self.limit_bytes);
        let exit = self.stream(guest, &mut |stream, bytes| kept.take(stream, bytes))?;
        let Kept { stdout, stderr, truncated, .. } = kept;
        Ok(Output { exit, stdout, stderr, truncated })
    }

    pub(super) fn stream(
        &self,
        guest: &dyn Guest,
        receive: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<GuestExit> {
        self.pass(guest, &mut |stream, bytes| {
            receive(stream, bytes);
            ControlFlow::Continue(())
        })
    }

    /// Runs the command with this process's stdout and stderr.
    pub(super) fn status(&self, guest: &dyn Guest) -> Result<GuestExit> {
        let is_bytes = matches!(self.stdin, Source::Bytes(_));
        if is_bytes || self.tty.is_none() && self.interruption == Interruption::Cancel {
            return self.pass(guest, &mut |stream, bytes| match stream {
                Stream::Stdout => match write(&mut io::stdout(), bytes) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                },
                Stream::Stderr => {
                    // A stderr without a reader stops nothing.
                    let _ = write(&mut io::stderr(), bytes);
                    ControlFlow::Continue(())
                }
            });
        }
        reach(guest, &self.user, |cancel, target| {
            let stdio = match self.stdin {
                Source::Inherited => Stdio::inherit(),
                Source::Null | Source::Bytes(_) => Stdio::without_stdin(),
            };
            let request = ExecRequest {
                command: self.command.clone(),
                tty: self.tty.clone(),
                environment: self.environment_for(target),
                directory: self.start_directory(target),
                stdio: stdio.map_err(closed)?,
            };
            ssh::exec(cancel, target, request)
        })
    }

    fn environment_for(&self, target: &Target) -> Vec<(OsString, OsString)> {
        // A proxy's variable stands for both of its cases.
        let is_own = |name: &OsString| {
            self.environment.iter().any(|(own, _)| own.eq_ignore_ascii_case(name))
        };
        let of_target = target.environment.iter().filter(|(name, _)| !is_own(name));
        of_target.chain(&self.environment).cloned().collect()
    }

    fn start_directory(&self, target: &Target) -> Option<StartDirectory> {
        match &self.directory {
            Directory::Named(path) => Some(StartDirectory::Named(path.clone())),
            Directory::Corresponding if !target.mounts.is_empty() => {
                // One that was removed corresponds to none.
                let here = fs::canonicalize(working_directory().ok()?).ok()?;
                Mount::path_in_guest(&target.mounts, &here).map(StartDirectory::Mounted)
            }
            Directory::Corresponding | Directory::Home => None,
        }
    }

    fn pass(
        &self,
        guest: &dyn Guest,
        sink: &mut dyn FnMut(Stream, &[u8]) -> ControlFlow<()>,
    ) -> Result<GuestExit> {
        reach(guest, &self.user, |cancel, target| {
            let stdin = match &self.stdin {
                Source::Null => ssh::Stdin::Null,
                Source::Inherited => ssh::Stdin::Descriptor(ssh::own_stdin().map_err(closed)?),
                Source::Bytes(bytes) => ssh::Stdin::Bytes(bytes.clone().into()),
            };
            let request = StreamRequest {
                command: self.command.clone(),
                environment: self.environment_for(target),
                directory: self.start_directory(target),
                stdin,
                interruption: self.interruption,
            };
            ssh::stream(cancel, target, request, sink)
        })
    }
}

fn write(to: &mut dyn io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn closed(source: io::Error) -> SshError {
    let what = match source.kind() {
        io::ErrorKind::IsADirectory => "read stdin",
        _ => "use stdin, stdout or stderr, one of which is closed",
    };
    SshError::Local { what, source }
}

/// Defines the settings that [`Command`] and [`Run`](super::Run) have in common.
macro_rules! command_settings {
    () => {
        /// Sets a variable of the command's environment.
        pub fn env(
            mut self,
            name: impl Into<std::ffi::OsString>,
            value: impl Into<std::ffi::OsString>,
        ) -> Self {
            self.settings.set_variable(name.into(), value.into());
            self
        }

        /// Starts the command in this directory of the guest, relative to its user's home, instead
        /// of in that. A command whose directory cannot be entered exits with 126.
        pub fn current_dir(mut self, directory: impl Into<std::ffi::OsString>) -> Self {
            self.settings.set_directory(directory.into());
            self
        }

        /// Starts the command where a mount shows this process's working directory, if one does.
        #[doc(hidden)]
        pub fn in_corresponding_dir(mut self) -> Self {
            self.settings.follow_working_directory();
            self
        }

        /// Runs the command as this user of the guest, instead of root.
        pub fn user(mut self, user: impl Into<String>) -> Self {
            self.settings.set_user(user.into());
            self
        }

        /// Gives the command these bytes as its input. Without any, it reads from `/dev/null`.
        pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
            self.settings.set_input(bytes.into());
            self
        }

        /// Gives the command this process's own stdin.
        pub fn inherit_stdin(mut self) -> Self {
            self.settings.inherit_stdin();
            self
        }

        /// Sets the most bytes of each stream that [`Self::output`] keeps, instead of 16 MiB. The
        /// rest is read and dropped.
        pub fn output_limit(mut self, bytes: usize) -> Self {
            self.settings.set_limit(bytes);
            self
        }

        /// Forwards INT, TERM, HUP and QUIT of this process to the command once it runs; the second
        /// of a kind ends the call. Without this, signals keep their meaning for this process.
        pub fn forward_signals(mut self) -> Self {
            self.settings.forward_signals();
            self
        }

        /// Gives the command a terminal.
        #[doc(hidden)]
        pub fn terminal(mut self, tty: $crate::guest::ssh::Tty) -> Self {
            self.settings.set_terminal(tty);
            self
        }
    };
}
pub(super) use command_settings;

impl Settings {
    pub(super) fn set_variable(&mut self, name: OsString, value: OsString) {
        self.environment.push((name, value));
    }

    pub(super) fn set_directory(&mut self, directory: OsString) {
        self.directory = Directory::Named(directory);
    }

    pub(super) fn follow_working_directory(&mut self) {
        self.directory = Directory::Corresponding;
    }

    pub(super) fn set_user(&mut self, user: String) {
        self.user = user;
    }

    pub(super) fn set_input(&mut self, bytes: Vec<u8>) {
        self.stdin = Source::Bytes(bytes);
    }

    pub(super) fn inherit_stdin(&mut self) {
        self.stdin = Source::Inherited;
    }

    pub(super) fn set_limit(&mut self, bytes: usize) {
        self.limit_bytes = bytes;
    }

    pub(super) fn forward_signals(&mut self) {
        self.interruption = Interruption::Signals;
    }

    pub(super) fn set_terminal(&mut self, tty: Tty) {
        self.tty = Some(tty);
    }
}

/// A command to run in a VM that runs already, from [`Vm::command`](super::Vm::command) or
/// [`Sandbox::command`](super::Sandbox::command).
///
/// The exit of the command is a result and no error, whatever its code. An error means that the VM
/// could not be reached or was lost, or that the call was cancelled. The command receives a hang-up
/// if the call ends first.
#[must_use]
pub struct Command<'a> {
    way: Way<'a>,
    settings: Settings,
}

impl<'a> Command<'a> {
    pub(super) fn new(way: Way<'a>, settings: Settings) -> Self {
        Self { way, settings }
    }

    /// Returns a command for a VM with a record; without a name, for the only one.
    #[doc(hidden)]
    pub fn in_recorded(
        name: Option<&'a str>,
        project: ProjectRef<'a>,
        command: ssh::Command,
    ) -> Self {
        Self::new(Way::Recorded(Recorded { name, project }), Settings::of(command))
    }

    command_settings!();

    /// Runs the command and returns its exit and its output.
    ///
    /// # Errors
    /// Fails if the VM does not run, cannot be reached or is lost.
    pub fn output(self) -> Result<Output> {
        self.settings.output(self.way.guest())
    }

    /// Runs the command and passes its output to `receive` as it arrives.
    ///
    /// # Errors
    /// Fails as [`Self::output`] does.
    pub fn stream(self, mut receive: impl FnMut(Stream, &[u8])) -> Result<GuestExit> {
        self.settings.stream(self.way.guest(), &mut receive)
    }

    /// Runs the command with this process's stdout and stderr.
    ///
    /// # Errors
    /// Fails as [`Self::output`] does.
    pub fn status(self) -> Result<GuestExit> {
        self.settings.status(self.way.guest())
    }
}
