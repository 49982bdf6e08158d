//! Waits for any file descriptor with tokio.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, which must be in non-blocking mode if it is read or written after the
/// wait.
#[expect(
    unsafe_code,
    reason = "tokio cannot know whether a type always hands out the same descriptor"
)]
pub(crate) fn watch(file: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open and never changes its number.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}
