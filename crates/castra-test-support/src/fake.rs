//! Projects whose VMs are run by the stand-in for QEMU (`castra-fake-qemu`): everything is real but
//! the computer.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Deref;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{Project, fake_qemu_program, tool};

/// QEMU's machine protocol, as far as pressing the power button takes it.
const POWER_BUTTON: &str =
    "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n";

/// A project with an image of a few bytes.
pub struct Fake {
    project: Project,
}

impl Fake {
    /// Creates a project with VMs of these names and a cache of its own.
    pub fn new(vms: &[&str]) -> Self {
        Self::in_project(Project::isolated(), vms, "")
    }

    /// Creates a project with a cache that others use too.
    pub fn with_cache(cache: PathBuf, vms: &[&str]) -> Self {
        Self::in_project(Project::with_cache(cache), vms, "")
    }

    /// Creates a project with one VM that forwards this TCP port.
    pub fn with_port(vm: &str, host: u16) -> Self {
        let forward = format!("[[vms.port_forwards]]\nhost = {host}\nguest = 80\n");
        Self::in_project(Project::isolated(), &[vm], &forward)
    }

    fn in_project(mut project: Project, vms: &[&str], more: &str) -> Self {
        project.set("CASTRA_QEMU", fake_qemu_program());
        project.set("CASTRA_ACCELERATOR", "tcg");
        for directory in ["image", "fake-qemu"] {
            fs::create_dir(project.path().join(directory)).expect("a directory");
        }
        project.write("castra.toml", &configuration(&project.path().join("image"), vms, more));
        Self { project }
    }

    /// Sets an environment variable for all further runs of `castra`.
    pub fn set(&mut self, name: &'static str, value: impl Into<std::ffi::OsString>) {
        self.project.set(name, value);
    }

    /// Sets the faults of this VM's QEMU from now on; none if `words` is empty.
    pub fn behave(&self, vm: &str, words: &str) {
        self.write(&format!("fake-qemu/{vm}.words"), words);
    }

    /// Returns the journal of this VM's QEMUs, one line per action.
    pub fn journal(&self, vm: &str) -> String {
        fs::read_to_string(self.path().join(format!("fake-qemu/{vm}.journal"))).unwrap_or_default()
    }

    /// Returns the output of `castra status` for a VM.
    #[track_caller]
    pub fn status(&self, vm: &str) -> Value {
        let ended = self.run(&["status", "--json", vm]);
        let document: Value =
            serde_json::from_slice(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
        document["vms"][0].clone()
    }

    /// Returns the name of a VM's state.
    #[track_caller]
    pub fn state(&self, vm: &str) -> String {
        self.status(vm)["state"].as_str().expect("a state").to_owned()
    }

    /// Returns the path of a VM's record.
    pub fn record(&self, vm: &str) -> PathBuf {
        self.path().join(format!(".castra/vms/{vm}/vm.json"))
    }

    /// Changes a VM's record as another writer would have.
    pub fn edit_record(&self, vm: &str, edit: impl FnOnce(&mut Value)) {
        let mut record: Value =
            serde_json::from_slice(&fs::read(self.record(vm)).expect("a record")).expect("is JSON");
        edit(&mut record);
        fs::write(self.record(vm), record.to_string()).expect("writes");
    }

    /// Returns the disk's inode: another inode is another disk.
    pub fn disk(&self, vm: &str) -> Option<u64> {
        let overlay = self.path().join(format!(".castra/{vm}-overlay.qcow2"));
        fs::metadata(overlay).ok().map(|disk| disk.ino())
    }

    /// Returns `true` if the process in the pid file runs. The same question as castra's, asked in
    /// another way.
    pub fn lives(&self, vm: &str) -> bool {
        let pid = fs::read_to_string(self.pidfile(vm)).unwrap_or_default();
        let of_process =
            |name: &str| fs::read(format!("/proc/{}/{name}", pid.trim())).unwrap_or_default();
        let (command, stat) = (of_process("cmdline"), of_process("stat"));
        // The kernel takes the memory of a dying process, and its threads one by one, before it
        // frees its locks: until the last thread is gone the process counts as running.
        let is_dying = || {
            let stat = String::from_utf8_lossy(&stat);
            let threads =
                fs::read_dir(format!("/proc/{}/task", pid.trim())).map_or(0, Iterator::count);
            let is_gone = stat.contains(") Z ") && threads <= 1;
            command.is_empty() && stat.contains("(castra-fake-qem") && !is_gone
        };
        String::from_utf8_lossy(&command).contains(&*self.pidfile(vm).to_string_lossy())
            || is_dying()
    }

    /// Sends a signal to a VM's QEMU.
    pub fn signal(&self, vm: &str, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.qemu_pid(vm)).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("is ours");
    }

    /// Asks a VM's guest to shut down, unlike castra without a record of it.
    pub fn press_power_button(&self, vm: &str) {
        let record: Value =
            serde_json::from_slice(&fs::read(self.record(vm)).expect("a record")).expect("is JSON");
        let sockets = Path::new(record["boot"]["sockets"].as_str().expect("sockets"));
        let mut qmp = UnixStream::connect(sockets.join("qmp.sock")).expect("QEMU listens");
        qmp.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
        qmp.write_all(POWER_BUTTON.as_bytes()).expect("QEMU takes commands");
        let lines = BufReader::new(qmp).lines().map_while(Result::ok);
        // An answer to each command; QEMU may end before the last.
        let answers = lines.filter(|line| line.contains("\"return\"")).take(2).count();
        assert!(answers > 0, "QEMU does not answer");
    }

    /// Returns everything below the state root and the runtime directory that exists for a run
    /// only: sockets, pid files, temporary files.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let is_leftover = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_of_a_run = ["qemu.pid", "initramfs"].contains(&&*name)
                && path.components().any(|part| part.as_os_str() == "vms");
            // An image keeps what a killed castra was writing until that image is prepared again.
            let is_of_an_image = path.components().any(|part| part.as_os_str() == "images");
            let is_temporary = name.starts_with(".castra-") && !is_of_an_image;
            is_of_a_run || is_temporary || name.ends_with(".sock") || name.ends_with(".new")
        };
        let roots = [self.path().join(".castra"), self.runtime_directory()];
        roots.iter().flat_map(|root| files(root)).filter(is_leftover).collect()
    }
}

impl Deref for Fake {
    type Target = Project;

    fn deref(&self) -> &Project {
        &self.project
    }
}

fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        for path in
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
        {
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Returns a file with the header of an x86 kernel (Linux's `Documentation/arch/x86/boot.rst`).
fn kernel() -> Vec<u8> {
    let mut kernel = vec![0; 0x400];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel
}

/// Creates the image's files and describes them.
fn configuration(image: &Path, vms: &[&str], more: &str) -> String {
    let disk = image.join("disk.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", disk.to_str().expect("UTF-8"), "1M"]);
    fs::write(image.join("kernel"), kernel()).expect("writes");
    fs::write(image.join("initramfs"), "an initramfs").expect("writes");
    let mut text = "[images.tiny]\ncommand_line = \"console=ttyS0\"\n".to_owned();
    for (key, name) in [("rootfs", "disk.qcow2"), ("kernel", "kernel"), ("initramfs", "initramfs")]
    {
        let digest = Sha256::digest(fs::read(image.join(name)).expect("reads"));
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("[images.tiny.{key}]\npath = \"image/{name}\"\nsha256 = \"{digest}\"\n");
    }
    for vm in vms {
        text += &format!(
            "[[vms]]\nname = \"{vm}\"\nmanaged_image = \"tiny\"\nmemory = \"64 MiB\"\n{more}"
        );
    }
    text
}
