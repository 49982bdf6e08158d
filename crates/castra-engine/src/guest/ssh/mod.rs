//! Commands, shells and copies in the guest.
//!
//! They reach the guest's agent over a stream port of the VM, which needs no network of the guest,
//! or over SSH: if the VM has no such ports, all are in use, or the guest does not answer there.
//!
//! The interface blocks; each call runs a single-threaded tokio runtime, so it must not be called
//! from async code. Nothing here prints: a command's streams go to the descriptors of its
//! [`Stdio`], and errors are returned. An [`SshError`] means that the guest could not be reached or
//! was lost; the result of the guest's command is a [`GuestExit`], even when it is 255.

mod clock;
mod connection;
mod conversation;
mod copy;
mod direct;
mod error;
mod exec;
mod exit;
mod login;
mod probe;
mod proxy;
mod quote;
mod requests;
mod server;
mod silence;
mod stdio;
mod terminal;

use std::io;
use std::time::Duration;

use crate::cancel::Cancel;

pub use castra_wire::StartDirectory;
pub use clock::set_clock;
pub use connection::Target;
pub use conversation::{Command, Stream};
pub use copy::{Copied, download, download_until, upload, upload_until};
pub(super) use direct::{Direct, exchange};
pub use error::SshError;
pub use exec::{Captured, ExecRequest, Interruption, StreamRequest, capture, exec, stream};
pub use exit::GuestExit;
pub use probe::{Probe, probe};
pub use proxy::proxy;
pub use quote::quote;
pub use server::{Pin, Server};
pub use stdio::{Stdin, Stdio, own_stdin};
pub(super) use terminal::Raw;
pub use terminal::Tty;

/// Interval at which a wait checks for an interruption.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits until the user has interrupted the call.
async fn until_cancelled(cancel: &Cancel) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(CANCEL_INTERVAL).await;
    }
}

/// Runs one call's work to its end. Threads that still wait for input are left behind.
fn block_on<T>(work: impl Future<Output = Result<T, SshError>>) -> Result<T, SshError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(
        |source: io::Error| SshError::Local { what: "prepare a connection to the VM", source },
    )?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}
