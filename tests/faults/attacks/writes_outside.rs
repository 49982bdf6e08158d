//! A stranger's `castra.toml` that asks castra to write or adopt files outside its own project.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use castra_test_support::Fake;
use castra_test_support::{Ended, Project, bootable_qcow2, tool};
use serde_json::Value;

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// Commands that read, create or remove what a configuration names.
const COMMANDS: [&[&str]; 5] =
    [&["config", "check"], &["config", "show"], &["up"], &["clean", "--disks", "--yes"], &["down"]];

/// A project of one VM whose own disk is in the project, so that nothing has to be fetched.
struct Hostile {
    project: Project,
}

impl Hostile {
    fn new() -> Self {
        let project = Project::isolated();
        let around = project.path().parent().expect("a parent").to_owned();
        qcow2(&project.path().join("base.qcow2"));
        for directory in ["home/.ssh", "home/.config/autostart", "other/.castra/vms/web"] {
            fs::create_dir_all(around.join(directory)).expect("a directory");
        }
        fs::write(around.join("home/.ssh/id_ed25519"), "secret").expect("written");
        fs::write(around.join("home/.bashrc"), "umask 077").expect("written");
        fs::write(around.join("other/.castra/vms/web/vm.json"), "{}").expect("written");
        qcow2(&around.join("home/vm.qcow2"));
        for directory in [".git/hooks", "sub/.castra", "disks"] {
            fs::create_dir_all(project.path().join(directory)).expect("a directory");
        }
        project.write(".git/config", "[core]");
        project.write("README", "read me");
        qcow2(&project.path().join("sub/.castra/web-overlay.qcow2"));
        Self { project }
    }

    /// Writes the configuration; its third line is `state`, its eighth `overlay`.
    fn configure(&self, directory: &Path, state: &str, overlay: &str) {
        let text = format!(
            "# 1\n[project]\n{state}\n\n[[vms]]\nname = \"web\"\nbase_image = \"base.qcow2\"\n\
            {overlay}\n"
        );
        fs::write(directory.join("castra.toml"), text).expect("written");
    }

    fn around(&self) -> PathBuf {
        self.project.path().parent().expect("a parent").to_owned()
    }

    /// Insists that every command refuses the configuration at this line, and touches nothing.
    #[track_caller]
    fn is_refused(&self, directory: &Path, line: u32, what: &str) {
        let before = snapshot(&self.around());
        for arguments in COMMANDS {
            let mut command = self.project.castra(arguments);
            command.current_dir(directory);
            let ended = bounded(&command);
            let output = format!("{}{}", ended.text(), ended.stderr);
            assert_eq!(ended.code, Some(65), "{what}: {arguments:?}: {output}");
            assert!(
                output.contains(&format!("castra.toml:{line}:")),
                "{what}: {arguments:?}: {output}"
            );
        }
        assert_untouched(&self.around(), &before);
    }
}

fn qcow2(path: &Path) {
    bootable_qcow2(path);
}

/// Runs a command with a time limit, which only a command that hangs reaches.
fn bounded(castra: &Command) -> Ended {
    let mut command = Command::new("timeout");
    command.arg("120").arg(castra.get_program()).args(castra.get_args()).stdin(Stdio::null());
    command.current_dir(castra.get_current_dir().expect("a directory"));
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Ended::of(command)
}

#[test]
fn no_disk_is_made_outside_the_project() {
    let hostile = Hostile::new();
    let project = hostile.project.path();
    let home = hostile.around().join("home");
    symlink(home.join(".ssh"), project.join("link")).expect("a link");
    symlink("..", project.join("up")).expect("a link");
    symlink("link", project.join("chain")).expect("a link");
    symlink("loop", project.join("loop")).expect("a link");
    symlink(".git", project.join("inside")).expect("a link");
    symlink(home.join(".ssh/authorized_keys"), project.join("dangling.qcow2")).expect("a link");
    symlink(home.join("vm.qcow2"), project.join("existing.qcow2")).expect("a link");
    symlink("base.qcow2", project.join("to-base.qcow2")).expect("a link");
    tool("mkfifo", &[project.join("fifo").to_str().expect("UTF-8")]);
    let absolute = hostile.around().join("anywhere.qcow2");
    for overlay in [
        "~/.ssh/authorized_keys",
        "~/vm.qcow2",
        "~/new.qcow2",
        "../other/.castra/web-overlay.qcow2",
        "../new/disk.qcow2",
        "disks/../../escaped.qcow2",
        absolute.to_str().expect("UTF-8"),
        "link/authorized_keys",
        "chain/authorized_keys",
        "up/home/new.qcow2",
        "loop/disk.qcow2",
        "inside/hooks/post-checkout",
        "dangling.qcow2",
        "existing.qcow2",
        "to-base.qcow2",
        ".git/hooks/post-checkout",
        ".git/config",
        ".envrc",
        "disks/.hidden/disk.qcow2",
        "sub/.castra/web-overlay.qcow2",
        "sub/.castra/new.qcow2",
        "README",
        "castra.toml",
        "disks",
        "fifo",
        ".castra/vms/web/vm.json",
        ".castra/lock",
        ".castra/linked-from",
        ".castra/layer-0123456789abcdef.qcow2",
    ] {
        hostile.configure(&project, "", &format!("overlay = '{overlay}'"));
        hostile.is_refused(&project, 8, overlay);
    }
}

#[test]
fn no_state_is_kept_outside_the_project() {
    let hostile = Hostile::new();
    let project = hostile.project.path();
    let home = hostile.around().join("home");
    symlink(&home, project.join("link")).expect("a link");
    symlink("../other/.castra", project.join("theirs")).expect("a link");
    symlink(home.join(".config/autostart"), project.join("hidden")).expect("a link");
    for state in [
        "~/state",
        "~",
        "../other/.castra",
        "../new",
        "/nowhere/state",
        "link",
        "link/state",
        "theirs",
        "hidden",
        ".git",
        ".git/castra",
        ".vscode",
        "sub/.castra",
        "README",
        "link/..",
    ] {
        hostile.configure(&project, &format!("state_dir = '{state}'"), "");
        hostile.is_refused(&project, 3, state);
    }
}

#[test]
fn a_project_in_the_home_directory_does_not_reach_its_hidden_files() {
    let hostile = Hostile::new();
    let home = hostile.around().join("home");
    qcow2(&home.join("base.qcow2"));
    for overlay in
        [".ssh/authorized_keys", ".bashrc", ".config/autostart/x.desktop", "./.ssh/../.profile"]
    {
        hostile.configure(&home, "", &format!("overlay = '{overlay}'"));
        hostile.is_refused(&home, 8, overlay);
    }
    for state in [".ssh", ".config/autostart", ".local"] {
        hostile.configure(&home, &format!("state_dir = '{state}'"), "");
        hostile.is_refused(&home, 3, state);
    }
}

#[test]
fn a_disk_that_came_as_a_link_is_not_written_to() {
    let hostile = Hostile::new();
    let project = hostile.project.path();
    // The victim's own VM is based on the same image, so that only the link reveals it.
    let victim = hostile.around().join("home/mine.qcow2");
    let base = project.join("base.qcow2");
    let (base, victim) = (base.to_str().expect("UTF-8"), victim.to_str().expect("UTF-8"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, victim]);
    // Even in a state directory that is the user's own.
    fs::create_dir(project.join(".castra")).expect("a directory");
    fs::write(project.join(".castra/notes"), "").expect("written");
    hostile.project.adopt();
    symlink(victim, project.join(".castra/web-overlay.qcow2")).expect("a link");
    hostile.configure(&project, "", "");
    let home = hostile.around().join("home");
    let before = snapshot(&home);
    let ended = bounded(&hostile.project.castra(&["up"])).code(65);
    assert!(ended.stderr.contains("symbolic link"), "{}", ended.stderr);
    assert_untouched(&home, &before);
}

#[test]
fn a_suspended_vm_does_not_resume_on_a_link() {
    let fake = Fake::new(&["web"]);
    fake.run(&["up"]).ok();
    fake.run(&["suspend"]).ok();
    let disk = fake.path().join(".castra/web-overlay.qcow2");
    let elsewhere = fake.path().with_file_name("home").join("disk.qcow2");
    fs::rename(&disk, &elsewhere).expect("moved");
    symlink(&elsewhere, &disk).expect("a link");
    fake.run(&["up"]).code(65).says("is outside the project");
    fs::remove_file(&disk).expect("removed");
    fs::rename(&elsewhere, &disk).expect("moved back");
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
}

#[test]
fn a_file_beside_the_disk_is_not_taken_for_one_in_the_making() {
    let hostile = Hostile::new();
    let project = hostile.project.path();
    hostile.configure(&project, "", "overlay = 'disks/web'");
    fs::write(project.join("disks/.web.new"), "the user's own").expect("written");
    let before = snapshot(&project.join("disks"));
    let ended = bounded(&hostile.project.castra(&["up"]));
    assert_ne!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains(".web.new"), "{}", ended.stderr);
    assert_untouched(&project.join("disks"), &before);
}

#[test]
fn a_special_file_is_no_base_image() {
    let hostile = Hostile::new();
    let project = hostile.project.path();
    tool("mkfifo", &[project.join("fifo").to_str().expect("UTF-8")]);
    for base in ["fifo", "/dev/zero", "/dev/null", "disks"] {
        project_with_base(&hostile.project, base);
        let ended = bounded(&hostile.project.castra(&["up"])).code(65);
        assert!(ended.stderr.contains("not a regular file"), "{base}: {}", ended.stderr);
    }
    // Without a digest, the configuration's own advice would have read it.
    let image =
        "[images.mine.rootfs]\npath = 'fifo'\n[[vms]]\nname = 'web'\nmanaged_image = 'mine'\n";
    hostile.project.write("castra.toml", image);
    bounded(&hostile.project.castra(&["config", "check"])).code(65);
}

fn project_with_base(project: &Project, base: &str) {
    project.write("castra.toml", &format!("[[vms]]\nname = 'web'\nbase_image = '{base}'\n"));
}

#[test]
fn the_user_allows_a_place_outside_of_the_file() {
    let mut fake = Fake::new(&["web"]);
    let around = fake.path().parent().expect("a parent").to_owned();
    let (disk, allowed) = (around.join("big/disks/web.qcow2"), around.join("big"));
    fs::create_dir(&allowed).expect("a directory");
    let text = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
    fake.write("castra.toml", &format!("{text}overlay = '{}'\n", disk.display()));
    let refused = fake.run(&["up"]).code(65);
    assert!(
        refused.stderr.contains(&format!("CASTRA_ALLOW_OUTSIDE={}", disk.display())),
        "{}",
        refused.stderr
    );
    assert!(!disk.exists());
    fake.set("CASTRA_ALLOW_OUTSIDE", format!("/nowhere:{}", allowed.display()));
    fake.run(&["up"]).ok();
    assert!(disk.exists());
    let shown: Value =
        serde_json::from_slice(&fake.run(&["config", "show", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(shown["outside"]["writes"][0]["path"], disk.to_str().expect("UTF-8"));
    assert!(fake.run(&["config", "show"]).ok().text().contains("outside the project"));
    fake.run(&["down", "--force"]).ok();
    // Hidden locations stay closed even there.
    let hidden = allowed.join(".ssh/authorized_keys");
    fake.write("castra.toml", &format!("{text}overlay = '{}'\n", hidden.display()));
    fake.run(&["up"]).code(65);
    assert!(!allowed.join(".ssh").exists());
}

#[test]
fn what_is_read_outside_the_project_is_announced() {
    let fake = Fake::new(&["web"]);
    let silent: Value =
        serde_json::from_slice(&fake.run(&["config", "show", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(silent["outside"], Value::Null);
    fs::rename(fake.path().join("image"), fake.path().join("../image")).expect("moved");
    let text = fs::read_to_string(fake.path().join("castra.toml")).expect("read");
    fake.write("castra.toml", &text.replace("\"image/", "\"../image/"));
    let disk = fake.path().with_file_name("image").join("disk.qcow2");
    let shown: Value =
        serde_json::from_slice(&fake.run(&["config", "show", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(shown["outside"]["reads"][0]["path"], disk.to_str().expect("UTF-8"));
    let stderr = fake.run(&["up", "--json"]).ok().stderr;
    let event = stderr.lines().find(|line| line.contains("reads-outside")).expect("an event");
    assert!(event.contains(disk.to_str().expect("UTF-8")), "{event}");
    fake.run(&["down", "--force"]).ok();
    let again = fake.run(&["up"]).ok().stderr;
    assert!(!again.contains("outside the project"), "{again}");
    fake.run(&["down", "--force"]).ok();
}
