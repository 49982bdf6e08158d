//! A filesystem whose parser may panic.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Entry, Fault, Filesystem, Stat, read};
use crate::path::Inside;

/// Filesystem that fails once its parser has panicked.
///
/// The parsers of filesystems are crates of others, some of them young, and a disk may have been
/// made to break them. A number that overflows or an index beyond an end is a panic there; it is
/// safe code, so nothing worse happens, and it must not end the process that runs other VMs. After
/// a panic the parser's state is never used again, which is what makes the assertion of unwind
/// safety true.
pub(crate) struct Guarded {
    files: Option<Box<dyn Filesystem>>,
}

impl Guarded {
    /// Opens a filesystem.
    pub(crate) fn open<F: Filesystem + 'static>(
        open: impl FnOnce() -> Result<F, Fault>,
    ) -> Result<Self, Fault> {
        let files = catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(broken()))?;
        Ok(Self { files: Some(Box::new(files)) })
    }

    pub(crate) fn stat(&mut self, path: &Inside) -> Result<Stat, Fault> {
        self.attempt(|files| files.stat(path))
    }

    pub(crate) fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault> {
        self.attempt(|files| files.list(path))
    }

    pub(crate) fn link(&mut self, path: &Inside) -> Result<Vec<u8>, Fault> {
        self.attempt(|files| files.link(path))
    }

    /// Reads a whole file of at most `limit` bytes.
    pub(crate) fn read(&mut self, path: &Inside, limit: u64) -> Result<Vec<u8>, Fault> {
        self.attempt(|files| read(files, path, limit))
    }

    fn attempt<T>(
        &mut self,
        operation: impl FnOnce(&mut dyn Filesystem) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut files = self.files.take().ok_or_else(broken)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| operation(files.as_mut())));
        if outcome.is_ok() {
            self.files = Some(files);
        } else {
            // Its destructor may panic, too.
            std::mem::forget(files);
        }
        outcome.unwrap_or_else(|_| Err(broken()))
    }
}

fn broken() -> Fault {
    Fault::Damaged("its structure is invalid".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::FileReader;
    use super::*;

    struct Fragile;

    impl Filesystem for Fragile {
        fn stat(&mut self, _path: &Inside) -> Result<Stat, Fault> {
            panic!("hostile");
        }

        fn list(&mut self, _path: &Inside) -> Result<Vec<Entry>, Fault> {
            Ok(Vec::new())
        }

        fn link(&mut self, _path: &Inside) -> Result<Vec<u8>, Fault> {
            Err(Fault::NotFound)
        }

        fn open<'a>(&'a mut self, _path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault> {
            Err(Fault::NotFound)
        }
    }

    #[test]
    fn a_panic_ends_the_filesystem_only() {
        let mut files = Guarded::open(|| Ok(Fragile)).expect("opened");
        assert_eq!(files.list(&Inside::root()), Ok(Vec::new()));
        assert_eq!(files.link(&Inside::root()), Err(Fault::NotFound));
        assert_eq!(files.stat(&Inside::root()), Err(broken()));
        assert_eq!(files.list(&Inside::root()), Err(broken()), "its state is not used again");
        let opened = Guarded::open(|| -> Result<Fragile, Fault> { panic!("hostile") });
        assert_eq!(opened.err(), Some(broken()));
    }
}
