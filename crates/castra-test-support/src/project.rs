//! Projects, each with a home, a runtime directory and an image cache of its own.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::{Ended, castra_program, target_tmp, tool};

/// Returns the cache of images that all tests of VMs share.
pub fn image_cache() -> PathBuf {
    target_tmp().join("image-cache")
}

/// Creates a cache with the contents of the shared one, images and the default VM's warm template:
/// the same files, by hard links, which keep their stamps. Replacing one changes nothing for
/// others.
pub fn linked_cache() -> tempfile::TempDir {
    let project = Project::new();
    project.run(&["up"]).ok();
    drop(project);
    let shared = image_cache().join("castra");
    let cache = tempfile::Builder::new()
        .prefix("linked-cache-")
        .tempdir_in(target_tmp())
        .expect("a directory");
    fs::create_dir(cache.path().join("castra")).expect("a directory");
    for name in ["images", "templates"] {
        let (from, to) = (shared.join(name), cache.path().join("castra"));
        tool("cp", &["-al", from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")]);
    }
    cache
}

/// A project directory and everything around it. Dropping it stops its VMs and insists that no
/// process is left.
pub struct Project {
    root: tempfile::TempDir,
    cache: PathBuf,
    variables: Vec<(&'static str, OsString)>,
}

impl Project {
    /// Creates a project with the image cache that all tests of VMs share, so that the image is
    /// fetched once.
    #[expect(
        clippy::new_without_default,
        reason = "makes directories, which no default value does"
    )]
    pub fn new() -> Self {
        Self::with_cache(image_cache())
    }

    /// Creates a project with a cache of its own.
    pub fn isolated() -> Self {
        let mut project = Self::with_cache(PathBuf::new());
        project.cache = project.root.path().join("cache");
        project
    }

    /// Creates a project with the cache in this directory.
    pub fn with_cache(cache: PathBuf) -> Self {
        // A short path, since sockets are below it.
        let root = tempfile::Builder::new()
            .prefix("castra-test-")
            .tempdir_in("/tmp")
            .expect("a directory");
        for name in ["project", "home", "run"] {
            fs::create_dir(root.path().join(name)).expect("a directory");
        }
        Self { root, cache, variables: Vec::new() }
    }

    /// Sets an environment variable for all further runs of `castra`.
    pub fn set(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.variables.push((name, value.into()));
    }

    /// Returns the project's directory.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("project")
    }

    /// Returns the cache, as Castra lays it out.
    pub fn cache(&self) -> PathBuf {
        self.cache.join("castra")
    }

    /// Writes a file in the project.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).expect("written");
    }

    /// Returns `castra` with these arguments, in the project, isolated from this user's own
    /// settings.
    pub fn castra(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(castra_program());
        let own = std::env::vars_os().map(|(name, _)| name);
        for name in own.filter(|name| name.to_string_lossy().starts_with("CASTRA_")) {
            command.env_remove(name);
        }
        if let Some(home) = std::env::var_os("HOME") {
            // pip's settings are the user's own even here: they may name the only reachable index.
            command.env("PIP_CONFIG_FILE", Path::new(&home).join(".config/pip/pip.conf"));
        }
        command
            .args(arguments)
            .current_dir(self.path())
            .env("HOME", self.root.path().join("home"))
            .env("XDG_CACHE_HOME", &self.cache)
            .env("XDG_STATE_HOME", self.user_state())
            .env("XDG_RUNTIME_DIR", self.root.path().join("run"))
            .env("NO_COLOR", "1")
            // The tests' servers are on this machine.
            .env("CASTRA_ALLOW_PRIVATE_SOURCES", "127.0.0.1")
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null());
        command
    }

    /// Runs `castra` to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let output = self.castra(arguments).output().expect("castra runs");
        Ended::new(arguments, output)
    }

    /// Runs `castra` with this on its stdin.
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ended {
        let mut command = self.castra(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("castra runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        let output = thread::scope(|scope| {
            scope.spawn(move || {
                // A command that does not read its input may close the pipe.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().expect("castra ends")
        });
        Ended::new(arguments, output)
    }

    /// Returns the pid file of a VM.
    pub fn pidfile(&self, vm: &str) -> PathBuf {
        self.path().join(format!(".castra/vms/{vm}/qemu.pid"))
    }

    /// Returns the pid of a VM's QEMU.
    pub fn qemu_pid(&self, vm: &str) -> i32 {
        fs::read_to_string(self.pidfile(vm)).expect("a pid file").trim().parse().expect("a pid")
    }

    /// Returns the user's home.
    pub fn home(&self) -> PathBuf {
        self.root.path().join("home")
    }

    /// Returns the directory of this user's key, which is not in the home, since tests compare that
    /// with itself.
    pub fn user_state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// Adopts a state directory that the test has created by hand.
    #[track_caller]
    pub fn adopt(&self) {
        self.run(&["adopt", "--yes"]).ok();
    }

    /// Returns the directory of sockets.
    pub fn runtime_directory(&self) -> PathBuf {
        self.root.path().join("run")
    }

    /// Returns the processes that have this project's directory in their command line.
    pub fn processes(&self) -> Vec<String> {
        let needle = self.root.path().to_string_lossy().into_owned();
        let commands = fs::read_dir("/proc").expect("proc").filter_map(|entry| {
            let bytes = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
        });
        commands.filter(|command| command.contains(&needle)).collect()
    }
}

/// Command that copies a project `$1` to `$2` with everything.
pub const CP_A: &str = r#"cp -a "$1" "$2""#;
/// Command that copies a project with new times.
pub const CP_R: &str = r#"cp -r "$1" "$2""#;
/// Command that copies a project with times in whole seconds.
pub const TAR: &str = r#"mkdir "$2" && tar -C "$1" -cf - . | tar -C "$2" -xf -"#;

/// A copy of a project, beside it. Dropping it stops its VMs.
pub struct Copied<'a> {
    original: &'a Project,
    path: PathBuf,
}

impl Project {
    /// Copies the project in one of the ways above.
    #[track_caller]
    pub fn copy(&self, name: &str, how: &str) -> Copied<'_> {
        let path = self.root.path().join(name);
        let [from, to] =
            [self.path(), path.clone()].map(|path| path.to_str().expect("UTF-8").to_owned());
        tool("sh", &["-c", how, "sh", &from, &to]);
        Copied { original: self, path }
    }
}

impl Copied<'_> {
    /// Returns the copy's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `castra` in the copy to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        let mut command = self.original.castra(arguments);
        command.current_dir(&self.path);
        Ended::of(command)
    }

    /// Returns the name of a VM's state.
    #[track_caller]
    pub fn state(&self, vm: &str) -> String {
        let document = self.run(&["status", "--json", vm]).ok().document("status");
        document["vms"][0]["state"].as_str().expect("a state").to_owned()
    }
}

impl Drop for Copied<'_> {
    fn drop(&mut self) {
        let mut command = self.original.castra(&["down", "--force"]);
        // The original finds what is left.
        let _ = command.current_dir(&self.path).output();
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let stopped = self.castra(&["down", "--force"]).output();
        let left = self.processes();
        if !thread::panicking() {
            assert!(stopped.is_ok(), "castra down runs");
            assert_eq!(left, Vec::<String>::new(), "processes are left behind");
        }
    }
}
