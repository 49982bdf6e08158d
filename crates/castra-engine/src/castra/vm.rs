//! A VM of a project.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::command::Settings;
use super::guest::{self, Recorded, Way};
use super::{Command, Down, Project, Up};
use crate::error::Result;
use crate::guest::ssh::Copied;
use crate::vm::{self, VmStatus};

/// A VM of a project, from [`Project::vm`]. Cheap to clone.
///
/// It is a name and not the VM itself: the VM outlives this value and the process, until
/// [`Vm::down`].
#[derive(Clone)]
pub struct Vm {
    project: Project,
    name: String,
}

impl Vm {
    pub(super) fn new(project: Project, name: String) -> Self {
        Self { project, name }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the project.
    pub fn project(&self) -> &Project {
        &self.project
    }

    /// Returns a start of the VM, to be configured.
    pub fn up(&self) -> Up<'_> {
        Up::new(self)
    }

    /// Returns a stop of the VM, to be configured.
    pub fn down(&self) -> Down<'_> {
        Down::new(self)
    }

    /// Saves the VM's memory to disk and stops it. [`Vm::up`] resumes it. A VM that is suspended
    /// already is left alone.
    ///
    /// # Errors
    /// Fails for a VM that does not run.
    pub fn suspend(&self) -> Result<()> {
        let names = [self.name.clone()];
        for (_, suspended) in vm::suspend(&names, self.project.lend())? {
            suspended?;
        }
        Ok(())
    }

    /// Clones the VM, with its disk and its memory, and returns the new VM, which is suspended. A
    /// running VM is suspended meanwhile and then resumed.
    ///
    /// # Errors
    /// Fails for a VM that is neither running nor suspended, and for a name that is taken.
    pub fn clone_as(&self, name: &str) -> Result<Vm> {
        let project = &self.project;
        vm::clone_running(&self.name, name, project.config(), project.lend())?;
        Ok(project.vm(name))
    }

    /// Returns the VM's status, or `None` if it was never started. Never blocks.
    ///
    /// # Errors
    /// Fails for a record that cannot be read.
    pub fn status(&self) -> Result<Option<VmStatus>> {
        Ok(vm::status_of(&self.name, self.project.lend().layout)?)
    }

    /// Returns a command to run in the VM. The first argument is the program; no shell parses the
    /// arguments. A VM that is still starting is waited for.
    pub fn command<I, S>(&self, command: I) -> Command<'_>
    where
        I: IntoIterator<Item = S>,
        S: Into<OsString>,
    {
        Command::new(Way::Recorded(self.guest()), Settings::of_argv(command))
    }

    /// Copies a file or directory of this machine into the VM: *into* `remote` if that is a
    /// directory, else *as* `remote`, as `scp -rp` does. A relative `remote` path starts at root's
    /// home.
    ///
    /// # Errors
    /// Fails if the VM cannot be reached, and with the first failure of an entry, after the rest
    /// was copied.
    pub fn copy_in(&self, local: impl AsRef<Path>, remote: impl AsRef<OsStr>) -> Result<Copied> {
        guest::copy_in(&self.guest(), local.as_ref(), remote.as_ref())
    }

    /// Copies a file or directory of the VM to this machine, as [`Self::copy_in`] does. Nothing is
    /// written outside `local`, whatever the guest answers.
    ///
    /// # Errors
    /// Fails as [`Self::copy_in`] does.
    pub fn copy_out(&self, remote: impl AsRef<OsStr>, local: impl AsRef<Path>) -> Result<Copied> {
        guest::copy_out(&self.guest(), remote.as_ref(), local.as_ref())
    }

    fn guest(&self) -> Recorded<'_> {
        Recorded { name: Some(&self.name), project: self.project.lend() }
    }
}
