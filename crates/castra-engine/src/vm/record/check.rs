//! Bounds of a record. Castra writes nothing beyond them; a record that exceeds them was written by
//! something else, and could lead castra to other files.

use std::path::{Component, Path};

use crate::config::{DataDisk, MAX_DATA_DISK_BYTES, is_vm_name};
use crate::guest::{LiveForward, MAX_ADDED_FORWARDS, Mount};
use crate::layout::{ProjectLayout, is_frozen_layer};
use crate::qemu::MAX_DATA_DISKS;

use super::Record;
use super::base::LayerRecord;
use super::boot::BootRecord;
use super::kernel::KernelRecord;
use super::place;

/// Digits in the name of the directory of a project's sockets, see [`ProjectLayout::sockets`].
const PROJECT_DIGITS: usize = 12;
/// First of the ports that the kernel assigns to programs: those below are root's or have
/// well-known services.
const FIRST_FREE_PORT: u16 = 1024;
/// Digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Checks a record that was read for the VM `vm`, and makes its disk's path relative if it is
/// inside the state root. The error completes a sentence.
pub(super) fn check(record: &mut Record, vm: &str, layout: &ProjectLayout) -> Result<(), String> {
    if record.name != vm || !is_vm_name(vm) {
        return Err(format!(
            "it describes VM `{}`, but is in the directory of `{vm}`",
            record.name
        ));
    }
    if record.overlay.is_absolute() {
        record.overlay = place::stored(&record.overlay, layout);
    }
    check_overlay(&record.overlay, layout)?;
    for layer in &record.frozen {
        if !is_file_name(&layer.name) || !is_frozen_layer(&layer.name) {
            return Err(format!("`{}` is not a layer beside its disk", layer.name.display()));
        }
    }
    let steps = record.provisioned.iter().flat_map(|made| &made.layers);
    let is_layer = |layer: &LayerRecord| {
        layer.sha256.len() == SHA256_DIGITS && is_hex(&layer.sha256) && is_hex(&layer.key)
    };
    if !record.layer.iter().chain(steps).all(is_layer) {
        return Err("it names no layer of a template".into());
    }
    if record.data_disks.len() > MAX_DATA_DISKS {
        return Err(format!("it has more than {MAX_DATA_DISKS} disks"));
    }
    if let Some(port) = record.ssh_port.filter(|port| *port < FIRST_FREE_PORT) {
        return Err(format!("castra never chose port {port} for SSH"));
    }
    let saved = record.suspended.as_ref().map(|saved| &saved.boot);
    let boots = || record.boot.iter().chain(saved);
    let kernels = boots().filter_map(|boot| boot.kernel.as_ref()).chain(&record.kept_kernel);
    for digest in kernels.flat_map(KernelRecord::digests) {
        if digest.len() != SHA256_DIGITS || !is_hex(digest) {
            return Err(format!("`{digest}` is not the digest of a kernel"));
        }
    }
    if let Some(mount) = boots().flat_map(|boot| &boot.mounts).find(|mount| !is_mount(mount)) {
        return Err(format!("`{mount}` is no mount that castra made"));
    }
    if let Some(disk) = record.data_disks.iter().find(|disk| !is_data_disk(disk)) {
        return Err(format!("disk `{}` is not as castra has disks", disk.name));
    }
    let is_port = |forward: &LiveForward| forward.host != 0 && forward.guest != 0;
    for boot in boots() {
        let last = boot.auto_forwards.iter().flat_map(|auto| &auto.last);
        if boot.added_forwards.len() > MAX_ADDED_FORWARDS
            || !boot.added_forwards.iter().chain(last).all(is_port)
        {
            return Err("it has forwards that castra did not add".into());
        }
    }
    boots().try_for_each(check_sockets)
}

/// Checks that the disk is in the project, relative to the state root, or at an absolute path, as
/// `overlay` in castra.toml gives it.
fn check_overlay(overlay: &Path, layout: &ProjectLayout) -> Result<(), String> {
    let parts: Vec<Component<'_>> = overlay.components().collect();
    let begin = match overlay.is_absolute() {
        true => 1,
        false => parts.iter().take_while(|part| **part == Component::ParentDir).count(),
    };
    let is_plain = parts[begin..].iter().all(|part| matches!(part, Component::Normal(_)));
    let is_in_project = overlay.is_absolute() || place::is_in_project(overlay, layout);
    match is_plain && is_in_project && parts.len() > begin {
        true => Ok(()),
        false => Err(format!("its disk `{}` is outside the state directory", overlay.display())),
    }
}

/// Checks that the sockets are in `…/<project>/<vm>`. That VM may be the one that this one is a
/// clone of.
fn check_sockets(boot: &BootRecord) -> Result<(), String> {
    let path = &boot.sockets;
    let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let is_project = |name: &String| name.len() == PROJECT_DIGITS && is_hex(name);
    let fits = path.is_absolute()
        && name(path).is_some_and(|name| is_vm_name(&name))
        && path.parent().and_then(name).is_some_and(|name| is_project(&name));
    if fits {
        Ok(())
    } else {
        Err(format!("`{}` is not a directory for its sockets", path.display()))
    }
}

fn is_mount(mount: &Mount) -> bool {
    mount.host.is_absolute()
        && Mount::guest_path(&mount.guest).as_deref() == Ok(mount.guest.as_str())
}

fn is_data_disk(disk: &DataDisk) -> bool {
    let is_guest = |guest: &String| Mount::guest_path(guest).as_deref() == Ok(guest.as_str());
    disk.size_bytes <= MAX_DATA_DISK_BYTES && disk.guest.as_ref().is_none_or(is_guest)
}

fn is_file_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use super::*;

    /// Returns the problem of a valid record of the VM `web` after an edit, if there is one.
    fn problem(edit: impl FnOnce(&mut Value)) -> Option<String> {
        let boot = json!({
            "started_unix_ms": 1, "accelerator": {"accelerator": "tcg", "reason": "asked for"},
            "qemu_version": "7.2.0", "cpus": 1, "memory_mib": 256,
            "ssh_port": null, "port_forwards": [], "ready_ms": null,
            "sockets": "/run/castra/0123456789ab/web",
        });
        let mut record = json!({
            "format": 1, "name": "web", "overlay": "web-overlay.qcow2", "progress": "stopped",
            "boot": boot,
            "base": {"kind": {"path": "/base.qcow2"}, "content": "c0ffee", "stamp": null},
            "frozen": [{"name": "layer-0123456789abcdef.qcow2",
                "stamp": {"size_bytes": 0, "modified_secs": 0, "modified_nanos": 0}}],
            "layer": {"key": "a1", "sha256": "ab".repeat(32),
                "stamp": {"size_bytes": 0, "modified_secs": 0, "modified_nanos": 0, "inode": 0}},
        });
        edit(&mut record);
        let mut record: Record = serde_json::from_value(record).expect("a record");
        let layout = ProjectLayout::unchecked(PathBuf::from("/p/.castra"));
        check(&mut record, "web", &layout).err()
    }

    #[test]
    fn an_honest_record_is_taken() {
        assert_eq!(problem(|_| ()), None);
        assert_eq!(
            problem(|record| record["overlay"] = json!("/p/.castra/web-overlay.qcow2")),
            None
        );
        assert_eq!(problem(|record| record["overlay"] = json!("/big/disks/web.qcow2")), None);
        assert_eq!(problem(|record| record["overlay"] = json!("../disks/web.qcow2")), None);
        // A clone restores the sockets of the VM that it was made from.
        let other = json!("/run/castra/0123456789ab/other");
        assert_eq!(problem(|record| record["boot"]["sockets"] = other), None);
    }

    #[test]
    fn a_mount_has_absolute_paths() {
        let with = |host: &str, guest: &str| {
            let mounts = json!([{"host": host, "guest": guest}]);
            problem(|record| record["boot"]["mounts"] = mounts)
        };
        assert_eq!(with("/home/ada/src", "/src"), None);
        for (host, guest) in [("src", "/src"), ("/src", "src"), ("/src", "/a/../b"), ("/src", "/")]
        {
            assert!(with(host, guest).is_some(), "{host} {guest}");
        }
    }

    #[test]
    fn a_data_disk_has_a_name_and_a_place() {
        let with = |name: &str, guest: &str, bytes: u64| {
            let disks = json!([{"name": name, "size_bytes": bytes, "guest": guest}]);
            problem(|record| record["data_disks"] = disks)
        };
        assert_eq!(with("data", "/data", 1 << 20), None);
        for (guest, bytes) in [("data", 1 << 20), ("/etc", 1 << 20), ("/data/", 1), ("/d", 9 << 40)]
        {
            assert!(with("data", guest, bytes).is_some(), "{guest} {bytes}");
        }
        let evil = json!([{"name": "../x", "size_bytes": 1}]);
        assert!(serde_json::from_value::<Vec<DataDisk>>(evil).is_err());
        let many: Vec<Value> =
            (0..17).map(|n| json!({"name": format!("d{n}"), "size_bytes": 1})).collect();
        assert!(problem(|record| record["data_disks"] = json!(many)).is_some());
    }

    #[test]
    fn every_way_to_another_file_is_refused() {
        let places = [
            (
                "/overlay",
                vec![
                    "",
                    "/",
                    "..",
                    "../../x.qcow2",
                    "a/../../x.qcow2",
                    "../a/../x",
                    "/big/../x.qcow2",
                    ".",
                ],
            ),
            ("/name", vec!["", "other", "../web", "."]),
            (
                "/frozen/0/name",
                vec![
                    "../layer-0123456789abcdef.qcow2",
                    "/p/layer-0123456789abcdef.qcow2",
                    "layer-0123456789abcdeg.qcow2",
                    "thesis.txt",
                    "",
                ],
            ),
            ("/layer/sha256", vec!["", "../../x", "ab", "/etc/passwd"]),
            ("/layer/key", vec!["", "../x", "a/b", "g"]),
            (
                "/boot/sockets",
                vec![
                    "",
                    "run/castra/0123456789ab/web",
                    "/tmp/x",
                    "/run/castra/0123456789ab/..",
                    "/run/castra/0123456789ab/.web",
                    "/run/castra/0123456789a/web",
                    "/run/castra/0123456789ag/web",
                ],
            ),
        ];
        for (place, values) in places {
            for value in values {
                let edited =
                    problem(|record| *record.pointer_mut(place).expect("is there") = json!(value));
                assert!(edited.is_some(), "{place}: {value:?}");
            }
        }
    }
}
