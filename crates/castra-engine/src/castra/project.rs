//! A project and its VMs.

use std::path::Path;
use std::sync::Arc;

use super::{SandboxBuilder, Vm};
use crate::config::ProjectConfig;
use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::layout::ProjectLayout;
use crate::vm::{self, DownOptions, IfSuspended, ProjectRef, VmStatus};

/// A project: a directory with VMs, from [`Castra::project`](super::Castra::project). Cheap to
/// clone.
#[derive(Clone)]
pub struct Project {
    inner: Arc<Inner>,
}

struct Inner {
    config: ProjectConfig,
    layout: ProjectLayout,
    /// Context with the project's mirrors.
    context: RuntimeContext,
}

impl Project {
    pub(super) fn open(config: ProjectConfig, context: &RuntimeContext) -> Result<Self> {
        vm::check_readable(config.state_root.names())?;
        let layout = config.state_root.open(context)?;
        let mut context = context.clone();
        context.mirrors.extend(config.mirrors.iter().cloned());
        Ok(Self { inner: Arc::new(Inner { config, layout, context }) })
    }

    /// Returns the project's directory.
    pub fn root(&self) -> &Path {
        &self.inner.config.root
    }

    /// Returns the configuration, with every default filled in.
    pub fn config(&self) -> &ProjectConfig {
        &self.inner.config
    }

    /// Returns the VM of this name, declared or a clone. A name that nothing has is an error of the
    /// operations on it.
    pub fn vm(&self, name: impl Into<String>) -> Vm {
        Vm::new(self.clone(), name.into())
    }

    /// Returns the declared VMs, in the configuration's order.
    pub fn vms(&self) -> Vec<Vm> {
        self.config().vms.iter().map(|vm| self.vm(&vm.name)).collect()
    }

    /// Returns the only VM that is declared, as in a project without a `castra.toml`.
    ///
    /// # Errors
    /// Fails if several are declared.
    pub fn only_vm(&self) -> Result<Vm> {
        Ok(self.vm(vm::only_declared(self.config())?))
    }

    /// Stops all VMs in parallel. Suspended ones stay suspended. Returns the names of those that
    /// ran.
    ///
    /// # Errors
    /// Fails with the first error, after the others have stopped.
    pub fn down(&self) -> Result<Vec<String>> {
        let options = DownOptions { suspended: IfSuspended::Leave, ..DownOptions::default() };
        let (mut stopped, mut failure) = (Vec::new(), None);
        for (name, before) in vm::down(&[], self.lend(), &options)? {
            match before {
                Ok(before) if before.is_alive() => stopped.push(name),
                Ok(_) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(stopped), |error| Err(error.into()))
    }

    /// Returns the status of every VM that was started once, by name. Waits some seconds for
    /// silent guests.
    pub fn status(&self) -> Vec<(String, Result<VmStatus>)> {
        let known = vm::status_of_guests(self.lend().layout);
        known.into_iter().map(|(name, status)| (name, status.map_err(Error::from))).collect()
    }

    /// Returns a throw-away VM to be started, for which the project's images can be named.
    pub fn sandbox(&self) -> SandboxBuilder {
        SandboxBuilder::new(self.lend().context.clone(), Some(self.config().clone()))
    }

    pub(super) fn lend(&self) -> ProjectRef<'_> {
        ProjectRef::new(&self.inner.layout, &self.inner.context)
    }
}
