//! Terminals of this machine.

use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Returns a terminal: the person's side, and the program's.
pub fn terminal() -> (OwnedFd, OwnedFd) {
    let outer = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&outer).expect("granted");
    unlockpt(&outer).expect("unlocked");
    let name = ptsname(&outer, Vec::new()).expect("a name");
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    (outer, open(name.as_c_str(), flags, Mode::empty()).expect("opened"))
}

/// Runs a command whose stderr is a terminal, and returns what it shows there.
#[track_caller]
pub fn shown_in_terminal(mut command: Command) -> String {
    let (outer, inner) = terminal();
    let mut child = command.stderr(inner).spawn().expect("runs");
    // The last one of this process's.
    drop(command);
    let shown = thread::spawn(move || {
        let mut shown = Vec::new();
        // Reading a terminal whose other end is closed ends with EIO.
        let _ = fs::File::from(outer).read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    });
    assert!(child.wait().expect("ends").success());
    shown.join().expect("no panic")
}
