//! Logical volumes that are linear: Linux's LVM2, read from the metadata of its physical volumes.

mod label;
mod metadata;

use std::io;
use std::sync::Arc;

use crate::source::{Shared, Slice, Source, check_range};
use metadata::Group;

/// Maximum number of logical volumes that are considered.
const MAX_VOLUMES: usize = 256;

/// A logical volume.
pub(crate) struct LogicalVolume {
    /// Name of the volume group.
    pub(crate) group: String,
    /// Name of the volume.
    pub(crate) name: String,
    /// Content; an error says why it cannot be read.
    pub(crate) content: Result<Shared, &'static str>,
}

/// Physical volume, with the metadata of its group.
struct PhysicalVolume {
    id: String,
    source: Shared,
    group: Option<Group>,
}

/// Returns `true` if the beginning of a partition has the label of a physical volume.
pub(crate) fn is_physical_volume(beginning: &[u8]) -> bool {
    label::find(beginning).is_some()
}

/// Returns the logical volumes on these physical volumes.
///
/// # Errors
/// Those of the sources: damaged metadata describes no volumes.
pub(crate) fn logical_volumes(physical: Vec<Shared>) -> io::Result<Vec<LogicalVolume>> {
    let mut opened = Vec::new();
    for source in physical {
        if let Some(label) = label::read(source.as_ref())? {
            let group = label.metadata.as_deref().and_then(metadata::parse);
            opened.push(PhysicalVolume { id: label.id, source, group });
        }
    }
    // Each physical volume has a copy; a missing one may have left others stale.
    let mut groups: Vec<&Group> = Vec::new();
    for group in opened.iter().filter_map(|volume| volume.group.as_ref()) {
        match groups.iter_mut().find(|other| other.id == group.id) {
            Some(other) if other.sequence < group.sequence => *other = group,
            Some(_) => {}
            None => groups.push(group),
        }
    }
    let volumes = groups.into_iter().flat_map(|group| {
        group.volumes.iter().map(|volume| LogicalVolume {
            group: group.name.clone(),
            name: volume.name.clone(),
            content: assemble(group, volume, &opened),
        })
    });
    Ok(volumes.take(MAX_VOLUMES).collect())
}

fn assemble(
    group: &Group,
    volume: &metadata::Volume,
    physical: &[PhysicalVolume],
) -> Result<Shared, &'static str> {
    let mut pieces: Vec<Slice> = Vec::new();
    for segment in volume.segments.as_ref().ok_or("not linear")? {
        let place = group.places.iter().find(|place| place.name == segment.on);
        let place = place.ok_or("on a physical volume that its group does not have")?;
        let on = physical.iter().find(|on| on.id == place.id);
        let on = on.ok_or("partly on a physical volume that is missing")?;
        let piece = segment.bytes(group, place).ok_or("larger than any disk")?;
        pieces.push(Slice::new(Arc::clone(&on.source), piece.start, piece.end - piece.start));
    }
    Ok(Arc::new(Joined { pieces }))
}

/// Sources one after another.
struct Joined {
    pieces: Vec<Slice>,
}

impl Source for Joined {
    fn length(&self) -> u64 {
        self.pieces.iter().map(Slice::length).sum()
    }

    fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        check_range(self.length(), offset, buffer.len())?;
        for piece in &self.pieces {
            let here = piece.length().saturating_sub(offset).min(buffer.len() as u64);
            let (now, rest) = buffer.split_at_mut(here as usize);
            if !now.is_empty() {
                piece.read_at(offset, now)?;
            }
            buffer = rest;
            offset = (offset + here).saturating_sub(piece.length());
        }
        Ok(())
    }
}
