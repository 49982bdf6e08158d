//! The project of this directory: its configuration, and whether its VMs match their records; also
//! VMs of deleted projects, and processes that have outlived their VM.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::error::Error;
use crate::guest::{NetworkFault, is_ssh_silent};
use crate::vm::{self, VmError, VmState, VmStatus};

use super::{Area, Finding, Subject};

/// Tolerance for differences of clocks: asking a busy guest takes up to a second.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(2);

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = of_project(subject);
    findings.extend(vm::orphans().into_iter().map(|orphan| {
        let (vm, pid, directory) = (&orphan.vm, orphan.pid(), orphan.directory.display());
        let message =
            format!("VM `{vm}` is running (process {pid}), but its project in {directory} is gone");
        Finding::warning(Area::Project, "orphan", message)
            .with_fix(format!("`castra clean --orphans {vm}` stops it."))
    }));
    findings.extend(vm::outlived_companions(subject.context).into_iter().map(|companion| {
        let (vm, pid) = (&companion.vm, companion.pid);
        let message = format!("process {pid}, the companion of VM `{vm}`, has outlived it");
        Finding::warning(Area::Project, "companion", message)
            .with_fix("`castra clean --orphans` ends it.")
    }));
    findings
}

fn of_project(subject: &Subject<'_>) -> Vec<Finding> {
    let project = match subject.project {
        Ok(project) => project,
        Err(error) => {
            // Rendering every mistake with its place would be more than a finding.
            let message = error.to_string().lines().next().unwrap_or_default().to_owned();
            let finding = Finding::problem(Area::Project, "configuration", message);
            let fix = error
                .hint()
                .unwrap_or_else(|| "`castra config check` shows each error and its line.".into());
            return vec![finding.with_fix(fix)];
        }
    };
    let mut findings = vec![match &project.file {
        Some(file) => {
            Finding::good(Area::Project, "configuration", format!("{} is valid", file.display()))
        }
        None => {
            Finding::good(Area::Project, "configuration", "there is no castra.toml: the default VM")
        }
    }];
    if !project.warnings.is_empty() {
        let message = format!("castra.toml has {} warnings", project.warnings.iter().count());
        findings.push(
            Finding::warning(Area::Project, "configuration-warnings", message)
                .with_fix("`castra config check` shows each one and its line."),
        );
    }
    let layout = match project.state_root.open(subject.context) {
        Ok(layout) => layout,
        Err(error) => {
            let error = Error::from(error);
            let causes = error.causes().map(|cause| format!(": {cause}")).collect::<String>();
            let finding =
                Finding::problem(Area::Project, "state-directory", format!("{error}{causes}"));
            findings.push(finding.with_hint(error.hint()));
            return findings;
        }
    };
    for (name, mut status) in vm::status_of_guests(&layout) {
        if let Ok(status) = &mut status {
            look_behind_firewall(status);
        }
        findings.extend(
            status.as_ref().ok().and_then(|status| Some(of_clock(&name, status.clock_ahead_ms?))),
        );
        for fault in status.as_ref().map(VmStatus::companion_faults).unwrap_or_default() {
            let finding = Finding::warning(Area::Project, "vm-companion", fault.in_words(&name));
            findings.push(finding.with_fix(fault.way_out(&name)));
        }
        findings.push(of_vm(&name, status));
    }
    findings
}

/// Adds the fault of a guest whose agent answers and reports none, but whose SSH server is silent.
fn look_behind_firewall(status: &mut VmStatus) {
    let has_answered = status.clock_ahead_ms.is_some() && status.network_fault.is_none();
    let port = status.ssh_port.filter(|_| has_answered);
    if port.is_some_and(|port| is_ssh_silent((Ipv4Addr::LOCALHOST, port).into())) {
        status.network_fault = Some(NetworkFault::Silent);
    }
}

/// Compares a guest's clock with this machine's.
fn of_clock(name: &str, ahead_ms: i64) -> Finding {
    let by = Duration::from_millis(ahead_ms.unsigned_abs());
    if by <= CLOCK_TOLERANCE {
        return Finding::good(
            Area::Project,
            "vm-clock",
            format!("the clock of VM `{name}` agrees with this machine's"),
        );
    }
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    let message = format!("the clock of VM `{name}` is {} s {side} this machine's", by.as_secs());
    Finding::warning(Area::Project, "vm-clock", message).with_fix(
        "Its agent sets it within seconds, unless the guest has a time service of its own: then \
        check this machine's clock.",
    )
}

fn of_vm(name: &str, status: Result<VmStatus, VmError>) -> Finding {
    match status {
        Ok(status) if status.state == VmState::Crashed => {
            let why = status.crash.map_or_else(String::new, |why| format!(": {why}"));
            Finding::warning(Area::Project, "vm", format!("VM `{name}` has crashed{why}")).with_fix(
                format!(
                    "`castra up {name}` starts it from its disk; `castra down {name}` \
                leaves it stopped."
                ),
            )
        }
        Ok(VmStatus { copy_of: Some(original), .. }) => {
            Finding::warning(Area::Project, "vm", vm::sentence_of_copy(name, &original)).with_fix(
                format!(
                    "`castra up {name}` starts it from the disk of this copy; \
                `castra down {name}` leaves it stopped."
                ),
            )
        }
        Ok(VmStatus { full_disk: Some(full), .. }) => {
            Finding::problem(Area::Project, "vm", format!("VM `{name}` is paused: {full}"))
                .with_fix(format!(
                    "Nothing is lost: free some space on {}, and `castra up {name}` continues it.",
                    full.filesystem.display()
                ))
        }
        Ok(VmStatus { lost_sockets: Some(directory), .. }) => {
            let lost = format!("VM `{name}` has lost its sockets in {}", directory.display());
            Finding::warning(Area::Project, "vm", lost)
                .with_fix(format!("`castra restart {name}` shuts it down and creates new ones."))
        }
        Ok(VmStatus { agent_fault: Some(fault), .. }) => {
            Finding::warning(Area::Project, "vm-agent", fault.in_words(name))
                .with_fix(fault.way_out(name))
        }
        Ok(VmStatus { missing_modules: Some((missing, way_out)), .. }) => {
            Finding::warning(Area::Project, "vm-modules", format!("VM `{name}` {missing}"))
                .with_fix(way_out)
        }
        Ok(VmStatus { network_fault: Some(fault), .. }) => Finding::warning(
            Area::Project,
            "vm-network",
            format!(
                "the guest of VM `{name}` is running, but its network is down: {}",
                fault.in_words()
            ),
        )
        .with_fix(fault.way_out(name)),
        Ok(status) => {
            Finding::good(Area::Project, "vm", format!("VM `{name}` is {}", status.state.name()))
        }
        Err(error) => {
            let error = Error::from(error);
            Finding::problem(Area::Project, "vm", error.to_string()).with_hint(error.hint())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    #[test]
    fn a_clock_that_is_seconds_off_is_a_warning() {
        for (ahead_ms, severity, words) in [
            (0, Severity::Good, "agrees with this machine's"),
            (-1900, Severity::Good, "agrees with this machine's"),
            (-40_200, Severity::Warning, "is 40 s behind this machine's"),
            (3_600_000, Severity::Warning, "is 3600 s ahead of this machine's"),
        ] {
            let finding = of_clock("web", ahead_ms);
            assert_eq!(finding.severity, severity, "{ahead_ms}");
            assert!(finding.message.contains(words), "{}", finding.message);
        }
    }
}
