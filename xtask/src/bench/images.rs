//! Benchmarks of images: from a server on this machine into a project, compared with a shell; and
//! the cost of existing images.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::castra::Castra;
use super::disk::make_vhd;
use super::plain::helper;
use super::server::Server;
use super::table::{Row, median};
use crate::run::root;

/// Number of pulls of each kind, alternating.
const PULLS: usize = 7;
/// Number of runs of commands that take milliseconds.
const QUICK_RUNS: usize = 50;
/// Number of images in a well-filled cache.
const MANY: usize = 200;

/// Shell commands with the same effect.
const SHELL: &str = "curl -sSf -o disk.vhd \"$URL\" && echo \"$SHA256  disk.vhd\" | sha256sum -c \
    --quiet - && truncate -s -512 disk.vhd && qemu-img convert -f raw -O qcow2 disk.vhd \
    rootfs.qcow2";

/// Measures in a directory of its own, which is removed afterwards.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    let directory = root().join("target/bench-images");
    remove(&directory)?;
    let rows = Bench::new(&directory).and_then(|bench| bench.measure());
    remove(&directory)?;
    rows
}

struct Bench {
    server: Server,
    sha256: String,
    project: PathBuf,
    cache: PathBuf,
    shell: PathBuf,
    many: PathBuf,
}

impl Bench {
    fn new(directory: &Path) -> Result<Self, String> {
        let vhd = directory.join("disk.vhd");
        let sha256 = make_vhd(&directory.join("maker"), &vhd)?;
        let server = Server::of(&vhd).map_err(|error| error.to_string())?;
        let at = |name: &str| directory.join(name);
        let (project, cache, shell, many) = (at("project"), at("cache"), at("shell"), at("many"));
        fs::create_dir(&project).map_err(|error| error.to_string())?;
        let length = fs::metadata(&vhd).map_err(|error| error.to_string())?.len();
        let configuration = configuration(&server.url("disk.vhd"), &sha256, length);
        fs::write(project.join("castra.toml"), configuration).map_err(|error| error.to_string())?;
        Ok(Self { server, sha256, project, cache, shell, many })
    }

    fn measure(&self) -> Result<Vec<Row>, String> {
        let (mut by_shell, mut by_castra) = (Vec::new(), Vec::new());
        for _ in 0..PULLS {
            by_shell.push(self.pull_by_shell()?);
            by_castra.push(self.pull_by_castra()?);
        }
        self.forget()?;
        let peak = self.castra().peak_memory(&["image", "pull"])?;
        let cached = self.castra().median(QUICK_RUNS, &["image", "pull"])?;
        let version = self.castra().median(QUICK_RUNS, &["--version"])?;
        self.fill_cache()?;
        let among_many = self.castra().median(QUICK_RUNS, &["image", "pull"])?;
        Ok(vec![
            Row::against(
                "`castra image pull` of a VHD",
                median(by_castra),
                ("`curl`, `sha256sum`, `truncate`, `qemu-img convert`", median(by_shell)),
                "at most 1.00",
            ),
            Row::of("its peak memory", format!("{:.1} MiB", mebibytes(peak)), "at most 64 MiB"),
            Row::alone(
                "an image that is there, beyond `castra --version`",
                cached.saturating_sub(version),
                "at most 10 ms",
            ),
            Row::against(
                &format!("the same among {MANY} images"),
                among_many,
                ("among none", cached),
                "at most 1.00, but for chance",
            ),
        ])
    }

    fn castra(&self) -> Castra {
        Castra::in_directory(&self.project).with_cache(&self.cache)
    }

    /// Removes everything cached, and waits until the writes of an earlier run have reached the
    /// disk.
    fn forget(&self) -> Result<(), String> {
        for directory in [&self.cache, &self.shell, &self.project.join(".castra")] {
            remove(directory)?;
        }
        fs::create_dir(&self.shell).map_err(|error| error.to_string())?;
        helper("sync", &[]).map(drop)
    }

    fn pull_by_castra(&self) -> Result<Duration, String> {
        self.forget()?;
        self.castra().time(&["image", "pull"])
    }

    fn pull_by_shell(&self) -> Result<Duration, String> {
        self.forget()?;
        let mut command = Command::new("sh");
        command.args(["-c", SHELL]).current_dir(&self.shell);
        command.env("URL", self.server.url("disk.vhd")).env("SHA256", &self.sha256);
        let started = Instant::now();
        match command.status() {
            Ok(status) if status.success() => Ok(started.elapsed()),
            Ok(status) => Err(format!("the shell's pull failed ({status})")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Puts many small images into the cache, from another project.
    fn fill_cache(&self) -> Result<(), String> {
        fs::create_dir(&self.many).map_err(|error| error.to_string())?;
        let disk = self.many.join("small.qcow2");
        helper("qemu-img", &["create", "-q", "-f", "qcow2", &disk.to_string_lossy(), "1M"])?;
        let sum = helper("sha256sum", &[&disk.to_string_lossy()])?;
        let sha256 = sum.split_whitespace().next().unwrap_or_default();
        let mut configuration = "[[vms]]\nname = \"vm\"\nmanaged_image = \"small-0\"\n".to_owned();
        let names: Vec<String> = (0..MANY).map(|number| format!("small-{number}")).collect();
        for name in &names {
            // Writing to a String cannot fail.
            let _ = writeln!(
                configuration,
                "[images.{name}]\nrootfs = {{ path = \"small.qcow2\", sha256 = \"{sha256}\" }}"
            );
        }
        fs::write(self.many.join("castra.toml"), configuration)
            .map_err(|error| error.to_string())?;
        let names = names.iter().map(String::as_str);
        let arguments: Vec<&str> = ["image", "pull"].into_iter().chain(names).collect();
        Castra::in_directory(&self.many).with_cache(&self.cache).run(&arguments)
    }
}

fn remove(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Returns a configuration of an image made like the official one, and of a VM that uses it.
fn configuration(url: &str, sha256: &str, length: u64) -> String {
    format!(
        r#"
[images.official]
command_line = "root=/dev/vda"

[images.official.rootfs]
url = "{url}"
sha256 = "{sha256}"
size = {length}
pipeline = ["strip-vhd-footer", {{ convert = {{ from = "raw", to = "qcow2" }} }}]

[images.official.kernel]
pipeline = ["strip-vhd-footer", {{ extract-file = "/boot/vmlinuz-virt" }}]

[images.official.initramfs]
pipeline = ["strip-vhd-footer", {{ extract-file = "/boot/initramfs-virt" }}]

[[vms]]
name = "vm"
managed_image = "official"
"#
    )
}
