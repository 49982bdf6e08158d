//! Rules of boot loaders, with the files as distributions lay them out.

use std::fs;
use std::path::{Path, PathBuf};

use castra_disk::{Kind, NoSystem, Place, Rule, System};

use crate::made::{self, GPT, INITRAMFS, KERNEL, UUID, VERSION};

/// A disk in the making.
struct Layout {
    directory: tempfile::TempDir,
}

impl Layout {
    /// Makes the files of a system.
    fn new() -> Self {
        let layout = Self { directory: tempfile::tempdir().expect("a directory") };
        made::system(&layout.root());
        layout
    }

    /// Directory with the files of the root filesystem.
    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Directory with the files of another filesystem.
    fn other(&self) -> PathBuf {
        let other = self.directory.path().join("other");
        fs::create_dir_all(&other).expect("a directory");
        other
    }

    /// Writes a file and the directories above it.
    fn write(&self, path: &Path, content: impl AsRef<[u8]>) -> &Self {
        fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
        fs::write(path, content).expect("written");
        self
    }

    /// Moves the kernel and its initramfs to the other filesystem's top.
    fn move_kernel(&self) -> &Self {
        for path in [KERNEL, INITRAMFS] {
            let name = path.strip_prefix("boot/").expect("in /boot");
            fs::rename(self.root().join(path), self.other().join(name)).expect("moved");
        }
        self
    }

    /// Finds the system on the root filesystem alone.
    fn find(&self) -> Result<System, NoSystem> {
        let image = made::filesystem(Kind::Ext4, &self.root(), &self.directory.path().join("ext4"));
        made::disk(&image).find_system()
    }

    /// Finds the system on a disk with both filesystems.
    fn find_on_both(&self, kind: Kind) -> Result<System, NoSystem> {
        let at = |name: &str| self.directory.path().join(name);
        let root = made::filesystem(Kind::Xfs, &self.root(), &at("xfs"));
        let other = made::filesystem(kind, &self.other(), &at("other.image"));
        let disk = made::partitioned(GPT, &[&other, &root], &at("disk"));
        made::disk(&disk).find_system()
    }

    /// Expects the system's own kernel, found by this rule.
    #[track_caller]
    fn expect(&self, found: Result<System, NoSystem>, rule: Rule, options: &str) -> System {
        let system = found.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((system.rule, system.command_line.as_str()), (rule, options));
        assert!(system.kernel == made::kernel(VERSION), "the kernel");
        assert!(
            system.initramfs.ends_with(&castra_test_support::noise(3_000_001)),
            "the initramfs"
        );
        assert_eq!(system.os.id, "debian");
        system
    }
}

fn grub_entry(path: &str, options: &str) -> String {
    format!(
        "set default=0\nmenuentry 'Debian' {{\n search --no-floppy --fs-uuid --set=root {UUID}\n \
        linux {path}vmlinuz-{VERSION} {options}\n initrd {path}initrd.img-{VERSION}\n}}\n"
    )
}

#[test]
fn grub_is_read_from_the_root() {
    let layout = Layout::new();
    let config = grub_entry("/boot/", &format!("root=UUID={UUID} ro quiet"));
    layout.write(&layout.root().join("boot/grub/grub.cfg"), config);
    let options = format!("root=UUID={UUID} ro quiet");
    let system = layout.expect(layout.find(), Rule::Grub, &options);
    assert_eq!(system.entry, "Debian in /boot/grub/grub.cfg");
    assert_eq!(system.kernel_version.as_deref(), Some(VERSION));
}

#[test]
fn grub_is_read_from_a_separate_boot() {
    let layout = Layout::new();
    layout.move_kernel();
    let config = grub_entry("/", "root=/dev/vda2 ro");
    layout.write(&layout.other().join("grub/grub.cfg"), config);
    let system = layout.expect(layout.find_on_both(Kind::Ext2), Rule::Grub, "root=/dev/vda2 ro");
    assert_eq!(system.root.place, Place::Partition(2));
}

#[test]
fn an_entry_whose_files_are_gone_is_passed_over() {
    let layout = Layout::new();
    let gone = "menuentry 'gone' { \n linux /boot/vmlinuz-9 ro\n initrd /boot/initrd-9\n}\n";
    let config = gone.to_owned() + &grub_entry("/boot/", "root=/dev/vda ro");
    layout.write(&layout.root().join("boot/grub2/grub.cfg"), config);
    layout.expect(layout.find(), Rule::Grub, "root=/dev/vda ro");
}

#[test]
fn an_entry_that_names_no_root_gets_the_one_that_was_found() {
    let layout = Layout::new();
    for (options, expected) in [
        ("ro quiet", format!("root=UUID={UUID} ro quiet")),
        ("root= ro -- single", format!("root=UUID={UUID} ro -- single")),
        ("", format!("root=UUID={UUID} ")),
    ] {
        let config = grub_entry("/boot/", options);
        layout.write(&layout.root().join("boot/grub/grub.cfg"), config);
        layout.expect(layout.find(), Rule::Grub, expected.trim());
    }
}

fn bls_entry(version: &str, options: &str) -> String {
    format!(
        "title Fedora\nversion {version}\nlinux /vmlinuz-{version}\ninitrd \
        /initrd.img-{version} $tuned_initrd\noptions {options}\n"
    )
}

#[test]
fn loader_entries_of_a_separate_boot_are_read() {
    let layout = Layout::new();
    layout.move_kernel();
    let boot = layout.other();
    let entry = |name: &str| boot.join(format!("loader/entries/{name}.conf"));
    layout
        .write(&entry("m-6.1.0-13-test"), bls_entry(VERSION, "$kernelopts quiet"))
        .write(&entry("m-6.2"), bls_entry("6.2", "ro"))
        .write(&entry("m-0-rescue"), bls_entry("0-rescue", "ro"))
        .write(&boot.join("grub2/grub.cfg"), "set kernelopts=\"root=/dev/vda2 ro\"\nblscfg\n")
        .write(&boot.join("vmlinuz-0-rescue"), "rescue")
        .write(&boot.join("initrd.img-0-rescue"), "rescue");
    // The newest one has no files, so the next one is taken.
    let rule = Rule::BootLoaderSpecification;
    let options = format!("root=UUID={UUID} quiet");
    layout.expect(layout.find_on_both(Kind::Ext4), rule, &options);
    let saved = "# GRUB Environment Block\nsaved_entry=m-0-rescue\nkernelopts=root=/dev/vda2 ro\n";
    layout.write(&boot.join("grub2/grubenv"), saved);
    let found = layout.find_on_both(Kind::Ext4).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((found.entry.as_str(), found.kernel), ("m-0-rescue", b"rescue".to_vec()));
    let saved = saved.replace("0-rescue", "6.1.0-13-test");
    layout.write(&boot.join("grub2/grubenv"), saved);
    layout.expect(layout.find_on_both(Kind::Ext4), rule, "root=/dev/vda2 ro quiet");
}

#[test]
fn extlinux_is_read_with_paths_next_to_it() {
    let layout = Layout::new();
    fs::write(layout.root().join("boot/ucode.img"), "code!").expect("written");
    let config = format!(
        "DEFAULT virt\nLABEL virt\n  LINUX vmlinuz-{VERSION}\n  INITRD \
        ucode.img,initrd.img-{VERSION}\n  APPEND root=UUID={UUID} modules=ext4\n"
    );
    layout.write(&layout.root().join("boot/extlinux.conf"), config);
    let options = format!("root=UUID={UUID} modules=ext4");
    let system = layout.expect(layout.find(), Rule::Extlinux, &options);
    assert!(system.initramfs.starts_with(b"code!\0\0\0"), "padded to four bytes");
    assert_eq!(system.initramfs.len(), 8 + 3_000_001);
}

#[test]
fn unified_kernel_images_are_taken_apart() {
    let layout = Layout::new();
    let read = |path: &str| fs::read(layout.root().join(path)).expect("read");
    let (kernel, initramfs) = (read(KERNEL), read(INITRAMFS));
    let image = made::unified(&[
        (".osrel", b"ID=other\n"),
        (".cmdline", b"root=PARTUUID=x rw\n\0"),
        (".uname", b"6.1.0-13-test"),
        (".initrd", &initramfs),
        (".linux", &kernel),
    ]);
    let esp = layout.other();
    layout
        .move_kernel()
        .write(&esp.join("EFI/Linux/debian-6.1.efi"), image)
        .write(&esp.join("EFI/Linux/debian-6.9.efi"), "MZ, and nothing else");
    for name in ["vmlinuz-6.1.0-13-test", "initrd.img-6.1.0-13-test"] {
        fs::remove_file(esp.join(name)).expect("removed");
    }
    let found = layout.find_on_both(Kind::Vfat);
    layout.expect(found, Rule::UnifiedKernelImage, "root=PARTUUID=x rw");
}

#[test]
fn what_is_missing_is_said() {
    let layout = Layout::new();
    fs::remove_file(layout.root().join(INITRAMFS)).expect("removed");
    layout.write(&layout.root().join("boot/grub/grub.cfg"), grub_entry("/boot/", "ro"));
    let error = layout.find().err().expect("no system").to_string();
    let expected = format!(
        "no Linux system that can be booted was found on the disk: the whole disk: ext4 with \
        Debian 12; GRUB's configuration Debian in /boot/grub/grub.cfg: /boot/initrd.img-{VERSION} \
        does not exist"
    );
    assert_eq!(error, expected);
    fs::remove_file(layout.root().join("boot/grub/grub.cfg")).expect("removed");
    let error = layout.find().err().expect("no system").to_string();
    assert!(error.ends_with("ext4 with Debian 12; it has no kernel with an initramfs"), "{error}");
    fs::remove_file(layout.root().join("usr/lib/os-release")).expect("removed");
    layout.write(&layout.root().join(INITRAMFS), "x");
    let error = layout.find().err().expect("no system").to_string();
    assert!(error.ends_with("its root filesystem is not there"), "{error}");
}
