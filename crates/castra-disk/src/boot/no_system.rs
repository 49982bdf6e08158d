//! A disk on which no system was found, and what was found instead.

use std::error::Error;
use std::fmt;

use super::Rule;
use super::os_release::OsRelease;
use crate::budget::Exceeded;
use crate::disk::{Place, Volume};
use crate::filesystem::Fault;
use crate::signature::Content;

/// Maximum number of attempts that are kept.
const MAX_ATTEMPTS: usize = 64;

/// Contents of a disk on which no system was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSystem {
    /// Volumes and their contents.
    pub volumes: Vec<(Place, Content)>,
    /// Names of the systems that are installed on volumes.
    pub systems: Vec<(Place, String)>,
    /// Filesystems that cannot be read, or only partly.
    pub refused: Vec<(Place, Fault)>,
    /// Entries of boot loaders that were found and cannot be used.
    pub attempts: Vec<Attempt>,
    /// Limit at which the search was given up.
    pub exceeded: Option<Exceeded>,
}

/// An entry of a boot loader that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Rule that found the entry.
    pub rule: Rule,
    /// Name of the entry or of a file.
    pub entry: String,
    /// Reason.
    pub reason: String,
}

impl NoSystem {
    pub(super) fn of(volumes: &[Volume]) -> Self {
        let volumes = volumes.iter().map(|volume| (volume.place.clone(), volume.content.clone()));
        let volumes = volumes.collect();
        let (systems, refused, attempts) = (Vec::new(), Vec::new(), Vec::new());
        Self { volumes, systems, refused, attempts, exceeded: None }
    }

    /// Notes the system of a volume, of which btrfs has one in each snapshot.
    pub(super) fn installed(&mut self, volume: &Volume, os: &OsRelease) {
        if !self.systems.iter().any(|(place, _)| *place == volume.place) {
            let name = os.pretty_name.as_ref().unwrap_or(&os.id);
            self.systems.push((volume.place.clone(), name.clone()));
        }
    }

    pub(super) fn refused(&mut self, volume: &Volume, fault: Fault) {
        self.refused.push((volume.place.clone(), fault));
    }

    pub(super) fn attempted(&mut self, rule: Rule, entry: String, reason: String) {
        if self.attempts.len() < MAX_ATTEMPTS {
            self.attempts.push(Attempt { rule, entry, reason });
        }
    }
}

impl Error for NoSystem {}

impl fmt::Display for NoSystem {
    /// Writes one line. Names in it are the disk's own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no Linux system that can be booted was found on the disk")?;
        let mut separator = ": ";
        let mut write = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            f.write_str(separator)?;
            separator = "; ";
            f.write_fmt(text)
        };
        for (place, content) in &self.volumes {
            let system = self.systems.iter().find(|(own, _)| own == place);
            let system = system.map(|(_, name)| format!(" with {name}")).unwrap_or_default();
            let fault = self.refused.iter().find(|(refused, _)| refused == place);
            let fault = fault.map(|(_, fault)| format!(", which {fault}")).unwrap_or_default();
            write(f, format_args!("{place}: {content}{system}{fault}"))?;
        }
        if !self.systems.is_empty() && self.attempts.is_empty() && self.exceeded.is_none() {
            write(f, format_args!("it has no kernel with an initramfs"))?;
        }
        for Attempt { rule, entry, reason } in &self.attempts {
            write(f, format_args!("{rule} {entry}: {reason}"))?;
        }
        if let Some(exceeded) = self.exceeded {
            write(f, format_args!("reading it takes {exceeded}"))?;
        }
        Ok(())
    }
}
