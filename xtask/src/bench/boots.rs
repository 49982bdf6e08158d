//! Benchmarks of boots, and of the commands around them.

use std::fs;
use std::time::{Duration, Instant};

use super::common::{Bench, only_entry};
use super::plain::PlainBoot;
use super::table::{Row, median};
use super::warm;

/// Number of cold boots of each kind. A pair takes half a minute.
const BOOTS: usize = 3;
/// Number of VMs that `status` lists at once.
const MANY_VMS: usize = 50;
/// Number of runs of commands that take milliseconds.
const QUICK_RUNS: usize = 50;

/// Measures with VMs of one directory.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    Bench::within("bench", Bench::measure)
}

impl Bench {
    fn measure(&self) -> Result<Vec<Row>, String> {
        // The first start fetches the image, so that the measured ones need not.
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

    /// Copies the running VM's record to more names, which do not run.
    fn pretend_more_vms(&self) -> Result<(), String> {
        let vms = self.directory.join(".castra/vms");
        let vm = only_entry(&vms)?;
        let name = vm.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let failed = |error: std::io::Error| error.to_string();
        let record = fs::read_to_string(vm.join("vm.json")).map_err(failed)?;
        for another in (1..MANY_VMS).map(|number| format!("another-{number}")) {
            fs::create_dir(vms.join(&another)).map_err(failed)?;
            let record = record.replacen(
                &format!("\"name\": \"{name}\""),
                &format!("\"name\": \"{another}\""),
                1,
            );
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
}
