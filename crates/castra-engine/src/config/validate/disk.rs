//! `[[vms.disks]]`: disks of a VM in addition to the one that it boots from.

use std::ops::Range;

use super::super::data_disk::{DataDisk, MAX_DATA_DISK_BYTES, MAX_GUEST_BYTES};
use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::project::{BootProfile, DeclaredMount};
use super::super::schema::{Fields, Key, Value, key};
use super::name::{self, NameProblem};
use super::size::{self, MIB, format_size};
use crate::guest::{GuestPathProblem, Mount, is_inside};
use crate::qemu::{DiskName, MAX_DATA_DISKS, MAX_DISK_NAME_BYTES};

const NAME: Key = key("name", "\"data\"");
const SIZE: Key = key("size", "\"10 GiB\"");
const GUEST: Key = key("guest", "\"/data\"");

/// A disk that a VM cannot have.
#[derive(Debug, thiserror::Error)]
enum DiskProblem {
    #[error("two disks of {vm} are called {}", quoted(name))]
    SameName { vm: String, name: String },
    #[error("two disks of {vm} are called {} and {}", quoted(one), quoted(other))]
    NamesDifferInCase { vm: String, one: String, other: String },
    #[error("a disk of {vm} has {}", format_size(*bytes))]
    Size { vm: String, bytes: u64 },
    #[error("a disk cannot be mounted on {}: {problem}", quoted(guest))]
    Guest { guest: String, problem: GuestPathProblem },
    #[error("two disks of {vm} are mounted at {}", quoted(guest))]
    Twice { vm: String, guest: String },
    #[error("{vm} has a disk at {} and another at {}", quoted(one), quoted(other))]
    Nested { vm: String, one: String, other: String },
    #[error("{vm} has a disk at {} and a mount at {}", quoted(disk), quoted(mount))]
    Mounted { vm: String, disk: String, mount: String },
    #[error("{vm} has a disk at {}, but boots natively, without Castra's agent", quoted(guest))]
    Native { vm: String, guest: String },
    #[error("{0} has more than {MAX_DATA_DISKS} disks")]
    TooMany(String),
    #[error("the directories of the disks of {0} are too long together")]
    TooLong(String),
}

impl Problem for DiskProblem {
    fn label(&self) -> String {
        match self {
            Self::SameName { .. } | Self::Twice { .. } => "and again here".to_owned(),
            Self::NamesDifferInCase { .. } => "differs in case only".to_owned(),
            Self::Size { .. } => {
                format!("must be 1 MiB to {}", format_size(MAX_DATA_DISK_BYTES))
            }
            Self::TooMany(_) => "one too many".to_owned(),
            Self::TooLong(_) => format!("at most {MAX_GUEST_BYTES} bytes in all"),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::SameName { name, .. } => {
                format!("Rename one of them, for instance `name = \"{name}-2\"`.")
            }
            Self::NamesDifferInCase { .. } => {
                "On a macOS disk their files would be the same. Rename one of them.".to_owned()
            }
            Self::Size { .. } => format!("Write for instance {SIZE}."),
            Self::Guest { .. } => {
                format!("Write a directory of the VM, for instance {GUEST}; it is made if missing.")
            }
            Self::Twice { .. } | Self::Nested { .. } | Self::Mounted { .. } => {
                "Give each disk and each mount a directory of its own in the VM.".to_owned()
            }
            Self::Native { .. } => {
                "Remove `guest`: the system mounts the disk itself, for instance by \
                an entry in /etc/fstab. Or remove `boot_profile = \"native\"`."
                    .to_owned()
            }
            Self::TooMany(_) => "Make one of them larger instead.".to_owned(),
            Self::TooLong(_) => {
                format!(
                    "Choose shorter ones: they are on the kernel's command line. {GUEST} will do."
                )
            }
        }
    }
}

/// A disk, with the spans that a comparison with others needs.
struct SpannedDisk {
    disk: DataDisk,
    name: Range<usize>,
    guest: Range<usize>,
}

/// Reads a VM's disks, none of which may be where a mount is. The agent mounts them, so none has a
/// directory in a VM that boots natively.
pub(super) fn read(
    values: &[Value<'_>],
    place: Key,
    vm: &str,
    boot_profile: Option<BootProfile>,
    mounts: &[DeclaredMount],
    problems: &mut Problems,
) -> Vec<DataDisk> {
    let disks: Vec<SpannedDisk> =
        values.iter().filter_map(|value| read_one(value, place, vm, problems)).collect();
    if let Some(value) = values.get(MAX_DATA_DISKS) {
        problems.error(value.span(), &DiskProblem::TooMany(vm.to_owned()));
    }
    for (index, disk) in disks.iter().enumerate() {
        check_name(disk, &disks[..index], vm, problems);
        check_guest(disk, &disks[..index], mounts, vm, problems);
        if let Some(guest) = &disk.disk.guest
            && boot_profile == Some(BootProfile::Native)
        {
            let (vm, guest) = (vm.to_owned(), guest.clone());
            problems.error(disk.guest.clone(), &DiskProblem::Native { vm, guest });
        }
    }
    check_length(&disks, vm, problems);
    disks.into_iter().map(|spanned| spanned.disk).collect()
}

fn read_one(
    value: &Value<'_>,
    place: Key,
    vm: &str,
    problems: &mut Problems,
) -> Option<SpannedDisk> {
    let mut fields = Fields::of_element(value, place, format!("a disk of {vm}"), problems)?;
    for key in [NAME, SIZE] {
        if !fields.has(key) {
            fields.missing(key, problems);
        }
    }
    let name = fields.string(NAME, problems);
    let size = size::read_disk_key(&mut fields, SIZE, problems);
    let guest = fields.string(GUEST, problems);
    fields.warn_unknown(problems);
    let named = name.as_ref().and_then(|name| {
        read_name(name.get_ref()).map_err(|problem| problems.error(name.span(), &problem)).ok()
    });
    let bytes = size.and_then(|size| {
        let bytes = *size.get_ref();
        if (MIB..=MAX_DATA_DISK_BYTES).contains(&bytes) {
            return Some(bytes.next_multiple_of(SECTOR_BYTES));
        }
        problems.error(size.span(), &DiskProblem::Size { vm: vm.to_owned(), bytes });
        None
    });
    let (path, span) = match guest {
        None => (None, value.span()),
        Some(guest) => match Mount::guest_path(guest.get_ref()) {
            Ok(path) => (Some(path), guest.span()),
            Err(problem) => {
                let path = (*guest.get_ref()).to_owned();
                problems.error(guest.span(), &DiskProblem::Guest { guest: path, problem });
                return None;
            }
        },
    };
    Some(SpannedDisk {
        disk: DataDisk { name: named?, size_bytes: bytes?, guest: path },
        name: name?.span(),
        guest: span,
    })
}

/// Unit of a disk's size, in bytes.
const SECTOR_BYTES: u64 = 512;

fn read_name(text: &str) -> Result<DiskName, NameProblem> {
    name::check_file_name("disk name", text, MAX_DISK_NAME_BYTES)?;
    // The rules are the same.
    DiskName::try_from(text.to_owned()).map_err(|_| NameProblem::Empty { what: "disk name" })
}

fn check_name(disk: &SpannedDisk, earlier: &[SpannedDisk], vm: &str, problems: &mut Problems) {
    let name = disk.disk.name.as_str();
    let is_same = |other: &&SpannedDisk| other.disk.name.as_str().eq_ignore_ascii_case(name);
    let Some(other) = earlier.iter().find(is_same) else { return };
    let vm = vm.to_owned();
    let problem = if other.disk.name == disk.disk.name {
        DiskProblem::SameName { vm, name: name.to_owned() }
    } else {
        let one = other.disk.name.to_string();
        DiskProblem::NamesDifferInCase { vm, one, other: name.to_owned() }
    };
    let first = "the first one";
    problems.error_because_of(disk.name.clone(), &problem, other.name.clone(), first);
}

fn check_guest(
    disk: &SpannedDisk,
    earlier: &[SpannedDisk],
    mounts: &[DeclaredMount],
    vm: &str,
    problems: &mut Problems,
) {
    let Some(guest) = &disk.disk.guest else { return };
    let is_entangled = |other: &str| is_inside(guest, other) || is_inside(other, guest);
    let vm = vm.to_owned();
    if let Some(declared) = mounts.iter().find(|declared| is_entangled(&declared.mount.guest)) {
        let (disk_at, mount) = (guest.clone(), declared.mount.guest.clone());
        let problem = DiskProblem::Mounted { vm, disk: disk_at, mount };
        return problems.error(disk.guest.clone(), &problem);
    }
    let other = earlier.iter().find_map(|other| {
        let path = other.disk.guest.as_ref().filter(|path| is_entangled(path))?;
        Some((path, other.guest.clone()))
    });
    let Some((path, there)) = other else { return };
    let problem = match path == guest {
        true => DiskProblem::Twice { vm, guest: guest.clone() },
        false => DiskProblem::Nested { vm, one: path.clone(), other: guest.clone() },
    };
    problems.error_because_of(disk.guest.clone(), &problem, there, "the first one");
}

fn check_length(disks: &[SpannedDisk], vm: &str, problems: &mut Problems) {
    let mut bytes = 0;
    for spanned in disks {
        bytes += spanned.disk.order(true).on_command_line().len();
        if bytes > MAX_GUEST_BYTES {
            return problems.error(spanned.guest.clone(), &DiskProblem::TooLong(vm.to_owned()));
        }
    }
}
