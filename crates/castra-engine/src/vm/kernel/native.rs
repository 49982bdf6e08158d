//! Boots by a disk's own boot loader: the firmware that starts it, and the ways in which the guest
//! gets to know the login key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use castra_disk::{Inspection, InstalledSystem, RootKeys, UefiLoader};

use crate::config::{BaseImageSource, BootProfile, Firmware, VmDefinition};
use crate::context::RuntimeContext;
use crate::files::write_atomically;
use crate::guest::{CREDENTIALS_SYSTEMD, Seed, VmKeys, oem_strings, seed_disk};
use crate::layout::VmLayout;
use crate::qemu::options::UserArguments;
use crate::qemu::{
    Boot, Layer, LayerFormat, NativeBoot, QCOW2_MAGIC, Qcow2Header, QemuBinary, UefiFirmware,
    UefiFlash, Unbootable,
};
use crate::report::Event;
use crate::sanitize::sanitize_text;
use crate::trusted;
use crate::vm::disk::{Image as ManagedImage, check_boot_code};
use crate::vm::error::{FileAction, VmDiskError, VmError, VmIoError};
use crate::vm::hostname::hostname;
use crate::vm::record::{NativeRecord, SshServer};

use super::OwnSeed;
use super::own_disk::OwnDisk;

/// Largest file of variables; QEMU maps no more than 8 MiB of flash.
const MAX_VARIABLES_BYTES: u64 = 8 << 20;

/// A boot by the disk's own boot loader.
#[derive(Debug)]
pub(in crate::vm) struct Native {
    vm: String,
    firmware: Firmware,
    /// Reason for the firmware.
    reason: String,
    /// Installed UEFI firmware, if that is the one.
    uefi: Option<UefiFirmware>,
    /// Data of the user's for cloud-init.
    cloud_init: Option<Seed>,
    login: Login,
}

impl Native {
    /// Chooses firmware and login for this disk.
    ///
    /// # Errors
    /// [`VmDiskError::Unbootable`], [`crate::qemu::QemuError::NoUefi`], errors of reading the data
    /// for cloud-init, or [`VmError::Interrupted`].
    pub(super) fn of_disk(
        definition: &VmDefinition,
        image: Option<&ManagedImage>,
        disk: &OwnDisk<'_>,
        context: &RuntimeContext,
    ) -> Result<Self, VmError> {
        let inspection = disk.inspect()?;
        let (firmware, reason) = choose(definition, inspection.as_ref());
        check_loader(definition, firmware, inspection.as_ref(), disk.path, context)?;
        let uefi = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(find_uefi(image, None, context)?),
        };
        let system = inspection.and_then(|inspection| inspection.system);
        let cloud_init = OwnSeed::of(definition)?.map(|own| own.seed);
        let vm = definition.name.clone();
        let lacks_cloud_init = system.as_ref().is_some_and(|system| !system.has_cloud_init);
        if lacks_cloud_init && cloud_init.is_some() {
            let message = format!(
                "VM `{vm}` has `cloud_init`, but no cloud-init was found on its disk, so the data \
                may have no effect"
            );
            context.reporter.report(&Event::Warning { message });
        }
        let login = Login::of(system, cloud_init.is_some());
        Ok(Self { vm, firmware, reason: reason.to_owned(), uefi, cloud_init, login })
    }

    /// Returns what a suspended VM has booted.
    ///
    /// # Errors
    /// [`crate::qemu::QemuError::NoUefi`].
    pub(super) fn of_record(
        definition: &VmDefinition,
        image: Option<&ManagedImage>,
        record: &NativeRecord,
        files: &VmLayout,
        context: &RuntimeContext,
    ) -> Result<Self, VmError> {
        let variables = fs::metadata(files.uefi_variables()).ok().map(|found| found.len());
        let uefi = match record.firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(find_uefi(image, variables, context)?),
        };
        Ok(Self {
            vm: definition.name.clone(),
            firmware: record.firmware,
            reason: record.reason.clone(),
            uefi,
            // The guest has read the data, which may be gone by now.
            cloud_init: OwnSeed::of(definition).unwrap_or_default().map(|own| own.seed),
            login: Login {
                has_credentials: record.ssh_server.is_some(),
                has_seed: record.seed,
                root_keys: RootKeys::Unreadable,
                ssh_server: record.ssh_server.unwrap_or(SshServer::Unknown),
            },
        })
    }

    /// Returns the data of the user's for cloud-init.
    pub(super) fn seed(&self) -> Option<&Seed> {
        self.cloud_init.as_ref()
    }

    /// Returns the record of the boot.
    pub(in crate::vm) fn record(&self) -> NativeRecord {
        NativeRecord {
            firmware: self.firmware,
            reason: self.reason.clone(),
            seed: self.login.has_seed,
            ssh_server: Some(self.login.ssh_server),
        }
    }

    /// Writes the files that QEMU reads: variables of the firmware, texts for the SMBIOS tables,
    /// and the disk for cloud-init.
    ///
    /// # Errors
    /// [`VmError::Key`], [`VmError::Qemu`] or [`VmIoError::File`].
    pub(super) fn provide(
        &self,
        files: &VmLayout,
        context: &RuntimeContext,
    ) -> Result<(), VmError> {
        let key = VmKeys::load_or_create(files)?.client_public_line();
        if let Some(uefi) = &self.uefi {
            self.provide_variables(uefi, &files.uefi_variables(), context)?;
        }
        let Login { has_credentials, has_seed, root_keys, .. } = &self.login;
        let texts = if *has_credentials { oem_strings(&key, root_keys) } else { Vec::new() };
        let mut texts = texts.into_iter();
        for path in files.oem_strings() {
            match texts.next() {
                Some(text) => write(&path, &text)?,
                None => drop(fs::remove_file(&path)),
            }
        }
        if *has_seed {
            self.provide_seed(files, &key)?;
        }
        Ok(())
    }

    /// Copies the template of the firmware's variables, unless the VM has its own.
    fn provide_variables(
        &self,
        uefi: &UefiFirmware,
        path: &Path,
        context: &RuntimeContext,
    ) -> Result<(), VmError> {
        let template = &uefi.variables.path;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| VmIoError::File { action, path, source }
        };
        match trusted::read(path, MAX_VARIABLES_BYTES) {
            Ok(own) if own.starts_with(&QCOW2_MAGIC) => {
                // Refuses files that would bring others along.
                Qcow2Header::read(path)?;
                return Ok(());
            }
            Ok(own)
                if fs::metadata(template).is_ok_and(|found| found.len() == own.len() as u64) =>
            {
                return Ok(());
            }
            Ok(_) => {
                let kept = path.with_extension("old");
                fs::rename(path, &kept).map_err(failed(FileAction::Write, &kept))?;
                let message = format!(
                    "VM `{}` gets new UEFI variables, since those in {} are of other firmware than \
                    {}",
                    self.vm,
                    kept.display(),
                    uefi.code.path.display()
                );
                context.reporter.report(&Event::Warning { message });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(FileAction::Read, path)(source).into()),
        }
        let bytes = fs::read(template).map_err(failed(FileAction::Read, template))?;
        write(path, &bytes)
    }

    /// Writes the disk for cloud-init. Other data make another instance of it, with new host keys.
    fn provide_seed(&self, files: &VmLayout, key: &str) -> Result<(), VmError> {
        let path = files.seed();
        let failed =
            |source| VmIoError::File { action: FileAction::Write, path: path.clone(), source };
        let image =
            seed_disk(self.cloud_init.as_ref(), &hostname(&self.vm), key).map_err(failed)?;
        let is_same = trusted::read(&path, image.len() as u64).is_ok_and(|own| own == image);
        if !is_same {
            write_atomically(&path, &image, 0o600).map_err(failed)?;
            let _ = fs::remove_file(files.server_key());
        }
        Ok(())
    }

    /// Returns QEMU's part of it, with the files that were provided.
    pub(super) fn of_qemu(&self, files: &VmLayout) -> Boot {
        let uefi = self.uefi.as_ref().map(|uefi| UefiFlash {
            code: uefi.code.clone(),
            variables: variables_of(files.uefi_variables()),
        });
        let oem_strings = files.oem_strings().into_iter().filter(|path| path.exists()).collect();
        Boot::Native(NativeBoot {
            uefi,
            oem_strings,
            seed: self.login.has_seed.then(|| files.seed()),
        })
    }
}

/// Returns the variables with their format, which is that of the template they were copied from.
fn variables_of(path: PathBuf) -> Layer {
    let bytes = trusted::read(&path, MAX_VARIABLES_BYTES).unwrap_or_default();
    let is_qcow2 = bytes.starts_with(&QCOW2_MAGIC);
    Layer { format: if is_qcow2 { LayerFormat::Qcow2 } else { LayerFormat::Raw }, path }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), VmError> {
    let failed =
        |source| VmIoError::File { action: FileAction::Write, path: path.to_owned(), source };
    Ok(write_atomically(path, bytes, 0o600).map_err(failed)?)
}

/// Ways in which a guest gets to know the login key, and its server.
#[derive(Debug)]
struct Login {
    /// True if the guest's systemd may read credentials.
    has_credentials: bool,
    /// True if there is a disk with data for cloud-init.
    has_seed: bool,
    root_keys: RootKeys,
    ssh_server: SshServer,
}

impl Login {
    /// Chooses the ways for a system; for one that cannot be read, all of them. cloud-init changes
    /// what was set up by hand, so it is used only where it is needed: for data of the user's, for
    /// a systemd that reads no credentials, and on an image that cloud-init has to complete.
    fn of(system: Option<InstalledSystem>, has_data: bool) -> Self {
        let Some(system) = system else {
            return Self {
                has_credentials: true,
                has_seed: true,
                root_keys: RootKeys::Unreadable,
                ssh_server: SshServer::Unknown,
            };
        };
        let has_credentials = system.systemd.is_some_and(|version| version >= CREDENTIALS_SYSTEMD);
        let is_fresh = !system.has_host_keys;
        let has_seed = has_data || (system.has_cloud_init && (!has_credentials || is_fresh));
        Self {
            // Where neither is known to work, both are tried.
            has_credentials: has_credentials || !system.has_cloud_init,
            has_seed: has_seed || (!has_credentials && !system.has_cloud_init),
            root_keys: system.root_keys,
            ssh_server: if system.has_ssh_server { SshServer::Found } else { SshServer::Missing },
        }
    }
}

/// Chooses the firmware, with the reason.
fn choose(definition: &VmDefinition, found: Option<&Inspection>) -> (Firmware, &'static str) {
    if let Some(firmware) = definition.firmware {
        return (firmware, "asked for");
    }
    let Some(found) = found else { return (Firmware::Bios, "its disk cannot be read") };
    let bios = found.has_boot_code && found.has_place_for_bios;
    match (bios, found.loader.is_some()) {
        (true, true) => (Firmware::Bios, "its disk boots by either, and faster by a BIOS"),
        (true, false) => (Firmware::Bios, "its disk has a boot loader for a BIOS"),
        (false, true) => (Firmware::Uefi, "its disk has a boot loader for UEFI only"),
        (false, false) if !found.has_boot_code && found.has_efi_partition => {
            (Firmware::Uefi, "its disk has an EFI system partition and no boot code")
        }
        (false, false) => (Firmware::Bios, "its disk has no boot loader for UEFI"),
    }
}

/// Checks that the firmware finds a boot loader. Arguments of the user's own may bring another
/// firmware or boot disk, so with those nothing is checked.
fn check_loader(
    definition: &VmDefinition,
    firmware: Firmware,
    found: Option<&Inspection>,
    disk: &Path,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    if UserArguments::of(&context.environment).identity().is_some() {
        return Ok(());
    }
    let vm = &definition.name;
    let loader = match (firmware, found) {
        (Firmware::Bios, Some(found)) if found.has_boot_code => return Ok(()),
        (Firmware::Bios, _) => return check_boot_code(vm, disk, context),
        (Firmware::Uefi, None) => return Ok(()),
        (Firmware::Uefi, Some(found)) => &found.loader,
    };
    match loader {
        Some(UefiLoader::Default) => {}
        Some(UefiLoader::Other(path)) => {
            let message = format!(
                "the disk of VM `{vm}` has the UEFI boot loader {} and not \
                \\EFI\\BOOT\\BOOTX64.EFI, which alone is started without an entry in the \
                firmware's variables",
                sanitize_text(path)
            );
            context.reporter.report(&Event::Warning { message });
        }
        None => {
            let (vm, disk, reason) = (vm.clone(), disk.to_owned(), Unbootable::NoUefiLoader);
            return Err(VmDiskError::Unbootable { vm, disk, reason, found: None }.into());
        }
    }
    Ok(())
}

fn find_uefi(
    image: Option<&ManagedImage>,
    variables_bytes: Option<u64>,
    context: &RuntimeContext,
) -> Result<UefiFirmware, VmError> {
    let machine = image.map(|(spec, _)| spec.profile.machine.clone()).unwrap_or_default();
    // A missing QEMU is reported by the start.
    let qemu = QemuBinary::find(&context.environment).map(|binary| binary.path);
    let qemu = qemu.unwrap_or_default();
    Ok(UefiFirmware::find(&context.environment, &qemu, &machine, variables_bytes)?)
}

/// Returns the firmware that a VM on this disk boots natively by, with the reason; `None` if the
/// disk cannot be opened.
pub fn firmware_of(
    definition: &VmDefinition,
    disk: &Path,
    context: &RuntimeContext,
) -> Option<(Firmware, &'static str)> {
    let found = OwnDisk::new(disk, definition, &context.cancel).inspect().ok()?;
    Some(choose(definition, found.as_ref()))
}

/// Returns `true` if a VM boots natively by UEFI, or will: because its definition says so, or
/// because of a disk without a kernel that castra could boot.
pub fn boots_by_uefi(definition: &VmDefinition, context: &RuntimeContext) -> bool {
    if definition.firmware == Some(Firmware::Uefi) {
        return true;
    }
    let path = match &definition.base_image {
        _ if definition.overlay.exists() => &*definition.overlay,
        BaseImageSource::Path(path) => path,
        BaseImageSource::Managed(_) => return false,
    };
    let disk = OwnDisk::new(path, definition, &context.cancel);
    let is_native = match definition.boot_profile {
        Some(profile) => profile == BootProfile::Native,
        None => matches!(disk.pair(), Ok(Err(_))),
    };
    let firmware = || Some(choose(definition, disk.inspect().ok()?.as_ref()).0);
    is_native && firmware() == Some(Firmware::Uefi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(line: &str) -> VmDefinition {
        let text = format!("[[vms]]\nname = \"a\"\nbase_image = \"b\"\n{line}\n");
        let surroundings = crate::config::Surroundings::default();
        let file = Path::new("/p/castra.toml");
        crate::config::parse(&text, file, &surroundings).expect("a project").vms.remove(0)
    }

    fn found(code: bool, place: bool, efi: bool, loader: bool) -> Inspection {
        Inspection {
            has_boot_code: code,
            has_place_for_bios: place,
            has_efi_partition: efi,
            loader: loader.then_some(UefiLoader::Default),
            system: None,
        }
    }

    #[test]
    fn firmware_is_what_the_disk_is_made_for() {
        let detected = definition("");
        let of = |inspection: &Inspection| choose(&detected, Some(inspection)).0;
        assert_eq!(of(&found(true, true, true, true)), Firmware::Bios, "both");
        assert_eq!(of(&found(true, true, false, false)), Firmware::Bios);
        assert_eq!(of(&found(true, false, false, false)), Firmware::Bios, "GRUB without a place");
        assert_eq!(of(&found(false, true, false, false)), Firmware::Bios, "nothing");
        assert_eq!(of(&found(false, true, true, true)), Firmware::Uefi);
        assert_eq!(of(&found(true, false, true, true)), Firmware::Uefi, "code that leads nowhere");
        assert_eq!(of(&found(false, false, true, false)), Firmware::Uefi, "not readable");
        assert_eq!(choose(&detected, None).0, Firmware::Bios);
        let asked = definition("boot_profile = \"native\"\nfirmware = \"uefi\"");
        let both = found(true, true, true, true);
        assert_eq!(choose(&asked, Some(&both)), (Firmware::Uefi, "asked for"));
    }

    fn system(systemd: Option<u32>, has_cloud_init: bool, has_host_keys: bool) -> InstalledSystem {
        InstalledSystem {
            os: castra_disk::OsRelease { id: "x".into(), version_id: None, pretty_name: None },
            systemd,
            has_cloud_init,
            has_ssh_server: true,
            has_host_keys,
            root_keys: RootKeys::Missing,
        }
    }

    #[test]
    fn the_key_comes_by_what_the_disk_has() {
        let ways = |system, has_data| {
            let login = Login::of(system, has_data);
            (login.has_credentials, login.has_seed)
        };
        assert_eq!(ways(Some(system(Some(252), false, true)), false), (true, false));
        assert_eq!(ways(Some(system(Some(257), true, true)), false), (true, false));
        assert_eq!(ways(Some(system(Some(257), true, true)), true), (true, true), "data");
        assert_eq!(ways(Some(system(Some(257), true, false)), false), (true, true), "fresh");
        assert_eq!(ways(Some(system(Some(249), true, true)), false), (false, true));
        assert_eq!(ways(Some(system(Some(247), false, true)), false), (true, true), "neither");
        assert_eq!(ways(Some(system(None, false, true)), false), (true, true));
        assert_eq!(ways(None, false), (true, true));
    }
}
