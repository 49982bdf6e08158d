//! Disks that boot by their own boot loader: firmware, login, and the end of a guest without an
//! agent.

use std::fs;
use std::path::PathBuf;

use castra_test_support::Fake;
use castra_test_support::disks::native_disk;

/// Files of a system with an SSH server and a systemd that reads credentials.
const MODERN: &[&str] = &[
    "usr/sbin/sshd",
    "etc/ssh/ssh_host_ed25519_key",
    "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so",
];

fn vm(more: &str) -> String {
    format!(
        "[[vms]]\nname = \"web\"\nbase_image = \"mine.qcow2\"\nmemory = \"64 MiB\"\nboot_profile = \
        \"native\"\n{more}"
    )
}

/// Returns a project with a VM on a disk with these files, and with UEFI firmware.
fn with_disk(files: &[&str], has_loader: bool, has_boot_code: bool, more: &str) -> Fake {
    let mut fake = Fake::new(&["vm"]);
    fake.write("castra.toml", &vm(more));
    native_disk(&fake.path().join("mine.qcow2"), files, has_loader, has_boot_code);
    for (name, variable) in [("code.fd", "CASTRA_UEFI_CODE"), ("vars.fd", "CASTRA_UEFI_VARS")] {
        fake.write(name, name);
        fake.set(variable, fake.path().join(name));
    }
    fake
}

/// Returns the command line of the VM's QEMU.
fn arguments(fake: &Fake, vm: &str) -> String {
    let pid = fs::read_to_string(fake.pidfile(vm)).expect("a pid");
    let line = fs::read(format!("/proc/{}/cmdline", pid.trim())).expect("it runs");
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn file(fake: &Fake, vm: &str, name: &str) -> PathBuf {
    fake.path().join(format!(".castra/vms/{vm}/{name}"))
}

fn text(path: PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("read")).into_owned()
}

#[test]
fn uefi_variables_belong_to_the_vm() {
    let fake = with_disk(&[], true, false, "");
    let shown = fake.run(&["config", "show"]).ok().text();
    assert!(shown.contains("(its disk has a boot loader for UEFI only)"), "{shown}");
    fake.run(&["up"]).ok();
    assert_eq!(fake.status("web")["native"]["firmware"], "uefi");
    let line = arguments(&fake, "web");
    for part in [
        "-machine pflash0=code,pflash1=variables",
        "node-name=code-file,read-only=on,filename=",
        "vms/web/uefi-vars",
        "-device VGA",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // The guest changes them, and they stay: over a restart, a suspend, and in a clone.
    let own = || file(&fake, "web", "uefi-vars");
    assert_eq!(text(own()), "vars.fd");
    fs::write(own(), "changed").expect("written");
    fake.run(&["restart", "--force"]).ok();
    assert_eq!(text(own()), "changed");
    fake.run(&["suspend"]).ok();
    fake.run(&["clone", "web", "other"]).ok();
    fake.run(&["up", "web"]).ok();
    fake.run(&["up", "other"]).ok();
    assert_eq!(text(file(&fake, "other", "uefi-vars")), "changed");
    assert!(arguments(&fake, "other").contains("vms/other/uefi-vars"));
    assert_eq!(text(file(&fake, "other", "client_key")), text(file(&fake, "web", "client_key")));
    fake.run(&["restart", "--force", "other"]).ok();
    assert_eq!(fake.status("other")["native"]["firmware"], "uefi");
    assert_eq!(text(fake.path().join("vars.fd")), "vars.fd", "the shared file");
    // Firmware that is laid out in another way.
    fake.run(&["down", "--force"]).ok();
    fake.write("vars.fd", "of another size");
    fake.run(&["up", "web"]).ok().says("gets new UEFI variables");
    assert_eq!(text(own()), "of another size");
    assert_eq!(text(own().with_extension("old")), "changed");
    // Those of a disk that is gone are not those of the next.
    fake.run(&["down", "--force"]).ok();
    fs::write(own(), "of another sizE").expect("written");
    for gone in [fake.path().join(".castra/web-overlay.qcow2"), fake.record("web")] {
        fs::remove_file(gone).expect("removed");
    }
    fake.run(&["up", "web"]).ok();
    assert_eq!(text(own()), "of another size");
    fake.run(&["down", "--force"]).ok();
    fake.run(&["clean", "--disks", "--yes", "web"]).ok();
    assert!(!own().exists());
}

#[test]
fn the_firmware_must_be_there_whole_and_find_a_boot_loader() {
    let mut fake = with_disk(&[], true, false, "");
    fake.set("CASTRA_UEFI_VARS", "");
    fake.run(&["up"]).code(64).says("CASTRA_UEFI_CODE is set and CASTRA_UEFI_VARS is not");
    fake.set("CASTRA_UEFI_VARS", fake.path().join("none.fd"));
    fake.run(&["up"]).code(69).says("CASTRA_UEFI_VARS names").says("none.fd");
    assert!(!fake.path().join(".castra/web-overlay.qcow2").exists(), "a disk was made");
    fake.write("castra.toml", &vm("firmware = \"bios\"\n"));
    fake.run(&["up"]).code(65).says("boots only by UEFI, and not").says("`firmware = \"uefi\"`");
    fake.write(
        "castra.toml",
        &vm("").replace("native", "managed").replace("web\"", "web\"\nfirmware = \"uefi\""),
    );
    fake.run(&["up"]).code(65).says("has `firmware`, which only a native boot uses");

    let fake = with_disk(&[], false, true, "firmware = \"uefi\"\n");
    fake.run(&["up"]).code(65).says("has no boot loader for UEFI");
    fake.write("castra.toml", &vm(""));
    fake.run(&["up"]).ok();
    assert_eq!(fake.status("web")["native"]["firmware"], "bios");
    assert!(!arguments(&fake, "web").contains("pflash"));
    fake.run(&["status", "-v"]).ok();
    fake.write("castra.toml", &vm("firmware = \"uefi\"\n"));
    fake.run(&["up"]).ok().says("the definition of VM `web` has changed");
}

#[test]
fn doctor_looks_for_the_firmware_that_a_vm_needs() {
    let says = |fake: &Fake| {
        let report = fake.run(&["doctor", "--offline", "--json"]).document("doctor");
        let findings = report["findings"].as_array().cloned().expect("a list");
        let about = |finding: &&serde_json::Value| finding["check"] == "uefi-firmware";
        findings.iter().find(about).map(|found| {
            let text = |name: &str| found[name].as_str().expect("text").to_owned();
            format!("{}: {}", text("severity"), text("message"))
        })
    };
    let mut fake = with_disk(&[], true, false, "");
    let at = |name: &str| fake.path().join(name).display().to_string();
    let (code, vars) = (at("code.fd"), at("vars.fd"));
    let expected = format!("good: VM `web` boots by UEFI: firmware {code}, variables {vars}");
    assert_eq!(says(&fake), Some(expected));
    // One on which no kernel is found boots natively, too.
    let without_profile = vm("").replace("boot_profile = \"native\"\n", "");
    fake.write("castra.toml", &without_profile);
    assert!(says(&fake).is_some_and(|said| said.starts_with("good: VM `web` boots by UEFI")));
    fake.set("CASTRA_UEFI_VARS", "");
    let said = says(&fake).expect("a finding");
    assert!(said.starts_with("problem: VM `web` boots by UEFI: CASTRA_UEFI_CODE is set"), "{said}");
    fake.write("castra.toml", &vm("firmware = \"bios\"\n"));
    let said = says(&fake).expect("a finding");
    assert!(said.starts_with("warning: CASTRA_UEFI_CODE is set"), "{said}");
    fake.set("CASTRA_UEFI_CODE", "");
    assert_eq!(says(&fake), None, "nothing needs it");
}

#[test]
fn a_disk_for_both_boots_by_a_bios() {
    let fake = with_disk(&[], true, true, "");
    fake.run(&["up"]).ok();
    let native = fake.status("web")["native"].clone();
    assert_eq!(native["firmware"], "bios");
    assert_eq!(native["reason"], "its disk boots by either, and faster by a BIOS");
}

#[test]
fn the_login_key_comes_by_systemd_or_by_cloud_init() {
    let fake = with_disk(MODERN, false, true, "");
    fake.run(&["up", "--no-wait"]).ok();
    let line = arguments(&fake, "web");
    assert!(line.contains("-smbios type=11,path=") && !line.contains("seed.img"), "{line}");
    let credential = text(file(&fake, "web", "oem-string-0"));
    let begins = "io.systemd.credential.binary:ssh.authorized_keys.root=";
    assert!(credential.starts_with(begins), "{credential}");

    let fake = with_disk(&["usr/sbin/sshd", "usr/bin/cloud-init"], false, true, "");
    fake.run(&["up", "--no-wait"]).ok();
    let line = arguments(&fake, "web");
    assert!(!line.contains("-smbios") && line.contains("virtio-blk-pci,drive=seed"), "{line}");
    let seed = text(file(&fake, "web", "seed.img"));
    assert!(seed.contains("CIDATA") && seed.contains("local-hostname: web"));
}

#[test]
fn the_data_for_cloud_init_are_on_the_seed() {
    let data = "cloud_init = { user_data = \"user-data\" }\n";
    let fake = with_disk(MODERN, false, true, data);
    fake.write("user-data", "#cloud-config\npackages: [git]\n");
    fake.run(&["up", "--no-wait"]).ok().says("no cloud-init was found on its disk");
    let seed = || text(file(&fake, "web", "seed.img"));
    assert!(seed().contains("packages: [git]"));
    // The server of the same instance has the key that was pinned; another instance has another.
    let pin = file(&fake, "web", "server_key.pub");
    fs::write(&pin, "pinned").expect("written");
    fake.run(&["restart", "--force", "--no-wait"]).ok();
    assert!(pin.exists());
    fake.write("user-data", "#cloud-config\npackages: [vim]\n");
    fake.run(&["restart", "--force", "--no-wait"]).ok();
    assert!(seed().contains("packages: [vim]") && !pin.exists());
    let shown = fake.run(&["config", "show"]).ok().text();
    assert!(shown.contains("user data ") && shown.contains("/user-data"), "{shown}");
    fake.write("user-data", "packages: [git]\n");
    fake.run(&["restart", "--force"]).code(65).says("`user_data` does not begin as");
}

#[test]
fn a_system_without_a_login_keeps_running_and_says_so() {
    let fake = with_disk(MODERN, false, true, "");
    fake.run(&["up", "--boot-timeout", "1"])
        .code(69)
        .says("VM `web` boots natively, and no SSH server answered at port 22 of its guest")
        .says("The VM keeps running");
    assert_eq!(fake.state("web"), "running");
    assert_eq!(fake.status("web")["ready_ms"], serde_json::Value::Null);
    fake.run(&["status", "-v"]).ok();
    fake.behave("web", "ssh-silent");
    fake.run(&["up", "--boot-timeout", "1"]).code(69).says("nothing answered at port 22");
    fake.run(&["up", "--wait", "services"]).code(69).says("which `--wait services` needs");
    fake.run(&["suspend"]).ok().says("could not sync its disk");
    fake.run(&["up", "--no-wait"]).ok();

    // Without a server on its disk, nothing is waited for.
    let fake = with_disk(&[], false, true, "");
    fake.run(&["up"]).ok().says("running; castra cannot see inside");
}

#[test]
fn a_guest_that_ignores_its_power_button_is_named() {
    let fake = with_disk(&[], false, true, "");
    fake.run(&["up"]).ok();
    fake.run(&["down"]).ok();
    assert!(fake.journal("web").ends_with("ended by its power button\n"));
    fake.behave("web", "ignores-powerdown");
    fake.run(&["up"]).ok();
    fake.run(&["down"])
        .code(69)
        .says("VM `web` does not react to the power button")
        .says("like a power cut")
        .says("acpid");
    assert_eq!(fake.state("web"), "stopped");
    assert!(fake.journal("web").ends_with("ended by quit\n"));
    fake.run(&["up"]).ok();
    fake.run(&["down", "--timeout", "1"]).code(69).says("did not shut down within 1 s");
    assert_eq!(fake.state("web"), "stopped");
}
