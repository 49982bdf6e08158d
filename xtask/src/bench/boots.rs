//! Boots, and the commands around them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::castra::Castra;
use super::plain::PlainBoot;
use super::table::{Row, median};
use super::warm;
use crate::run::root;

/// Cold boots of each kind. They take half a minute a pair.
const BOOTS: usize = 3;
/// VMs that `status` is to tell of at once.
const MANY_VMS: usize = 50;
/// Runs of commands that take milliseconds.
const QUICK_RUNS: usize = 50;

/// Measures in a directory of its own, which is gone when this returns.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    let directory = root().join("target/bench");
    let bench = Bench { castra: Castra::in_directory(&directory), directory };
    if bench.directory.exists() {
        bench.clean_up()?;
    }
    fs::create_dir_all(&bench.directory).map_err(|error| error.to_string())?;
    let rows = bench.measure();
    bench.clean_up()?;
    rows
}

pub(super) struct Bench {
    pub(super) castra: Castra,
    pub(super) directory: PathBuf,
}

impl Bench {
    fn measure(&self) -> Result<Vec<Row>, String> {
        // The first start fetches the image; what is measured has it.
        self.castra.run(&["up", "--cold"])?;
        let plain = PlainBoot::like_the_running_vm(&self.directory)?;
        let status = self.castra.median(QUICK_RUNS, &["status"])?;
        let version = self.castra.median(QUICK_RUNS, &["--version"])?;
        self.pretend_more_vms()?;
        let status_of_many = self.castra.median(QUICK_RUNS, &["status"])?;
        self.forget_vm()?;
        let (mut plain_boots, mut ups) = (Vec::new(), Vec::new());
        for _ in 0..BOOTS {
            plain_boots.push(plain.to_last_getty()?);
            ups.push(self.up_and_first_command()?);
            self.forget_vm()?;
        }
        let (plain_boot, up) = (median(plain_boots), median(ups));
        let mut rows = vec![
            Row::against(
                "cold `castra up` and first `exec -- true`",
                up,
                ("plain boot to the last getty", plain_boot),
                "at most 0.20",
            ),
            Row::alone("`castra status`", status, "at most 20 ms"),
            Row::against(
                &format!("`castra status` of {MANY_VMS} VMs"),
                status_of_many,
                ("`castra --version`", version),
                "at most 50 ms",
            ),
            Row::alone("`castra --version`", version, "at most 5 ms"),
        ];
        rows.extend(warm::measure(self, plain_boot)?);
        Ok(rows)
    }

    /// The running VM's record under more names, which do not run.
    fn pretend_more_vms(&self) -> Result<(), String> {
        let vms = self.directory.join(".castra/vms");
        let vm = only_entry(&vms)?;
        let name = vm.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |error: std::io::Error| error.to_string();
        let record = fs::read_to_string(vm.join("vm.json")).map_err(failed)?;
        for another in (1..MANY_VMS).map(|number| format!("another-{number}")) {
            fs::create_dir(vms.join(&another)).map_err(failed)?;
            let record =
                record.replacen(&format!("\"name\": \"{name}\""), &format!("\"name\": \"{another}\""), 1);
            fs::write(vms.join(&another).join("vm.json"), record).map_err(failed)?;
        }
        Ok(())
    }

    fn up_and_first_command(&self) -> Result<Duration, String> {
        let started = Instant::now();
        self.castra.run(&["up", "--cold"])?;
        self.castra.run(&["exec", "--", "true"])?;
        Ok(started.elapsed())
    }

    /// Ends the VM and takes its disk away, so that the next boot is a first one.
    pub(super) fn forget_vm(&self) -> Result<(), String> {
        self.castra.run(&["down", "--force"])?;
        let state = self.directory.join(".castra");
        let entries = fs::read_dir(&state).map_err(|error| error.to_string())?.flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "qcow2") {
                fs::remove_file(path).map_err(|error| error.to_string())?;
            }
        }
        fs::remove_dir_all(state.join("vms")).map_err(|error| error.to_string())
    }

    /// The image that is here, as `castra.toml` names it.
    pub(super) fn image_key(&self) -> String {
        let image = only_entry(&self.directory.join(".castra/images")).unwrap_or_default();
        let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("managed_image = \"{name}\"")
    }

    fn clean_up(&self) -> Result<(), String> {
        self.castra.run(&["down", "--force"])?;
        fs::remove_dir_all(&self.directory).map_err(|error| error.to_string())
    }
}

/// The only directory of this shape: `images/<id>/<version>`.
pub(super) fn only_entry(directory: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let is_hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    directories
        .find(|path| !is_hidden(path))
        .ok_or_else(|| format!("there is nothing in {}", directory.display()))
}
