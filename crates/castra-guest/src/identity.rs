//! The VM's identity in the files of its root: the host name, the machine ID and `/etc/hosts`.
//!
//! Creating, shortening and extending files costs an emulated CPU that does so for the first time
//! as much as the rest of a restore. So a guest that comes to rest for a template makes its files
//! ready ([`Files::prepare`]): each VM that is restored writes into existing blocks of open files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use crate::hosts;
use crate::personality::is_machine_id;

const HOSTNAME: &str = "/etc/hostname";
const MACHINE_ID: &str = "/etc/machine-id";
/// D-Bus's own machine ID, where it is a file (`dbus-uuidgen(1)`).
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
const HOSTS: &str = "/etc/hosts";

/// Content of a machine ID's file before there is one (`machine-id(5)`).
const NO_MACHINE_ID: &str = "uninitialized\n";

/// Part of the personality that is written to files of the root.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
}

impl Identity {
    /// Writes the files. Returns `true` if the root was that of another VM: this one is a copy.
    pub(crate) fn write(&self) -> bool {
        let id = fs::read_to_string(MACHINE_ID).unwrap_or_default();
        // A read-only root keeps its files.
        let _ = write_line(Path::new(HOSTNAME), &self.hostname);
        let _ = write_line(Path::new(MACHINE_ID), &self.machine_id);
        let _ = hosts::provide(Path::new(HOSTS), &self.hostname);
        if Path::new(DBUS_MACHINE_ID).exists() {
            let _ = write_line(Path::new(DBUS_MACHINE_ID), &self.machine_id);
        }
        is_of_another(&id, &self.machine_id)
    }
}

/// Files that are ready for an identity. Those that could not be opened are written as
/// [`Identity::write`] does.
#[derive(Debug)]
pub(crate) struct Files {
    hostname: Option<Ready>,
    machine_id: Option<Ready>,
    /// `None` also where D-Bus has no machine ID of its own.
    dbus_machine_id: Option<Ready>,
    hosts: Option<Ready>,
}

impl Files {
    /// Creates the files that are missing, and opens all.
    pub(crate) fn prepare() -> Self {
        Self {
            hostname: Ready::open(HOSTNAME, "\n").ok(),
            machine_id: Ready::open(MACHINE_ID, NO_MACHINE_ID).ok(),
            dbus_machine_id: Ready::open_existing(DBUS_MACHINE_ID).ok(),
            hosts: Ready::open(HOSTS, "127.0.0.1\tlocalhost\n").ok(),
        }
    }

    /// Writes an identity. Returns `true` if the root was that of another VM, as
    /// [`Identity::write`] does.
    pub(crate) fn write(self, identity: &Identity) -> bool {
        let Identity { hostname, machine_id } = identity;
        // The filesystem may have become read-only.
        let _ = match self.hostname {
            Some(file) => file.replace(&format!("{hostname}\n")),
            None => write_line(Path::new(HOSTNAME), hostname),
        };
        let _ = match self.hosts {
            Some(file) => {
                let text = hosts::complete(&file.content, hostname);
                file.replace(&text)
            }
            None => hosts::provide(Path::new(HOSTS), hostname),
        };
        if let Some(file) = self.dbus_machine_id {
            let _ = file.replace(&format!("{machine_id}\n"));
        }
        let Some(file) = self.machine_id else {
            let id = fs::read_to_string(MACHINE_ID).unwrap_or_default();
            let _ = write_line(Path::new(MACHINE_ID), machine_id);
            return is_of_another(&id, machine_id);
        };
        let is_a_copy = is_of_another(&file.content, machine_id);
        let _ = file.replace(&format!("{machine_id}\n"));
        is_a_copy
    }
}

/// File that is open for writing and has a block on the disk. Never a link, since a part of the
/// image maintains the file behind one.
#[derive(Debug)]
struct Ready {
    file: File,
    content: String,
}

impl Ready {
    /// Opens a file, or creates it with this content, which also replaces that of an empty one.
    fn open(path: &str, content: &str) -> io::Result<Self> {
        let mut ready = Self::with(OpenOptions::new().create(true), path)?;
        if ready.content.is_empty() {
            ready.file.write_all_at(content.as_bytes(), 0)?;
            content.clone_into(&mut ready.content);
        }
        Ok(ready)
    }

    fn open_existing(path: &str) -> io::Result<Self> {
        Self::with(&mut OpenOptions::new(), path)
    }

    fn with(options: &mut OpenOptions, path: &str) -> io::Result<Self> {
        let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
        let mut file = options.read(true).write(true).custom_flags(no_link).open(path)?;
        let mut content = String::new();
        file.read_to_string(&mut content)?;
        Ok(Self { file, content })
    }

    /// Replaces the content in place.
    fn replace(self, text: &str) -> io::Result<()> {
        if text == self.content {
            return Ok(());
        }
        self.file.write_all_at(text.as_bytes(), 0)?;
        if text.len() < self.content.len() {
            self.file.set_len(text.len() as u64)?;
        }
        Ok(())
    }
}

/// Writes the host name or the machine ID to the file in which the image's programs expect it.
/// Leaves a symbolic link alone, because it means that a part of the image maintains the file.
fn write_line(file: &Path, text: &str) -> io::Result<()> {
    if fs::symlink_metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    let line = format!("{text}\n");
    if fs::read_to_string(file).is_ok_and(|current| current == line) {
        return Ok(());
    }
    fs::write(file, line)
}

/// Returns `true` if this content of a machine ID's file is another VM's.
fn is_of_another(content: &str, machine_id: &str) -> bool {
    let known = content.trim();
    is_machine_id(known) && known != machine_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_recognised_by_the_machine_id_of_another() {
        let (own, other) = ("0".repeat(32), "1".repeat(32));
        assert!(!is_of_another("", &own), "a VM that never had one");
        for (text, is_copy) in [("", false), (NO_MACHINE_ID, false), (&own, false), (&other, true)]
        {
            assert_eq!(is_of_another(text, &own), is_copy, "{text}");
        }
    }

    #[test]
    fn the_name_is_written_unless_the_file_is_a_link() {
        let directory =
            std::env::temp_dir().join(format!("castra-identity-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let (file, link) = (directory.join("hostname"), directory.join("link"));
        write_line(&file, "one").expect("writes");
        write_line(&file, "two").expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "two\n");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        write_line(&link, "three").expect("leaves it");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "two\n");
        assert!(Ready::open(link.to_str().expect("UTF-8"), "\n").is_err(), "a link");
        fs::remove_dir_all(&directory).expect("tidies up");
    }

    #[test]
    fn a_ready_file_takes_longer_and_shorter_texts() {
        let file = std::env::temp_dir().join(format!("castra-ready-{}", std::process::id()));
        let path = file.to_str().expect("UTF-8");
        assert!(Ready::open_existing(path).is_err());
        for (before, text) in [("\n", "a longer name\n"), ("a longer name\n", "short\n")] {
            let ready = Ready::open(path, "\n").expect("opens");
            assert_eq!(ready.content, before);
            ready.replace(text).expect("writes");
            assert_eq!(fs::read_to_string(&file).expect("reads"), text);
        }
        fs::remove_file(&file).expect("tidies up");
    }
}
