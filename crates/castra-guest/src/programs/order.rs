//! Orders to processes, in the form that the kernel takes: made before there is a process, which
//! can neither allocate nor lock until it executes its program.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use castra_wire::StartDirectory;
use rustix::fs::{FileType, Mode};

use super::program::{Environment, Invocation};
use crate::users::User;

/// A user's program, its arguments and its variables.
pub(super) struct Order {
    /// Candidates: the first that is executable, or the only one.
    files: Vec<CString>,
    arguments: Strings,
    variables: Strings,
    home: CString,
    directory: Option<Place>,
    user: Arc<User>,
}

/// Directory other than the home.
struct Place {
    path: CString,
    is_required: bool,
    /// Set by the process that cannot enter it.
    is_unentered: AtomicBool,
}

impl Order {
    /// # Errors
    /// A string contains a NUL.
    pub(super) fn new(
        invocation: &Invocation<'_>,
        user: &Arc<User>,
        directory: Option<&StartDirectory>,
    ) -> io::Result<Self> {
        let text = |bytes: &[u8]| CString::new(bytes);
        let files = invocation.files.iter().map(|file| text(file.as_os_str().as_bytes()));
        let arguments = invocation.arguments.iter().map(|argument| text(argument.as_bytes()));
        Ok(Self {
            files: files.collect::<Result<_, _>>()?,
            arguments: Strings::of(arguments.collect::<Result<_, _>>()?),
            variables: Strings::of(variables(invocation.environment)?),
            home: text(user.home.as_os_str().as_bytes())?,
            directory: directory.map(Place::of).transpose()?,
            user: Arc::clone(user),
        })
    }

    /// Returns the directory in which the program should have started, if the process could not
    /// enter it.
    pub(super) fn unentered(&self) -> Option<&Path> {
        let place = self.directory.as_ref()?;
        let path = || Path::new(OsStr::from_bytes(place.path.to_bytes()));
        place.is_unentered.load(Ordering::Relaxed).then(path)
    }

    /// Turns the calling process, which is the agent's, into one of the user's. Async-signal-safe.
    pub(super) fn become_user(&self) -> io::Result<()> {
        self.user.become_in_child()
    }

    /// Turns the calling process into the program, in its directory. Returns the reason if that
    /// fails. Async-signal-safe.
    pub(super) fn execute(&self) -> io::Error {
        if let Err(error) = self.enter() {
            return error;
        }
        signals_as_by_default();
        match &self.files[..] {
            [file] => self.execute_file(file),
            files => match files.iter().find(|file| is_executable(file)) {
                Some(file) => self.execute_file(file),
                None => io::Error::from_raw_os_error(libc::ENOENT),
            },
        }
    }

    /// Enters the directory, or else the user's home.
    fn enter(&self) -> io::Result<()> {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if rustix::process::chdir(&self.home).is_err() {
            rustix::process::chdir(c"/")?;
        }
        let Some(Place { path, is_required, is_unentered }) = &self.directory else {
            return Ok(());
        };
        match rustix::process::chdir(path) {
            Err(error) if *is_required => {
                is_unentered.store(true, Ordering::Relaxed);
                Err(error.into())
            }
            _ => Ok(()),
        }
    }

    #[expect(unsafe_code, reason = "no library executes a program with arrays made before")]
    fn execute_file(&self, file: &CStr) -> io::Error {
        let (arguments, variables) = (&self.arguments.pointers, &self.variables.pointers);
        // SAFETY: the strings and arrays end as the kernel expects, and outlive the call.
        unsafe { libc::execve(file.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
        io::Error::last_os_error()
    }
}

impl Place {
    fn of(directory: &StartDirectory) -> io::Result<Self> {
        let path = CString::new(directory.path().as_bytes())?;
        let is_required = matches!(directory, StartDirectory::Named(_));
        Ok(Self { path, is_required, is_unentered: AtomicBool::new(false) })
    }
}

/// Strings, and the array of pointers to them that the kernel takes.
struct Strings {
    /// Ends with a null pointer.
    pointers: Vec<*const c_char>,
    _texts: Vec<CString>,
}

// SAFETY: the pointers are to texts that this owns, and that nothing changes.
#[expect(unsafe_code, reason = "raw pointers are not shared between threads by themselves")]
unsafe impl Send for Strings {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "as above")]
unsafe impl Sync for Strings {}

impl Strings {
    fn of(texts: Vec<CString>) -> Self {
        let pointers = texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _texts: texts }
    }
}

fn variables(environment: &Environment) -> io::Result<Vec<CString>> {
    let joined = environment
        .iter()
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()));
    Ok(joined.collect::<Result<_, _>>()?)
}

/// Returns `true` for a file with a right to execute it.
fn is_executable(file: &CStr) -> bool {
    rustix::fs::stat(file).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && Mode::from_raw_mode(found.st_mode).intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH)
    })
}

/// Signals that the agent, or Rust's runtime in it, handles or ignores. Executing a program makes
/// the former its own again, but until then a signal must not run a handler.
pub(super) const CHANGED_SIGNALS: [c_int; 5] =
    [libc::SIGPIPE, libc::SIGTERM, libc::SIGHUP, libc::SIGSEGV, libc::SIGBUS];

#[expect(unsafe_code, reason = "no library sets dispositions and masks of signals")]
fn signals_as_by_default() {
    for signal in CHANGED_SIGNALS {
        // SAFETY: the default disposition runs no code of this process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: a set of signals is plain numbers, which the first call initialises.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}
