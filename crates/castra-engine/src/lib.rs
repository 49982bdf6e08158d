//! Real Linux VMs without root, a daemon or KVM: the library of Castra.
//!
//! One command in a VM of its own, which is thrown away afterwards:
//!
//! ```no_run
//! use castra_engine::Castra;
//!
//! fn main() -> castra_engine::Result<()> {
//!     let castra = Castra::new()?;
//!     let output = castra.run(["uname", "-a"]).memory_mib(512).output()?;
//!     print!("{}", output.stdout_text());
//!     Ok(())
//! }
//! ```
//!
//! And a VM that stays, in a project directory:
//!
//! ```no_run
//! # fn main() -> castra_engine::Result<()> {
//! # let castra = castra_engine::Castra::new()?;
//! let vm = castra.project(".")?.vm("web");
//! vm.up().start()?;
//! vm.copy_in("site", "/srv/")?;
//! let output = vm.command(["ls", "/srv/site"]).output()?;
//! vm.suspend()?;
//! # Ok(())
//! # }
//! ```
//!
//! QEMU must be installed. The command line `castra` is made of the same functions, and knows the
//! VMs of a program, as a program knows those of the command line.
//!
//! | Type | Purpose |
//! | --- | --- |
//! | [`Castra`], [`Builder`] | entry point, and its settings |
//! | [`Run`] | one command in a throw-away VM |
//! | [`Sandbox`], [`SandboxBuilder`] | a throw-away VM for several commands |
//! | [`Project`], [`Vm`] | a directory with VMs that stay |
//! | [`Up`], [`Down`] | a start and a stop of one of them |
//! | [`Command`], [`Output`] | a command in a VM of either kind |
//! | [`Cancel`] | cancellation of all of them |
//!
//! | Module | Contents |
//! | --- | --- |
//! | [`error`] | the kinds of errors, and the trait that gives an error its kind and hint |
//! | [`report`] | events and their receivers |
//! | [`project`] | the data of a validated `castra.toml` |
//! | [`status`] | the states of a VM and what is known of it |
//!
//! # Errors
//!
//! Every function returns [`Error`]. Its [`kind`](Error::kind) says what sort of failure it is, its
//! [`hint`](Error::hint) what to do, and [`causes`](Error::causes) are the errors below it. The
//! exit of a guest's command is a result ([`GuestExit`]) and no error.
//!
//! # Events
//!
//! The library never prints. A [`Reporter`](report::Reporter), or a function given to
//! [`Builder::on_event`], receives an [`Event`](report::Event) for everything that takes time or
//! that a user should know. Without one it is silent.
//!
//! For developers there are spans and debug events of `tracing`: operations, processes, QMP
//! commands, messages of the guest agent, and reasons for decisions.
//!
//! # Cancellation and blocking
//!
//! All functions block. [`Cancel`] ends them at their next safe point, from any thread or from a
//! signal handler; the error is then of [`Kind::Interrupted`]. Calls into a guest run a tokio
//! runtime of their own: in async code, call them within `spawn_blocking`.
//!
//! # Features
//!
//! There are none for users: `fail-points` is for Castra's own tests.

pub mod error;
pub mod project;
pub mod report;
pub mod status;

mod castra;
mod hex;
#[cfg(test)]
mod layers;
mod similar;

// Internals, which are public for the command line and for Castra's own tests alone. They change
// without notice.
#[doc(hidden)]
pub mod cancel;
#[doc(hidden)]
pub mod command;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod context;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod failpoint;
#[doc(hidden)]
pub mod files;
#[doc(hidden)]
pub mod guest;
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod layout;
#[doc(hidden)]
pub mod logs;
#[doc(hidden)]
pub mod managed;
#[doc(hidden)]
pub mod qemu;
#[doc(hidden)]
pub mod sanitize;
#[doc(hidden)]
pub mod size;
#[doc(hidden)]
pub mod sockets;
#[doc(hidden)]
pub mod state_root;
#[doc(hidden)]
pub mod template;
#[doc(hidden)]
pub mod trusted;
#[doc(hidden)]
pub mod vm;
#[doc(hidden)]
pub mod wait;

#[doc(inline)]
pub use cancel::Cancel;
pub use castra::{
    Builder, Castra, Command, Down, Fleet, Kept, Output, Project, Run, Sandbox, SandboxBuilder,
    Started, TimedOut, Up, Vm,
};
#[doc(inline)]
pub use context::Environment;
pub use error::{Error, Kind, Result};
#[doc(inline)]
pub use guest::session;
#[doc(inline)]
pub use guest::ssh::{Copied, GuestExit, Stream};
#[doc(inline)]
pub use qemu::Network;
#[doc(inline)]
pub use vm::WaitFor;
