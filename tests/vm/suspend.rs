//! Real VMs that are suspended and resumed: where they were, with the clock right, or not at all.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use castra_engine::guest::{StreamPort, StreamPorts};
use castra_engine::layout::SocketsLayout;
use castra_test_support::namespace::run_script;
use castra_test_support::{Ended, Project, eventually};

const VM: &str = "alpine-minimal";

/// Command that counts in memory and writes its progress to a file that is not on a disk.
const COUNTER: &str = "(i=0; while :; do i=$((i+1)); echo $i > /dev/shm/count; sleep 0.1; done) \
    </dev/null >/dev/null 2>&1 &";

#[test]
fn a_suspended_vm_resumes_where_it_was() {
    let project = Project::new();
    let port = free_port();
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";
    let vm = format!(
        "[[vms]]\nname = \"{VM}\"\n{image}\n[[vms.port_forwards]]\nhost = {port}\nguest = 8000\n"
    );
    project.write("castra.toml", &vm);
    project.run(&["up"]).ok();
    let serve = "(while :; do echo served | nc -l -p 8000; done) </dev/null >/dev/null 2>&1 &";
    sh(&project, &format!("echo kept > /root/file; {COUNTER} {serve}")).ok();
    let host_key = sh(&project, "hostname; cat /etc/machine-id").ok().text();
    // The second time, the memory of a resumed VM is saved.
    for _ in 0..2 {
        eventually("it counts", Duration::from_secs(20), || count(&project).is_some());
        project.run(&["suspend"]).ok().says("suspended");
        assert!(!project.pidfile(VM).exists());
        assert!(project.run(&["status"]).ok().text().contains("suspended"));
        project.run(&["exec", "--", "true"]).code(255).says("castra up alpine-minimal");
        project.run(&["suspend", VM]).ok().says("already");
        std::thread::sleep(Duration::from_secs(2));
        project.run(&["up"]).ok().says("resuming");
        let late = clock_error(&project);
        assert!(late.abs() < 0.2, "the guest's clock is {late} s off");
        // Between truncating the file and writing to it there is no number in it.
        let mut before = None;
        eventually("a number", Duration::from_secs(20), || {
            before = count(&project);
            before.is_some()
        });
        eventually("it counts on", Duration::from_secs(20), || count(&project) > before);
        assert_eq!(sh(&project, "cat /root/file").ok().text(), "kept\n");
        assert_eq!(sh(&project, "hostname; cat /etc/machine-id").ok().text(), host_key);
        eventually("an answer through the forwarded port", Duration::from_secs(20), || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).is_ok() && answer == "served\n"
        });
        assert!(!machine_state(&project).exists(), "memory that counts no more is left");
    }
}

/// Commands that a person would type, on a filesystem that is full when the memory is to be saved.
const ON_A_FULL_DISK: &str = r#"
mount -t tmpfs -o size=700m tmpfs . && cd "$PWD" || exit 99
castra up -q || exit 1
free=$(df -Pk . | awk 'END { print $4 }')
head -c $(((free - 20000) * 1024)) /dev/zero > fill
castra suspend
echo "code $?"
castra exec -- echo alive
castra status --json | grep '"state"'
ls -a .castra/vms/*
rm fill
castra suspend -q && castra up -q && castra exec -- echo alive again
castra down -q
"#;

#[test]
fn a_vm_keeps_running_if_there_is_no_room_for_its_memory() {
    let project = Project::new();
    let Some(ended) = run_script(ON_A_FULL_DISK, &[], &project) else { return };
    let ended = ended.ok().says("No space left on device").says("The VM keeps running.");
    let text = ended.text();
    for line in ["code 69\n", "alive\n", "\"state\": \"running\"", "alive again\n"] {
        assert!(text.contains(line), "{line}: {text}{}", ended.stderr);
    }
    assert!(!text.contains("machine.state"), "{text}");
}

#[test]
fn nothing_is_dropped_unless_that_is_said() {
    let project = Project::new();
    project.run(&["up"]).ok();
    sh(&project, "echo kept > /root/file; echo gone > /dev/shm/mark").ok();
    project.run(&["suspend"]).ok();
    project.run(&["down", VM]).code(75).says("--discard-suspended");
    project.run(&["down"]).ok().says("stays suspended");

    let refused = |why: &str| {
        project.run(&["up"]).code(65).says(why).says("castra up --discard-suspended");
        assert!(project.run(&["status"]).ok().text().contains("suspended"));
    };
    let link = project.path().join("another-qemu");
    std::os::unix::fs::symlink(qemu(), &link).expect("linked");
    let up = project.castra(&["up"]).env("CASTRA_QEMU", &link).output().expect("castra runs");
    assert!(String::from_utf8_lossy(&up.stderr).contains("another QEMU"));

    let refused_with_a_changed_byte = |path: &Path, why: &str| {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
        let mut byte = [0];
        let middle = file.metadata().expect("is there").len() / 2;
        file.read_exact_at(&mut byte, middle).expect("reads");
        file.write_all_at(&[byte[0] ^ 1], middle).expect("writes");
        refused(why);
        file.write_all_at(&byte, middle).expect("writes");
    };
    refused_with_a_changed_byte(&machine_state(&project), "damaged");
    project.run(&["up"]).ok().says("resuming");
    assert_eq!(sh(&project, "cat /dev/shm/mark").ok().text(), "gone\n");

    project.run(&["suspend"]).ok();
    refused_with_a_changed_byte(&overlay(&project), "disk has changed");
    project.run(&["up", "--discard-suspended"]).ok().says("booting");
    assert_eq!(sh(&project, "cat /root/file; ls /dev/shm").ok().text(), "kept\n");

    project.run(&["suspend"]).ok();
    project.run(&["down", "--discard-suspended", VM]).ok();
    assert!(project.run(&["status"]).ok().text().contains("stopped"));
    assert!(!machine_state(&project).exists());
}

#[test]
fn a_castra_killed_at_any_point_costs_no_memory() {
    let project = Project::new();
    project.run(&["up"]).ok();
    sh(&project, "echo memory > /dev/shm/mark").ok();
    let remembers = || assert_eq!(sh(&project, "cat /dev/shm/mark").ok().text(), "memory\n");
    for point in ["suspend-stopped", "suspend-saved", "suspend-published", "suspend-recorded"] {
        kill_at(&project, &["suspend"], point);
        assert!(project.run(&["status"]).ok().text().contains("suspending"), "{point}");
        // The next command that needs the VM continues it.
        if point == "suspend-saved" {
            remembers();
        }
        project.run(&["up"]).ok();
        remembers();
        assert!(clock_error(&project).abs() < 0.2);
    }
    for point in ["resume-loaded", "resume-recorded"] {
        project.run(&["suspend"]).ok();
        kill_at(&project, &["up"], point);
        project.run(&["up"]).ok();
        remembers();
    }
    // And the other way: a suspend or a down after a suspend that was killed.
    kill_at(&project, &["suspend"], "suspend-recorded");
    project.run(&["suspend"]).ok();
    project.run(&["up"]).ok();
    remembers();
    kill_at(&project, &["suspend"], "suspend-saved");
    project.run(&["down"]).ok().says("guest shutdown");
    assert!(project.run(&["status"]).ok().text().contains("stopped"));
}

#[test]
fn a_clone_is_another_vm_with_the_same_past() {
    let project = Project::new();
    project.run(&["up"]).ok();
    sh(&project, "echo shared > /root/file; echo memory > /dev/shm/mark").ok();
    project.run(&["clone", VM, "../two"]).code(64).says("is not a valid VM name");
    // It is running before and afterwards.
    project.run(&["clone", VM, "two"]).ok().says("castra up two");
    assert_eq!(sh(&project, "cat /dev/shm/mark").ok().text(), "memory\n");
    project.run(&["clone", VM, "two"]).code(73).says("already");
    project.run(&["up", "two"]).ok().says("resuming");
    let both = |script: &str| {
        [VM, "two"].map(|vm| project.run(&["exec", vm, "--", "sh", "-c", script]).ok().text())
    };
    assert_eq!(both("cat /root/file /dev/shm/mark"), ["shared\nmemory\n", "shared\nmemory\n"]);
    assert_eq!(both("hostname"), [format!("{VM}\n"), "two\n".to_owned()]);
    for own in [
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/uuid",
        "head -c 16 /dev/urandom | md5sum",
    ] {
        let [one, two] = both(own);
        assert_ne!(one, two, "{own}");
    }
    let key = |vm: &str| {
        fs::read(project.path().join(format!(".castra/vms/{vm}/host_key"))).expect("a key")
    };
    assert_ne!(key(VM), key("two"));
    both("hostname > /root/own; echo \"$(hostname)\" >> /root/file; sync");
    let expected = [format!("{VM}\nshared\n{VM}\n"), "two\nshared\ntwo\n".to_owned()];
    assert_eq!(both("cat /root/own /root/file"), expected);
    // A clone of a clone, and all of them from their disks.
    project.run(&["suspend", "two"]).ok();
    project.run(&["clone", "two", "three"]).ok();
    project.run(&["down", "--discard-suspended"]).ok();
    project.run(&["clone", "three", "four"]).code(69).says("castra up three");
    project.run(&["up", "three"]).ok();
    assert_eq!(project.run(&["exec", "three", "--", "cat", "/root/own"]).ok().text(), "two\n");
    project.run(&["up", VM]).ok();
    assert_eq!(sh(&project, "cat /root/own").ok().text(), format!("{VM}\n"));
}

/// Names of the virtio-serial ports in the guest, by their number on the bus.
const PORTS: &str = "for port in $(seq 1 13); do cat /sys/class/virtio-ports/*p$port/name; done; \
    ls /sys/class/virtio-ports | wc -l";

#[test]
fn a_machine_keeps_its_stream_ports_from_the_template_to_a_clone() {
    let project = Project::new();
    let streams: String = (0..12).map(|index| format!("castra.stream.{index}\n")).collect();
    let expected = format!("castra.control\n{streams}13\n");
    project.run(&["up"]).ok();
    assert_eq!(sh(&project, PORTS).ok().text(), expected);
    let record: serde_json::Value = {
        let path = project.path().join(format!(".castra/vms/{VM}/vm.json"));
        serde_json::from_slice(&fs::read(path).expect("a record")).expect("is JSON")
    };
    let directory = record["boot"]["sockets"].as_str().expect("a directory");
    let ports = StreamPorts { sockets: SocketsLayout::new(directory.into()), count: 12 };
    let take = || StreamPort::acquire(&ports).expect("QEMU listens").map(|port| port.index());
    let first = StreamPort::acquire(&ports).expect("QEMU listens").expect("a free port");
    assert_eq!((first.index(), take()), (0, Some(1)));
    drop(first);
    assert_eq!(take(), Some(0));
    project.run(&["suspend"]).ok();
    project.run(&["clone", VM, "two"]).ok();
    project.run(&["up", VM, "two"]).ok().says("resuming");
    for vm in [VM, "two"] {
        assert_eq!(
            project.run(&["exec", vm, "--", "sh", "-c", PORTS]).ok().text(),
            expected,
            "{vm}"
        );
    }
    // A boot without a template.
    project.run(&["down", VM]).ok();
    project.run(&["up", VM]).ok();
    assert_eq!(sh(&project, PORTS).ok().text(), expected);
}

#[test]
fn a_clone_that_was_killed_harms_nothing() {
    let project = Project::new();
    project.run(&["up"]).ok();
    sh(&project, "echo memory > /dev/shm/mark").ok();
    project.run(&["suspend"]).ok();
    for point in ["clone-begun", "clone-frozen"] {
        kill_at(&project, &["clone", VM, "two"], point);
        project
            .run(&["up", "two"])
            .code(69)
            .says("unfinished clone")
            .says("castra clean --disks two");
    }
    project.run(&["clone", VM, "two"]).ok();
    project.run(&["up", VM, "two"]).ok();
    for vm in [VM, "two"] {
        assert_eq!(
            project.run(&["exec", vm, "--", "cat", "/dev/shm/mark"]).ok().text(),
            "memory\n"
        );
    }
}

/// Runs `castra` until it is at this point, and kills it there.
fn kill_at(project: &Project, command: &[&str], point: &str) {
    let reached = project.path().join(format!("reached-{point}"));
    let _ = fs::remove_file(&reached);
    let mut castra = project.castra(command);
    castra.env("CASTRA_PARK_AT", point).env("CASTRA_PARK_FILE", &reached);
    let mut castra = castra.stderr(std::process::Stdio::null()).spawn().expect("castra runs");
    eventually(point, Duration::from_secs(60), || reached.exists());
    castra.kill().expect("killed");
    castra.wait().expect("ended");
}

fn sh(project: &Project, script: &str) -> Ended {
    project.run(&["exec", VM, "--", "sh", "-c", script])
}

fn count(project: &Project) -> Option<u64> {
    sh(project, "cat /dev/shm/count").text().trim().parse().ok()
}

/// Returns the error of the guest's clock, in seconds, beyond the time that asking takes.
fn clock_error(project: &Project) -> f64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let before = now();
    // busybox's date has no fractions, but its stat does.
    let output = sh(project, "touch /dev/shm/now && stat -c '%Y %y' /dev/shm/now").ok().text();
    let after = now();
    let (secs, text) = output.split_once(' ').expect("two words");
    let fraction =
        text.split_whitespace().nth(1).and_then(|time| time.split_once('.')).expect("a fraction").1;
    let guest: f64 = format!("{secs}.{fraction}").parse().expect("a number");
    if guest < before { guest - before } else { (guest - after).max(0.0) }
}

fn machine_state(project: &Project) -> PathBuf {
    project.path().join(format!(".castra/vms/{VM}/machine.state"))
}

fn overlay(project: &Project) -> PathBuf {
    project.path().join(format!(".castra/{VM}-overlay.qcow2"))
}

fn qemu() -> PathBuf {
    let path = std::env::var_os("PATH").expect("a PATH");
    let candidates =
        std::env::split_paths(&path).map(|directory| directory.join("qemu-system-x86_64"));
    candidates.into_iter().find(|path| path.exists()).expect("QEMU is installed")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address").port()
}
