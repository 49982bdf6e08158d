//! Provisioned VMs: steps run once and are kept as layers, and a new VM is restored with what they
//! have made and started.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use castra_engine::failpoint::Point;
use castra_test_support::parked::is_killed;
use castra_test_support::{CP_A, Project, linked_cache};

const WARM: &str = "restoring from its warm template";

/// Sets up a service that shows that it runs.
const SETUP: &str = r#"#!/bin/sh
set -e
cat > /etc/init.d/hello <<'END'
#!/sbin/openrc-run
command=/bin/sh
command_args="-c 'while :; do date > /run/hello; sleep 1; done'"
command_background=true
pidfile=/run/hello.pid
END
chmod 755 /etc/init.d/hello
rc-update add hello default
test -e /srv/app/bin/run
"#;

/// Writes a project whose VMs have the steps below.
fn declare(project: &Project, vms: &[&str]) {
    let steps = format!("{FIRST}, {COPY}, {SCRIPT}");
    let vm = |name: &&str| {
        format!(
            "[[vms]]\nname = \"{name}\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n\
             provision = [{steps}]\n"
        )
    };
    let text: String = vms.iter().map(vm).collect();
    project.write("castra.toml", &text);
}

const FIRST: &str = r#""""
adduser -D web
head -c 16 /dev/urandom | od -An -tx1 > /etc/made
echo built by the first step
cp /bin/busybox /bin/new && mv /bin/new /bin/busybox
""""#;
const COPY: &str = r#"{ copy = { from = "app", to = "/srv/app" } }"#;
const SCRIPT: &str = r#"{ script = "setup.sh" }"#;

fn files(project: &Project) {
    let app = project.path().join("app");
    fs::create_dir_all(app.join("bin")).expect("a directory");
    fs::create_dir_all(app.join(".castra")).expect("a directory");
    fs::write(app.join(".castra/secret"), "never").expect("written");
    fs::write(app.join("bin/run"), "#!/bin/sh\necho from the project\n").expect("written");
    let mode = fs::Permissions::from_mode(0o750);
    fs::set_permissions(app.join("bin/run"), mode).expect("set");
    symlink("bin/run", app.join("link")).expect("linked");
    project.write("setup.sh", SETUP);
}

fn output(project: &Project, vm: &str, line: &str) -> String {
    project.run(&["exec", vm, "--", "sh", "-c", line]).ok().text()
}

/// Returns what is below the layers' directory and no finished layer.
fn unfinished(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache.join("castra/steps")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| !path.join("step.json").exists()).collect()
}

#[test]
fn a_new_vm_is_restored_with_what_the_steps_have_made_and_started() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    files(&project);
    declare(&project, &["one"]);
    project
        .run(&["up", "one"])
        .ok()
        .says("one: step 1 of 3: adduser -D web…")
        .says("one: 1 | built by the first step")
        .says("one: step 2 of 3: copy app to /srv/app…")
        .says("one: step 3 of 3 done in")
        .says(&format!("one: {WARM}"));

    declare(&project, &["one", "two"]);
    let up = project
        .run(&["up", "two"])
        .ok()
        .says("two: step 1 of 3: adduser -D web…: already done")
        .says("two: step 3 of 3: script setup.sh: already done")
        .says(&format!("two: {WARM}"));
    assert!(!up.stderr.contains("preparing a warm template"), "{}", up.stderr);
    // It runs since before the VM existed.
    let seen = "rc-service hello status; test -s /run/hello; echo $?
        id -un web; cd /srv/app; /srv/app/link; stat -c '%a %U' bin/run; readlink link
        ls -a /srv/app /tmp";
    for vm in ["one", "two"] {
        let seen = output(&project, vm, seen);
        assert!(
            seen.contains("status: started\n0\nweb\nfrom the project\n750 root\nbin/run\n"),
            "{seen}"
        );
        assert!(!seen.contains(".castra") && !seen.contains("castra-step"), "{seen}");
    }
    // The steps have run once, and their machine has left nothing of its own.
    let line = |line: &str| ["one", "two"].map(|vm| output(&project, vm, line));
    let [one, two] = line("cat /etc/made");
    assert_eq!(one, two);
    for differs in ["cat /etc/machine-id", "hostname", "head -c 32 /dev/urandom | od -An -tx1"] {
        let [one, two] = line(differs);
        assert_ne!(one, two, "{differs}");
    }

    let list = project.run(&["template", "list", "--json"]).ok().document("template list");
    let layers = list["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), 3);
    assert!(layers.iter().all(|layer| layer["state"] == "ready"), "{layers:?}");
    let templates = list["templates"].as_array().expect("a list");
    assert_eq!(templates.iter().filter(|one| one["provisioned"].is_string()).count(), 1);
    project.run(&["template", "verify"]).ok();

    // A change of the last step runs the last step.
    project.write("setup.sh", &format!("{SETUP}echo changed > /etc/changed\n"));
    declare(&project, &["one", "two", "three"]);
    project
        .run(&["up", "three"])
        .ok()
        .says("three: step 2 of 3: copy app to /srv/app: already done")
        .says("three: step 3 of 3: script setup.sh…")
        .says(&format!("three: {WARM}"));
    assert_eq!(output(&project, "three", "cat /etc/changed"), "changed\n");
    assert_eq!(output(&project, "three", "cat /etc/made"), one);

    // A VM that exists keeps its disk.
    output(&project, "one", "echo mine > /root/file; sync");
    project.run(&["down", "one", "three"]).ok();
    project.run(&["up", "one"]).ok().says("was made by other steps");
    assert_eq!(output(&project, "one", "cat /root/file"), "mine\n");
    project.run(&["suspend", "one"]).ok();
    project.run(&["up", "one"]).ok().says("was made by other steps");
    project.run(&["down"]).ok();

    // A project needs no cache, and can be copied.
    fs::remove_dir_all(cache.path().join("castra/steps")).expect("removed");
    fs::remove_dir_all(cache.path().join("castra/templates")).expect("removed");
    project.run(&["clean"]).ok();
    let copy = project.copy("copy", CP_A);
    copy.run(&["up", "one", "--cold"]).ok();
    let text = copy.run(&["exec", "one", "--", "cat", "/root/file", "/etc/made"]).ok().text();
    assert_eq!(text, format!("mine\n{one}"));
    assert_eq!(unfinished(cache.path()), [""; 0].map(PathBuf::from));
}

#[test]
fn a_step_that_fails_leaves_nothing_and_shows_its_output() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }\n";
    let declare = |step: &str| {
        project.write(
            "castra.toml",
            &format!("[[vms]]\nname = \"dev\"\n{image}provision = [\"true\", {step}]\n"),
        );
    };
    declare(r#"{ copy = { from = "none", to = "/srv" } }"#);
    project.run(&["up"]).code(66).says("cannot read").says("/none");
    declare(r#""echo one; echo two >&2; exit 3; echo never""#);
    let failed = project
        .run(&["up"])
        .code(65)
        .says("step 2 of 2 of VM `dev` (echo one; echo two >&2; exit 3; echo never)")
        .says("failed with exit code 3")
        .says("  one\n")
        .says("  two\n");
    assert!(!failed.stderr.contains("| never"), "{}", failed.stderr);
    assert!(!project.path().join(".castra/vms/dev/vm.json").exists());
    assert_eq!(unfinished(cache.path()), [""; 0].map(PathBuf::from));
    assert_eq!(project.processes(), [""; 0]);
    declare(r#""true""#);
    project.run(&["up", "--cold"]).ok().says("step 1 of 2: true: already done");
}

#[test]
fn a_step_that_fills_its_disk_is_refused_whatever_it_says() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let fill = "dd if=/dev/zero of=/fill bs=1M";
    for step in [format!("{fill} || true"), format!("set -e; {fill}")] {
        project.write(
            "castra.toml",
            &format!(
                "[[vms]]\nname = \"dev\"\ndisk = \"1 GiB\"\nprovision = ['{step}', 'true']\n\
                 managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
            ),
        );
        let up = project.run(&["up"]).code(65).says("has filled the disk, which has 1 GiB");
        up.says("step 1 of 2 of VM `dev`").says("`disk` in its [[vms]]");
        assert_eq!(unfinished(cache.path()), [""; 0].map(PathBuf::from), "{step}");
        assert_eq!(project.processes(), [""; 0]);
    }
}

/// A disk that was cut off may be whole to look at, and lack what was written last.
#[test]
fn a_step_that_ends_its_own_vm_leaves_nothing() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let agents = "for it in /proc/[0-9]*; do if grep -q ^@castra $it/cmdline; then \
        kill -9 ${it#/proc/}; fi; done; sleep 1000";
    let [off, reboot] = ["poweroff", "reboot"].map(|how| {
        format!("(while [ -d /proc/$$ ]; do :; done; sleep 1; {how} -f) > /dev/null 2>&1 &")
    });
    for (step, message) in [
        (off.as_str(), "did not shut down properly after step 1"),
        (reboot.as_str(), "did not shut down properly after step 1"),
        (agents, "was lost in step 1"),
        ("echo c > /proc/sysrq-trigger; sleep 1000", "the kernel panicked in step 1"),
    ] {
        project.write(
            "castra.toml",
            &format!(
                "[[vms]]\nname = \"dev\"\nprovision = ['echo made; {step}']\n\
                 managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
            ),
        );
        project.run(&["up"]).code(69).says(message).says("Nothing of this step is kept");
        let layers = fs::read_dir(cache.path().join("castra/steps")).into_iter().flatten();
        assert_eq!(layers.count(), 0, "after {step}");
        assert_eq!(project.processes(), [""; 0]);
    }
    let log = fs::read_to_string(project.path().join(".castra/logs/castra.log")).expect("a log");
    assert!(!log.contains("provision-output") && log.contains("provision-step"), "{log}");
}

#[test]
fn a_step_that_is_killed_leaves_what_the_next_up_recovers_from() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let vm = |name: &str| {
        format!(
            "[[vms]]\nname = \"{name}\"\nprovision = [\"echo made > /etc/made\"]\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
        )
    };
    project.write("castra.toml", &vm("dev"));
    for point in Point::STEP {
        let mut up = project.castra(&["up", "--cold"]);
        up.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(is_killed(up, point.name()), "no process comes to {}", point.name());
        let left = unfinished(cache.path());
        assert!(left.len() <= 1, "after a kill at {}: {left:?}", point.name());
    }
    // Two that need the same step at once run it once.
    project.write("castra.toml", &[vm("dev"), vm("other")].concat());
    let up = project.run(&["up", "--cold"]).ok();
    assert_eq!(up.stderr.matches("step 1 of 1 done").count(), 1, "{}", up.stderr);
    for vm in ["dev", "other"] {
        assert_eq!(output(&project, vm, "cat /etc/made"), "made\n");
    }
    assert_eq!(unfinished(cache.path()), [""; 0].map(PathBuf::from));
}
