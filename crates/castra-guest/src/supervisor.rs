//! The agent's parent: a process that does nothing but wait for the agent, and starts it again when
//! it has ended, for whatever reason.
//!
//! The agent is a fork of it, since the image's init removes the program's file together with the
//! initramfs. `kill -9 -1` ends both.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use crate::log::log;

/// Pause before the agent is started again. It doubles each time, up to the longest, so that an
/// agent that ends immediately does not keep the CPU busy.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs the agent in a process of its own, and again whenever that has ended. Returns in the
/// agent's process, with the agent's result, and never in this one, which must have no other thread
/// yet.
///
/// # Errors
/// Those of the agent.
pub(crate) fn supervise(agent: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    loop {
        let process = match fork() {
            Ok(Some(process)) => process,
            Ok(None) => return agent(),
            // One without a supervisor is better than none.
            Err(error) => {
                log(format!("cannot supervise the agent: {error}"));
                return agent();
            }
        };
        ignore_shutdown();
        let started = Instant::now();
        let end = wait_for(process);
        if started.elapsed() >= LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        log(format!("the agent has ended ({end}) and is started again"));
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns the new process in this one, and `None` in the new one.
#[expect(unsafe_code, reason = "no library forks")]
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so the new one has all of its locks and memory in order.
    let pid = unsafe { libc::fork() };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Pid::from_raw(pid)) }
}

/// Ignores the signals of a shutdown, which the agent outlasts as well. An agent handles them by
/// itself, and its programs get their defaults.
#[expect(unsafe_code, reason = "no library sets dispositions of signals")]
fn ignore_shutdown() {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: no handler is called for a signal that is ignored.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Waits for a process to end, and returns how it did. Continues one that a signal has stopped:
/// nothing could reach the guest until then.
fn wait_for(process: Pid) -> String {
    loop {
        match waitpid(Some(process), WaitOptions::UNTRACED) {
            Ok(Some((_, status))) if status.stopped() => {
                let _ = kill_process(process, Signal::CONT);
            }
            Ok(Some((_, status))) => return in_words(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return error.to_string(),
        }
    }
}

fn in_words(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "for an unknown reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn start(script: &str) -> (std::process::Child, Pid) {
        let child = Command::new("sh").args(["-c", script]).spawn().expect("starts");
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn a_process_that_is_stopped_continues() {
        let (_child, pid) = start("kill -STOP $$; exit 7");
        assert_eq!(wait_for(pid), "exit code 7");
    }

    #[test]
    fn a_process_that_is_killed_has_ended_by_a_signal() {
        let (_child, pid) = start("kill -9 $$");
        assert_eq!(wait_for(pid), "signal 9");
        assert_eq!(wait_for(pid), rustix::io::Errno::CHILD.to_string());
    }
}
