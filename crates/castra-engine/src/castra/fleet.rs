//! A directory of VMs that a program makes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Project, SandboxBuilder, Vm};
use crate::config::Bounds;
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::state_root::StateRoot;
use crate::vm::{self, VmStatus};

/// VMs that a program makes and names, in a directory of their own, from
/// [`Castra::fleet`](super::Castra::fleet). Cheap to clone.
///
/// They outlive the program. Another process finds them again by the directory, and needs the
/// settings with which they were made.
#[derive(Clone)]
pub struct Fleet {
    context: RuntimeContext,
    root: PathBuf,
    bounds: Arc<Bounds>,
    state_root: StateRoot,
}

impl Fleet {
    pub(super) fn new(root: PathBuf, context: RuntimeContext) -> Self {
        let bounds = Arc::new(Bounds::new(&root, &[]));
        let state_root = bounds.state_root();
        Self { context, root, bounds, state_root }
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the VM of this name with these settings, which are those with which it was made. It
    /// is made when it starts first ([`Vm::up`]), or as a clone of another one ([`Vm::clone_as`]).
    ///
    /// # Errors
    /// Fails for an unknown image, and for a directory that belongs to another user or came from
    /// elsewhere.
    pub fn vm(&self, name: &str, settings: &SandboxBuilder) -> Result<Vm> {
        let bounds = Arc::clone(&self.bounds);
        let (config, options) =
            settings.clone().declaring(name.to_owned(), bounds, self.state_root.clone())?;
        let project = Project::open(config, &self.context)?;
        Ok(Vm::with_options(project, name.to_owned(), options))
    }

    /// Returns the names of all VMs that have files, also of those of which only remains are left,
    /// as of one that was being made when its program was killed. [`Vm::remove`] removes these.
    ///
    /// # Errors
    /// Fails for a directory that belongs to another user or came from elsewhere.
    pub fn names(&self) -> Result<BTreeSet<String>> {
        Ok(vm::vm_names(&self.state_root.open(&self.context)?))
    }

    /// Returns the names of the VMs that were made, and their status.
    ///
    /// # Errors
    /// Fails for a directory that belongs to another user or came from elsewhere.
    pub fn status(&self) -> Result<Vec<(String, Result<VmStatus>)>> {
        let layout = self.state_root.open(&self.context)?;
        let known = vm::status(&layout).into_iter();
        Ok(known.map(|(name, status)| (name, status.map_err(Into::into))).collect())
    }
}
