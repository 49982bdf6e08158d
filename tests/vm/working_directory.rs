//! Commands and shells that start in the directory that corresponds to the host's.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use castra_test_support::Project;

const VM: &str = "alpine-minimal";

/// Runs a castra command in this directory, and returns its stdout.
#[track_caller]
fn said(project: &Project, directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut castra = project.castra(arguments);
    let output = castra.current_dir(directory).stdin(Stdio::null()).output().expect("runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

/// Opens a shell in this directory whose input is a script.
fn shell(project: &Project, directory: &Path, script: &str) -> Vec<u8> {
    let file = project.path().join("script");
    fs::write(&file, script).expect("written");
    let mut castra: Command = project.castra(&["shell", VM]);
    let script = fs::File::open(file).expect("opens");
    castra.current_dir(directory).stdin(script).output().expect("runs").stdout
}

#[test]
fn commands_and_shells_start_where_the_mount_shows_the_working_directory() {
    let project = Project::new();
    let top = project.path();
    let odd = top.join("src").join(OsStr::from_bytes(b"o'dd \xff"));
    for directory in [&odd, &top.join("src/deep"), &top.join("src/x/.castra")] {
        fs::create_dir_all(directory).expect("made");
    }
    std::os::unix::fs::symlink(top.join("src/deep"), top.join("link")).expect("linked");
    project.write(
        "castra.toml",
        &format!(
            "[[vms]]\nname = \"{VM}\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
        ),
    );
    fs::write(odd.join("tool"), "#!/bin/sh\necho tool of $(pwd)\n").expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(odd.join("tool"), mode).expect("a mode");
    project.run(&["up", "--mount", "src:/src", "--mount", "src/deep:/deep:ro"]).ok();

    let pwd = ["exec", "-n", VM, "--", "pwd"];
    let at = |directory: &Path| said(&project, directory, &pwd);
    assert_eq!(at(&top.join("src")), b"/src\n");
    assert_eq!(at(&odd), b"/src/o'dd \xff\n");
    assert_eq!(at(&top.join("src/deep")), b"/deep\n", "the deepest mount counts");
    assert_eq!(at(&top.join("link")), b"/deep\n", "real paths count");
    assert_eq!(at(&top), b"/root\n");
    let config = top.join("castra.toml");
    let configured = ["--config", config.to_str().expect("UTF-8")];
    let hidden = said(&project, &top.join("src/x/.castra"), &[&configured[..], &pwd].concat());
    assert_eq!(hidden, b"/root\n", "it is not visible in the guest");
    let tool = ["exec", "-n", VM, "--", "./tool"];
    assert_eq!(said(&project, &odd, &tool), b"tool of /src/o'dd \xff\n");
    assert_eq!(shell(&project, &odd, "pwd\n"), b"/src/o'dd \xff\n");

    // A directory that the user names.
    let named = |directory| ["exec", "-n", "-w", directory, VM, "--", "pwd"];
    assert_eq!(said(&project, &odd, &named("/etc")), b"/etc\n");
    said(&project, &odd, &["exec", "-n", VM, "--", "mkdir", "/root/inside"]);
    assert_eq!(said(&project, &odd, &named("inside")), b"/root/inside\n", "relative to the home");
    project.run(&named("/nowhere")).code(126).says("castra: cannot enter /nowhere: No such file");
    project.run(&["exec", "-n", "-w", "", VM, "--", "pwd"]).code(64).says("give a path");

    // A directory that is not mounted any more is another one.
    said(&project, &top, &["exec", "-n", VM, "--", "sh", "-c", "umount /src && mkdir /src/deep"]);
    assert_eq!(at(&odd), b"/root\n");
    assert_eq!(at(&top.join("src")), b"/root\n");
    project.run(&["down", "--force"]).ok();

    let run = ["run", "-n", "--mount", ".:/work", "--", "pwd"];
    assert_eq!(said(&project, &top.join("src"), &run), b"/work\n");
}
