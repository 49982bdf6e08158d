//! `cargo xtask disks`: real systems on real disks, built from the distribution's own packages and
//! read back.
//!
//! `xtask/disks/*.recipe` say what each is. A disk is kept in `target/disks/NAME` until its recipe,
//! or what builds it, changes.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use castra_disk::{Disk, Format, Image, Layer, Limits, NoSystem, System};
use sha2::{Digest, Sha256};

use crate::run::{output, root, run_command};
use crate::tools;

/// Disks of the tests that are in every run.
const FOR_TESTS: [&str; 3] = ["bookworm-ext4", "bookworm-bios", "trixie-xfs"];

/// Builds the disks of the tests that are in every run, at once. Tests report a disk that is
/// missing, because this user is not root.
pub(crate) fn build_for_tests() -> Result<(), String> {
    if !is_root() {
        return Ok(());
    }
    std::thread::scope(|scope| {
        let builds = FOR_TESTS.map(|name| scope.spawn(move || build(name).map(drop)));
        let ended = builds.map(|build| build.join().unwrap_or_else(|_| Err("it panicked".into())));
        ended.into_iter().collect()
    })
}

/// Builds the named disks, or all of them, and checks what castra reads from each.
pub(crate) fn build_disks(names: &[String]) -> Result<(), String> {
    tools::ensure_for_tests()?;
    let recipes = recipes()?;
    if let Some(name) = names.iter().find(|name| !recipes.contains(name)) {
        return Err(format!("no disk is named {name}; there are {}", recipes.join(", ")));
    }
    for name in recipes.iter().filter(|name| names.is_empty() || names.contains(name)) {
        let directory = build(name)?;
        check(name, &directory)?;
    }
    Ok(())
}

/// Returns the names of all recipes.
fn recipes() -> Result<Vec<String>, String> {
    let names = sources()?.into_iter().filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(".recipe")?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

/// Returns the files of `xtask/disks`, sorted.
fn sources() -> Result<Vec<PathBuf>, String> {
    let directory = root().join("xtask/disks");
    let failed = |error| format!("{}: {error}", directory.display());
    let entries = fs::read_dir(&directory).map_err(failed)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Builds a disk unless it is there. Returns its directory.
pub(crate) fn build(name: &str) -> Result<PathBuf, String> {
    let directory = root().join("target/disks").join(name);
    let failed = |error| format!("{}: {error}", directory.display());
    fs::create_dir_all(&directory).map_err(failed)?;
    // Another run may build the same disk.
    let lock = File::create(directory.join("lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    let recipe = root().join(format!("xtask/disks/{name}.recipe"));
    let (key, key_file) = (key_of(&recipe)?, directory.join("key"));
    if fs::read_to_string(&key_file).is_ok_and(|built| built == key) {
        return Ok(directory);
    }
    if !is_root() {
        return Err("only root can build a disk: its files belong to many users".to_owned());
    }
    let mut build = Command::new("sh");
    build.arg(root().join("xtask/disks/build.sh")).arg(&recipe).arg(&directory);
    // It finds programs for administrators there, also without a login.
    let path = std::env::var("PATH").unwrap_or_default();
    build.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    run_command(&mut build)?;
    // Written last: an interrupted build has none.
    fs::write(key_file, key).map_err(failed)?;
    Ok(directory)
}

fn is_root() -> bool {
    output("id", &["-u"]).is_some_and(|user| user.trim() == "0")
}

/// Returns the digest of a recipe with everything that builds it.
fn key_of(recipe: &Path) -> Result<String, String> {
    let mut digest = Sha256::new();
    for path in sources()? {
        if path == recipe || path.extension().is_none_or(|extension| extension != "recipe") {
            digest.update(fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?);
        }
    }
    Ok(hex(&digest.finalize()))
}

/// Facts about a disk that its builder wrote down.
struct Facts(String);

impl Facts {
    fn get(&self, name: &str) -> Option<&str> {
        let mut facts = self.0.lines().filter_map(|line| line.split_once('='));
        facts.find(|(own, _)| *own == name).map(|(_, value)| value)
    }
}

/// Reads a disk through an overlay, and compares with what its builder wrote down.
#[expect(clippy::print_stdout, reason = "a command line tool talks to its user")]
fn check(name: &str, directory: &Path) -> Result<(), String> {
    let facts = directory.join("facts");
    let facts = fs::read_to_string(&facts).map_err(|e| format!("{}: {e}", facts.display()))?;
    let facts = Facts(facts);
    let overlay = tempfile::tempdir().map_err(|error| format!("a directory: {error}"))?;
    let (base, overlay) = (directory.join("disk.qcow2"), overlay.path().join("overlay.qcow2"));
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&base).arg(&overlay);
    run_command(&mut create)?;
    let start = Instant::now();
    let disk = open(&[&overlay, &base])?;
    let opened = start.elapsed();
    let found = disk.find_system();
    let read = start.elapsed();
    let report = match (&found, facts.get("kernel")) {
        (Ok(system), Some(_)) => compare(system, &facts)?,
        (Err(NoSystem { .. }), None) => "no kernel, as it should be\n".to_owned(),
        (Ok(system), None) => return Err(format!("{name}: a kernel by {}", system.rule)),
        (Err(error), Some(_)) => return Err(format!("{name}: {error}")),
    };
    print!("{name}: opened in {}, read in {}\n{report}", ms(opened), ms(read));
    Ok(())
}

fn open(layers: &[&Path]) -> Result<Disk, String> {
    let layers = layers.iter().map(|path| {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Layer { file, format: Format::Qcow2 })
    });
    let layers = layers.collect::<Result<Vec<_>, String>>()?;
    let image = Image::open(layers).map_err(|error| error.to_string())?;
    Disk::open(image, Limits::default()).map_err(|error| error.to_string())
}

/// Compares a system with the facts. Returns a description.
fn compare(system: &System, facts: &Facts) -> Result<String, String> {
    let (kernel, initramfs) = (digest(&system.kernel), digest(&system.initramfs));
    let subvolume = system.root.subvolume.as_deref().unwrap_or_default();
    let kind = system.root.identity.kind.name();
    let read = [
        ("kernel", kernel.as_str()),
        ("initramfs", initramfs.as_str()),
        ("version", system.kernel_version.as_deref().unwrap_or_default()),
        ("filesystem", kind),
        ("subvolume", subvolume),
    ];
    for (name, value) in read {
        if facts.get(name) != Some(value) {
            return Err(format!("{name} is {value}, not {}", facts.get(name).unwrap_or("there")));
        }
    }
    let mut report = String::new();
    let _ = writeln!(report, "  by {}: {}", system.rule, system.entry);
    let _ = writeln!(report, "  root: {kind} on {} {subvolume}", system.root.place);
    let _ = writeln!(report, "  command line: {}", system.command_line);
    let (kernel, initramfs) = (system.kernel.len() >> 20, system.initramfs.len() >> 20);
    let _ = writeln!(report, "  kernel: {kernel} MiB, initramfs: {initramfs} MiB");
    Ok(report)
}

fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
