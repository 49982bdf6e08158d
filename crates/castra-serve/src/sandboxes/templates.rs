//! Templates: what a sandbox is made of.

use std::fs;
use std::path::{Path, PathBuf};

use castra_engine::{Network, SandboxBuilder};

use super::record::Shape;
use crate::error::ServeError;

/// Name of the default template.
pub(crate) const BASE: &str = "base";

/// User of requests that name none, as clients expect.
pub(crate) const USER: &str = "user";

/// Prepares the disk of each template: clients expect an ordinary user of this name, who may become
/// root.
const PREPARE: &str = "#!/bin/sh
# The user that clients of the E2B API expect.
set -e
if ! id user >/dev/null 2>&1; then
    if command -v useradd >/dev/null 2>&1; then
        useradd --create-home --shell \"$(command -v bash || echo /bin/sh)\" user
    else
        adduser -D -s \"$(command -v bash || echo /bin/sh)\" user
    fi
fi
for directory in /etc/sudoers.d /etc/doas.d; do
    [ -d $directory ] || continue
    case $directory in
        */sudoers.d) echo 'user ALL=(ALL) NOPASSWD:ALL' > $directory/user ;;
        */doas.d) echo 'permit nopass user' > $directory/user.conf ;;
    esac
done
";

/// Makes VMs' settings of templates.
pub(crate) struct Templates {
    /// Settings of all.
    settings: SandboxBuilder,
    /// Script that prepares each disk.
    prepare: PathBuf,
    /// Images that are templates, besides the base.
    images: Vec<String>,
}

impl Templates {
    /// Writes the script that prepares disks below a directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn new(
        settings: SandboxBuilder,
        root: &Path,
        images: Vec<String>,
    ) -> Result<Self, ServeError> {
        let prepare = root.join("prepare.sh");
        let failed = |source| ServeError::Directory { path: prepare.clone(), source };
        fs::write(&prepare, PREPARE).map_err(failed)?;
        Ok(Self { settings, prepare, images })
    }

    /// Returns the image of a template: `Some(None)` for the default one.
    pub(crate) fn image(&self, template: &str) -> Option<Option<String>> {
        if template == BASE {
            return Some(None);
        }
        self.images.iter().find(|image| *image == template).map(|image| Some(image.clone()))
    }

    /// Returns all templates' names.
    pub(crate) fn names(&self) -> Vec<String> {
        std::iter::once(BASE.to_owned()).chain(self.images.iter().cloned()).collect()
    }

    /// Returns the settings of a VM of this shape.
    pub(crate) fn settings(&self, shape: &Shape) -> SandboxBuilder {
        let network = if shape.is_isolated { Network::Isolated } else { Network::Full };
        let settings = self
            .settings
            .clone()
            .cpus(shape.cpus)
            .memory_mib(shape.memory_mib)
            .disk_mib(shape.disk_mib)
            .network(network)
            .provision(&self.prepare)
            .provision_network(Network::Isolated);
        match &shape.image {
            Some(image) => settings.image(image),
            None => settings,
        }
    }
}
