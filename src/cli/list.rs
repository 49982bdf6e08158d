//! `castra list`: shows the VMs of all projects of this user.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::error::{Error, Result};
use castra_engine::host::since_unix_ms;
use castra_engine::size::ByteSize;
use castra_engine::vm::{self, ListedVm, OutlivedCompanion, VmState};
use schemars::JsonSchema;
use serde::Serialize;

use super::context::CommandContext;
use super::json::Failure;
use super::printer::Printer;
use super::table::table;
use super::units::span;

/// VMs of all projects of this user.
#[derive(Serialize, JsonSchema)]
pub(super) struct AllVms {
    /// VMs, by project.
    vms: Vec<Listed>,
    /// Projects whose state is not trusted.
    refused: Vec<Refused>,
}

/// A project whose state is not read.
#[derive(Serialize, JsonSchema)]
struct Refused {
    /// The project's directory.
    project: PathBuf,
    /// Reason why its state is not trusted.
    error: Failure,
}

/// A VM of one of this user's projects.
#[derive(Serialize, JsonSchema)]
struct Listed {
    /// The project's directory; for an orphan, where it was.
    project: PathBuf,
    /// Name of the VM.
    name: String,
    /// State of the VM, `orphaned` if its project is gone, or `unknown` if its record cannot be
    /// read.
    state: &'static str,
    /// `kvm`, `hvf` or `tcg`, if it is running.
    accelerator: Option<&'static str>,
    /// Time at which it was started, if it runs, in milliseconds since 1970.
    started_unix_ms: Option<u64>,
    /// Bytes that its own disk occupies.
    disk_bytes: Option<u64>,
    /// Bytes that its data disks occupy, those included that are kept for it.
    data_disk_bytes: Option<u64>,
    /// QEMU's process, if it is running.
    pid: Option<i32>,
    /// Reason why its record cannot be read.
    error: Option<Failure>,
}

/// Lists the VMs of all projects of this user. Asks no guest, so it never waits.
pub(super) fn run(context: &CommandContext) -> Result<ExitCode> {
    let mut content = AllVms { vms: Vec::new(), refused: Vec::new() };
    for project in vm::list_projects(&context.runtime) {
        let directory = project.layout.directory().to_owned();
        let vms = match project.vms {
            Ok(vms) => vms,
            Err(error) => {
                content
                    .refused
                    .push(Refused { project: directory, error: Failure::from(&error.into()) });
                continue;
            }
        };
        content.vms.extend(vms.into_iter().map(|(vm, listed)| match listed {
            Ok(listed) => Listed::new(directory.clone(), listed),
            Err(error) => Listed {
                error: Some(Failure::from(&Error::from(error))),
                ..Listed::without_record(directory.clone(), vm, "unknown")
            },
        }));
    }
    content.vms.extend(vm::orphans().into_iter().map(|orphan| Listed {
        pid: Some(orphan.pid()),
        ..Listed::without_record(orphan.directory, orphan.vm, "orphaned")
    }));
    if content.vms.is_empty() && content.refused.is_empty() {
        context.printer.tip("There are no VMs yet. `castra up` starts one in this directory.");
    }
    let text = if content.vms.is_empty() { String::new() } else { content.text() };
    context.printer.show(&content, &text)?;
    content.print(context.printer);
    for OutlivedCompanion { vm, pid, .. } in vm::outlived_companions(&context.runtime) {
        context.printer.tip(&format!(
            "Process {pid}, the companion of VM `{vm}`, has outlived it. `castra clean \
            --orphans` ends it."
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl AllVms {
    fn text(&self) -> String {
        let mut rows =
            vec![["PROJECT", "VM", "STATE", "ACCEL", "UPTIME", "DISK", "DATA"].map(String::from)];
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        rows.extend(self.vms.iter().map(|vm| {
            [
                vm.project.display().to_string(),
                vm.name.clone(),
                vm.state.to_owned(),
                or_dash(vm.accelerator.map(str::to_owned)),
                or_dash(vm.started_unix_ms.map(uptime)),
                or_dash(vm.disk_bytes.map(|bytes| ByteSize(bytes).to_string())),
                or_dash(vm.data_disk_bytes.map(|bytes| ByteSize(bytes).to_string())),
            ]
        }));
        table(&rows)
    }

    /// Warns about what is out of order, with a way out.
    fn print(&self, printer: &Printer) {
        for refused in &self.refused {
            printer.warning(&format!("{}: {}", refused.project.display(), refused.error.message()));
        }
        for vm in &self.vms {
            if let Some(error) = &vm.error {
                printer.warning(&format!("{}: {}", vm.project.display(), error.message()));
            }
        }
        if self.vms.iter().any(|vm| vm.state == "orphaned") {
            printer.tip(
                "An orphaned VM is still running although its project is gone. `castra clean \
                --orphans` stops such VMs.",
            );
        }
    }
}

impl Listed {
    fn new(project: PathBuf, listed: ListedVm) -> Self {
        let status = listed.status;
        let state: VmState = status.state;
        let used = status.data_disks.iter().filter_map(|disk| disk.used_bytes);
        let data_disk_bytes = (!status.data_disks.is_empty()).then(|| used.sum());
        Self {
            accelerator: status.accelerator.map(|choice| choice.accelerator.name()),
            started_unix_ms: status.started_unix_ms,
            disk_bytes: listed.disk_bytes,
            data_disk_bytes,
            pid: status.pid,
            ..Self::without_record(project, status.name, state.name())
        }
    }

    fn without_record(project: PathBuf, name: String, state: &'static str) -> Self {
        Self {
            project,
            name,
            state,
            accelerator: None,
            started_unix_ms: None,
            disk_bytes: None,
            data_disk_bytes: None,
            pid: None,
            error: None,
        }
    }
}

fn uptime(started_unix_ms: u64) -> String {
    span(since_unix_ms(started_unix_ms))
}
