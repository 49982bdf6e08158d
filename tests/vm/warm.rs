//! VMs that are restored from a warm template: each has its own identity, none has another moment's
//! memory, and damage is reported and repaired.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use castra_test_support::{Project, linked_cache, tool};

const WARM: &str = "restoring from its warm template";

/// Two VMs that share one template.
const TWO: &str = "[[vms]]\nname = \"one\"\n[[vms]]\nname = \"two\"\n";

fn two_vms(project: &Project) {
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }\n";
    let text: String = TWO.split_inclusive("\"\n").flat_map(|vm| [vm, image]).collect();
    project.write("castra.toml", &text);
}

fn output(project: &Project, vm: &str, line: &str) -> String {
    project.run(&["exec", vm, "--", "sh", "-c", line]).ok().text()
}

#[test]
fn two_vms_of_one_template_are_two() {
    let project = Project::new();
    two_vms(&project);
    project.run(&["up"]).ok().says(&format!("one: {WARM}")).says(&format!("two: {WARM}"));
    // The first command runs in a process that waited for it, the second in its own.
    let attributes = "cd; pwd; umask; id; env; ulimit -a; ls -l /proc/self/fd | wc -l
        cat /proc/self/oom_score_adj /proc/self/limits /proc/self/cgroup
        grep -E '^(Sig|Cap|Groups|Umask|Seccomp|NoNewPrivs)' /proc/self/status
        cut -d ' ' -f 18,19,38-40 /proc/self/stat";
    let first = output(&project, "one", attributes);
    assert_eq!(first, output(&project, "one", attributes));
    for line in
        ["cat /etc/machine-id", "hostname", "cat /etc/hostname", "cat /proc/sys/kernel/random/uuid"]
    {
        assert_ne!(output(&project, "one", line), output(&project, "two", line), "{line}");
    }
    assert_eq!(output(&project, "one", "hostname; cat /etc/hostname"), "one\none\n");
    let machine_id = output(&project, "one", "cat /etc/machine-id");
    assert!(
        machine_id.trim().len() == 32
            && machine_id.trim().bytes().all(|byte| byte.is_ascii_hexdigit())
    );
    let stream = |vm| output(&project, vm, "head -c 64 /dev/urandom | od -An -tx1");
    assert_ne!(stream("one"), stream("two"));
    let host_key = |vm: &str| {
        fs::read(project.path().join(format!(".castra/vms/{vm}/host_key"))).expect("reads")
    };
    assert_ne!(host_key("one"), host_key("two"));
    // The kernel learns it, too, once the first command has had its time.
    let learns = "for i in $(seq 300); do
        dmesg | grep -q 'virtual machine fork' && exit
        sleep 0.1
    done; cat /sys/firmware/acpi/interrupts/gpe05; exit 1";
    output(&project, "two", learns);
}

/// Returns the seconds since 1970, here and in the guest.
fn clocks(project: &Project) -> (f64, f64, f64) {
    let here = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let before = here();
    let text = output(project, "alpine-minimal", "adjtimex | grep 'time.tv_'");
    let after = here();
    let number = |name: &str| {
        let line = text.lines().find(|line| line.contains(name)).expect("a line");
        line.split_whitespace().last().and_then(|word| word.parse::<f64>().ok()).expect("a number")
    };
    (before, number("tv_sec") + number("tv_usec") / 1e6, after)
}

#[test]
fn the_clock_is_right_and_the_network_works() {
    let project = Project::new();
    project.run(&["up"]).ok().says(WARM);
    let (before, guest, after) = clocks(&project);
    assert!(
        before - 0.2 <= guest && guest <= after + 0.2,
        "{guest} is not from {before} to {after}"
    );
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let server = std::thread::spawn(move || {
        listener
            .accept()
            .and_then(|(mut stream, _)| stream.write_all(b"from the host"))
            .expect("serves");
    });
    let line = format!("nc 10.0.2.2 {port} < /dev/null; grep -c nameserver /etc/resolv.conf");
    assert_eq!(output(&project, "alpine-minimal", &line), "from the host1\n");
    server.join().expect("served");
    let disk = output(&project, "alpine-minimal", "df -m / | tail -1");
    let size_mib: u64 =
        disk.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    assert!(size_mib > 9000, "the root filesystem has grown: {disk}");
}

#[test]
fn memory_of_another_moment_is_never_used() {
    let project = Project::new();
    project.run(&["up"]).ok().says(WARM);
    output(&project, "alpine-minimal", "echo mine > /root/file");
    project.run(&["down"]).ok();
    let boots = |after: &str| {
        let up = project.run(&["up"]).ok();
        assert!(
            up.stderr.contains("booting") && !up.stderr.contains(WARM),
            "{after}:\n{}",
            up.stderr
        );
        assert_eq!(output(&project, "alpine-minimal", "cat /root/file"), "mine\n");
        project.run(&["down"]).ok();
    };
    boots("an orderly end");
    // Not even if everything but the disk is lost.
    fs::remove_dir_all(project.path().join(".castra/vms")).expect("removed");
    boots("a lost record");
}

/// Returns the directories of finished templates: an older agent's may be among them.
fn templates(cache: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(cache.join("castra/templates")).expect("reads");
    let paths = entries.map(|entry| entry.expect("reads").path());
    paths.filter(|path| path.join("template.json").exists())
}

/// Flips a bit of a copy, holes included, under the same name.
fn flip_a_bit(path: &Path) {
    let copy = path.with_extension("copy");
    let [from, to] = [path, &copy].map(|path| path.to_str().expect("UTF-8"));
    tool("cp", &["--sparse=always", from, to]);
    let file = fs::File::options().read(true).write(true).open(&copy).expect("opens");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 12345).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], 12345).expect("writes");
    fs::rename(copy, path).expect("replaces");
}

/// Puts another file under the same name: the one that others share stays as it is.
fn replace(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("reads");
    change(&mut bytes);
    fs::remove_file(path).expect("removes");
    fs::write(path, bytes).expect("writes");
}

#[test]
fn a_flipped_bit_is_noticed_and_the_template_rebuilt() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    templates(cache.path()).for_each(|template| flip_a_bit(&template.join("memory.img")));
    project.run(&["template", "verify"]).code(65).says("has a missing or changed file (memory)");
    project
        .run(&["up"])
        .ok()
        .says("has a missing or changed file (memory); rebuilding it")
        .says("preparing a warm template")
        .says(WARM);
    project.run(&["exec", "--", "true"]).ok();
    // It boots a shim, so that no VM has a copy of the kernel in memory.
    let kernels = templates(cache.path()).filter_map(|it| fs::metadata(it.join("kernel")).ok());
    assert_ne!(kernels.filter(|kernel| kernel.len() < 64 * 1024).count(), 0);
    // Those of other shapes stay damaged until they are needed, or pruned.
    project.run(&["template", "prune"]).ok();
    assert!(project.run(&["template", "verify"]).ok().text().contains("ready"));
    // A running VM needs its template no more than its cache.
    project.run(&["template", "prune", "--all"]).ok();
    project.run(&["exec", "--", "true"]).ok();
    project.run(&["template", "list"]).ok().says("no warm template");
    project.run(&["down"]).ok();
    project.run(&["up"]).ok();
}

#[test]
fn a_state_that_does_not_load_is_given_up_for_a_boot_and_remembered() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    two_vms(&project);
    spoil_device_states(cache.path());
    project
        .run(&["up", "one"])
        .ok()
        .says("could not be restored from its warm template; booting instead")
        .says("booting");
    assert_eq!(output(&project, "one", "hostname"), "one\n");
    project
        .run(&["up", "two"])
        .ok()
        .says("booting without a warm template, since making one failed earlier");
    assert_eq!(output(&project, "two", "hostname"), "two\n");
}

/// Truncates the devices' states and makes the manifests agree with that.
fn spoil_device_states(cache: &Path) {
    for directory in templates(cache) {
        let state = directory.join("device.state");
        replace(&state, |bytes| bytes.truncate(bytes.len() / 2));
        let metadata = fs::metadata(&state).expect("is there");
        let sha256 = tool("sha256sum", &[state.to_str().expect("UTF-8")]).stdout;
        let sha256 = String::from_utf8_lossy(&sha256[..64]).into_owned();
        replace(&directory.join("template.json"), |text| {
            use std::os::unix::fs::MetadataExt as _;
            let mut manifest: serde_json::Value = serde_json::from_slice(text).expect("JSON");
            manifest["device_state"]["sha256"] = sha256.into();
            manifest["device_state"]["stamp"] = serde_json::json!({
                "size_bytes": metadata.size(),
                "modified_secs": metadata.mtime(),
                "modified_nanos": metadata.mtime_nsec(),
                "inode": metadata.ino(),
            });
            *text = serde_json::to_vec(&manifest).expect("JSON");
        });
    }
}

#[test]
fn a_template_that_is_rebuilt_leaves_older_disks_alone() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    two_vms(&project);
    project.run(&["up", "one"]).ok().says(WARM);
    output(&project, "one", "echo mine > /root/file");
    project.run(&["down", "one"]).ok();
    project.run(&["template", "prune", "--all"]).ok();
    project.run(&["up", "two"]).ok().says("preparing a warm template").says(WARM);
    project.run(&["up", "one"]).ok();
    assert_eq!(output(&project, "one", "cat /root/file; hostname"), "mine\none\n");
    assert_eq!(output(&project, "two", "ls /root; hostname"), "two\n");
}
