//! Limits of this process (`ulimit`): that on open files, and others that a command reaches.

use std::any::Any;
use std::io;
use std::panic;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::error::CliError;

/// Descriptors that are enough for every command: a copy has many files open at once.
const LEAST_DESCRIPTORS: u64 = 256;

/// Failure that was the reason for a panic.
static EXHAUSTED: OnceLock<(&'static str, i32)> = OnceLock::new();

/// Raises the limit on open files if it is too low. With too few, commands would not only fail:
/// they would take what they cannot open for missing.
///
/// # Errors
/// Returns [`CliError::FewDescriptors`] if this process may not raise it far enough.
pub(super) fn raise() -> Result<(), CliError> {
    let least = LEAST_DESCRIPTORS;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(limit) = current.filter(|current| *current < least) else { return Ok(()) };
    let raised = Rlimit { current: Some(least), maximum };
    let may_raise = maximum.is_none_or(|maximum| maximum >= least);
    if may_raise && setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    Err(CliError::FewDescriptors { limit, least })
}

/// Keeps panics for lack of threads, descriptors or memory from being reported as defects:
/// libraries offer no other way to fail.
pub(super) fn expect_exhaustion() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| match exhausted(panic.payload()) {
        // The first is the reason for the others.
        Some(found) => drop(EXHAUSTED.set(found)),
        None => report(panic),
    }));
}

/// Returns the error of a panic that was expected.
pub(super) fn exhaustion() -> Option<CliError> {
    let (action, number) = *EXHAUSTED.get()?;
    Some(CliError::Exhausted { action, source: io::Error::from_raw_os_error(number) })
}

/// Recognises the kernel's error in a panic's message.
fn exhausted(payload: &dyn Any) -> Option<(&'static str, i32)> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied())?;
    let has = |number: i32| {
        text.contains(&format!("os error {number})")) || text.contains(&format!("code: {number},"))
    };
    let failures = [
        ("open another file", Errno::MFILE),
        ("open another file", Errno::NFILE),
        ("start another thread", Errno::AGAIN),
        ("get more memory", Errno::NOMEM),
    ];
    let mut failures = failures.map(|(action, errno)| (action, errno.raw_os_error())).into_iter();
    failures.find(|(_, number)| has(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_for_lack_of_something_is_recognised() {
        let thread = "failed to spawn thread: Os { code: 11, kind: WouldBlock, message: \"…\" }";
        let pipe = "failed to create UnixStream: Os { code: 24, kind: Uncategorized }".to_owned();
        let worker = "OS can't spawn worker thread: … (os error 11)".to_owned();
        assert_eq!(exhausted(&thread), Some(("start another thread", 11)));
        assert_eq!(exhausted(&pipe), Some(("open another file", 24)));
        assert_eq!(exhausted(&worker), Some(("start another thread", 11)));
        assert_eq!(exhausted(&"index out of bounds: the len is 11"), None);
        assert_eq!(exhausted(&7), None);
    }
}
