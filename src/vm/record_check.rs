//! Bounds of a record. A castra writes nothing else; a record that says more was written by something else, and would lead
//! castra to other files.

use std::path::{Component, Path};

use crate::config::is_vm_name;
use crate::layout::{ProjectLayout, is_frozen_layer};

use super::record::{BootRecord, Record};

/// Digits of the directory of a project's sockets, see [`ProjectLayout::sockets`].
const PROJECT_DIGITS: usize = 12;
/// Digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Checks a record that was read for the VM `vm`, and makes the place of its disk relative where it is inside the state root.
/// The problem is a sentence's end.
pub(super) fn check(record: &mut Record, vm: &str, layout: &ProjectLayout) -> Result<(), String> {
    if record.name != vm || !is_vm_name(vm) {
        return Err(format!("it is of VM `{}`, in the directory of `{vm}`", record.name));
    }
    if let Ok(inside) = record.overlay.strip_prefix(layout.state_root()) {
        record.overlay = inside.to_owned();
    }
    check_overlay(&record.overlay)?;
    for layer in &record.frozen {
        if !is_file_name(&layer.name) || !is_frozen_layer(&layer.name) {
            return Err(format!("`{}` is no layer beside its disk", layer.name.display()));
        }
    }
    if let Some(layer) = &record.layer
        && (layer.sha256.len() != SHA256_DIGITS || !is_hex(&layer.sha256) || !is_hex(&layer.key))
    {
        return Err("it names no layer of a template".into());
    }
    let saved = record.suspended.as_ref().map(|saved| &saved.boot);
    record.boot.iter().chain(saved).try_for_each(check_sockets)
}

/// A place in the state root; or an absolute one, as `overlay` in castra.toml gives it.
fn check_overlay(overlay: &Path) -> Result<(), String> {
    let mut parts = overlay.components();
    if overlay.is_absolute() {
        parts.next();
    }
    let is_plain = parts.clone().all(|part| matches!(part, Component::Normal(_)));
    match is_plain && parts.next().is_some() {
        true => Ok(()),
        false => Err(format!("its disk `{}` is outside of the state directory", overlay.display())),
    }
}

/// `…/<project>/<vm>`. The VM may be the one that this one is a clone of.
fn check_sockets(boot: &BootRecord) -> Result<(), String> {
    let path = &boot.sockets;
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let is_project = |name: &String| name.len() == PROJECT_DIGITS && is_hex(name);
    let fits = path.is_absolute()
        && name(path).is_some_and(|name| is_vm_name(&name))
        && path.parent().and_then(name).is_some_and(|name| is_project(&name));
    if fits { Ok(()) } else { Err(format!("`{}` is no place of its sockets", path.display())) }
}

fn is_file_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
