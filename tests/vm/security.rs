//! Promises of `SECURITY.md` about files, processes, disks and terminals, tried with the whole
//! program.

#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use castra_test_support::{Project, bootable_qcow2, disks, image_cache, target_tmp, tool};

/// Creates a cache that has the images of the shared one, and nothing else.
fn cache_with_images() -> tempfile::TempDir {
    disks::alpine();
    let cache = tempfile::Builder::new()
        .prefix("security-cache-")
        .tempdir_in(target_tmp())
        .expect("a directory");
    let (from, to) = (image_cache().join("castra/images"), cache.path().join("castra"));
    fs::create_dir(&to).expect("a directory");
    tool("cp", &["-al", from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")]);
    // These were made elsewhere, perhaps by another version.
    tool("chmod", &["-R", "go-w", to.to_str().expect("UTF-8")]);
    tool("find", &[to.to_str().expect("UTF-8"), "-type", "d", "-exec", "chmod", "700", "{}", "+"]);
    cache
}

/// Runs `castra` under a umask, started by a user who leaves a descriptor open and has secrets in
/// the environment.
#[track_caller]
fn careless(project: &Project, umask: &str, arguments: &[&str]) {
    let plain = project.castra(arguments);
    let script = format!("umask {umask}; exec 9</etc/passwd; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("MY_API_TOKEN", "hunter2").current_dir(project.path()).stdin(Stdio::null());
    let output = command.output().expect("castra runs");
    assert!(
        output.status.success(),
        "castra {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Returns all files and directories below this one, itself included; symbolic links have no mode
/// of their own.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("reads").map(|entry| entry.expect("reads")) {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                left.push(entry.path());
            }
            if !kind.is_symlink() {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Insists that Castra's files are private to their user; only published images and templates,
/// which anyone may have, are readable.
#[track_caller]
fn assert_private(root: &Path) {
    let paths = walk(root);
    for path in &paths {
        let metadata = fs::symlink_metadata(path).expect("metadata");
        let mode = metadata.permissions().mode() & 0o777;
        let text = path.to_string_lossy();
        let is_published =
            metadata.is_file() && (text.contains("/images/") || text.contains("/templates/"));
        assert!(mode & 0o077 == 0 || (is_published && mode == 0o444), "{mode:o} {text}");
    }
    assert!(paths.len() > 1, "{} is empty", root.display());
}

fn assert_confined(project: &Project, cache: &Path) {
    let process = PathBuf::from(format!("/proc/{}", project.qemu_pid("alpine-minimal")));
    let status = fs::read_to_string(process.join("status")).expect("reads");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    assert!(status.contains("Seccomp:\t2\n"), "{status}");
    let effective =
        status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("capabilities");
    let effective = u64::from_str_radix(effective, 16).expect("hexadecimal");
    // CAP_DAC_OVERRIDE and CAP_NET_BIND_SERVICE, and those only if castra runs as root.
    assert_eq!(effective & !(1 << 1 | 1 << 10), 0, "{status}");
    assert_eq!(fs::read_link(process.join("cwd")).expect("reads"), Path::new("/"));

    let environment =
        String::from_utf8_lossy(&fs::read(process.join("environ")).expect("reads")).into_owned();
    let given = ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR", "LC_ALL"];
    for variable in environment.split_terminator('\0') {
        let name = variable.split('=').next().unwrap_or_default();
        assert!(given.contains(&name), "{variable}");
    }
    let descriptors = fs::read_dir(process.join("fd")).expect("reads");
    for descriptor in descriptors.map(|entry| entry.expect("reads").path()) {
        // The descriptor may be closed by now.
        let Ok(target) = fs::read_link(&descriptor) else { continue };
        let text = target.to_string_lossy();
        let is_own = (target.starts_with(project.path()) || target.starts_with(cache))
            && !text.ends_with("lock")
            && !text.ends_with("vm.json");
        let is_nameless = ["anon_inode:", "socket:", "pipe:", "/dev/null", "/dev/kvm", "/memfd:"];
        let is_nameless = is_nameless.iter().any(|start| text.starts_with(start));
        assert!(is_own || is_nameless, "{}: {text}", descriptor.display());
    }
}

#[test]
fn no_other_user_reads_or_writes_and_qemu_gets_nothing_it_does_not_need() {
    let cache = cache_with_images();
    let project = Project::with_cache(cache.path().to_owned());
    let (state, run) =
        (project.path().join(".castra"), project.path().with_file_name("run").join("castra"));
    careless(&project, "000", &["init"]);
    assert_eq!(
        fs::metadata(project.path().join("castra.toml")).expect("is made").permissions().mode()
            & 0o777,
        0o644
    );
    fs::remove_file(project.path().join("castra.toml")).expect("removed");
    careless(&project, "000", &["up"]);
    careless(&project, "000", &["exec", "--", "true"]);
    assert_confined(&project, cache.path());
    for place in [&state, &run, &project.cache()] {
        assert_private(place);
    }
    careless(&project, "000", &["clone", "alpine-minimal", "copy"]);
    careless(&project, "000", &["ssh-config"]);
    careless(&project, "000", &["suspend"]);
    assert_private(&state);
    careless(&project, "000", &["up"]);
    assert_confined(&project, cache.path());
    assert_private(&run);
    careless(&project, "000", &["down", "--force", "alpine-minimal"]);
    careless(&project, "000", &["run", "--", "true"]);
    assert_private(&project.cache());

    let strict = Project::with_cache(cache.path().to_owned());
    careless(&strict, "077", &["up"]);
    careless(&strict, "077", &["exec", "--", "true"]);
    assert_private(&strict.path().join(".castra"));
    assert_private(&strict.path().with_file_name("run").join("castra"));
}

fn qemu_img(project: &Project, arguments: &[&str]) {
    let output = Command::new("qemu-img").args(arguments).current_dir(project.path()).output();
    let output = output.expect("qemu-img runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn configure(project: &Project, base: &str, more: &str) {
    let text =
        format!("[[vms]]\nname = \"vm\"\nmemory = \"64 MiB\"\nbase_image = \"{base}\"\n{more}");
    project.write("castra.toml", &text);
}

const ALLOWED: &str = "allow_backing_file = true\n";

#[test]
fn a_disk_from_elsewhere_draws_in_no_other_file() {
    let project = Project::isolated();
    let create = ["create", "-q", "-f", "qcow2"];
    let make = |more: &[&str]| qemu_img(&project, &[create.as_slice(), more].concat());
    project.write("secret", &"s3cret".repeat(10_000));
    make(&["-F", "raw", "-b", "secret", "backed.qcow2"]);
    make(&["-o", "data_file=secret,data_file_raw=on", "data.qcow2", "64K"]);
    bootable_qcow2(&project.path().join("plain.qcow2"));
    make(&["-u", "-b", "plain.qcow2", "-F", "qcow2", "a.qcow2", "1M"]);
    make(&["-u", "-b", "loop2.qcow2", "-F", "qcow2", "loop1.qcow2", "1M"]);
    make(&["-u", "-b", "loop1.qcow2", "-F", "qcow2", "loop2.qcow2", "1M"]);
    make(&["-u", "-b", "nbd://127.0.0.1/x", "-F", "qcow2", "nbd.qcow2", "1M"]);
    make(&[
        "-u",
        "-b",
        "json:{\"driver\":\"file\",\"filename\":\"secret\"}",
        "-F",
        "raw",
        "json.qcow2",
        "1M",
    ]);
    symlink("a.qcow2", project.path().join("link.qcow2")).expect("links");
    let refused = [
        ("backed.qcow2", "", "has a backing file, secret"),
        ("link.qcow2", "", "has a backing file, plain.qcow2"),
        ("data.qcow2", "", "has an external data file"),
        ("data.qcow2", ALLOWED, "has an external data file"),
        ("loop1.qcow2", ALLOWED, "is its own backing file"),
        ("nbd.qcow2", ALLOWED, "not a plain file"),
        ("json.qcow2", ALLOWED, "not a plain file"),
    ];
    for (base, more, said) in refused {
        configure(&project, base, more);
        project.run(&["up", "--no-wait"]).code(65).says(said).says("hint");
        assert!(
            !project.path().join(".castra/vm-overlay.qcow2").exists(),
            "{base}: no disk is put on it"
        );
    }

    configure(&project, "a.qcow2", ALLOWED);
    project.run(&["up", "--no-wait"]).ok();
    let command = fs::read(format!("/proc/{}/cmdline", project.qemu_pid("vm"))).expect("reads");
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    for disk in ["vm-overlay.qcow2", "a.qcow2", "plain.qcow2"] {
        assert!(command.contains(&format!("/{disk} ")), "QEMU gets {disk}: {command}");
    }
    assert!(command.contains("\"backing\":null"), "{command}");
    project.run(&["down", "--force"]).ok();

    // Its backing file counts as part of it.
    let other =
        fs::OpenOptions::new().write(true).open(project.path().join("plain.qcow2")).expect("opens");
    other
        .set_len(fs::metadata(project.path().join("plain.qcow2")).expect("metadata").len() + 512)
        .expect("set");
    project.run(&["up", "--no-wait"]).code(65).says("is not the one its disk is based on");
}

#[test]
fn a_disk_that_lay_in_the_state_directory_draws_in_no_other_file() {
    let project = Project::isolated();
    let create = ["create", "-q", "-f", "qcow2"];
    let make = |more: &[&str]| qemu_img(&project, &[create.as_slice(), more].concat());
    project.write("secret", &"s3cret".repeat(10_000));
    make(&["plain.qcow2", "1M"]);
    make(&["-o", "data_file=secret,data_file_raw=on", "data.qcow2", "64K"]);
    // A disk at the VM's own path is checked too, since the user may have put it there.
    fs::create_dir(project.path().join(".castra")).expect("a directory");
    configure(&project, "plain.qcow2", "");
    make(&[".castra/vm-overlay.qcow2", "1M"]);
    project.adopt();
    for (more, said) in [
        (
            ["-u", "-F", "raw", "-b", "json:{\"driver\":\"file\",\"filename\":\"../secret\"}"],
            "not a plain file",
        ),
        (["-u", "-F", "raw", "-b", "../secret"], "has backing file"),
        (["-u", "-F", "qcow2", "-b", "../data.qcow2"], "has backing file"),
    ] {
        make(&[more.as_slice(), &[".castra/vm-overlay.qcow2", "1M"]].concat());
        project.run(&["up", "--no-wait"]).code(65).says(said);
    }
    make(&["-o", "data_file=secret,data_file_raw=on", ".castra/vm-overlay.qcow2", "64K"]);
    project.run(&["up", "--no-wait"]).code(65).says("has an external data file");
}

/// Returns everything that would drive a terminal: all control characters except line ends, tabs
/// and Castra's own colours.
fn harmful(text: &str) -> Vec<char> {
    let colours = ["\u{1b}[1m", "\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m", "\u{1b}[0m"];
    let without = colours.iter().fold(text.to_owned(), |text, colour| text.replace(colour, ""));
    let is_unprintable = |c: &char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    without.chars().filter(is_unprintable).collect()
}

#[test]
fn names_from_elsewhere_do_not_drive_the_terminal() {
    const HOSTILE: &str = "\u{1b}]0;pwned\u{7}\u{1b}[2J\u{9b}2J\u{7f}\u{202e}x";
    let project = Project::isolated();
    let directory = project.path().join(format!("{HOSTILE}, \"it's\""));
    fs::create_dir(&directory).expect("a directory");
    let absent = format!("{HOSTILE}.qcow2");
    let runs: [&[&str]; 8] = [
        &["--offline", "up"],
        &["init"],
        &["init"],
        &["status", HOSTILE],
        &["exec", HOSTILE, "--", "true"],
        &["cp", &format!("{HOSTILE}:/x"), "."],
        &["--config", &absent, "status"],
        &["clone", HOSTILE, HOSTILE],
    ];
    for arguments in runs {
        let mut command = project.castra(arguments);
        let output = command
            .current_dir(&directory)
            .env_remove("NO_COLOR")
            .env("CLICOLOR_FORCE", "1")
            .output()
            .expect("castra runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(harmful(&text), Vec::<char>::new(), "castra {arguments:?}: {text:?}");
        assert!(!text.is_empty(), "castra {arguments:?} says something");
    }
}
