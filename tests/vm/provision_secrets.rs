//! Secrets of steps: what a step sees of castra's environment is nowhere afterwards.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use castra_test_support::{Project, linked_cache, tool};

/// Returns a text that is nowhere else.
fn random_text() -> String {
    let mut bytes = [0; 20];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("read");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Step that uses the secret, prints it in two pieces, and leaves a value in another form for a
/// service that keeps it in memory.
const STEP: &str = r#"
set -e
printf %s "$TOKEN" | sha256sum > /etc/seen
printf 'whole %s\n' "$TOKEN"
printf %s "$TOKEN" | cut -c 1-9 | tr -d '\n'; sleep 2; printf %s "$TOKEN" | cut -c 10- >&1
printf 'error %s\n' "$TOKEN" >&2
cat control | tr a-z0-9 n-za-m0-9 > /etc/control
printf 'cp /etc/control /run/control\n' > /etc/local.d/control.start
chmod 755 /etc/local.d/control.start
rc-update add local default
"#;

fn declare(project: &Project, vms: &[&str], steps: &str) {
    let vm = |name: &&str| {
        format!(
            "[[vms]]\nname = \"{name}\"\nprovision = [{steps}]\ndisk = \"1 GiB\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
        )
    };
    let text: String = vms.iter().map(vm).collect();
    project.write("castra.toml", &text);
}

/// Returns the names of the files that contain a text: those of the project, of the cache, of the
/// user's state, and of this directory.
fn holders(project: &Project, raw: &Path, text: &str) -> Vec<String> {
    let mut places = vec![raw.to_owned(), project.path(), project.cache(), project.home()];
    places.push(project.user_state());
    let grep = Command::new("grep").args(["-rlaF", text]).args(&places).output().expect("runs");
    let found = String::from_utf8(grep.stdout).expect("UTF-8");
    found.lines().map(str::to_owned).collect()
}

/// Writes the disks and layers of a project, as their guests see them, to a directory.
fn as_guests_see_them(project: &Project) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let state = project.path().join(".castra");
    let find = tool("find", &[state.to_str().expect("UTF-8"), "-name", "*.qcow2"]);
    for (number, disk) in String::from_utf8(find.stdout).expect("UTF-8").lines().enumerate() {
        let raw = directory.path().join(format!("raw-{number}"));
        let to = raw.to_str().expect("UTF-8");
        tool("qemu-img", &["convert", "-U", "-f", "qcow2", "-O", "raw", disk, to]);
    }
    directory
}

/// Returns `true` if the command line of a process of this machine has this text.
fn is_in_a_command_line(text: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    processes
        .map(|process| process.path().join("cmdline"))
        .any(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).contains(text))
}

#[test]
fn a_secret_of_a_step_is_nowhere_afterwards() {
    let cache = linked_cache();
    let mut project = Project::with_cache(cache.path().to_owned());
    let (secret, control) = (random_text(), random_text());
    let rotate = |c: char| match c {
        'a'..='m' => char::from(c as u8 + 13),
        'n'..='z' => char::from(c as u8 - 13),
        c => c,
    };
    let rotated: String = control.chars().map(rotate).collect();
    project.write("step.sh", &format!("#!/bin/sh\necho {rotated} > control\n{STEP}"));
    let steps = r#""true", { script = "step.sh", secrets = ["env:TOKEN"] }"#;
    declare(&project, &["one"], steps);

    // Nothing runs without consent, and without the secret.
    project.set("TOKEN", "");
    project.run(&["up"]).code(77).says("gives the steps of VM `one` TOKEN of castra's environment");
    let missing = project.run(&["up", "--allow-secrets"]).code(64);
    assert!(missing.stderr.contains("needs TOKEN, which is not set"), "{}", missing.stderr);
    assert!(!missing.stderr.contains("step 1 of 2"), "{}", missing.stderr);

    project.set("TOKEN", secret.as_str());
    project.set("CASTRA_LOG", "debug");
    let mut up = project.castra(&["up", "one", "--json"]);
    let mut up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("castra runs");
    while up.try_wait().expect("waited for").is_none() {
        assert!(!is_in_a_command_line(&secret));
        thread::sleep(Duration::from_millis(100));
    }
    let up = up.wait_with_output().expect("ended");
    let said = [up.stdout, up.stderr].map(|said| String::from_utf8(said).expect("text")).concat();
    assert!(up.status.success(), "{said}");
    for line in ["whole ***", "\"***\"", "error ***"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains(&secret), "{said}");
    project.set("CASTRA_LOG", "warn");

    // The step had it, and what it wrote is found.
    let seen = project.run(&["exec", "one", "--", "cat", "/etc/seen"]).ok().text();
    let sum = tool("sh", &["-c", &format!("printf %s {secret} | sha256sum")]).stdout;
    assert_eq!(seen.as_bytes(), sum);
    project.run(&["suspend", "one"]).ok();
    let raw = as_guests_see_them(&project);
    let found = holders(&project, raw.path(), &control);
    for part in ["/steps/", "/.castra/templates/", "memory.img", "machine.state", "/raw-"] {
        assert!(found.iter().any(|path| path.contains(part)), "{part}: {found:?}");
    }
    assert_eq!(holders(&project, raw.path(), &secret), [""; 0]);
    drop(raw);

    // The value makes no difference, and is not needed.
    project.set("TOKEN", "");
    declare(&project, &["one", "two"], steps);
    project.run(&["up", "two"]).ok().says("step 2 of 2: script step.sh (with TOKEN): already");
    project.run(&["down"]).ok();
    // The name does.
    declare(&project, &["four"], &steps.replace("TOKEN", "OTHER"));
    project.run(&["up", "--allow-secrets"]).code(64).says("needs OTHER");
}

#[test]
fn a_step_that_fails_shows_no_secret_and_an_isolated_one_has_no_network() {
    let cache = linked_cache();
    let mut project = Project::with_cache(cache.path().to_owned());
    let secret = format!("{}\n{}", random_text(), random_text());
    project.set("TOKEN", secret.as_str());
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("an address").port();
    let get = format!("wget -T 3 -O - http://10.0.2.2:{port}/");
    let first = format!("'{get} || true'");
    let second = format!(
        "{{ run = '{get} || echo \"no: $TOKEN\"; exit 3', secret = 'env:TOKEN', \
         network = 'isolated' }}"
    );
    declare(&project, &["one"], &format!("{first}, {second}"));
    let failed = project.run(&["up", "--allow-secrets"]).code(65).says("  no: ***");
    assert!(listener.accept().is_ok(), "the first step has a network");
    assert!(listener.accept().is_err(), "the isolated step has a network");
    for line in secret.lines() {
        assert!(!failed.stderr.contains(line), "{}", failed.stderr);
        assert_eq!(holders(&project, &project.path(), line), [""; 0]);
    }
}
