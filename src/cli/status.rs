//! `castra status`: shows this project's VMs: state, address, ports, and advice for those in
//! trouble.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use castra_engine::config::{PortForward, format_size};
use castra_engine::error::{Error, Result};
use castra_engine::guest::{CloudInitState, LiveOrigin, LiveState, MountState};
use castra_engine::host::since_unix_ms;
use castra_engine::size::ByteSize;
use castra_engine::sockets::Protocol;
use castra_engine::vm::{
    self, DiskStatus, FullDisk, ObservedPort, PerVm, RecordError, VmError, VmState, VmStatus,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::StatusArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::exit;
use super::json::VmView;
use super::output::Verbosity;
use super::printer::Printer;
use super::table::table;
use super::units::span;

/// Shows the state of VMs from records and locks, and the immediate answers of running guests.
pub(super) fn run(status: &StatusArgs, context: &CommandContext) -> Result<ExitCode> {
    let layout = context.layout()?;
    let mut known = vm::status_of_guests(layout);
    let Declared { names: declared, unrecorded } = declared(context, &known);
    refuse_unknown(&status.vms, &known, &declared)?;
    let is_wanted = |name: &String| status.vms.is_empty() || status.vms.contains(name);
    known.retain(|(name, _)| is_wanted(name));
    let declared: Vec<String> = declared.into_iter().filter(is_wanted).collect();
    if context.printer.is_json() {
        return print_json(known, &declared, &unrecorded, context.printer);
    }
    if known.is_empty() && declared.is_empty() {
        context.printer.tip("There are no VMs here yet. `castra up` starts one.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows =
        vec![["NAME", "STATE", "ACCEL", "UPTIME", "SSH", "PORTS", "IMAGE"].map(String::from)];
    rows.extend(known.iter().map(|(name, status)| match status {
        Ok(status) => row(status),
        Err(_) => row_of_state(name, "unknown"),
    }));
    rows.extend(declared.iter().map(|name| match unrecorded.contains_key(name) {
        true => row_of_state(name, "unrecorded"),
        false => row_of_state(name, "not created"),
    }));
    context.printer.result(&table(&rows)).map_err(CliError::from)?;
    if context.args.verbosity() == Verbosity::Verbose {
        context.printer.result(&details(&known)).map_err(CliError::from)?;
    }
    for (name, disk) in unrecorded.iter().filter(|(name, _)| declared.contains(name)) {
        context.printer.tip(&format!(
            "VM `{name}` has a disk, {}, but no record of it. `castra up {name}` starts it from \
            that disk.",
            disk.display()
        ));
    }
    Ok(report_damaged(known, context.printer))
}

/// Returns the row of a VM of which nothing but its state is known.
fn row_of_state(name: &str, state: &str) -> [String; 7] {
    let dash = || "-".to_owned();
    [name.to_owned(), state.to_owned(), dash(), dash(), dash(), dash(), dash()]
}

/// The VMs of a project.
#[derive(Serialize, JsonSchema)]
pub(super) struct Vms {
    /// VMs as they are now.
    vms: Vec<VmView>,
}

fn print_json(
    known: PerVm<VmStatus>,
    declared: &[String],
    unrecorded: &BTreeMap<String, PathBuf>,
    printer: &Printer,
) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut view = |(name, status): (String, Result<VmStatus, VmError>)| match status {
        Ok(status) => VmView::from(status),
        Err(error) => {
            let error = Error::from(error);
            code = exit::of_kind(error.kind());
            VmView::unreadable(&name, &error)
        }
    };
    let mut vms: Vec<VmView> = known.into_iter().map(&mut view).collect();
    vms.extend(declared.iter().map(|name| match unrecorded.get(name) {
        Some(disk) => VmView::unrecorded(name, disk),
        None => VmView::not_created(name),
    }));
    printer.json(&Vms { vms }).map_err(CliError::from)?;
    Ok(code)
}

/// VMs without a record that are declared, or that have a disk.
#[derive(Default)]
struct Declared {
    names: Vec<String>,
    /// Disks of those that have one: their records were quarantined or removed.
    unrecorded: BTreeMap<String, PathBuf>,
}

/// Returns VMs without a record. Without a readable configuration there are none.
fn declared(context: &CommandContext, known: &PerVm<VmStatus>) -> Declared {
    let Ok(config) = context.silent_config() else { return Declared::default() };
    let new: Vec<_> =
        config.vms.iter().filter(|vm| known.iter().all(|(name, _)| *name != vm.name)).collect();
    let disks = new.iter().filter(|vm| vm.overlay.exists());
    let unrecorded: BTreeMap<String, PathBuf> =
        disks.map(|vm| (vm.name.clone(), vm.overlay.to_path_buf())).collect();
    // Without a castra.toml, the VM is one that `up` would create.
    let names = new.iter().map(|vm| vm.name.clone());
    let names = names.filter(|name| config.file.is_some() || unrecorded.contains_key(name));
    Declared { names: names.collect(), unrecorded }
}

fn refuse_unknown(
    wanted: &[String],
    known: &PerVm<VmStatus>,
    declared: &[String],
) -> Result<(), VmError> {
    let names: Vec<&str> =
        known.iter().map(|(name, _)| name).chain(declared).map(String::as_str).collect();
    match wanted.iter().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(RecordError::unknown(name, &names).into()),
        None => Ok(()),
    }
}

fn row(status: &VmStatus) -> [String; 7] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        status.name.clone(),
        status.state.name().to_owned(),
        or_dash(status.accelerator.as_ref().map(|choice| choice.accelerator.name().to_owned())),
        or_dash(status.uptime_ms.map(|uptime| span(Duration::from_millis(uptime)))),
        or_dash(status.ssh_port.map(|port| format!("127.0.0.1:{port}"))),
        or_dash(Some(ports(status)).filter(|text| !text.is_empty())),
        status.image.clone(),
    ]
}

/// Returns the reason why a VM is paused, and the way out.
fn paused(vm: &str, full: &FullDisk) -> String {
    format!(
        "VM `{vm}` is paused: {full}. Nothing is lost: free some space there, and `castra up {vm}` \
        continues it."
    )
}

/// Formats the time since a moment.
fn ago(unix_ms: u64) -> String {
    span(since_unix_ms(unix_ms))
}

/// Maximum number of live ports in a VM's row; `castra ports` shows all.
const MAX_LIVE_PORTS: usize = 4;

/// Formats the forwards of a VM that are open: `8080→80/tcp, 5353→53/udp`.
fn ports(status: &VmStatus) -> String {
    let declared = status.port_forwards.iter();
    let declared = declared.map(|PortForward { host, guest, protocol }| (*host, *guest, *protocol));
    let live = status.live_ports.iter().filter(|port| port.state == Some(LiveState::Open));
    let live = live.map(|port| (port.forward.host, port.forward.guest, Protocol::Tcp));
    let one = |(host, guest, protocol)| format!("{host}→{guest}/{protocol}");
    let mut all: Vec<String> = declared.chain(live).map(one).collect();
    let shown = status.port_forwards.len() + MAX_LIVE_PORTS;
    if all.len() > shown {
        let more = all.split_off(shown).len();
        all.push(format!("{more} more"));
    }
    all.join(", ")
}

fn details(known: &PerVm<VmStatus>) -> String {
    let mut text = String::new();
    for status in known.iter().filter_map(|(_, status)| status.as_ref().ok()) {
        text.push_str(&format!("\n{}\n  disk         {}\n", status.name, status.overlay.display()));
        status.data_disks.iter().for_each(|disk| text.push_str(&line_of_disk(disk)));
        if let Some(at) = status.suspended_unix_ms {
            text.push_str(&format!("  suspended    {} ago\n", ago(at)));
        }
        if let Some(choice) = &status.accelerator {
            text.push_str(&format!(
                "  accelerator  {} ({})\n",
                choice.accelerator.name(),
                choice.reason
            ));
        }
        if let Some(kernel) = &status.kernel {
            let version = kernel.version.as_deref().unwrap_or("of unknown version");
            text.push_str(&format!(
                "  kernel       Linux {version} of its disk, {} ({} {})\n",
                kernel.os, kernel.rule, kernel.entry
            ));
        }
        if let Some(native) = &status.native {
            let (firmware, reason) = (native.firmware.name(), &native.reason);
            text.push_str(&format!("  firmware     {firmware} ({reason})\n"));
        }
        for (mount, state) in &status.mounts {
            let note = match state {
                Some(MountState::Mounted) => String::new(),
                Some(MountState::Unnotified(reason)) => {
                    format!(", not notified of all changes: {reason}")
                }
                Some(MountState::Waiting) => ", waiting for the guest".to_owned(),
                Some(MountState::Failed(reason)) => format!(", not mounted: {reason}"),
                None => ", not served now".to_owned(),
            };
            text.push_str(&format!("  mount        {mount}{note}\n"));
        }
        for ObservedPort { forward, origin, state } in &status.live_ports {
            let kind = match origin {
                LiveOrigin::Added => "",
                LiveOrigin::Auto => ", found by itself",
            };
            let note = match state {
                Some(LiveState::Open) => String::new(),
                Some(LiveState::Failed(reason)) => format!(", not open: {reason}"),
                None => ", not forwarded now".to_owned(),
            };
            text.push_str(&format!("  port         {forward}{kind}{note}\n"));
        }
        if let Some((missing, way_out)) = &status.missing_modules {
            text.push_str(&format!("  kernel       {missing}. {way_out}\n"));
        }
        if status.agent == Some(false) {
            let console = match status.console_bytes {
                None | Some(0) => "nothing",
                Some(_) => "output",
            };
            let commands = match status.ready_ms {
                Some(_) => "commands run over its own SSH server",
                None => "unknown",
            };
            text.push_str(&format!(
                "  inside       {commands}: no castra agent, {console} on the serial console\n"
            ));
        }
        if let (Some(cpus), Some(memory), Some(pid)) = (status.cpus, status.memory_mib, status.pid)
        {
            let qemu = status.qemu_version.as_deref().unwrap_or("?");
            let plural = if cpus == 1 { "" } else { "s" };
            text.push_str(&format!(
                "  machine      {cpus} CPU{plural}, {memory} MiB, QEMU {qemu}, process {pid}\n"
            ));
        }
    }
    text
}

/// Formats a data disk: `data, 10 GiB, 12 MiB used, at /data`.
fn line_of_disk(disk: &DiskStatus) -> String {
    let size = disk.size_bytes.map_or("unreadable".to_owned(), format_size);
    let used = disk.used_bytes.map(|bytes| format!("{size}, {} used", ByteSize(bytes)));
    let used = used.unwrap_or_else(|| "gone".to_owned());
    let place = match (&disk.guest, disk.is_attached) {
        (Some(guest), _) if disk.mount_fault.is_some() => format!(", not mounted at {guest}"),
        (Some(guest), _) => format!(", at {guest}"),
        (None, true) => String::new(),
        (None, false) => ", kept, not attached".to_owned(),
    };
    format!("  data disk    {}, {used}{place}\n", disk.name)
}

/// Returns a sentence about cloud-init that is not done, or has failed.
fn of_cloud_init(vm: &str, state: &CloudInitState) -> Option<String> {
    let CloudInitState { is_done, errors } = state;
    if !errors.is_empty() {
        let errors = errors.join("; ");
        return Some(format!(
            "cloud-init of VM `{vm}` reports errors: {errors}. `castra exec {vm} -- cat \
            /var/log/cloud-init-output.log` shows what it did."
        ));
    }
    (!is_done).then(|| {
        format!(
            "cloud-init of VM `{vm}` is not done yet; `castra up --wait services` waits for it."
        )
    })
}

/// Prints a way out for each VM in trouble; a record that cannot be read is a failure of the
/// command.
fn report_damaged(known: PerVm<VmStatus>, printer: &Printer) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, status) in known {
        for fault in status.as_ref().map(VmStatus::companion_faults).unwrap_or_default() {
            printer.tip(&format!("{}. {}", fault.in_words(&name), fault.way_out(&name)));
        }
        for disk in status.iter().flat_map(|status| &status.data_disks) {
            if let Some(fault) = &disk.mount_fault {
                let disk = &disk.name;
                printer.tip(&format!(
                    "VM `{name}`: disk `{disk}` {fault}. `castra shell {name}` shows what is on \
                    /dev/disk/by-id/virtio-{disk}; `castra restart {name}` tries again."
                ));
            }
        }
        match status {
            Ok(status) if status.state == VmState::Crashed => {
                let why = status
                    .crash
                    .map_or("its QEMU exited unexpectedly".into(), |why| why.to_string());
                printer.tip(&format!(
                    "VM `{name}` has crashed: {why}. `castra up {name}` starts it again."
                ));
            }
            Ok(VmStatus { copy_of: Some(original), .. }) => printer.tip(&format!(
                "{} `castra up {name}` starts it here.",
                vm::sentence_of_copy(&name, &original)
            )),
            Ok(VmStatus { full_disk: Some(full), .. }) => printer.tip(&paused(&name, &full)),
            Ok(VmStatus { is_frozen: true, pid: Some(pid), .. }) => printer.tip(&format!(
                "VM `{name}` is frozen: its QEMU process is stopped (SIGSTOP). `kill -CONT {pid}` \
                continues it; `castra down {name}` also does, then stops the VM."
            )),
            Ok(VmStatus { lost_sockets: Some(directory), .. }) => printer.tip(&format!(
                "VM `{name}` has lost its sockets in {}: it still works, but cannot be suspended \
                or inspected. `castra restart {name}` shuts it down and creates new ones.",
                directory.display()
            )),
            Ok(VmStatus { agent_fault: Some(fault), .. }) => {
                let words = fault.in_words(&name);
                printer.tip(&format!("{words}. {}", fault.way_out(&name)));
            }
            Ok(VmStatus { network_fault: Some(fault), .. }) => printer.tip(&format!(
                "The guest of VM `{name}` is running, but its network is down: {}. {}",
                fault.in_words(),
                fault.way_out(&name)
            )),
            Ok(VmStatus { cloud_init: Some(state), .. }) => {
                if let Some(tip) = of_cloud_init(&name, &state) {
                    printer.tip(&tip);
                }
            }
            Ok(_) => {}
            Err(error) => {
                let error = Error::from(error);
                printer.error(&error);
                code = exit::of_kind(error.kind());
            }
        }
    }
    code
}
