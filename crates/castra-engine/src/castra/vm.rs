//! A VM of a project.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::command::Settings;
use super::guest::{self, Guest as _, ROOT, Recorded, Way};
use super::{Command, Down, Project, Up};
use crate::error::Result;
use crate::guest::Mount;
use crate::guest::session::{GuestSession, SessionError};
use crate::guest::ssh::Copied;
use crate::vm::{self, CleanOptions, DataDisks, Resized, UpOptions, VmStatus};

/// A VM of a project, from [`Project::vm`]. Cheap to clone.
///
/// It is a name and not the VM itself: the VM outlives this value and the process, until
/// [`Vm::down`].
#[derive(Clone)]
pub struct Vm {
    project: Project,
    name: String,
    /// Options of its starts.
    options: UpOptions,
}

impl Vm {
    pub(super) fn new(project: Project, name: String) -> Self {
        Self::with_options(project, name, UpOptions::default())
    }

    pub(super) fn with_options(project: Project, name: String, options: UpOptions) -> Self {
        Self { project, name, options }
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
        Up::new(self, self.options)
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

    /// Pauses the VM, which runs: its processors stop, while its memory and its connections stay.
    /// [`Vm::unpause`] continues it, and so does any command for it.
    ///
    /// # Errors
    /// Fails for a VM that does not run.
    pub fn pause(&self) -> Result<()> {
        Ok(vm::pause(&self.name, self.project.lend())?)
    }

    /// Continues the VM after [`Vm::pause`], and sets its clock.
    ///
    /// # Errors
    /// Fails for a VM that does not run, and for a guest that does not answer.
    pub fn unpause(&self) -> Result<()> {
        Ok(vm::unpause(&self.name, self.project.lend())?)
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

    /// Grows the disk of the VM, which may be running, to this virtual size in bytes. The root
    /// filesystem grows with it, or at the next start.
    ///
    /// # Errors
    /// Fails for a size below the disk's, and for a VM that is suspended.
    pub fn resize(&self, disk_bytes: u64) -> Result<Resized> {
        let project = &self.project;
        Ok(vm::resize(&self.name, disk_bytes, project.config(), project.lend())?)
    }

    /// Removes the VM, which must be stopped, with its disks; or the remains of one.
    ///
    /// # Errors
    /// Fails for a VM that runs or is suspended, and if a file cannot be removed.
    pub fn remove(&self) -> Result<()> {
        let project = &self.project;
        let options =
            CleanOptions { disks: true, data_disks: DataDisks::All, ..CleanOptions::default() };
        let names = [self.name.clone()];
        vm::clean(&names, options, &project.config().bounds, project.lend())?;
        Ok(())
    }

    /// Opens a session with the running VM, for a program that serves others. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// Fails for a VM that does not run, boots natively, or has no free stream port.
    pub async fn session(&self) -> Result<GuestSession> {
        let vm = self.clone();
        let target = tokio::task::spawn_blocking(move || vm.guest().target(ROOT));
        let target = target.await.map_err(|_| SessionError::Lost)??;
        Ok(GuestSession::open(&target).await?)
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

    /// Lets the running VM read and write a directory of this machine, at an absolute path of its
    /// own, until [`Self::unmount`] or [`Self::down`]. Every user of the VM may do there what this
    /// process may. The mount outlives this process, a suspend, and is in clones. It is served by
    /// the program `castra`, which is looked up in `PATH`.
    ///
    /// ```no_run
    /// # fn main() -> castra_engine::Result<()> {
    /// let project = castra_engine::Castra::new()?.project("demo")?;
    /// let vm = project.vm("web");
    /// vm.mount(".", "/src")?;
    /// let output = vm.command(["make", "test"]).current_dir("/src").output()?;
    /// print!("{}", output.stdout_text());
    /// vm.unmount("/src")
    /// # }
    /// ```
    ///
    /// # Errors
    /// Fails for a VM that does not run or boots natively, a directory that is missing or belongs
    /// to another user, and a place in the guest that is its system's or another mount's.
    pub fn mount(&self, host: impl Into<PathBuf>, guest: impl Into<String>) -> Result<()> {
        self.make_mount(host.into(), guest.into(), false)
    }

    /// Lets the running VM read a directory of this machine, as [`Self::mount`] does.
    ///
    /// # Errors
    /// Fails as [`Self::mount`] does.
    pub fn mount_read_only(
        &self,
        host: impl Into<PathBuf>,
        guest: impl Into<String>,
    ) -> Result<()> {
        self.make_mount(host.into(), guest.into(), true)
    }

    /// Unmounts the directory that is mounted at this path of the running VM.
    ///
    /// # Errors
    /// Fails if nothing is mounted there, or programs of the VM use it.
    pub fn unmount(&self, guest: &str) -> Result<()> {
        Ok(vm::unmount(&self.name, guest, self.project.lend())?)
    }

    fn make_mount(&self, host: PathBuf, guest: String, read_only: bool) -> Result<()> {
        let mount = Mount { host, guest, read_only, notify: Mount::notifies() };
        vm::mount(&self.name, &mount, self.project.lend())?;
        Ok(())
    }

    fn guest(&self) -> Recorded<'_> {
        Recorded { name: Some(&self.name), project: self.project.lend() }
    }
}
