//! Session with a running guest, for programs that serve others: any number of programs, files and
//! connections over one stream port.
//!
//! Unlike the rest of the interface, it is asynchronous and needs a tokio runtime with I/O and
//! time. Programs that it starts are *kept*: they outlive the session, and another one finds them
//! again.

mod error;
mod program;
mod watch;

use bytes::Bytes;
use castra_flow::{Incoming, Outgoing, relay};
use castra_wire::stream::{Refusal, Target as Wanted};
use castra_wire::{ExecHeader, Records, StartDirectory};
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::ssh::{Direct, Target};
use error::of_refusal;

pub use castra_sftp as sftp;
pub use castra_wire::stream::KeptProgram;
pub use castra_wire::{FileEvent, FileEventKind, ProgramReport};
pub use error::SessionError;
pub use program::{Control, NewProgram, ProgramEvent, RunningProgram, WindowSize};
pub use watch::Watch;

/// Time for a guest to answer on its port. One on a busy machine takes seconds.
const GREET_LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Bytes that may be on their way between a stream and its user, each way.
const STREAM_BYTES: usize = 256 * 1024;

/// A session with a running guest. All operations may run at once; they end with the session, which
/// ends when this is dropped, when the VM stops or is suspended, and when its guest reboots.
pub struct GuestSession {
    direct: Direct,
}

impl GuestSession {
    /// Opens a session on a free stream port.
    ///
    /// # Errors
    /// The VM has no free stream port, or its agent does not answer there.
    pub(crate) async fn open(target: &Target) -> Result<Self, SessionError> {
        let taken = target.streams.as_ref().map(|streams| streams.take());
        let port = taken.and_then(|taken| taken.ok().flatten()).ok_or(SessionError::NoPort)?;
        let greeted = timeout(GREET_LIMIT, Direct::greet(port, target)).await;
        let direct = greeted.map_err(|_| SessionError::Silent)?.map_err(|_| SessionError::Lost)?;
        Ok(Self { direct })
    }

    /// Starts a program, and returns it with its output from the beginning.
    ///
    /// # Errors
    /// [`SessionError::UnknownUser`], [`SessionError::TooLong`] and [`SessionError::NotStarted`].
    pub async fn start(&self, new: NewProgram) -> Result<RunningProgram, SessionError> {
        let NewProgram { user, arguments, environment, directory, .. } = new;
        let NewProgram { terminal, tag, has_stdin, limit, .. } = new;
        // At least one: none is no limit.
        let limit_ms =
            limit.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1));
        let directory = directory.map(StartDirectory::Named);
        let header = ExecHeader { arguments, environment, directory };
        let header = header.encode().map_err(|_| SessionError::TooLong)?;
        let program = castra_wire::stream::Program::Arguments;
        let terminal = terminal.map(WindowSize::terminal);
        let wanted = Wanted::Kept { user, program, terminal, tag, limit_ms };
        let (incoming, outgoing) = self.request(&wanted, header.into()).await?;
        if !has_stdin {
            // Fails if the session has ended, as the next step then does.
            let _ = outgoing.end_data().await;
        }
        RunningProgram::started(incoming, outgoing).await
    }

    /// Returns a kept program, with its output from now on.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] if no such program runs.
    pub async fn follow(&self, program: KeptProgram) -> Result<RunningProgram, SessionError> {
        self.follow_at(program, None).await
    }

    /// Returns a kept program, with its output from where another session was lost
    /// ([`RunningProgram::received`]), or its end, as far as the guest still knows both.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] if there was no such program of late.
    pub async fn follow_from(&self, pid: u32, from: u64) -> Result<RunningProgram, SessionError> {
        self.follow_at(KeptProgram::Pid(pid), Some(from)).await
    }

    async fn follow_at(
        &self,
        program: KeptProgram,
        from: Option<u64>,
    ) -> Result<RunningProgram, SessionError> {
        let wanted = Wanted::Follow { program, from };
        let (incoming, outgoing) = self.request(&wanted, Bytes::new()).await?;
        RunningProgram::started(incoming, outgoing).await
    }

    /// Returns the control of a kept program. With `ends_stdin`, its end ends the program's stdin.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] if no such program runs.
    pub async fn control(
        &self,
        program: KeptProgram,
        ends_stdin: bool,
    ) -> Result<Control, SessionError> {
        let wanted = Wanted::Control { program, ends_stdin };
        let (incoming, outgoing) = self.request(&wanted, Bytes::new()).await?;
        Ok(Control { incoming, outgoing })
    }

    /// Returns the kept programs that run, in the order of their start.
    ///
    /// # Errors
    /// The session has ended, or the guest's answer makes no sense.
    pub async fn programs(&self) -> Result<Vec<ProgramReport>, SessionError> {
        let (mut incoming, _outgoing) = self.request(&Wanted::KeptPrograms, Bytes::new()).await?;
        let (mut records, mut reports) = (Records::default(), Vec::new());
        while let Some(data) = program::next_data(&mut incoming).await? {
            records.push(&data);
            while let Some(record) = records.next_record()? {
                reports.push(ProgramReport::decode(&record)?);
            }
        }
        Ok(reports)
    }

    /// Returns an SFTP client with the rights of a user of the guest. Relative paths begin at the
    /// user's home.
    ///
    /// # Errors
    /// [`SessionError::UnknownUser`].
    pub async fn files(&self, user: &str) -> Result<castra_sftp::Client, SessionError> {
        let wanted = Wanted::Files { user: user.to_owned() };
        let stream = self.stream(&wanted).await?;
        castra_sftp::Client::start(stream).await.map_err(|_| SessionError::Lost)
    }

    /// Connects to what listens on a TCP port of the guest, its loopback address included.
    ///
    /// # Errors
    /// [`SessionError::Unavailable`] if nothing does.
    pub async fn connect(&self, port: u16) -> Result<DuplexStream, SessionError> {
        self.stream(&Wanted::Service(port)).await
    }

    /// Watches a directory of the guest with the rights of a user.
    ///
    /// # Errors
    /// [`SessionError::NotFound`] and [`SessionError::UnknownUser`], and
    /// [`SessionError::Unavailable`] for what is no directory or cannot be watched.
    pub async fn watch(
        &self,
        user: &str,
        path: std::ffi::OsString,
        is_recursive: bool,
    ) -> Result<Watch, SessionError> {
        let wanted = Wanted::Watch { user: user.to_owned(), path, is_recursive };
        let (incoming, outgoing) = self.request(&wanted, Bytes::new()).await?;
        Ok(Watch::new(incoming, outgoing))
    }

    /// Returns `true` once the session has ended.
    pub fn has_ended(&self) -> bool {
        self.direct.has_ended()
    }

    async fn stream(&self, wanted: &Wanted) -> Result<DuplexStream, SessionError> {
        let (incoming, outgoing) = self.request(wanted, Bytes::new()).await?;
        let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
        tokio::spawn(relay(incoming, outgoing, theirs, None));
        Ok(ours)
    }

    async fn request(
        &self,
        wanted: &Wanted,
        first: Bytes,
    ) -> Result<(Incoming, Outgoing), SessionError> {
        let answer = self.direct.request(wanted, first).await?;
        answer.map_err(|refusal: Refusal| of_refusal(refusal, wanted))
    }
}
