//! Slots: one directory of sandboxes per server that runs at the same time.
//!
//! ```text
//! <state>/0/      the first server's
//! <state>/1/      that of a second one, which runs at the same time
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use crate::directory::StateDirectory;
use crate::error::ServeError;

/// Most servers at the same time.
const SLOTS: usize = 64;

/// Place of a server's sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The first directory below this one that no other server has.
    Slots(PathBuf),
    /// A directory of its own.
    Directory(PathBuf),
}

/// Takes the directory for a server.
///
/// # Errors
/// [`ServeError::Busy`] if other servers have all of them.
pub(super) fn take(place: &Place) -> Result<StateDirectory, ServeError> {
    let parent = match place {
        Place::Directory(path) => return StateDirectory::take(path),
        Place::Slots(parent) => parent,
    };
    for number in 0..SLOTS {
        match StateDirectory::take(&parent.join(number.to_string())) {
            Err(ServeError::Busy { .. }) => {}
            taken => return taken,
        }
    }
    Err(ServeError::Busy { path: parent.clone() })
}

/// Takes each other slot that no server has.
pub(super) fn take_others(place: &Place, own: &Path) -> Vec<StateDirectory> {
    let Place::Slots(parent) = place else { return Vec::new() };
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_slot = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.parse::<usize>().is_ok_and(|number| number < SLOTS))
    };
    let others = entries.filter(|path| path != own).filter(is_slot);
    others.filter_map(|path| StateDirectory::take(&path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_the_first_free_slot() {
        let parent = tempfile::tempdir().expect("a directory");
        let place = Place::Slots(parent.path().to_owned());
        let slot = |number: &str| parent.path().join(number);
        let first = take(&place).expect("taken");
        let second = take(&place).expect("taken");
        assert_eq!((first.path(), second.path()), (&*slot("0"), &*slot("1")));
        drop(first);
        let first = take(&place).expect("taken");
        assert_eq!(first.path(), slot("0"));
        assert!(take_others(&place, first.path()).is_empty(), "the second is in use");
        drop(second);
        fs::create_dir(slot("other")).expect("made");
        let others = take_others(&place, first.path());
        assert_eq!(others.iter().map(StateDirectory::path).collect::<Vec<_>>(), [slot("1")]);
    }
}
