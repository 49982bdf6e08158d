//! The interface for programs: [`Castra`], and the builders it gives.
//!
//! | Module | Type |
//! | --- | --- |
//! | `builder` | settings of a [`Castra`] |
//! | `project`, `vm` | a project and its VMs |
//! | `up`, `down` | starting and stopping a VM |
//! | `fleet` | VMs that a program makes, in a directory of their own |
//! | `sandbox`, `run` | a throw-away VM, and one command in it |
//! | `command` | a command in any VM |
//! | `guest` | the way into a guest, for commands and copies |

mod builder;
mod command;
mod down;
mod error;
mod fleet;
mod guest;
mod project;
mod run;
mod sandbox;
mod up;
mod vm;

use std::ffi::OsString;
use std::path::Path;

use crate::cancel::Cancel;
use crate::config::{self, ConfigOptions};
use crate::context::{RuntimeContext, working_directory};
use crate::error::Result;

pub use builder::Builder;
pub use command::{Command, Kept, Output};
pub use down::Down;
pub use error::TimedOut;
pub use fleet::Fleet;
pub use project::Project;
pub use run::Run;
pub use sandbox::{Sandbox, SandboxBuilder};
pub use up::{Started, Up};
pub use vm::Vm;

/// Entry point: opens projects and starts throw-away VMs.
///
/// Cheap to clone; clones share the reporter and the cancellation flag.
#[derive(Clone)]
pub struct Castra {
    context: RuntimeContext,
}

impl Castra {
    /// Returns an instance with the environment of this process, which reports no events.
    ///
    /// # Errors
    /// Fails if no directory can be found for the cache: `HOME` is unset.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Returns a builder, for a reporter, a cancellation flag, or another environment.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns an instance with this context.
    #[doc(hidden)]
    pub fn of(context: RuntimeContext) -> Self {
        Self { context }
    }

    /// Opens a project: the one that `castra` finds when it runs in the directory `path`, or that
    /// of the `castra.toml` at `path`. Without a file there is the default project of one VM, whose
    /// state is in `.castra` in that directory. Creates nothing yet.
    ///
    /// # Errors
    /// Fails for a configuration that cannot be used, and for a state directory that belongs to
    /// another user or came from elsewhere.
    pub fn project(&self, path: impl AsRef<Path>) -> Result<Project> {
        let here = working_directory()?;
        let path = here.join(path);
        let (directory, explicit) = if path.is_dir() { (path, None) } else { (here, Some(path)) };
        let options = ConfigOptions { explicit, ..ConfigOptions::default() };
        let config = config::load(&options, &directory, &self.context)?;
        Project::open(config, &self.context)
    }

    /// Opens a directory of VMs that this program makes. Creates nothing yet.
    ///
    /// # Errors
    /// Fails if the working directory cannot be found.
    pub fn fleet(&self, directory: impl AsRef<Path>) -> Result<Fleet> {
        Ok(Fleet::new(working_directory()?.join(directory), self.context.clone()))
    }

    /// Returns a command for a throw-away VM, which is started for it and ends with it.
    ///
    /// The first argument is the program. The arguments are passed on unchanged; no shell parses
    /// them.
    pub fn run<I, S>(&self, command: I) -> Run
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        self.sandbox().run(command)
    }

    /// Returns a throw-away VM to be started, for several commands.
    pub fn sandbox(&self) -> SandboxBuilder {
        SandboxBuilder::new(self.context.clone(), None)
    }

    /// Returns an instance like this one whose operations another flag cancels.
    pub fn with_cancel(&self, cancel: Cancel) -> Self {
        Self { context: RuntimeContext { cancel, ..self.context.clone() } }
    }

    /// Returns the flag that cancels all operations of this instance.
    pub fn cancel(&self) -> Cancel {
        self.context.cancel.clone()
    }
}
