//! `castra doctor`: is everything here that Castra needs, does it really work, and what to do where it does not.
//!
//! Each area has a file and looks at real things: a program that is run, a machine that is started, a file that is read.
//! Nothing is changed by looking, but for a scratch file of the probe. What can be mended without a loss says how
//! ([`Repair`]); [`fix`] does that.

mod accelerators;
mod cache;
mod host;
mod network;
mod permissions;
mod project;
mod qemu;
mod repair;
mod space;

use std::thread;

use schemars::JsonSchema;
use serde::Serialize;

use crate::cancel::Interrupted;
use crate::config::ProjectConfig;
use crate::context::RuntimeContext;

pub use repair::{Repair, fix};

/// What is examined.
pub struct Subject<'a> {
    /// The surroundings.
    pub context: &'a RuntimeContext,
    /// The project of this directory, or why there is none that can be read.
    pub project: Result<&'a ProjectConfig, &'a crate::Error>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Finding {
    /// What it is part of.
    pub area: Area,
    /// What was looked at, as a name that stays: `qemu-version`, `kvm`.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub fix: Option<String>,
    /// Whether `castra doctor --fix` does that.
    #[serde(rename = "can_be_mended")]
    pub fixable: bool,
    /// How.
    #[serde(skip)]
    repair: Option<Repair>,
}

/// A part of what Castra needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// The machine: processors, memory, clock.
    Host,
    /// QEMU and qemu-img.
    Qemu,
    /// What runs a guest's CPU.
    Accelerators,
    /// Room on disks.
    Space,
    /// Who may do what.
    Permissions,
    /// Images and templates of the user.
    Cache,
    /// This directory's project and its VMs.
    Project,
    /// Where images come from.
    Network,
}

impl Area {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Qemu => "QEMU",
            Self::Accelerators => "accelerators",
            Self::Space => "disk space",
            Self::Permissions => "permissions",
            Self::Cache => "cache",
            Self::Project => "project",
            Self::Network => "network",
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Good to know, and nothing to do.
    Note,
    /// Something is slower or emptier than it could be, or will become a problem.
    Warning,
    /// Something will not work.
    Problem,
}

impl Finding {
    fn new(area: Area, check: &'static str, severity: Severity, message: impl Into<String>) -> Self {
        Self { area, check, severity, message: message.into(), fix: None, fixable: false, repair: None }
    }

    fn good(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Severity::Good, message)
    }

    fn note(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Severity::Note, message)
    }

    fn warning(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Severity::Warning, message)
    }

    fn problem(area: Area, check: &'static str, message: impl Into<String>) -> Self {
        Self::new(area, check, Severity::Problem, message)
    }

    /// With what to do about it.
    fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// With what [`fix`] does about it.
    fn with_repair(mut self, repair: Repair) -> Self {
        (self.fixable, self.repair) = (true, Some(repair));
        self
    }
}

/// Looks at everything, area by area. The network, which may not answer, is waited for beside the rest.
///
/// # Errors
/// An interruption.
pub fn run_checks(subject: &Subject<'_>) -> Result<Vec<Finding>, Interrupted> {
    let context = subject.context;
    thread::scope(|scope| {
        let network = scope.spawn(|| network::check(context));
        let mut findings = host::check();
        let (about_qemu, binary) = qemu::check(context)?;
        findings.extend(about_qemu);
        findings.extend(accelerators::check(binary.as_ref(), context)?);
        findings.extend(space::check(subject));
        findings.extend(permissions::check(subject));
        findings.extend(cache::check(binary.as_ref(), context)?);
        findings.extend(project::check(subject));
        findings.extend(network.join().unwrap_or_default());
        context.cancel.check()?;
        Ok(findings)
    })
}
