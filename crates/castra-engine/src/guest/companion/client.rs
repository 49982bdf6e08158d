//! Castra's end of a companion's socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use super::{Answer, Order};
use crate::guest::mounts::{Mount, MountState};
use crate::guest::ports::{LivePorts, PortPlan};
use crate::layout::SocketsLayout;
use crate::wait::connect_at_once;

/// Time for an answer. A mount waits for the guest's kernel, which may load a module.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Time for an answer about ports, for which the companion waits half a second at most.
const PORTS_LIMIT: Duration = Duration::from_secs(5);

/// Time for the requests that are being answered, when the machine is to be saved.
const DRAIN_LIMIT: Duration = Duration::from_secs(4);

/// Time for the process to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Longest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A connection to the companion of a running VM.
#[derive(Debug)]
pub struct Companion {
    socket: UnixStream,
}

impl Companion {
    /// Connects to a VM's companion.
    ///
    /// # Errors
    /// Fails if there is none.
    pub fn connect(sockets: &SocketsLayout) -> io::Result<Self> {
        if !sockets.is_own() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { socket: connect_at_once(&sockets.companion())? })
    }

    /// Returns the process's number, if the kernel says.
    #[cfg(target_os = "linux")]
    pub fn pid(&self) -> Option<Pid> {
        rustix::net::sockopt::socket_peercred(&self.socket).ok().map(|peer| peer.pid)
    }

    /// A stand-in: elsewhere the kernel does not say.
    #[cfg(not(target_os = "linux"))]
    pub fn pid(&self) -> Option<Pid> {
        None
    }

    /// Mounts a directory, in which others are hidden, and waits until it is mounted or cannot be.
    ///
    /// # Errors
    /// Fails if the companion does not answer; the inner error is the reason why the directory
    /// cannot be mounted.
    pub fn mount(&mut self, mount: &Mount, hidden: Vec<PathBuf>) -> io::Result<Result<(), String>> {
        let order = Order::Mount { mount: mount.clone(), hidden };
        self.order(&order, ANSWER_LIMIT).and_then(of_answer)
    }

    /// Unmounts a directory.
    ///
    /// # Errors
    /// Fails as [`Self::mount`] does.
    pub fn unmount(&mut self, guest: &str) -> io::Result<Result<(), String>> {
        self.order(&Order::Unmount { guest: guest.to_owned() }, ANSWER_LIMIT).and_then(of_answer)
    }

    /// Has the guest's requests wait until this connection is dropped. Returns once none is being
    /// answered.
    ///
    /// # Errors
    /// Fails as [`Self::mount`] does.
    pub fn drain(&mut self) -> io::Result<Result<(), String>> {
        self.order(&Order::Drain, DRAIN_LIMIT).and_then(of_answer)
    }

    /// Returns the mounts and their states.
    ///
    /// # Errors
    /// The companion does not answer within this time.
    pub fn list(&mut self, limit: Duration) -> io::Result<Vec<(Mount, MountState)>> {
        match self.order(&Order::List, limit)? {
            Answer::Mounts(mounts) => Ok(mounts),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Opens these ports of this machine, and closes all others. Returns all and their states.
    ///
    /// # Errors
    /// The companion does not answer.
    pub fn forward(&mut self, plan: &PortPlan) -> io::Result<LivePorts> {
        ports_of(self.order(&Order::Forward(plan.clone()), PORTS_LIMIT)?)
    }

    /// Returns the forwards and their states. With `is_announced`, all count as announced.
    ///
    /// # Errors
    /// The companion does not answer within this time.
    pub fn ports(&mut self, is_announced: bool, limit: Duration) -> io::Result<LivePorts> {
        ports_of(self.order(&Order::Ports { is_announced }, limit)?)
    }

    /// Ends the process, which does not answer. Requests that it has not answered fail.
    pub fn kill(&self) {
        // Another process may have the number of one that has ended.
        if let Some(pid) = self.pid().filter(|_| !self.ends_within(Duration::ZERO)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            // Its socket must not be taken for the next one's.
            self.ends_within(KILL_LIMIT);
        }
    }

    /// Waits for the end of the process. Returns `false` if it does not end in time.
    pub fn ends_within(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        // The kernel closes the connection, and nothing else does.
        let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
        poll(&mut socket, limit.as_ref()).is_ok_and(|ended| ended > 0)
    }

    fn order(&mut self, order: &Order, limit: Duration) -> io::Result<Answer> {
        self.socket.set_write_timeout(Some(limit))?;
        self.socket.set_read_timeout(Some(limit))?;
        let mut line = serde_json::to_vec(order).map_err(io::Error::other)?;
        line.push(b'\n');
        self.socket.write_all(&line)?;
        let mut answer = String::new();
        let read = BufReader::new((&self.socket).take(MAX_ANSWER_BYTES)).read_line(&mut answer);
        read.map_err(|error| in_words(error, limit))?;
        if answer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&answer).map_err(io::Error::other)
    }
}

/// Returns what a read that has waited too long means.
fn in_words(error: io::Error, limit: Duration) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"))
        }
        _ => error,
    }
}

fn of_answer(answer: Answer) -> io::Result<Result<(), String>> {
    match answer {
        Answer::Done => Ok(Ok(())),
        Answer::Failed(reason) => Ok(Err(reason)),
        Answer::Mounts(_) | Answer::Ports(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn ports_of(answer: Answer) -> io::Result<LivePorts> {
    match answer {
        Answer::Ports(ports) => Ok(ports),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
