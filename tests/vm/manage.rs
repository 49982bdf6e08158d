//! A VM's life by the commands that manage it: ports, list, logs, console, restart, clean.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use castra_test_support::{Project, eventually};
use serde_json::Value;

const IMAGE: &str = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";

fn declare(project: &Project, vm: &str, port: u16) {
    let forward = format!("[[vms.port_forwards]]\nhost = {port}\nguest = 80\n");
    project.write("castra.toml", &format!("[[vms]]\nname = \"{vm}\"\n{IMAGE}\n{forward}"));
}

/// Returns the VMs of this project in `list`, which shows all of this user's.
fn listed(project: &Project) -> Vec<(String, String)> {
    let list = project.run(&["list", "--json"]).ok().document("list");
    let path = project.path().display().to_string();
    let ours = |vm: &&Value| vm["project"] == path.as_str();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let vms = list["vms"].as_array().expect("a list").iter().filter(ours);
    vms.map(|vm| (text(&vm["name"]), text(&vm["state"]))).collect()
}

/// A child whose stdout is collected while it runs.
struct Watched {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Watched {
    fn start(project: &Project, arguments: &[&str]) -> Self {
        let mut command = project.castra(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("castra runs");
        let (seen, mut stdout) =
            (Arc::new(Mutex::new(String::new())), child.stdout.take().expect("a pipe"));
        let for_thread = Arc::clone(&seen);
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read) = stdout.read(&mut chunk)
                && read > 0
            {
                for_thread
                    .lock()
                    .expect("not poisoned")
                    .push_str(&String::from_utf8_lossy(&chunk[..read]));
            }
        });
        Self { child, seen }
    }

    fn has_seen(&self, text: &str) -> bool {
        self.seen.lock().expect("not poisoned").contains(text)
    }

    fn ends(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().expect("ends").code()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A child that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_vm_is_managed_from_its_first_port_to_its_last_file() {
    let project = Project::new();
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = holder.local_addr().expect("an address").port();
    declare(&project, "web", port);

    // The port's holder is this very process.
    let me = format!("(process {})", std::process::id());
    project.run(&["up"]).code(75).says(&me).says("choose another host port");
    let ports = project.run(&["ports", "--json"]).ok().document("ports");
    assert_eq!(ports["ports"][0]["taken_by"]["pid"], std::process::id());
    drop(holder);
    assert!(project.run(&["ports"]).ok().text().contains("declared"));
    project.run(&["up"]).ok();
    let text = project.run(&["ports"]).ok().text();
    assert_eq!(text.matches("active").count(), 2, "{text}");
    assert_eq!(listed(&project), [("web".to_owned(), "running".to_owned())]);

    // Another project that wants the port learns its owner.
    let other = Project::new();
    declare(&other, "web", port);
    let owner = format!("in use by VM `web` of {}", project.path().display());
    other.run(&["up"]).code(75).says(&owner);

    console_is_for_one_at_a_time(&project);
    restart_and_logs(&project);
    suspended_is_left_alone(&project);

    project.run(&["down", "--discard-suspended"]).ok();
    project.run(&["clean", "--disks"]).code(64).says("--yes");
    let document = project.run(&["clean", "--disks", "--dry-run", "--json"]).ok().document("clean");
    assert!(document["freed_bytes"].as_u64() > Some(0), "{document}");
    project.run(&["clean", "--disks", "--yes"]).ok().says("freed");
    assert!(!project.path().join(".castra").exists());
    assert_eq!(listed(&project), []);
}

fn console_is_for_one_at_a_time(project: &Project) {
    let log = || project.run(&["logs", "web"]).ok().text();
    // Written while no client is connected.
    project.run(&["exec", "--", "sh", "-c", "echo unattended > /dev/ttyS0"]).ok();
    eventually("the log has it", Duration::from_secs(20), || log().contains("unattended"));
    let mut console = Watched::start(project, &["console"]);
    let mut stdin = console.child.stdin.take().expect("a pipe");
    eventually("it is connected", Duration::from_secs(20), || {
        project.run(&["exec", "--", "sh", "-c", "echo attended > /dev/ttyS0"]).ok();
        console.has_seen("attended")
    });
    project.run(&["console"]).code(75).says(&format!("in use by process {}", console.child.id()));
    project.run(&["console", "--json"]).code(64);
    stdin.write_all(b"typed-by-me\n").expect("typed");
    eventually("the guest's terminal echoes it", Duration::from_secs(20), || {
        console.has_seen("typed-by-me")
    });
    assert!(log().contains("typed-by-me"), "the log is written while a console is connected, too");
    drop(stdin);
    assert_eq!(console.ends(), Some(0));
    // The console is free again.
    project.run(&["console", "--linger", "0"]).ok();
}

fn restart_and_logs(project: &Project) {
    project.run(&["exec", "--", "sh", "-c", "echo kept > /root/file && sync"]).ok();
    let before = project.qemu_pid("web");
    let mut console = Watched::start(project, &["console"]);
    let stdin = console.child.stdin.take().expect("a pipe");
    let follower = Watched::start(project, &["logs", "-f", "--source", "all"]);
    eventually("what there is", Duration::from_secs(20), || follower.has_seen("castra | "));
    let restarted = project.run(&["restart", "--json"]).ok().document("restart");
    assert_eq!(
        (&restarted["vms"][0]["state"], &restarted["vms"][0]["changed"]),
        (&"running".into(), &true.into())
    );
    assert_ne!(project.qemu_pid("web"), before);
    eventually("the new boot's console", Duration::from_secs(60), || {
        follower.has_seen("Mounting root")
    });
    eventually("what castra did", Duration::from_secs(60), || follower.has_seen("web: stopped"));
    // It ends with its VM, and not by its stdin, which is still open.
    assert_eq!(console.child.wait().expect("ends").code(), Some(0));
    drop(stdin);
    assert_eq!(project.run(&["exec", "--", "cat", "/root/file"]).ok().text(), "kept\n");
    let logs = project
        .run(&["logs", "--source", "castra", "--since", "1h", "--json"])
        .ok()
        .document("logs");
    let lines = logs["lines"].as_array().expect("lines");
    let has = |text: &str| {
        lines.iter().any(|line| line["text"].as_str().is_some_and(|line| line.contains(text)))
    };
    assert!(has("up failed: port") && has("web: ready in"), "{logs}");
    assert!(project.run(&["logs", "--source", "castra", "--since", "0s"]).ok().text().is_empty());
    assert_eq!(
        project.run(&["logs", "--source", "castra", "--tail", "1"]).ok().text().lines().count(),
        1
    );
    project.run(&["logs", "-f", "--json"]).code(64);
}

fn suspended_is_left_alone(project: &Project) {
    let state = || listed(project).pop().map(|(_, state)| state);
    project.run(&["suspend"]).ok();
    project.run(&["restart", "web"]).code(75).says("is suspended");
    project.run(&["restart"]).ok().says("stays suspended");
    project.run(&["clean", "--disks", "--yes"]).ok().says("is suspended: leaving it alone");
    assert_eq!(state().as_deref(), Some("suspended"));
    project.run(&["restart", "--discard-suspended", "--no-wait"]).ok();
    project.run(&["down", "--force"]).ok();
    assert_eq!(state().as_deref(), Some("stopped"));
}

#[test]
fn a_vm_whose_project_is_removed_is_found_and_ended() {
    let project = Project::new();
    // A name that no other test's VM has, since orphans are listed for all.
    let vm = format!("lost-{}", std::process::id());
    project.write("castra.toml", &format!("[[vms]]\nname = \"{vm}\"\n{IMAGE}\n"));
    project.run(&["up"]).ok();
    let record = project.path().join(format!(".castra/vms/{vm}/vm.json"));
    fs::write(&record, "{").expect("damaged");
    assert_eq!(listed(&project), [(vm.clone(), "unknown".to_owned())]);
    fs::remove_dir_all(project.path().join(".castra")).expect("removed");
    assert_eq!(listed(&project), [(vm.clone(), "orphaned".to_owned())]);
    project.run(&["list"]).ok().says("castra clean --orphans");
    project.run(&["clean", "--orphans", "--dry-run", &vm]).ok().says("1 would be stopped");
    assert_eq!(listed(&project).len(), 1);
    project.run(&["clean", "--orphans", &vm]).ok().says("1 stopped");
    assert_eq!(listed(&project), []);
    project.run(&["clean", "--orphans", &vm]).code(66);
}

#[test]
fn a_damaged_record_has_a_command_as_its_way_out() {
    let project = Project::new();
    project.write("castra.toml", &format!("[[vms]]\nname = \"web\"\n{IMAGE}\n"));
    project.run(&["up"]).ok();
    project.run(&["exec", "--", "sh", "-c", "echo kept > /root/file && sync"]).ok();
    project.run(&["down"]).ok();
    fs::write(project.path().join(".castra/vms/web/vm.json"), "{\"format\": 99}").expect("written");
    project.run(&["up"]).code(65).says("castra clean --records web");
    project.run(&["clean", "--records", "web"]).ok();
    project.run(&["up"]).ok();
    assert_eq!(project.run(&["exec", "--", "cat", "/root/file"]).ok().text(), "kept\n");
}
