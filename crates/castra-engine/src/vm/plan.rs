//! Plan of `up`: what it will do, and the reasons. Pure, from configuration, catalog and records;
//! touches nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::config::{
    BaseImageSource, ImageVersion, ManagedImageSelection, ProjectConfig, VmDefinition,
};
use crate::hex::hex;
use crate::layout::ProjectLayout;
use crate::managed::{ArtifactRole, Catalog, ManagedDiskKind, ManagedImageSpec, is_updatable};
use crate::report::ImageLabel;

use super::error::{CloneError, VmDiskError, VmError};
use super::record::{BaseKind, Record, RecordError};

/// Plan of an `up`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One plan per VM, in the configuration's order.
    pub vms: Vec<VmPlan>,
}

/// Plan for one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPlan {
    /// Definition of the VM.
    pub definition: VmDefinition,
    /// Source of its base image.
    pub base: BasePlan,
    /// Warnings about the VM.
    pub warnings: Vec<String>,
    /// Ports of this machine that other VMs of the project declare.
    pub ports_of_others: Vec<u16>,
    /// Names of all VMs that the configuration declares.
    pub declared: Vec<String>,
}

/// Source of a base image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BasePlan {
    /// The user's own qcow2.
    Path(PathBuf),
    /// One particular managed image.
    Image(ManagedImageSpec),
    /// First of these images that is cached or reachable; the record will keep the choice.
    FirstOf(Vec<ManagedImageSpec>),
}

impl VmPlan {
    /// Returns the VM's name.
    pub fn name(&self) -> &str {
        &self.definition.name
    }
}

impl Plan {
    /// Returns the plan for the VMs with these names, or for all VMs if there are none.
    ///
    /// # Errors
    /// [`RecordError::Unknown`], [`VmError::Image`] for an image without a description,
    /// [`VmDiskError::ImageChanged`].
    pub fn new(
        config: &ProjectConfig,
        names: &[String],
        catalog: &Catalog,
        records: &BTreeMap<String, Record>,
    ) -> Result<Self, VmError> {
        let vms = select(config, names, records)?
            .iter()
            .map(|definition| plan_vm(definition, config, catalog, records.get(&definition.name)))
            .collect::<Result<_, _>>()?;
        Ok(Self { vms })
    }

    /// Plans the start of the named VMs, or of all, with the project's images. Fails for a VM that
    /// is only recorded, with the fault of its record if there is one.
    ///
    /// # Errors
    /// Returns errors of [`Self::new`] and of reading the record, and [`CloneError::Unfinished`].
    pub fn of_start(
        config: &ProjectConfig,
        names: &[String],
        layout: &ProjectLayout,
        records: &BTreeMap<String, Record>,
    ) -> Result<Self, VmError> {
        Self::new(config, names, &config.catalog(), records).map_err(|error| {
            let VmError::Record(RecordError::Unknown { vm, .. }) = &error else { return error };
            match Record::load(layout, vm) {
                Err(unreadable) => unreadable.into(),
                Ok(Some(record)) if record.is_unfinished_clone() => {
                    let of = record.cloned.map(|cloned| cloned.of).unwrap_or_default();
                    CloneError::Unfinished { vm: record.name, of }.into()
                }
                Ok(_) => error,
            }
        })
    }
}

/// Returns the name of the only VM that a configuration declares.
///
/// # Errors
/// [`RecordError::Ambiguous`].
pub fn only_declared(config: &ProjectConfig) -> Result<&str, RecordError> {
    match config.vms.as_slice() {
        [only] => Ok(&only.name),
        several => Err(RecordError::Ambiguous {
            names: several.iter().map(|vm| vm.name.clone()).collect(),
        }),
    }
}

/// Selects the declared VMs, and clones that are requested by name, of which only a record exists.
fn select(
    config: &ProjectConfig,
    names: &[String],
    records: &BTreeMap<String, Record>,
) -> Result<Vec<VmDefinition>, VmError> {
    let is_declared = |name: &str| config.vms.iter().any(|vm| vm.name == name);
    let clones = records.values().filter(|record| !is_declared(&record.name));
    let clones: Vec<VmDefinition> =
        clones.filter_map(|record| definition_of_clone(record, config)).collect();
    let known: Vec<&str> = config.vms.iter().chain(&clones).map(|vm| vm.name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(RecordError::unknown(unknown, &known).into());
    }
    let declared = config.vms.iter().filter(|vm| names.is_empty() || names.contains(&vm.name));
    let asked_for = clones.iter().filter(|vm| names.contains(&vm.name));
    Ok(declared.chain(asked_for).cloned().collect())
}

/// Returns the definition of a clone: that of the cloned VM, without its ports, which are taken.
fn definition_of_clone(record: &Record, config: &ProjectConfig) -> Option<VmDefinition> {
    let cloned = record.cloned.as_ref().filter(|_| !record.is_unfinished_clone())?;
    let base_image = match &record.base.kind {
        BaseKind::Path(path) => BaseImageSource::Path(path.clone()),
        BaseKind::Managed(label) => BaseImageSource::Managed(ManagedImageSelection::Exact {
            name: label.id.clone(),
            version: ImageVersion::Named(label.version.clone()),
            disk: ManagedDiskKind::default(),
        }),
    };
    Some(VmDefinition {
        name: record.name.clone(),
        description: Some(format!("clone of {}", cloned.of)),
        base_image,
        allow_backing_file: record.base.allow_backing_file,
        overlay: config.bounds.disk(record.overlay_path(config.state_root.names())),
        cpus: cloned.cpus,
        cpu: cloned.cpu.clone(),
        memory_bytes: cloned.memory_mib << 20,
        disk_bytes: cloned.disk_bytes,
        data_disks: record.data_disks.clone(),
        boot_profile: Some(cloned.boot_profile),
        firmware: cloned.firmware,
        // All of it is in the memory and on the disk already.
        cloud_init: None,
        port_forwards: Vec::new(),
        auto_forwards: false,
        mounts: Vec::new(),
        provision: Vec::new(),
        proxy: cloned.proxy,
    })
}

fn plan_vm(
    definition: &VmDefinition,
    config: &ProjectConfig,
    catalog: &Catalog,
    record: Option<&Record>,
) -> Result<VmPlan, VmError> {
    let base = match &definition.base_image {
        BaseImageSource::Path(path) => BasePlan::Path(path.clone()),
        BaseImageSource::Managed(selection) => plan_image(selection, config, catalog, record)?,
    };
    refuse_changed_base(definition, &base, record)?;
    let warnings = warnings(definition, &base);
    let others = config.vms.iter().filter(|other| other.name != definition.name);
    let ports_of_others =
        others.flat_map(|other| &other.port_forwards).map(|forward| forward.host).collect();
    let declared = config.vms.iter().map(|vm| vm.name.clone()).collect();
    Ok(VmPlan { definition: definition.clone(), base, warnings, ports_of_others, declared })
}

fn plan_image(
    selection: &ManagedImageSelection,
    config: &ProjectConfig,
    catalog: &Catalog,
    record: Option<&Record>,
) -> Result<BasePlan, VmError> {
    let label = match (selection, record.map(|record| &record.base.kind)) {
        // A newer build is for new VMs.
        (
            ManagedImageSelection::Exact { name, version: ImageVersion::Newest(_), .. },
            Some(BaseKind::Managed(label)),
        ) if label.id == *name && catalog.find(&label.id, &label.version).is_ok() => label.clone(),
        (ManagedImageSelection::Exact { name, version, .. }, _) => {
            ImageLabel { id: name.clone(), version: version.as_str().to_owned() }
        }
        // The default was chosen once, and the VM's disk stays based on that choice.
        (ManagedImageSelection::Default, Some(BaseKind::Managed(label))) => label.clone(),
        (ManagedImageSelection::Default, _) => {
            return Ok(BasePlan::FirstOf(catalog.default_candidates().to_vec()));
        }
    };
    let own = config.images.values().find(|image| image.label() == label);
    let spec = own.map_or_else(|| catalog.find(&label.id, &label.version), Ok)?;
    Ok(BasePlan::Image(spec.clone()))
}

/// Refuses to change the image on which a disk is based.
fn refuse_changed_base(
    definition: &VmDefinition,
    base: &BasePlan,
    record: Option<&Record>,
) -> Result<(), VmError> {
    let Some(record) = record else { return Ok(()) };
    let is_of_lost_build = |recorded: &ImageLabel, spec: &ManagedImageSpec| {
        recorded.id == spec.id && is_updatable(&spec.id) && names_no_version(definition)
    };
    let (same, wanted) = match (&record.base.kind, base) {
        // The plan would have that build if it were known.
        (BaseKind::Managed(recorded), BasePlan::Image(spec))
            if *recorded != spec.label() && is_of_lost_build(recorded, spec) =>
        {
            let (vm, recorded) = (definition.name.clone(), recorded.to_string());
            return Err(VmDiskError::BuildUnknown { vm, recorded }.into());
        }
        (BaseKind::Managed(recorded), BasePlan::Image(spec)) => {
            (*recorded == spec.label(), spec.label().to_string())
        }
        // Where a path leads is compared by content, so that a project and its image may move
        // together.
        (BaseKind::Path(_), BasePlan::Path(_)) => (true, String::new()),
        (_, BasePlan::FirstOf(_)) => (true, String::new()),
        (_, BasePlan::Path(path)) => (false, path.display().to_string()),
        (_, BasePlan::Image(spec)) => (false, spec.label().to_string()),
    };
    if same {
        return Ok(());
    }
    let recorded = match &record.base.kind {
        BaseKind::Managed(label) => label.to_string(),
        BaseKind::Path(path) => path.display().to_string(),
    };
    Err(VmDiskError::ImageChanged { vm: definition.name.clone(), recorded, wanted }.into())
}

fn names_no_version(definition: &VmDefinition) -> bool {
    let BaseImageSource::Managed(selection) = &definition.base_image else { return false };
    matches!(selection, ManagedImageSelection::Exact { version: ImageVersion::Newest(_), .. })
}

fn warnings(definition: &VmDefinition, base: &BasePlan) -> Vec<String> {
    let BasePlan::Image(spec) = base else { return Vec::new() };
    let memory_mib = definition.memory_bytes >> 20;
    if memory_mib >= spec.profile.min_memory_mib {
        return Vec::new();
    }
    let (vm, least) = (&definition.name, spec.profile.min_memory_mib);
    vec![format!(
        "VM `{vm}` has {memory_mib} MiB of memory; {} needs {least} MiB to boot",
        spec.label()
    )]
}

/// Identifies the contents of a managed image's disk: the bytes it is made from and the steps that
/// transform them. The file itself may differ, since another qemu-img may lay out the same contents
/// differently.
pub(super) fn content_of(spec: &ManagedImageSpec) -> String {
    let disk = spec.artifacts.iter().find(|artifact| artifact.role == ArtifactRole::Rootfs);
    let text =
        serde_json::to_vec(&disk.map(|disk| (&disk.digest, &disk.pipeline))).unwrap_or_default();
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Surroundings, parse};
    use crate::files::Digest;
    use crate::vm::BaseRecord;

    const OLDER: &str = "20261115-2700";
    const NEWER: &str = "20261130-2800";

    /// Returns a build of Debian 13 as a `castra.lock` pins it.
    fn build(version: &str) -> ManagedImageSpec {
        let catalog = Catalog::builtin();
        let mut images = catalog.images().iter();
        let mut image =
            images.find(|image| image.id == "debian-13").expect("a distribution").clone();
        image.version = version.to_owned();
        image.artifacts[0].digest = Digest::Sha256("ab".repeat(32));
        image
    }

    /// Plans the VM `dev`, whose image is named in this way, with these pinned builds.
    fn plan(named: &str, pinned: &[ManagedImageSpec], of_disk: &str) -> Result<String, VmError> {
        let known: Vec<(&str, &str)> =
            pinned.iter().map(|image| (image.id.as_str(), image.version.as_str())).collect();
        let surroundings = Surroundings { known_images: &known, ..Surroundings::default() };
        let text = format!("[[vms]]\nname = \"dev\"\nmanaged_image = \"{named}\"\n");
        let file = Path::new("/project/castra.toml");
        let mut config = parse(&text, file, &surroundings).expect("is valid");
        config.pinned = pinned.to_vec();
        let layout = ProjectLayout::unchecked("/project/.castra".into());
        let (id, version) = ("debian-13".to_owned(), of_disk.to_owned());
        let kind = BaseKind::Managed(ImageLabel { id, version });
        let base =
            BaseRecord { kind, content: String::new(), stamp: None, allow_backing_file: false };
        let record = Record::new(&layout, "dev", &layout.overlay("dev"), base);
        let records = match of_disk {
            "" => BTreeMap::new(),
            _ => BTreeMap::from([("dev".to_owned(), record)]),
        };
        let plan = Plan::new(&config, &[], &config.catalog(), &records)?;
        match &plan.vms[0].base {
            BasePlan::Image(spec) => Ok(spec.version.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_newer_build_is_for_new_vms() {
        let pinned = [build(NEWER), build(OLDER)];
        assert_eq!(plan("debian-13", &pinned, "").expect("a plan"), NEWER);
        assert_eq!(plan("debian-13", &pinned, OLDER).expect("a plan"), OLDER);
        assert_eq!(plan("debian-13", &pinned, NEWER).expect("a plan"), NEWER);
        // Named versions are what they were.
        let named = format!("debian-13@{NEWER}");
        let error = plan(&named, &pinned, OLDER).expect_err("another disk");
        assert!(matches!(error, VmError::Disk(VmDiskError::ImageChanged { .. })), "{error}");
    }

    #[test]
    fn a_disk_whose_build_nothing_describes_is_named() {
        let error = plan("debian-13", &[build(NEWER)], OLDER).expect_err("is unknown");
        assert!(matches!(error, VmError::Disk(VmDiskError::BuildUnknown { .. })), "{error}");
        assert!(error.to_string().contains("neither castra.lock nor this castra"), "{error}");
    }
}
