//! The baseline: the same QEMU, machine and image, booted without Castra until its last getty
//! prompts for a login.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common::only_entry;

/// Time after which a plain boot counts as hung.
const LIMIT: Duration = Duration::from_secs(180);

/// A getty on the console, started after all others, so that its prompt marks the end of the boot.
const GETTY: &str = "ttyS0::respawn:/sbin/getty -L 115200 ttyS0 vt100\n";

/// Parameters of a plain boot.
pub(super) struct PlainBoot {
    program: PathBuf,
    arguments: Vec<String>,
    base: PathBuf,
    overlay: PathBuf,
}

impl PlainBoot {
    /// Takes QEMU's arguments from the VM that runs in `directory`, without those that only Castra
    /// needs.
    pub(super) fn like_the_running_vm(directory: &Path) -> Result<Self, String> {
        let state = directory.join(".castra");
        let vm = only_entry(&state.join("vms"))?;
        let image = only_entry(&only_entry(&state.join("images"))?)?;
        let (program, words) = command_line_of(&vm)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (base, overlay) = (directory.join("plain.raw"), directory.join("plain.qcow2"));
        make_base(&image.join("rootfs.qcow2"), &base)?;
        let arguments = plain_arguments(&words, &image.join("initramfs"), &overlay);
        Ok(Self { program, arguments, base, overlay })
    }

    /// Boots a fresh disk and returns the time until the last getty's prompt.
    pub(super) fn to_last_getty(&self) -> Result<Duration, String> {
        let (base, overlay) = (self.base.to_string_lossy(), self.overlay.to_string_lossy());
        helper(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &base, &overlay, "10G"],
        )?;
        let started = Instant::now();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut qemu = command.spawn().map_err(|error| error.to_string())?;
        let pid = qemu.id().to_string();
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        // Without this guard, a guest that falls silent would be waited for for ever.
        let guard = std::thread::spawn(move || {
            if is_over.recv_timeout(LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").arg(pid).status();
            }
        });
        let seen = wait_for_prompt(&mut qemu, started);
        drop(over);
        let _ = guard.join();
        // The measurement is over.
        let _ = qemu.kill();
        let _ = qemu.wait();
        fs::remove_file(&self.overlay).map_err(|error| error.to_string())?;
        seen
    }
}

fn wait_for_prompt(qemu: &mut Child, started: Instant) -> Result<Duration, String> {
    let Some(mut console) = qemu.stdout.take() else { return Err("QEMU has no stdout".into()) };
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match console.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => said.extend_from_slice(&chunk[..count]),
        }
        if said.windows(7).any(|window| window == b"login: ") {
            return Ok(started.elapsed());
        }
    }
    Err(format!("the plain boot came to no login prompt:\n{}", String::from_utf8_lossy(&said)))
}

/// Makes the image's disk with one more getty, as a raw file.
fn make_base(image: &Path, base: &Path) -> Result<(), String> {
    let (image, raw) = (image.to_string_lossy(), base.to_string_lossy());
    helper("qemu-img", &["convert", "-O", "raw", &image, &raw])?;
    let inittab = helper("debugfs", &["-R", "cat /etc/inittab", &raw])?;
    let edited = base.with_extension("inittab");
    fs::write(&edited, format!("{inittab}\n{GETTY}")).map_err(|error| error.to_string())?;
    helper("debugfs", &["-w", "-R", "rm /etc/inittab", &raw])?;
    helper("debugfs", &["-w", "-R", &format!("write {} /etc/inittab", edited.display()), &raw])?;
    Ok(())
}

/// Returns each option with its value, except for the sockets, the sandbox and the agent.
pub(super) fn plain_arguments(words: &[&str], initramfs: &Path, overlay: &Path) -> Vec<String> {
    let mut plain = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(option) = words.next() {
        let value = words.next_if(|next| !next.starts_with('-')).copied();
        if let Some(value) = plain_value(option, value.unwrap_or(""), initramfs, overlay) {
            plain.push((*option).to_owned());
            plain.extend(Some(value).filter(|value| !value.is_empty()));
        }
    }
    plain
}

/// Returns the value of an option in a plain boot; `None` if the option does not belong there.
fn plain_value(option: &str, value: &str, initramfs: &Path, overlay: &Path) -> Option<String> {
    match option {
        "-pidfile" | "-mon" => None,
        "-chardev" => match chardev(value) {
            "qmp" => None,
            "console" => Some("stdio,id=console".into()),
            id => Some(format!("null,id={id}")),
        },
        "-initrd" => Some(initramfs.to_string_lossy().into_owned()),
        "-append" => Some(
            value
                .split(' ')
                .filter(|word| !word.starts_with("rdinit="))
                .collect::<Vec<_>>()
                .join(" "),
        ),
        "-netdev" => Some("user,id=net".into()),
        "-blockdev" => disk_value(value, overlay),
        _ => Some(value.to_owned()),
    }
}

/// Returns the name of a character device, from its option's value.
pub(super) fn chardev(value: &str) -> &str {
    value.split(',').find_map(|part| part.strip_prefix("id=")).unwrap_or_default()
}

/// Returns the value of the disk's option. Castra names every file of a backing chain; without
/// Castra, QEMU is given the uppermost and finds the others.
pub(super) fn disk_value(value: &str, overlay: &Path) -> Option<String> {
    let disk = "driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename=";
    value.contains("node-name=disk-file,").then(|| format!("{disk}{}", overlay.display()))
}

/// Returns the program and the arguments of the QEMU that runs the VM of this directory.
pub(super) fn command_line_of(vm: &Path) -> Result<(PathBuf, Vec<String>), String> {
    let pid = fs::read_to_string(vm.join("qemu.pid")).map_err(|error| error.to_string())?;
    let process = PathBuf::from("/proc").join(pid.trim());
    let command_line = fs::read(process.join("cmdline")).map_err(|error| error.to_string())?;
    let program = fs::read_link(process.join("exe")).map_err(|error| error.to_string())?;
    let words = String::from_utf8_lossy(&command_line).into_owned();
    Ok((program, words.trim_end_matches('\0').split('\0').skip(1).map(str::to_owned).collect()))
}

/// Runs a program of the system's and returns its output.
pub(super) fn helper(program: &str, arguments: &[&str]) -> Result<String, String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
