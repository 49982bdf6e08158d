//! Programs, ports and sockets that castra needs and does not get.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use castra_test_support::Fake;
use castra_test_support::tool;

use crate::newcomer::transcript::{holds, transcript};

#[test]
fn a_variable_that_castra_does_not_understand() {
    let mut fake = Fake::new(&["vm"]);
    fake.set("CASTRA_ALLOW_PRIVATE_SOURCES", "localhost:8000");
    holds("bad_private_sources", &transcript(&fake, &["up", "--cold"]));
    fake.set("CASTRA_ALLOW_PRIVATE_SOURCES", "");
    fake.set("CASTRA_MIRROR", "mirror.example");
    holds("bad_mirror", &transcript(&fake, &["up", "--cold"]));
    fake.set("CASTRA_MIRROR", "");
    fake.run(&["up", "--cold"]).ok();
}

#[test]
fn no_qemu() {
    let mut fake = Fake::new(&["vm"]);
    let programs = fake.path().join("programs");
    fs::create_dir(&programs).expect("a directory");
    let found = String::from_utf8(tool("which", &["qemu-img"]).stdout).expect("UTF-8");
    symlink(found.trim(), programs.join("qemu-img")).expect("a link");
    fake.set("CASTRA_QEMU", "");
    fake.set("PATH", programs);
    holds("no_qemu", &transcript(&fake, &["up"]));
    fake.set("CASTRA_QEMU", "/opt/qemu/bin/qemu");
    holds("no_qemu_by_variable", &transcript(&fake, &["up"]));
}

#[test]
fn no_qemu_img() {
    let mut fake = Fake::new(&["vm"]);
    let configuration = fs::read_to_string(fake.path().join("castra.toml")).expect("reads");
    // A disk that has to be converted first.
    let rootfs = "path = \"image/disk.qcow2\"\n";
    let converted =
        format!("{rootfs}pipeline = [{{ convert = {{ from = \"raw\", to = \"qcow2\" }} }}]\n");
    fake.write("castra.toml", &configuration.replacen(rootfs, &converted, 1));
    fake.set("PATH", fake.path().join("image"));
    holds("no_qemu_img", &transcript(&fake, &["up"]));
}

#[test]
fn a_qemu_that_does_not_run() {
    let mut fake = Fake::new(&["vm"]);
    fake.behave("vm", "dies");
    holds("qemu_dies", &transcript(&fake, &["up", "--cold"]));
    fake.set("CASTRA_QEMU", "/etc/passwd");
    holds("qemu_is_no_program", &transcript(&fake, &["up", "--cold"]));
}

#[test]
fn a_qemu_without_user_networking() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "no-slirp");
    holds("qemu_without_slirp", &transcript(&fake, &["up", "--cold"]));
}

/// Unknown failures are tried as `castra doctor` tries them.
#[test]
fn a_qemu_that_ends_at_once_with_words_that_castra_does_not_know() {
    let mut fake = Fake::new(&["vm"]);
    // 33 is the exit code of the probe's QEMU if the machine runs.
    for (name, fails, said) in [
        ("lacking", "*user,*", "QEMU lacks a feature that VMs need: no wires in this build"),
        ("whole", "*pidfile*", "QEMU exited while starting VM `vm`: qemu-system-x86_64: no wires"),
    ] {
        let words = "echo 'qemu-system-x86_64: no wires in this build' >&2; exit 1";
        let program = fake.path().join(name);
        fs::write(
            &program,
            format!("#!/bin/sh\ncase \"$*\" in {fails}) {words};; esac\nexit 33\n"),
        )
        .expect("a program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        fake.set("CASTRA_QEMU", program);
        let ended = fake.run(&["up", "--cold"]).code(69).says(said);
        assert!(!ended.stderr.contains("busy"), "{}", ended.stderr);
        assert_eq!(ended.stderr.contains("QEMU lacks"), name == "lacking", "{}", ended.stderr);
    }
}

#[test]
fn a_guest_that_does_not_come_up() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "guest-silent");
    // The probable cause depends on how busy this machine is.
    let said = fake
        .run(&["up", "--cold", "--boot-timeout", "1"])
        .code(69)
        .says("VM `vm` was not ready after 1 s");
    said.says("hint:").says("--boot-timeout SECS").says("castra logs vm");
}

#[test]
fn a_port_that_is_taken() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let fake = Fake::with_port("web", holder.local_addr().expect("an address").port());
    holds("port_taken", &transcript(&fake, &["up", "--cold"]));
}

#[test]
fn an_unknown_accelerator() {
    let mut fake = Fake::new(&["vm"]);
    fake.set("CASTRA_ACCELERATOR", "turbo");
    holds("unknown_accelerator", &transcript(&fake, &["up", "--cold"]));
}

#[test]
fn a_runtime_directory_that_cannot_be_used() {
    let mut fake = Fake::new(&["vm"]);
    let long = fake.path().join("x".repeat(100));
    fs::create_dir(&long).expect("a directory");
    fake.set("XDG_RUNTIME_DIR", long);
    holds("runtime_directory_too_long", &transcript(&fake, &["up", "--cold"]));
    // No user can create directories there, not even root.
    fake.set("XDG_RUNTIME_DIR", "/sys/kernel");
    holds("runtime_directory_forbidden", &transcript(&fake, &["up", "--cold"]));
}

/// Only root can give a directory away.
#[test]
fn a_runtime_directory_of_another_user() {
    let mut fake = Fake::new(&["vm"]);
    let foreign = fake.path().join("foreign");
    fs::create_dir_all(foreign.join("castra")).expect("a directory");
    if std::os::unix::fs::chown(foreign.join("castra"), Some(12_345), None).is_err() {
        castra_test_support::skip("only root can give a directory away");
        return;
    }
    fake.set("XDG_RUNTIME_DIR", foreign);
    holds("runtime_directory_foreign", &transcript(&fake, &["up", "--cold"]));
}
