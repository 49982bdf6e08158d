//! `castra cp`, in both directions, between this machine and a real VM.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use castra_test_support::{Ended, Project, tool};
use rustix::fs::{CWD, FileType, Mode, mknodat};

#[test]
fn a_copy_does_what_cp_does() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let home = project.path();
    names_are_bytes(&project, &home);
    sources_are_read_to_their_end(&project);
    the_destination_keeps_its_kind(&project, &home);
    the_umask_counts(&project);
    what_is_left_out_is_said(&project, &home);
    patterns_are_expanded(&project, &home);
}

fn names_are_bytes(project: &Project, home: &Path) {
    fs::create_dir(home.join("names")).expect("made");
    for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
        fs::write(home.join("names").join(OsStr::from_bytes(&[b'n', byte])), [byte])
            .expect("written");
    }
    project.run(&["cp", "names", ":/root/names"]).ok();
    let count = project.run(&[
        "exec",
        "--",
        "sh",
        "-c",
        "find /root/names -type f -print0 | tr -cd '\\0' | wc -c",
    ]);
    assert_eq!(count.ok().text().trim(), "254");
    project.run(&["cp", ":/root/names", "back"]).ok();
    let [names, back] = ["names", "back"].map(|name| home.join(name).display().to_string());
    tool("diff", &["-r", &names, &back]);
    let mut command = project.castra(&["cp"]);
    command.arg(OsStr::from_bytes(b"names/n\xe9")).arg(":/root/latin");
    Ended::of(command).ok();
}

fn sources_are_read_to_their_end(project: &Project) {
    project.run_with_input(&["cp", "/dev/stdin", ":/root/input"], b"from a pipe").ok();
    assert_eq!(project.run(&["exec", "--", "cat", "/root/input"]).ok().text(), "from a pipe");
    project.run(&["cp", "/proc/version", ":/root/version"]).ok();
    let there = project.run(&["exec", "--", "cat", "/root/version"]).ok().text();
    assert_eq!(there, fs::read_to_string("/proc/version").expect("read"));
    project
        .run(&["cp", ":/dev/null", "nothing"])
        .code(74)
        .says("neither a regular file nor a directory");
}

/// Uses only nodes of this test's own: as root, a mistake would cost this machine its devices.
fn the_destination_keeps_its_kind(project: &Project, home: &Path) {
    project
        .run(&["exec", "--", "sh", "-c", "echo content > /root/file; chmod 4777 /root/file"])
        .ok();
    fs::write(home.join("target"), "old").expect("written");
    symlink("target", home.join("link")).expect("linked");
    project.run(&["cp", ":/root/file", "link"]).ok();
    assert!(home.join("link").is_symlink());
    assert_eq!(fs::read_to_string(home.join("target")).expect("read"), "content\n");

    let pipe = home.join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("made");
    let reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().expect("starts");
    project.run(&["cp", ":/root/file", "pipe"]).ok();
    assert_eq!(reader.wait_with_output().expect("ends").stdout, b"content\n");
    assert_eq!(fs::symlink_metadata(&pipe).expect("there").mode(), 0o010_600);
    fs::remove_file(&pipe).expect("removed");

    let null = home.join("null");
    let device = rustix::fs::makedev(1, 3);
    let made = mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o620), device);
    if made.is_ok() && fs::OpenOptions::new().write(true).open(&null).is_ok() {
        let before = fs::symlink_metadata(&null).expect("there").mode();
        project.run(&["cp", ":/root/file", "null"]).ok();
        assert_eq!(fs::symlink_metadata(&null).expect("there").mode(), before);
    }
    let _ = fs::remove_file(null);
}

fn the_umask_counts(project: &Project) {
    let castra = project.castra(&["cp", ":/root/file", "private"]);
    // A shell of its own, since a umask belongs to a whole process.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "umask 077; exec \"$@\"", "sh"])
        .arg(castra.get_program())
        .args(castra.get_args());
    shell.env_clear().current_dir(project.path());
    for (name, value) in castra.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    Ended::of(shell).ok();
    let mode = fs::metadata(project.path().join("private")).expect("there").mode();
    assert_eq!(mode & 0o7777, 0o700, "the guest's is 4777");
}

fn what_is_left_out_is_said(project: &Project, home: &Path) {
    project.run(&["cp", ".", ":/root/project"]).ok().says(".castra: it holds VM disks and keys");
    let found = project.run(&["exec", "--", "find", "/root/project", "-name", ".castra"]).ok();
    assert_eq!(found.text(), "");
    fs::create_dir(home.join("mixed")).expect("made");
    fs::write(home.join("mixed/plain"), "x").expect("written");
    mknodat(CWD, home.join("mixed/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .expect("made");
    project.run(&["cp", "mixed", ":/root/mixed"]).code(74).says("mixed/pipe");
    project.run(&["exec", "--", "cat", "/root/mixed/plain"]).ok();
}

fn patterns_are_expanded(project: &Project, home: &Path) {
    fs::create_dir(home.join("conf")).expect("made");
    project.run(&["cp", ":/etc/host*", "conf"]).ok();
    assert!(home.join("conf/hosts").is_file() && home.join("conf/hostname").is_file());
    project.run(&["cp", ":/etc/host*", "one"]).code(64).says("not a directory");
    project.run(&["cp", ":/etc/no-such-*", "conf"]).code(66).says("nothing matches");
}
