//! Pipes between the agent and a program.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};

/// The agent's ends of a program's standard streams.
pub(super) struct Pipes {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Pipes {
    /// Returns the agent's ends, and the program's: its stdin, stdout and stderr.
    pub(super) fn make() -> io::Result<(Self, [OwnedFd; 3])> {
        let make = || pipe_with(PipeFlags::CLOEXEC);
        let [(their_stdin, stdin), (stdout, their_stdout), (stderr, their_stderr)] =
            [make()?, make()?, make()?];
        Ok((Self { stdin, stdout, stderr }, [their_stdin, their_stdout, their_stderr]))
    }
}
