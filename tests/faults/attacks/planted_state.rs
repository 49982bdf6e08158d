//! A `.castra` that this user's castra did not make: nothing in it is read, written, deleted or
//! signalled.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use castra_test_support::{Ended, Project, tool};
use serde_json::{Value, json};

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// A user's home with files that strangers want, a project beside it, and no QEMU.
struct Victim {
    project: Project,
}

impl Victim {
    fn new() -> Self {
        let mut project = Project::isolated();
        project.set("CASTRA_OFFLINE", "1");
        project.set("CASTRA_QEMU", "/nonexistent");
        let victim = Self { project };
        fs::create_dir(victim.home().join(".ssh")).expect("made");
        for name in [".ssh/id_ed25519", ".bashrc", "thesis.txt"] {
            fs::write(victim.home().join(name), format!("the only copy of {name}"))
                .expect("written");
        }
        victim
    }

    fn home(&self) -> PathBuf {
        self.project.home()
    }

    fn root(&self) -> PathBuf {
        self.project.path().join(".castra")
    }

    /// Plants a record as a stranger would write it.
    fn plant(&self, directory: &str, edit: impl FnOnce(&mut Value)) {
        let mut record = json!({
            "format": 1, "name": "web", "overlay": "web-overlay.qcow2", "progress": "stopped",
            "boot": null,
            "base": {"kind": {"path": "/nonexistent.qcow2"}, "content": "c0ffee", "stamp": null},
        });
        edit(&mut record);
        let directory = self.root().join("vms").join(directory);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("vm.json"), record.to_string()).expect("written");
    }

    /// Insists that every command is refused immediately with the same error, and touches nothing.
    #[track_caller]
    fn refuses_all(&self, says: &str) {
        let home = snapshot(&self.home());
        let project = snapshot(&self.project.path());
        for arguments in COMMANDS {
            let ended = self.run(arguments);
            // `exec`'s own failures must differ from the command's own code.
            let code = if arguments[0] == "exec" { 255 } else { 77 };
            assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(says), "{arguments:?}: {}", ended.stderr);
            assert_untouched(&self.home(), &home);
            assert_untouched(&self.project.path(), &project);
        }
        let doctor = self.run(&["doctor"]);
        assert_ne!(doctor.code, Some(0), "{}", doctor.stderr);
        assert!(doctor.text().contains(says), "{}", doctor.text());
        assert_untouched(&self.home(), &home);
        assert_untouched(&self.project.path(), &project);
    }

    /// Runs `castra` with a time limit, since it might wait for a FIFO.
    fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new("timeout");
        let castra = self.project.castra(arguments);
        command.args(["--signal=KILL", "60"]).arg(castra.get_program()).args(castra.get_args());
        command.current_dir(self.project.path());
        for (name, value) in castra.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        Ended::of(command)
    }
}

const FOREIGN: &str = "was not created by your castra";
/// Every command that reads the project's state.
const COMMANDS: [&[&str]; 21] = [
    &["up"],
    &["up", "web"],
    &["down", "--force"],
    &["restart"],
    &["suspend"],
    &["clone", "web", "new"],
    &["clean"],
    &["clean", "--disks", "--yes"],
    &["clean", "--records"],
    &["status"],
    &["exec", "web", "--", "true"],
    &["cp", "web:/etc/hostname", "copy"],
    &["console", "web"],
    &["ssh-config"],
    &["logs", "web"],
    &["timeline", "web"],
    &["ports"],
    &["image", "list"],
    &["image", "pull"],
    &["image", "verify"],
    &["config", "show"],
];

#[test]
fn records_that_came_with_a_repository_do_nothing() {
    let victim = Victim::new();
    let thesis = victim.home().join("thesis.txt");
    victim.plant("web", |record| {
        record["progress"] = json!("cloning");
        record["overlay"] = json!(thesis);
    });
    victim.plant("alpine-minimal", |record| {
        record["name"] = json!("alpine-minimal");
        record["overlay"] = json!(victim.home().join(".bashrc"));
    });
    victim.plant("evil", |record| record["name"] = json!("../../../home"));
    fs::write(victim.root().join("notes-overlay.qcow2"), "a text file that is no disk")
        .expect("written");
    victim.refuses_all(FOREIGN);
}

#[test]
fn a_mark_of_another_key_or_of_another_kind_is_no_mark() {
    let stranger = Victim::new();
    // Any state that a castra creates has a mark.
    make(&stranger);
    let mark = fs::read(stranger.root().join("mark")).expect("a mark");
    for text in
        [mark, b"".to_vec(), b"castra state root 1\nid 0\nmac 0\n".to_vec(), vec![0xff; 2048]]
    {
        let victim = Victim::new();
        make(&victim);
        fs::write(victim.root().join("mark"), &text).expect("written");
        let ended = victim.run(&["status"]);
        assert_eq!(ended.code, Some(77), "{}", ended.stderr);
    }
    let victim = Victim::new();
    make(&victim);
    fs::remove_file(victim.root().join("mark")).expect("removed");
    symlink(stranger.root().join("mark"), victim.root().join("mark")).expect("linked");
    assert_eq!(victim.run(&["status"]).code, Some(77));
    // Not even one that leads to a mark of this user's own.
    let victim = Victim::new();
    make(&victim);
    let mark = victim.root().join("mark");
    fs::rename(&mark, victim.home().join("mark")).expect("moved");
    symlink(victim.home().join("mark"), &mark).expect("linked");
    assert_eq!(victim.run(&["status"]).code, Some(77));
}

/// Creates an honest state root by a start that fails without QEMU after the first lock.
fn make(victim: &Victim) {
    let ended = victim.run(&["up"]);
    assert_ne!(ended.code, Some(0), "there is no QEMU");
    assert!(victim.root().join("mark").is_file(), "{}", ended.stderr);
    victim.run(&["status"]).ok();
}

/// Holds even if the mark is right: it may have leaked, and a defect of castra could do as much.
#[test]
fn a_record_leads_nowhere_and_nothing_goes_that_is_no_disk() {
    let thesis = |victim: &Victim| victim.home().join("thesis.txt");
    type Edit = fn(&mut Value, &Path);
    let edits: [(Edit, &str); 8] = [
        (
            |record, thesis| {
                record["progress"] = json!("cloning");
                record["overlay"] = json!(thesis);
            },
            "is not a disk of yours",
        ),
        (|record, thesis| record["overlay"] = json!(thesis), "is not a disk of yours"),
        (
            |record, _| record["overlay"] = json!("../../home/thesis.txt"),
            "outside the state directory",
        ),
        (|record, _| record["overlay"] = json!(""), "outside the state directory"),
        (|record, _| record["name"] = json!("../../x"), "describes VM `../../x`"),
        (|record, _| record["ssh_port"] = json!(22), "never chose port 22"),
        (
            |record, _| {
                record["frozen"] = json!([{"name": "../../home/thesis.txt",
                    "stamp": {"size_bytes": 0, "modified_secs": 0, "modified_nanos": 0}}]);
            },
            "is not a layer",
        ),
        (
            |record, _| {
                record["layer"] = json!({"key": "a1", "sha256": "../../x",
                "stamp": {
                    "size_bytes": 0, "modified_secs": 0, "modified_nanos": 0, "inode": 0,
                }});
            },
            "names no layer of a template",
        ),
    ];
    for (edit, says) in edits {
        let victim = Victim::new();
        victim
            .project
            .write("castra.toml", "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n");
        make(&victim);
        victim.plant("web", |record| edit(record, &thesis(&victim)));
        let home = snapshot(&victim.home());
        let ended = [
            victim.run(&["clean", "--disks", "--yes"]),
            victim.run(&["clone", "web", "new"]),
            victim.run(&["down", "--force"]),
            victim.run(&["up"]),
            victim.run(&["clean", "--disks", "--yes"]),
        ];
        let messages: Vec<&str> = ended.iter().map(|ended| ended.stderr.as_str()).collect();
        assert!(messages.iter().any(|message| message.contains(says)), "{says}: {messages:#?}");
        assert_untouched(&victim.home(), &home);
    }
}

/// A disk of another program begins like castra's, but no record can have it removed.
#[test]
fn no_record_has_a_disk_outside_of_the_project_removed() {
    let layer = "layer-0123456789abcdef.qcow2";
    let of = json!({
        "of": "other", "cpus": 1, "memory_mib": 64, "disk_bytes": 1, "boot_profile": "managed",
    });
    for progress in ["stopped", "cloning"] {
        for name in ["web", "undeclared"] {
            let victim = Victim::new();
            let disks = victim.home().join("disks");
            fs::create_dir(&disks).expect("made");
            let disk = disks.join("precious.qcow2");
            tool("qemu-img", &["create", "-q", "-f", "qcow2", disk.to_str().expect("UTF-8"), "1M"]);
            fs::copy(&disk, disks.join(layer)).expect("copied");
            fs::write(disks.join(".precious.qcow2.new"), "").expect("written");
            victim.project.write(
                "castra.toml",
                "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n",
            );
            make(&victim);
            victim.plant(name, |record| {
                record["name"] = json!(name);
                record["overlay"] = json!(disk);
                record["progress"] = json!(progress);
                record["cloned"] = of.clone();
                record["frozen"] = json!([{"name": layer,
                    "stamp": {"size_bytes": 0, "modified_secs": 0, "modified_nanos": 0}}]);
            });
            let home = snapshot(&victim.home());
            let commands: [&[&str]; 6] = [
                &["up"],
                &["up", name],
                &["clone", "web", "undeclared"],
                &["clean"],
                &["clean", "--disks", "--yes"],
                &["down", "--force"],
            ];
            for arguments in commands {
                let ended = victim.run(arguments);
                assert_untouched(&victim.home(), &home);
                if arguments.contains(&"--disks") {
                    let output = ended.text() + &ended.stderr;
                    assert!(output.contains("precious.qcow2"), "it says what it kept: {output}");
                }
            }
        }
    }
}

#[test]
fn fifos_links_and_devices_are_refused_at_once_wherever_they_are() {
    const PLACES: [&str; 9] = [
        "mark",
        "lock",
        "vms/web/lock",
        "vms/web/vm.json",
        "vms/web/qemu.pid",
        "logs/castra.log",
        "logs/web-console.log",
        "logs/web-qemu.log",
        "vms/web/client_key",
    ];
    for place in PLACES {
        for kind in ["FIFO", "link"] {
            let victim = Victim::new();
            victim.project.write(
                "castra.toml",
                "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n",
            );
            make(&victim);
            let path = victim.root().join(place);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            if path.exists() {
                fs::remove_file(&path).expect("removed");
            }
            match kind {
                "FIFO" => drop(tool("mkfifo", &["-m", "600", path.to_str().expect("UTF-8")])),
                _ => symlink(victim.home().join(".bashrc"), &path).expect("linked"),
            }
            let home = snapshot(&victim.home());
            for arguments in
                [&["status"][..], &["up"], &["logs", "web"], &["down", "--force"], &["clean"]]
            {
                // All that counts is that it ends: the time limit would kill it.
                let ended = victim.run(arguments);
                assert!(
                    ended.code.is_some_and(|code| code < 128),
                    "{place} {arguments:?}: {:?}",
                    ended.code
                );
            }
            assert_untouched(&victim.home(), &home);
        }
    }
}

#[test]
fn what_git_tracks_is_refused_even_with_a_mark() {
    let victim = Victim::new();
    make(&victim);
    let git = |arguments: &[&str]| {
        let directory = victim.project.path();
        let mut all = vec!["-C", directory.to_str().expect("UTF-8")];
        all.extend(arguments);
        tool("git", &all);
    };
    git(&["init", "-q"]);
    git(&["add", "-A"]);
    victim.run(&["status"]).ok().says("");
    assert!(
        String::from_utf8_lossy(
            &tool("git", &["-C", victim.project.path().to_str().expect("UTF-8"), "ls-files"])
                .stdout
        )
        .is_empty()
    );
    for version in ["2", "3", "4"] {
        git(&["add", "-f", ".castra/mark"]);
        git(&["update-index", "--index-version", version]);
        let ended = victim.run(&["up"]);
        assert_eq!(ended.code, Some(77), "{}", ended.stderr);
        assert!(ended.stderr.contains("git tracks .castra/mark"), "{}", ended.stderr);
        assert_eq!(victim.run(&["adopt", "--yes"]).code, Some(77));
        // The way out that the hint names.
        git(&["rm", "-r", "-q", "--cached", ".castra"]);
        victim.run(&["status"]).ok();
    }
}

#[test]
fn what_others_own_or_may_write_to_and_links_are_refused() {
    let victim = Victim::new();
    make(&victim);
    let root = victim.root();
    for mode in [0o720, 0o702, 0o777] {
        fs::set_permissions(&root, fs::Permissions::from_mode(mode)).expect("changed");
        let ended = victim.run(&["status"]);
        assert_eq!(ended.code, Some(77), "{}", ended.stderr);
        assert!(
            ended.stderr.contains("other users can write to it") && ended.stderr.contains("chmod"),
            "{}",
            ended.stderr
        );
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).expect("changed");
    victim.run(&["status"]).ok();
    // `state_links` covers links in general; here the link leads to another project's state, with a
    // valid mark.
    let elsewhere = victim.home().join("state");
    fs::rename(&root, &elsewhere).expect("moved");
    symlink(&elsewhere, &root).expect("linked");
    let ended = victim.run(&["status"]);
    assert!(matches!(ended.code, Some(65 | 77)), "{}", ended.stderr);
    fs::remove_file(&root).expect("removed");
    fs::rename(&elsewhere, &root).expect("moved");
    if fs::metadata(&root).expect("there").uid() == 0 {
        for path in [root.clone(), root.join("mark"), root.join("vms")] {
            chown(&path, Some(12_345), None).expect("given away");
            let ended = victim.run(&["status"]);
            assert_eq!(ended.code, Some(77), "{}", ended.stderr);
            assert!(ended.stderr.contains("another user (uid 12345)"), "{}", ended.stderr);
            chown(&path, Some(0), None).expect("taken back");
        }
    }
}

#[test]
fn moved_and_copied_projects_need_no_question() {
    let victim = Victim::new();
    make(&victim);
    let project = victim.project.path();
    let scratch = project.join("scratch");
    fs::create_dir(&scratch).expect("made");
    let at = |name: &str| scratch.join(name).to_str().expect("UTF-8").to_owned();
    let root = victim.root().to_str().expect("UTF-8").to_owned();
    for copy in ["-a", "-r", "-rp"] {
        fs::create_dir(at(copy)).expect("made");
        tool("cp", &[copy, "--", &root, &at(copy)]);
    }
    fs::create_dir(at("tar")).expect("made");
    tool("tar", &["-cf", &at("tar.tar"), "-C", project.to_str().expect("UTF-8"), ".castra"]);
    tool("tar", &["-xf", &at("tar.tar"), "-C", &at("tar")]);
    fs::create_dir(at("moved")).expect("made");
    fs::rename(&root, scratch.join("moved/.castra")).expect("moved");
    for name in ["-a", "-r", "-rp", "tar", "moved"] {
        let mut command = victim.project.castra(&["status"]);
        command.current_dir(scratch.join(name));
        Ended::of(command).ok();
    }
}

#[test]
fn adoption_looks_at_everything_and_gives_up_the_keys() {
    let victim = Victim::new();
    victim.plant("web", |_| ());
    let vm = victim.root().join("vms/web");
    const KEYS: [&str; 4] = ["client_key", "host_key", "known_hosts", "server_key.pub"];
    for name in KEYS {
        fs::write(vm.join(name), format!("{name}, known to a stranger")).expect("written");
    }
    let quarantine = victim.root().join("quarantine");
    fs::create_dir(&quarantine).expect("made");
    fs::write(quarantine.join("web-client_key.1"), "of an earlier adoption").expect("written");
    private(&victim.root());
    let before = snapshot(&victim.project.path());
    victim.run(&["adopt"]).code(64).says("--yes");
    assert_untouched(&victim.project.path(), &before);
    for directory in [&victim.root(), &vm] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).expect("changed");
        victim.run(&["adopt", "--yes"]).code(77).says("other users can write to it");
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("changed");
    }
    let link = vm.join("boots");
    symlink(victim.home(), &link).expect("linked");
    victim.run(&["adopt", "--yes"]).code(77).says("boots");
    fs::remove_file(&link).expect("removed");
    let thesis = victim.home().join("thesis.txt");
    fs::hard_link(&thesis, victim.root().join("web-overlay.qcow2")).expect("linked");
    victim.run(&["adopt", "--yes"]).code(77).says("a hard link outside");
    fs::remove_file(victim.root().join("web-overlay.qcow2")).expect("removed");
    victim.run(&["adopt", "--yes"]).ok();
    for (name, number) in KEYS.into_iter().zip([2, 1, 1, 1]) {
        assert!(!vm.join(name).exists(), "{name}");
        let kept =
            fs::read_to_string(quarantine.join(format!("web-{name}.{number}"))).expect("kept");
        assert_eq!(kept, format!("{name}, known to a stranger"));
    }
    let earlier = fs::read_to_string(quarantine.join("web-client_key.1")).expect("kept");
    assert_eq!(earlier, "of an earlier adoption");
    victim.run(&["status"]).ok();
    victim.run(&["adopt"]).ok().says("needs no adoption");
}

fn private(root: &Path) {
    tool("chmod", &["-R", "go-w", root.to_str().expect("UTF-8")]);
}

#[test]
fn a_key_that_cannot_be_relied_on_is_named_and_never_replaced() {
    let victim = Victim::new();
    make(&victim);
    let key = victim.project.user_state().join("castra/key");
    let content = fs::read(&key).expect("a key");
    assert_eq!(content.len(), 32);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    victim.run(&["status"]).code(74).says("state/castra/key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("changed");
    fs::write(&key, "short").expect("written");
    victim.run(&["up"]).code(74).says("state/castra/key");
    assert_eq!(fs::read(&key).expect("there"), b"short");
    fs::remove_file(&key).expect("removed");
    tool("mkfifo", &["-m", "600", key.to_str().expect("UTF-8")]);
    victim.run(&["status"]).code(77).says("FIFO");
    fs::remove_file(&key).expect("removed");
    victim.run(&["status"]).code(77).says(FOREIGN);
    fs::write(&key, content).expect("restored");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("changed");
    victim.run(&["status"]).ok();
}
