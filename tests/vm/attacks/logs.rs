//! Logs: a guest that floods its console fills no disk of this machine, whether its VM stays, is
//! thrown away or becomes a template.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use castra_engine::logs::QEMU_BYTES;
use castra_test_support::Project;
use castra_test_support::disks::alpine_with_service;

/// Command that writes four times as much as a log may hold.
const FLOOD: &str = "head -c 8388608 /dev/zero | tr '\\0' x >/dev/ttyS0";
/// Command that writes more than the logs of one VM may have at any time, and no more than that
/// takes: an emulated serial port is slow.
const SHORT_FLOOD: &str = "head -c 5242880 /dev/zero | tr '\\0' x >/dev/ttyS0";
/// Most bytes that a log may have between two checks, however busy the machine.
const MOST_BYTES: u64 = 2 * QEMU_BYTES;

/// Runs castra to its end. Returns the most bytes that any of the logs had meanwhile.
fn longest(mut castra: Child, logs: impl Fn(u32) -> Vec<PathBuf>) -> u64 {
    let mut longest = 0;
    loop {
        let lengths =
            logs(castra.id()).into_iter().filter_map(|log| Some(fs::metadata(log).ok()?.size()));
        longest = lengths.fold(longest, u64::max);
        if let Some(status) = castra.try_wait().expect("looked at") {
            assert!(status.success(), "{status}");
            return longest;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the console logs that the QEMUs of a castra have open, even those without a name.
fn open_consoles(castra: u32) -> Vec<PathBuf> {
    let is_child = |process: &Path| {
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(castra.to_string().as_str())
    };
    let processes = fs::read_dir("/proc").expect("proc").flatten().map(|entry| entry.path());
    let descriptors = processes.filter(|process| is_child(process)).flat_map(|process| {
        fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path())
    });
    let is_console = |descriptor: &PathBuf| {
        fs::read_link(descriptor)
            .is_ok_and(|target| target.to_string_lossy().contains("console.log"))
    };
    descriptors.filter(is_console).collect()
}

#[test]
fn flooded_console_of_a_vm_stays_within_its_bound() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let logs = project.path().join(".castra/logs");
    let flood = project.castra(&["exec", "--", "sh", "-c", FLOOD]).spawn().expect("started");
    let consoles = || -> Vec<PathBuf> {
        let paths = fs::read_dir(&logs).expect("there").flatten().map(|entry| entry.path());
        paths.filter(|path| path.to_string_lossy().contains("-console.log")).collect()
    };
    let longest = longest(flood, |_| consoles());
    assert!(longest > QEMU_BYTES / 2, "the console was flooded: {longest}");
    assert!(longest <= MOST_BYTES, "{longest} bytes");
    // Its end is there, before and after the rotation.
    project.run(&["exec", "--", "sh", "-c", "echo last words >/dev/ttyS0"]).ok();
    let shown = project.run(&["logs"]).ok().text();
    assert!(shown.contains("xxxxxxxx") && shown.contains("last words"), "{} bytes", shown.len());
    let kept: u64 = consoles().iter().map(|path| fs::metadata(path).expect("there").len()).sum();
    assert!(kept <= MOST_BYTES + QEMU_BYTES, "{kept} bytes");
}

#[test]
fn flooded_console_of_a_template_and_of_a_vm_that_is_thrown_away_stay_within_their_bounds() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = alpine_with_service(SHORT_FLOOD, directory.path());
    let project = Project::isolated();
    let vm = "[[vms]]\nname = \"vm\"\nmanaged_image = { name = \"flooder\", version = \"v1\" }\n";
    project.write("castra.toml", &format!("{}{vm}", image.described_as("flooder")));
    let run = |command| {
        let arguments =
            ["run", "--image", "flooder", "--memory", "512 MiB", "--", "sh", "-c", command];
        let castra = project.castra(&arguments).spawn().expect("started");
        longest(castra, open_consoles)
    };
    // The first run makes the template, in which the image's service floods the console; in the
    // second, the command does.
    for longest in [run("true"), run(SHORT_FLOOD)] {
        assert!(longest > QEMU_BYTES / 2, "the console was flooded: {longest}");
        assert!(longest <= MOST_BYTES, "{longest} bytes");
    }
}
