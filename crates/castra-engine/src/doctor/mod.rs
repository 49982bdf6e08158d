//! `castra doctor`: checks that everything Castra needs exists and really works, and says how to
//! fix what does not.
//!
//! Each area has a file and examines real things: a program that is run, a machine that is started,
//! a file that is read. Examining changes nothing, except for a scratch file of the probe. Findings
//! that can be fixed without loss say how ([`Repair`]), and [`fix`] does that.

mod accelerators;
mod cache;
mod firmware;
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

/// Subject of an examination.
pub struct Subject<'a> {
    /// Environment, directories and the like.
    pub context: &'a RuntimeContext,
    /// Project of this directory, or the reason why none can be read.
    pub project: Result<&'a ProjectConfig, &'a crate::error::Error>,
}

/// Result of one check.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Finding {
    /// Area of the check.
    pub area: Area,
    /// Stable name of the check: `qemu-version`, `kvm`.
    pub check: &'static str,
    /// Severity of the finding.
    pub severity: Severity,
    /// Description of the finding.
    pub message: String,
    /// Advice on fixing it.
    pub fix: Option<String>,
    /// Set if `castra doctor --fix` does that.
    #[serde(rename = "can_be_mended")]
    pub fixable: bool,
    /// Method of the repair.
    #[serde(skip)]
    repair: Option<Repair>,
}

/// An area of what Castra needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// Host machine: processors, memory, clock.
    Host,
    /// QEMU and qemu-img.
    Qemu,
    /// Accelerators that run a guest's CPU.
    Accelerators,
    /// Free space on disks.
    Space,
    /// Permissions.
    Permissions,
    /// The user's images and templates.
    Cache,
    /// The project of this directory and its VMs.
    Project,
    /// Sources of images.
    Network,
}

impl Area {
    /// Returns the word for the area.
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

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Everything is as it should be.
    Good,
    /// Worth knowing, with nothing to do.
    Note,
    /// Something is slower or emptier than it could be, or will become a problem.
    Warning,
    /// Something will not work.
    Problem,
}

impl Finding {
    fn new(
        area: Area,
        check: &'static str,
        severity: Severity,
        message: impl Into<String>,
    ) -> Self {
        Self {
            area,
            check,
            severity,
            message: message.into(),
            fix: None,
            fixable: false,
            repair: None,
        }
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

    /// Adds advice on fixing it.
    fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Adds the hint of the error that it reports, if that has one.
    fn with_hint(self, hint: Option<String>) -> Self {
        match hint {
            Some(hint) => self.with_fix(hint),
            None => self,
        }
    }

    /// With what [`fix`] does about it.
    fn with_repair(mut self, repair: Repair) -> Self {
        (self.fixable, self.repair) = (true, Some(repair));
        self
    }
}

/// Examines everything, area by area. The network, which may not answer, is examined in parallel.
///
/// # Errors
/// The user interrupted it.
pub fn run_checks(subject: &Subject<'_>) -> Result<Vec<Finding>, Interrupted> {
    let context = subject.context;
    thread::scope(|scope| {
        let network = scope.spawn(|| network::check(context));
        let mut findings = host::check();
        let (about_qemu, binary) = qemu::check(context)?;
        findings.extend(about_qemu);
        findings.extend(firmware::check(subject, binary.as_ref()));
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
