//! Brings the guest to rest for the moment whose memory becomes a template.
//!
//! The contents of the page cache can be read again from the disk, and would make every clone
//! larger. But what the first command of every clone needs is worth keeping: reading it from an
//! emulated disk costs more than everything else.

use std::io;

use crate::identity::Files;
use crate::kernel_fs::KernelFs;
use crate::log::log;
use crate::process::{Priority, image_program};
use crate::users::User;
use crate::{mounts, programs, secrets};

/// Frees the page cache, dentries and inodes (`Documentation/admin-guide/sysctl/vm.rst`).
const DROP_ALL: &str = "3";

/// Levels of the kernel's messages that the console shows (`Documentation/admin-guide/sysctl/
/// kernel.rst`), and the level at which it shows warnings and worse.
const PRINTK: &str = "sys/kernel/printk";
const WARNINGS: &str = "5";

/// ACPI event of QEMU's `vmgenid` device (`ACPI_VMGENID_CHANGE_STATUS` in its sources): the VM is a
/// copy. The file takes lines (`Documentation/ABI/testing/sysfs-firmware-acpi`), and an event that
/// comes while it is masked is handled once it is not any more.
const GENERATION_EVENT: &str = "firmware/acpi/interrupts/gpe05";

/// Arguments of first commands: the shell by itself, and as a login shell with its profile.
const SHELL: [&[&str]; 2] = [&["-c", "exec true"], &["-l", "-c", "exec true"]];

/// Guest at rest, as each VM of the template finds it.
#[derive(Debug)]
pub(crate) struct Rest {
    /// Set if the image's sshd was stopped and is to be started again in each VM.
    pub(crate) had_sshd: bool,
    pub(crate) identity_files: Files,
    pub(crate) calm: Calm,
}

/// State of a guest whose first command is about to run: the agent has priority, the kernel prints
/// only warnings to the console, since a serial console takes long for each character, and the
/// event that the VM is a copy waits. The kernel interprets the firmware's bytecode for it, which
/// costs an emulated CPU a fifth of the first command, to learn what the agent does by itself: it
/// reseeds the random number generator before any program can run.
#[derive(Debug)]
pub(crate) struct Calm {
    /// Content of [`PRINTK`] before, unless it cannot be changed.
    printk: Option<String>,
}

impl Calm {
    fn begin(kernel_fs: &KernelFs) -> Self {
        Priority::First.set(kernel_fs);
        // A machine without ACPI has no such event.
        let _ = kernel_fs.sys.write(GENERATION_EVENT, "mask\n");
        let before = kernel_fs.proc.read(PRINTK);
        let printk = before.ok().filter(|_| kernel_fs.proc.write(PRINTK, WARNINGS).is_ok());
        Self { printk }
    }

    /// Restores what it found.
    pub(crate) fn end(self, kernel_fs: &KernelFs) {
        Priority::Ordinary.set(kernel_fs);
        let _ = kernel_fs.sys.write(GENERATION_EVENT, "unmask\n");
        if let Some(before) = self.printk {
            // It could be changed before.
            let _ = kernel_fs.proc.write(PRINTK, &before);
        }
    }
}

/// Removes secrets that no two VMs may share, writes everything out, drops the caches, and reads in
/// what the first command will need.
pub(crate) fn come_to_rest(kernel_fs: &KernelFs) -> io::Result<Rest> {
    let had_sshd = secrets::forget(kernel_fs);
    // A mount of the host's must not wait for it.
    mounts::load_module(kernel_fs);
    // The blocks of new files get their places on the disk here.
    drop(Files::prepare());
    rustix::fs::sync();
    kernel_fs.proc.write("sys/vm/drop_caches", DROP_ALL)?;
    warm_up();
    let identity_files = Files::prepare();
    rustix::fs::sync();
    Ok(Rest { had_sshd, identity_files, calm: Calm::begin(kernel_fs) })
}

/// Does what starting the first command does, so that what it reads is in memory, and starts the
/// process in which that command will run.
fn warm_up() {
    let root = User::find("root").ok().flatten();
    if let Some(user) = &root {
        programs::look_up_all(user);
    }
    for arguments in SHELL {
        // An image without a shell has nothing to warm up.
        let _ = image_program("/bin/sh", arguments).status();
    }
    if let Some(Err(error)) = root.map(programs::prepare_spare) {
        log(format!("the first command will be slower: {error}"));
    }
}
