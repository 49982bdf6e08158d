//! The first instants: PID 1 starts the agent as a second process and becomes the image's own init.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::log::log;
use crate::{agent, early, emulation};

/// The image's own init in its initramfs, as the kernel would start it without `rdinit=`.
const IMAGE_INIT: &str = "/init";

/// Directory of the programs that Castra's archive adds to the image's initramfs.
const TOOLS: &str = "/castra/bin";

/// Search path of busybox's shell when the kernel has given it no `PATH`. Every init sets its own
/// later.
const DEFAULT_PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";

/// The agent's `argv[0]`. systemd leaves processes alone whose name starts with `@` when it kills
/// the others before it leaves the initrd ("Root Storage Daemons" in systemd's documentation).
const AGENT_NAME: &str = "@castra-agent";

/// Runs the agent: as PID 1, starts the agent proper as a process and becomes the image's init; in
/// that process, is the agent proper.
pub fn run() -> ExitCode {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let outcome = if std::process::id() == 1 {
        early::load_modules();
        let is_emulated = emulation::is_emulated();
        let randomization = if is_emulated { emulation::randomization() } else { None };
        match start_agent(&name, randomization.as_deref()) {
            // Only the agent sets it back.
            Ok(()) if randomization.is_some() => emulation::fix_addresses().unwrap_or_else(log),
            Ok(()) => {}
            Err(error) => log(error),
        }
        if is_emulated {
            emulation::shorten_coldplug(Path::new("/"));
        }
        become_image_init(arguments)
    } else if name == AGENT_NAME {
        agent::run(arguments.next().and_then(|value| value.into_string().ok()))
    } else {
        Err(io::Error::other("this is Castra's guest agent; the kernel starts it inside a VM"))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(error);
            ExitCode::FAILURE
        }
    }
}

/// Starts the agent as a program rather than a fork, so that it has its own `argv[0]`. The agent
/// keeps the console until it has opened the kernel's log. It is to randomize addresses as given,
/// once the initramfs has mounted the root.
fn start_agent(program: &OsString, randomization: Option<&str>) -> io::Result<()> {
    let mut command = Command::new(program);
    command.arg0(AGENT_NAME).args(randomization).env_clear().spawn().map(drop)
}

/// Becomes the image's init, with the arguments and the environment that the kernel made of its
/// command line. Returns only if that fails.
fn become_image_init(arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut path = OsString::from(TOOLS);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()));
    let error = Command::new(IMAGE_INIT).args(arguments).env("PATH", path).exec();
    Err(io::Error::new(error.kind(), format!("cannot run the image's {IMAGE_INIT}: {error}")))
}
