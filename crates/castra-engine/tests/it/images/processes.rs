//! Images prepared by a separate process: killed, without space, at another time of day.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use castra_engine::cancel::Cancel;
use castra_engine::context::Environment;
use castra_engine::context::RuntimeContext;
use castra_engine::layout::ProjectLayout;
use castra_engine::managed::{ImageManager, ManagedImageSpec};
use castra_engine::report::Silent;

use crate::images::fixture::{Fixture, shown, timeouts};

/// Variables with the process's task, its location, and, if it is wanted, the file for its error.
pub(crate) const SPEC: &str = "CASTRA_TEST_SPEC";
pub(crate) const STATE_ROOT: &str = "CASTRA_TEST_STATE_ROOT";
const ERROR: &str = "CASTRA_TEST_ERROR";

/// A helper process, run from other tests.
#[test]
#[ignore = "started by other tests"]
fn helper() {
    let spec: ManagedImageSpec =
        serde_json::from_str(&std::env::var(SPEC).expect("is given")).expect("is a description");
    let project = ProjectLayout::unchecked(std::env::var_os(STATE_ROOT).expect("is given").into());
    let context = RuntimeContext::new(Environment::of_process(), Arc::new(Silent), Cancel::new())
        .expect("a home");
    let manager = ImageManager::new(&project).with_timeouts(timeouts());
    if let Err(error) = manager.ensure_image(&spec, &context) {
        let error = shown(error);
        if let Some(file) = std::env::var_os(ERROR) {
            std::fs::write(file, &error).expect("writes");
        }
        panic!("is not prepared: {error}");
    }
}

/// Settings with which such a process is started.
pub(crate) struct Run<'a> {
    image: &'a ManagedImageSpec,
    project: String,
    wrapper: Vec<String>,
    variables: Vec<(String, String)>,
}

impl<'a> Run<'a> {
    /// Creates a run that prepares this image in the fixture's project.
    pub(crate) fn of(image: &'a ManagedImageSpec) -> Self {
        Self { image, project: "project".to_owned(), wrapper: Vec::new(), variables: Vec::new() }
    }

    pub(crate) fn in_project(mut self, name: &str) -> Self {
        name.clone_into(&mut self.project);
        self
    }

    pub(crate) fn with(mut self, name: &str, value: &Path) -> Self {
        self.variables.push((name.to_owned(), value.to_str().expect("is UTF-8").to_owned()));
        self
    }

    /// Starts the process through a shell script, which has the command as its arguments.
    pub(crate) fn by_script(mut self, before: &[&str], script: &str) -> Self {
        let shell = ["sh", "-c", script, "sh"];
        self.wrapper = before.iter().chain(&shell).map(|word| (*word).to_owned()).collect();
        self
    }

    pub(crate) fn start(self, fixture: &Fixture) -> Running {
        let own = std::env::current_exe().expect("has a path");
        let mut words =
            self.wrapper.iter().map(String::as_str).chain([own.to_str().expect("is UTF-8")]);
        let error = fixture.path(&format!("error-{}", self.project));
        // The file of an earlier run need not exist.
        let _ = std::fs::remove_file(&error);
        let child = Command::new(words.next().expect("a program"))
            .args(words)
            .args(["--exact", "images::processes::helper", "--ignored", "--quiet"])
            .env("XDG_CACHE_HOME", fixture.cache().root().parent().expect("a parent"))
            .env("XDG_STATE_HOME", fixture.path("state"))
            .env("CASTRA_ALLOW_PRIVATE_SOURCES", "127.0.0.1")
            .env(SPEC, serde_json::to_string(self.image).expect("is plain data"))
            .env(STATE_ROOT, fixture.project(&self.project).state_root())
            .env(ERROR, &error)
            .envs(self.variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        Running { child, error }
    }

    /// Runs the process to its end.
    pub(crate) fn end(self, fixture: &Fixture) -> Result<(), String> {
        self.start(fixture).end()
    }
}

/// A running process, killed when dropped.
pub(crate) struct Running {
    child: Child,
    error: PathBuf,
}

impl Running {
    /// Waits for its end, and returns its message if it failed.
    pub(crate) fn end(mut self) -> Result<(), String> {
        if self.child.wait().expect("is ours").success() {
            return Ok(());
        }
        Err(std::fs::read_to_string(&self.error)
            .unwrap_or_else(|_| "it ended without a word".to_owned()))
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("is ours");
        self.child.wait().expect("ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A process that has ended already is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
