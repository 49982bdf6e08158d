//! `castra resize`: grows the disk of a VM.

use std::process::ExitCode;

use castra_engine::config::{ProjectConfig, format_size};
use castra_engine::error::Result;
use castra_engine::size::ByteSize;
use castra_engine::vm::{self, GrownRoot, Resized};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::ResizeArgs;
use super::context::CommandContext;

/// Disk of a VM after its growth.
#[derive(Serialize, JsonSchema)]
pub(super) struct ResizedDisk {
    /// The VM.
    vm: String,
    /// Virtual size of the disk before, in bytes.
    before_bytes: u64,
    /// Virtual size of the disk now, in bytes.
    disk_bytes: u64,
    /// Size of the guest's root filesystem now, in bytes; null if it has not grown, or grows at the
    /// next start.
    root_bytes: Option<u64>,
    /// Reason why the root filesystem has not grown, or steps that are left to the user.
    note: Option<String>,
}

/// Grows the disk of a VM, and its root filesystem if the VM runs.
pub(super) fn run(resize: &ResizeArgs, context: &CommandContext) -> Result<ExitCode> {
    let config = context.config()?;
    let vm = resize.vm.as_str();
    let resized = vm::resize(vm, resize.size, config, context.project()?)?;
    let Resized { before_bytes, disk_bytes, root } = resized;
    let printer = context.printer;
    let has_grown = match disk_bytes > before_bytes {
        true => format!("has {} now ({} before)", ByteSize(disk_bytes), ByteSize(before_bytes)),
        false => format!("has {} already", ByteSize(disk_bytes)),
    };
    let (and_root, root_bytes, note) = match root {
        GrownRoot::Grown { root_bytes, left_to_do } => {
            let root = format!(", and its root filesystem {}", ByteSize(root_bytes));
            (root, Some(root_bytes), left_to_do)
        }
        GrownRoot::AtNextStart if disk_bytes == before_bytes => (String::new(), None, None),
        GrownRoot::AtNextStart => {
            ("; its root filesystem grows at the next start".to_owned(), None, None)
        }
        GrownRoot::LeftToSystem => {
            let note = "it boots natively, so its own system has to grow the filesystem";
            (String::new(), None, Some(note.to_owned()))
        }
        GrownRoot::NotGrown { reason, is_due } => {
            let due = match is_due {
                true => format!("; `castra restart {vm}` grows it"),
                false => String::new(),
            };
            let note = format!("its root filesystem has not grown: {reason}{due}");
            (String::new(), None, Some(note))
        }
    };
    printer.success(&format!("VM `{vm}`: its disk {has_grown}{and_root}"));
    if let Some(note) = &note {
        printer.warning(&format!("VM `{vm}`: {note}"));
    }
    advise_file(vm, disk_bytes, config, context);
    let vm = vm.to_owned();
    printer.show(&ResizedDisk { vm, before_bytes, disk_bytes, root_bytes, note }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Says how to give a new VM of the same name a disk of the same size.
fn advise_file(vm: &str, disk_bytes: u64, config: &ProjectConfig, context: &CommandContext) {
    let declared = config.vms.iter().find(|declared| declared.name == vm);
    if config.file.is_some() && declared.is_some_and(|declared| declared.disk_bytes < disk_bytes) {
        let size = format_size(disk_bytes);
        context.printer.tip(&format!(
            "  disk = \"{size}\"    in castra.toml gives `{vm}` as much if it is created again"
        ));
    }
}
