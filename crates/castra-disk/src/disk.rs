//! A disk with everything that is on it.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::boot::{self, Inspection, NoSystem, System};
use crate::budget::{Limits, Metered};
use crate::filesystem;
use crate::lvm;
use crate::partition::{self, Table};
use crate::signature::{Content, recognize};
use crate::source::{Shared, Slice, Source};

/// An opened disk.
pub struct Disk {
    pub(crate) meter: Arc<Metered>,
    volumes: Vec<Volume>,
    /// True if its partition table has a place for a BIOS's boot loader, or cannot say.
    pub(crate) has_place_for_bios: bool,
    /// True if it has an EFI system partition.
    pub(crate) has_efi_partition: bool,
}

/// Part of a disk that may contain a filesystem: all of it, a partition, or a logical volume.
pub struct Volume {
    /// Place on the disk.
    pub place: Place,
    /// Content, recognized by its signature.
    pub content: Content,
    /// UUID of the partition, as in `root=PARTUUID=…`.
    pub(crate) partition_uuid: Option<String>,
    pub(crate) source: Shared,
}

impl Volume {
    /// Returns `true` if the volume is an ext3 or ext4 whose journal must be replayed: it was
    /// mounted for writing when its machine ended. Other filesystems do not record it.
    ///
    /// # Errors
    /// Those of the source.
    pub fn needs_recovery(&self) -> io::Result<bool> {
        match &self.content {
            Content::Filesystem(identity) => filesystem::needs_recovery(identity, &self.source),
            _ => Ok(false),
        }
    }
}

/// Place of a volume on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Disk without a partition table.
    WholeDisk,
    /// Partition by its number.
    Partition(u32),
    /// Logical volume.
    LogicalVolume {
        /// Name of the volume group.
        group: String,
        /// Name of the volume in its group.
        name: String,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WholeDisk => f.write_str("the whole disk"),
            Self::Partition(number) => write!(f, "partition {number}"),
            Self::LogicalVolume { group, name } => write!(f, "logical volume {group}/{name}"),
        }
    }
}

impl Disk {
    /// Opens a disk: reads its partition table, the metadata of its volume groups, and the
    /// signatures of what they contain.
    ///
    /// # Errors
    /// Those of the source. Damaged structures are no error: what they describe is not found.
    pub fn open(source: impl Source + 'static, limits: Limits) -> io::Result<Self> {
        let meter = Arc::new(Metered::new(Box::new(source), limits));
        let disk: Shared = Arc::clone(&meter) as Shared;
        let Table { is_gpt, partitions } = partition::table(disk.as_ref())?;
        let has_place_for_bios = !is_gpt || partitions.iter().any(|one| one.is_for_bios);
        let has_efi_partition = partitions.iter().any(|one| one.is_for_uefi);
        let mut volumes = Vec::new();
        if partitions.is_empty() {
            let content = recognize(disk.as_ref())?;
            let (place, source) = (Place::WholeDisk, Arc::clone(&disk));
            volumes.push(Volume { place, content, partition_uuid: None, source });
        }
        for partition in partitions {
            let slice = Slice::new(Arc::clone(&disk), partition.start, partition.length);
            let content = recognize(&slice)?;
            let place = Place::Partition(partition.number);
            let (partition_uuid, source) = (partition.uuid, Arc::new(slice));
            volumes.push(Volume { place, content, partition_uuid, source });
        }
        let physical = volumes.iter().filter(|volume| volume.content == Content::PhysicalVolume);
        let physical = physical.map(|volume| Arc::clone(&volume.source)).collect();
        for volume in lvm::logical_volumes(physical)? {
            let place = Place::LogicalVolume { group: volume.group, name: volume.name };
            let (content, source) = match volume.content {
                Ok(source) => (recognize(source.as_ref())?, source),
                Err(reason) => (Content::Foreign(reason), Arc::new(Vec::new()) as Shared),
            };
            volumes.push(Volume { place, content, partition_uuid: None, source });
        }
        Ok(Self { meter, volumes, has_place_for_bios, has_efi_partition })
    }

    /// Returns the volumes in the order of the disk, logical ones last.
    #[must_use]
    pub fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// Finds the system that the disk boots, and reads its kernel and initramfs.
    ///
    /// # Errors
    /// [`NoSystem`] says what was found instead.
    pub fn find_system(&self) -> Result<System, NoSystem> {
        self.meter.renew();
        boot::find(&self.volumes, &self.meter)
    }

    /// Finds what firmware boots from the disk, and the ways into the system that then runs.
    ///
    /// # Errors
    /// Those of the source.
    pub fn inspect(&self) -> io::Result<Inspection> {
        self.meter.renew();
        boot::inspect(self)
    }
}
