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

pub mod cancel;
pub mod castra;
pub mod command;
pub mod config;
pub mod context;
pub mod doctor;
pub mod error;
pub mod failpoint;
pub mod files;
pub mod guest;
pub mod hex;
pub mod host;
#[cfg(test)]
mod layers;
pub mod layout;
pub mod logs;
pub mod managed;
pub mod qemu;
pub mod report;
pub mod sanitize;
pub mod similar;
pub mod size;
pub mod sockets;
pub mod state_root;
pub mod template;
pub mod trusted;
pub mod vm;
pub mod wait;

pub use cancel::Cancel;
pub use castra::{
    Builder, Castra, Command, Down, Output, Project, Run, Sandbox, SandboxBuilder, Started,
    TimedOut, Up, Vm,
};
pub use config::{BaseImageSource, ProjectConfig, VmDefinition};
pub use context::RuntimeContext;
pub use error::{Error, Kind, Result};
pub use guest::ssh::{Copied, GuestExit, Stream};
pub use managed::{
    ManagedArtifactSpec, ManagedDiskKind, ManagedImagePaths, ManagedImageSpec, QemuProfile,
};
pub use qemu::Network;
pub use vm::WaitFor;
