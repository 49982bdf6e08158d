//! The VM's identity in the files of its root: the host name, the machine ID and `/etc/hosts`.
//!
//! Creating, shortening and extending files costs an emulated CPU that does so for the first time
//! as much as the rest of a restore. So a guest that comes to rest for a template makes its files
//! ready ([`Files::prepare`]): each VM that is restored writes into existing blocks of open files.

use std::borrow::Cow;
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

/// Files of an identity, each ready or to be opened by its name.
#[derive(Debug)]
pub(crate) struct Files {
    hostname: Place,
    machine_id: Place,
    /// `None` where D-Bus has no machine ID of its own.
    dbus_machine_id: Option<Place>,
    hosts: Place,
}

impl Files {
    /// Creates the files that are missing, and opens those that can be written.
    pub(crate) fn prepare() -> Self {
        Self {
            hostname: Place::prepare(HOSTNAME, "\n"),
            machine_id: Place::prepare(MACHINE_ID, NO_MACHINE_ID),
            dbus_machine_id: Ready::open_existing(DBUS_MACHINE_ID).ok().map(Place::Open),
            hosts: Place::prepare(HOSTS, "127.0.0.1\tlocalhost\n"),
        }
    }

    /// Returns the files of a guest that was not prepared.
    pub(crate) fn by_name() -> Self {
        let has_own = Path::new(DBUS_MACHINE_ID).exists();
        Self {
            hostname: Place::Named(HOSTNAME),
            machine_id: Place::Named(MACHINE_ID),
            dbus_machine_id: has_own.then_some(Place::Named(DBUS_MACHINE_ID)),
            hosts: Place::Named(HOSTS),
        }
    }

    /// Writes an identity. Returns the machine ID of another VM if the root was that VM's: this one
    /// is a copy.
    pub(crate) fn write(self, identity: &Identity) -> Option<String> {
        let Identity { hostname, machine_id } = identity;
        let known = self.machine_id.content().map(|known| known.trim().to_owned()).ok();
        let other = known.filter(|known| is_of_another(known, machine_id));
        // A read-only root keeps its files.
        let _ = self.hostname.write(&format!("{hostname}\n"));
        for place in self.dbus_machine_id.into_iter().chain([self.machine_id]) {
            let _ = place.write(&format!("{machine_id}\n"));
        }
        // A file that cannot be read keeps its content.
        let hosts = self.hosts.content().map(|current| hosts::complete(&current, hostname));
        if let Ok(text) = hosts {
            let _ = self.hosts.write(&text);
        }
        other
    }
}

/// Place of a text of the root's.
#[derive(Debug)]
enum Place {
    Open(Ready),
    Named(&'static str),
}

impl Place {
    fn prepare(path: &'static str, content: &str) -> Self {
        Ready::open(path, content).map_or(Self::Named(path), Self::Open)
    }

    /// Returns the content; nothing of a file that does not exist.
    fn content(&self) -> io::Result<Cow<'_, str>> {
        match self {
            Self::Open(ready) => Ok(Cow::Borrowed(&ready.content)),
            Self::Named(path) => match fs::read_to_string(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cow::Borrowed("")),
                read => read.map(Cow::Owned),
            },
        }
    }

    fn write(self, text: &str) -> io::Result<()> {
        match self {
            Self::Open(ready) => ready.replace(text),
            Self::Named(path) => write(Path::new(path), text),
        }
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

/// Writes a text to the file in which the image's programs expect it. Leaves a symbolic link alone,
/// because it means that a part of the image maintains the file.
fn write(file: &Path, text: &str) -> io::Result<()> {
    if fs::symlink_metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
        return Ok(());
    }
    if fs::read_to_string(file).is_ok_and(|current| current == text) {
        return Ok(());
    }
    fs::write(file, text)
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
        write(&file, "one\n").expect("writes");
        write(&file, "two\n").expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "two\n");
        std::os::unix::fs::symlink(&file, &link).expect("links");
        write(&link, "three\n").expect("leaves it");
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
