//! Starts that explain themselves: the phases of a boot and of a warm start with their times, and
//! boots that fail in real ways.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use castra_test_support::{Project, disks, eventually, tool};
use serde_json::Value;

const BOOT: [&str; 8] =
    ["image", "overlay", "qemu", "kernel", "initramfs", "root", "agent", "services"];
const WARM: [&str; 6] = ["image", "template", "overlay", "qemu", "load", "personality"];

fn two_vms(project: &Project) {
    let vm = |name| {
        format!(
            "[[vms]]\nname = \"{name}\"\n\
            managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
        )
    };
    project.write("castra.toml", &format!("{}{}", vm("cold"), vm("warm")));
}

/// Returns the recorded starts of a VM, the newest first.
fn starts(project: &Project, vm: &str) -> Vec<Value> {
    let value = project.run(&["timeline", vm, "--json"]).ok().document("timeline");
    assert_eq!(value["vm"], vm, "{value:#}");
    value["starts"].as_array().expect("a list").clone()
}

/// Returns name, beginning and end of each phase. The accelerator is chosen in no time, or in a
/// phase that only some starts have.
fn phases(start: &Value) -> Vec<(String, u64, Option<u64>)> {
    let phases = start["phases"].as_array().expect("a list").iter().map(|span| {
        let name = span["phase"].as_str().expect("a name").to_owned();
        (name, span["start_ms"].as_u64().expect("a number"), span["end_ms"].as_u64())
    });
    phases.filter(|(name, ..)| name != "accelerator").collect()
}

fn names(start: &Value) -> Vec<String> {
    phases(start).into_iter().map(|(name, ..)| name).collect()
}

/// Returns the milliseconds from QEMU's start until commands could run, from the VM's record.
fn recorded_ready_ms(project: &Project, vm: &str) -> u64 {
    let record =
        fs::read(project.path().join(format!(".castra/vms/{vm}/vm.json"))).expect("a record");
    let record: Value = serde_json::from_slice(&record).expect("is JSON");
    record["boot"]["ready_ms"].as_u64().expect("is ready")
}

/// Checks that each phase begins where the last one ended, that the last one before `ready` ends
/// when the start was ready, and that the times from QEMU's start on agree with the record.
fn is_consistent(project: &Project, vm: &str, start: &Value) {
    let phases = phases(start);
    let until_ready: Vec<_> = phases.iter().filter(|(name, ..)| name != "services").collect();
    assert!(until_ready.iter().all(|(_, begin, end)| Some(*begin) <= *end), "{start:#}");
    let qemu = until_ready.iter().position(|(name, ..)| name == "qemu").expect("has one");
    for pair in until_ready[qemu..].windows(2) {
        assert_eq!(pair[0].2, Some(pair[1].1), "{start:#}");
    }
    let ready_ms = start["ready_ms"].as_u64().expect("was ready");
    assert_eq!(until_ready.last().and_then(|span| span.2), Some(ready_ms), "{start:#}");
    let since_qemu = ready_ms - until_ready[qemu].1;
    let recorded = recorded_ready_ms(project, vm);
    assert!(
        since_qemu.abs_diff(recorded) <= 100 + recorded / 20,
        "{since_qemu} and {recorded}: {start:#}"
    );
}

#[test]
fn a_boot_and_a_warm_start_report_what_they_did() {
    let project = Project::new();
    two_vms(&project);
    let up = project.run(&["up", "cold", "--cold", "-v"]).ok();
    for phase in &BOOT[..7] {
        assert!(up.stderr.contains(&format!("→ cold: {phase} ")), "{phase}: {}", up.stderr);
    }
    let boot = starts(&project, "cold").remove(0);
    assert_eq!(names(&boot), BOOT, "{boot:#}");
    assert_eq!(
        (&boot["kind"], &boot["result"]),
        (&Value::from("boot"), &Value::from("ready")),
        "{boot:#}"
    );
    is_consistent(&project, "cold", &boot);
    for (name, begin, end) in
        phases(&boot).into_iter().filter(|(name, ..)| name == "kernel" || name == "initramfs")
    {
        assert!(end.is_some_and(|end| end > begin), "{name} takes time: {boot:#}");
    }
    a_warm_start(&project);
    // No command waits for the services; a later look learns of them.
    eventually("the services' end is known", Duration::from_secs(300), || {
        let services = phases(&starts(&project, "cold")[0]).pop().expect("has phases");
        services.2.is_some_and(|end| end >= services.1)
    });
    a_failure_is_kept_beside_it(&project);
    what_is_kept_is_shown(&project);
}

fn a_warm_start(project: &Project) {
    project.run(&["up", "warm", "-v"]).ok().says("→ warm: personality ").says("→ warm: load ");
    let warm = starts(project, "warm").remove(0);
    assert_eq!(names(&warm), WARM, "{warm:#}");
    assert_eq!(warm["kind"], "template", "{warm:#}");
    is_consistent(project, "warm", &warm);
    let run = project.run(&["run", "-v", "--", "true"]).ok();
    assert!(run.stderr.contains(": personality "), "{}", run.stderr);
    let left = project.cache().join("runs/vms");
    let left: Vec<_> = fs::read_dir(left).into_iter().flatten().flatten().collect();
    assert!(left.iter().all(|vm| !vm.path().join("boots").exists()), "{left:?}");
}

/// Kills a QEMU at once, and checks that the failure is recorded.
fn a_failure_is_kept_beside_it(project: &Project) {
    project.run(&["down", "cold"]).ok();
    let qemu = project.path().join("killed-qemu");
    fs::write(&qemu, "#!/bin/sh\nkill -9 $$\n").expect("written");
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o700)).expect("set");
    let up = project
        .castra(&["up", "cold"])
        .env("CASTRA_QEMU", &qemu)
        .env("CASTRA_ACCELERATOR", "tcg")
        .output();
    let up = up.expect("castra runs");
    let said = String::from_utf8_lossy(&up.stderr);
    assert_eq!(up.status.code(), Some(69), "{said}");
    assert!(
        said.contains("probable cause: QEMU was killed (SIGKILL)") && said.contains("hint: "),
        "{said}"
    );
    let kept = starts(project, "cold");
    assert_eq!(kept[0]["result"], "failed", "{kept:#?}");
    assert!(
        kept[0]["reason"].as_str().is_some_and(|reason| reason.contains("SIGKILL")),
        "{kept:#?}"
    );
    assert_eq!(names(&kept[0]).last().map(String::as_str), Some("qemu"), "{kept:#?}");
    assert_eq!(names(&kept[1]), BOOT, "{kept:#?}");
}

fn what_is_kept_is_shown(project: &Project) {
    let boots = project.path().join(".castra/vms/cold/boots");
    fs::write(boots.join("9999999999999.json"), "{\"cut").expect("damaged");
    let shown =
        |arguments: &[&str]| project.run(&[&["timeline", "cold"], arguments].concat()).ok().text();
    let chart = shown(&[]);
    assert!(
        chart.contains("cold did not start") && chart.contains("failed: QEMU was killed"),
        "{chart}"
    );
    assert!(
        chart
            .lines()
            .filter(|line| !line.contains("failed: "))
            .all(|line| line.chars().count() <= 80),
        "{chart}"
    );
    assert!(!chart.contains('\u{1b}'), "no colours for a pipe");
    let list = shown(&["--list"]);
    assert!(list.lines().count() == 3 && list.contains("failed: QEMU was "), "{list}");
    let compared = shown(&["--compare"]);
    assert!(compared.contains("difference") && compared.contains("initramfs"), "{compared}");
    let page = project.path().join("page.html");
    shown(&["--html", page.to_str().expect("UTF-8")]);
    let page = fs::read_to_string(page).expect("a page");
    assert!(
        page.contains("<svg") && page.contains("initramfs") && page.contains("QEMU was killed"),
        "{page}"
    );
}

/// Declares an image of the project's own whose root is on a disk that the VM does not have.
fn image_without_root(project: &Project) {
    let alpine = disks::alpine();
    let artifact = |role: &str, path: &Path| {
        let path = path.to_str().expect("UTF-8");
        let digest = String::from_utf8(tool("sha256sum", &[path]).stdout).expect("text");
        let digest = digest.split_whitespace().next().expect("a digest").to_owned();
        format!("[images.lost.{role}]\npath = \"{path}\"\nsha256 = \"{digest}\"\n")
    };
    let command_line = "root=/dev/vdz rootfstype=ext4 rootflags=rw \
        modules=ext4,virtio_blk,virtio_net console=ttyS0 quiet";
    project.write(
        "castra.toml",
        &format!(
            "[images.lost]\ncommand_line = \"{command_line}\"\n{}{}{}[[vms]]\nname = \"vm\"\n\
            managed_image = \"lost\"\nmemory = \"512 MiB\"\n",
            artifact("rootfs", &alpine.disk),
            artifact("kernel", &alpine.kernel),
            artifact("initramfs", &alpine.initramfs),
        ),
    );
}

#[test]
fn a_boot_without_its_root_ends_soon_and_says_why() {
    let project = Project::new();
    image_without_root(&project);
    // The limit must not be what ends it: that would be another message.
    project
        .run(&["up", "--cold", "--boot-timeout", "600"])
        .code(69)
        .says("failed to boot in phase `initramfs` after ")
        .says("  | Mounting root failed.")
        .says("probable cause: the guest cannot find `/dev/vdz`")
        .says("hint: The VM's disk is /dev/vda.")
        .says("`castra logs vm` shows the whole console.");
    let kept = starts(&project, "vm").remove(0);
    assert_eq!(kept["result"], "failed", "{kept:#}");
    assert_eq!(names(&kept), BOOT[..5], "{kept:#}");
}
