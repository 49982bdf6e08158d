//! `[images]`: images that the user describes, and mirrors for downloads.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use toml::Spanned;

use super::super::defaults;
use super::super::diagnostics::{Problem, Problems, listed, quoted};
use super::super::project::{BaseImageSource, ManagedImageSelection};
use super::super::provision::ProvisionStep;
use super::super::schema::{Fields, Key, Value, key};
use super::artifact::{self, Origin};
use super::provision::{self, ProjectFiles};
use super::size::{self, MIB};
use super::{Place, name, path, url};
use crate::managed::{
    ArtifactRole, ManagedArtifactSpec, ManagedImageSpec, QemuProfile, signing_publishers,
};
use crate::qemu::{Device, OptionError};
use crate::similar::closest;

/// Key of a project's images.
pub(super) const IMAGES: Key = key("images", "{ debian = { … } }");
const MIRRORS: Key = key("mirrors", "[\"https://mirror.example/castra\"]");
const KEYS: Key = key("keys", "{ ubuntu = \"keys/ubuntu.asc\" }");
const IMAGE: Key = key("NAME", "{ rootfs = { … } }");
const VERSION: Key = key("version", "\"v1\"");
const DESCRIPTION: Key = key("description", "\"Debian 13 with our tools\"");
const COMMAND_LINE: Key = key("command_line", "\"root=/dev/vda console=ttyS0\"");
const MACHINE: Key = key("machine", "\"q35\"");
const CPU: Key = key("cpu", "\"max\"");

const DEVICES: Key = key("devices", "[\"virtio-rng-pci\"]");
const ROOTFS: Key = key("rootfs", "{ path = \"disk.qcow2\", sha256 = \"…\" }");
const KERNEL: Key = key("kernel", "{ path = \"vmlinuz\", sha256 = \"…\" }");
const INITRAMFS: Key = key("initramfs", "{ path = \"initrd.img\", sha256 = \"…\" }");

/// Error for a description that does not make an image.
#[derive(Debug, thiserror::Error)]
enum ImageProblem {
    #[error("there is no key of {} to verify anything with", quoted(.0))]
    NoSuchPublisher(String),
    #[error("the image {} has the name of a built-in image", quoted(.0))]
    NameOfCatalog(String),
    #[error("the image {} has a kernel but no initramfs", quoted(.0))]
    KernelAlone(String),
    #[error("the image {} has an initramfs but no kernel", quoted(.0))]
    InitramfsAlone(String),
    #[error("the image {} has a kernel but no `command_line`", quoted(.0))]
    NoCommandLine(String),
    #[error("the image {} has a `command_line` but no kernel to read it", quoted(.0))]
    CommandLineAlone(String),
}

impl Problem for ImageProblem {
    fn label(&self) -> String {
        match self {
            Self::NoSuchPublisher(_) => "signs no checksum files that castra reads".to_owned(),
            Self::NameOfCatalog(_) => "taken".to_owned(),
            Self::KernelAlone(_) => "needs an initramfs".to_owned(),
            Self::InitramfsAlone(_) => "needs a kernel".to_owned(),
            Self::NoCommandLine(_) => "needs a command line".to_owned(),
            Self::CommandLineAlone(_) => "would have no effect".to_owned(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::NoSuchPublisher(name) => {
                let publishers = signing_publishers();
                match closest(name, publishers.iter().copied()) {
                    Some(near) => format!("Did you mean `{near}`?"),
                    None => format!("Those that sign are {}.", listed(publishers, "and")),
                }
            }
            Self::NameOfCatalog(name) => {
                format!(
                    "Pick another name, for instance `[images.my-{name}]`. An image of the \
                    catalog can have `provision` alone."
                )
            }
            Self::KernelAlone(name) => format!(
                "Describe `[images.{name}.initramfs]` too, or omit both: the disk then boots by \
                itself."
            ),
            Self::InitramfsAlone(name) => {
                format!("Describe `[images.{name}.kernel]` too, or omit both.")
            }
            Self::NoCommandLine(_) => {
                format!(
                    "The kernel needs to know its root device. Add for instance {COMMAND_LINE}."
                )
            }
            Self::CommandLineAlone(name) => {
                format!(
                    "Describe `[images.{name}.kernel]` and `[images.{name}.initramfs]`, or remove \
                    it."
                )
            }
        }
    }
}

/// Contents of `[images]`.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// Images without a problem.
    pub(super) specs: BTreeMap<String, ManagedImageSpec>,
    /// Names of all images, so that a VM is not reported to name an unknown image when the
    /// description has a problem.
    pub(super) names: BTreeSet<String>,
    /// Files of publishers' keys, absolute.
    pub(super) keys: BTreeMap<String, PathBuf>,
    /// Base URLs, without a trailing slash.
    pub(super) mirrors: Vec<String>,
    /// Steps of images, also of the catalog's, by the images' names.
    pub(super) steps: BTreeMap<String, Vec<ProvisionStep>>,
}

impl Images {
    /// Returns the steps of an image.
    pub(super) fn steps_of(&self, base: &BaseImageSource) -> &[ProvisionStep] {
        let BaseImageSource::Managed(ManagedImageSelection::Exact { name, .. }) = base else {
            return &[];
        };
        self.steps.get(name).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Reads the whole table. `known_images` are the IDs and versions of the catalog.
pub(super) fn read_images(
    value: &Value<'_>,
    place: &Place<'_>,
    files: ProjectFiles<'_>,
    known_images: &[(&str, &str)],
    problems: &mut Problems,
) -> Images {
    let mut images = Images::default();
    let Some(mut fields) = Fields::of(value, IMAGES, "[images]".to_owned(), problems) else {
        return images;
    };
    let mirrors = fields.lines(MIRRORS, problems).unwrap_or_default();
    images.mirrors =
        mirrors.iter().filter_map(|mirror| url::check_mirror(mirror, problems)).collect();
    if let Some(value) = fields.value(KEYS) {
        images.keys = read_keys(value, place, problems);
    }
    let mut origins = artifact::Origins::default();
    for (name, value) in fields.others() {
        let id = (*name.get_ref()).to_owned();
        let is_known = known_images.iter().any(|(known, _)| *known == id);
        let Some(mut fields) =
            Fields::of(value, IMAGE, format!("the image {}", quoted(&id)), problems)
        else {
            images.names.insert(id);
            continue;
        };
        let steps = provision::read(&mut fields, &format!("image `{id}`"), files, problems);
        images.steps.insert(id.clone(), steps);
        // An image of the catalog can have steps, and no other description.
        if is_known && fields.others().next().is_none() {
            continue;
        }
        check_image_name(&name, is_known, problems);
        if let Some(spec) = read_image(fields, &id, place, &mut origins, problems) {
            images.specs.insert(id.clone(), spec);
        }
        images.names.insert(id);
    }
    images
}

/// Reads the files of publishers' keys. Others than publishers are errors, not warnings: a key that
/// is ignored would verify nothing.
fn read_keys(
    value: &Value<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> BTreeMap<String, PathBuf> {
    let mut keys = BTreeMap::new();
    let title = "[images.keys]".to_owned();
    let Some(mut fields) = Fields::of(value, KEYS, title, problems) else { return keys };
    for publisher in signing_publishers() {
        let file = fields.string(key(publisher, "\"keys/publisher.asc\""), problems);
        let Some(text) = file else { continue };
        match path::resolve_file(text.get_ref(), place.root, place.home) {
            Ok(file) => drop(keys.insert(publisher.to_owned(), file)),
            Err(problem) => problems.error(text.span(), &problem),
        }
    }
    for (name, _) in fields.others() {
        let problem = ImageProblem::NoSuchPublisher((*name.get_ref()).to_owned());
        problems.error(name.span(), &problem);
    }
    keys
}

fn check_image_name(name: &Spanned<&str>, is_known: bool, problems: &mut Problems) {
    let id = *name.get_ref();
    if let Err(problem) = name::check_file_name("image name", id, name::MAX_IMAGE_NAME_BYTES) {
        problems.error(name.span(), &problem);
    } else if is_known {
        problems.error(name.span(), &ImageProblem::NameOfCatalog(id.to_owned()));
    }
}

fn read_image(
    mut fields: Fields<'_>,
    id: &str,
    place: &Place<'_>,
    origins: &mut artifact::Origins,
    problems: &mut Problems,
) -> Option<ManagedImageSpec> {
    let version = read_version(&mut fields, problems);
    let description = fields
        .line(DESCRIPTION, problems)
        .map_or_else(String::new, |text| (*text.get_ref()).to_owned());
    if !fields.has(ROOTFS) {
        fields.missing(ROOTFS, problems);
    }
    let rootfs =
        artifact::read(&mut fields, ROOTFS, ArtifactRole::Rootfs, None, place, origins, problems);
    let shared: Option<&Origin> = rootfs.as_ref().map(|artifact| &artifact.origin);
    let mut read =
        |key, role| artifact::read(&mut fields, key, role, shared, place, origins, problems);
    let kernel = read(KERNEL, ArtifactRole::Kernel);
    let initramfs = read(INITRAMFS, ArtifactRole::Initramfs);
    let profile = read_profile(&mut fields, problems);
    check_boot_files(&fields, id, problems);

    let complete =
        fields.has(KERNEL) == kernel.is_some() && fields.has(INITRAMFS) == initramfs.is_some();
    fields.warn_unknown(problems);
    let mut artifacts: Vec<ManagedArtifactSpec> = vec![rootfs?.into_spec()];
    artifacts.extend([kernel, initramfs].into_iter().flatten().map(artifact::Artifact::into_spec));
    complete.then(|| ManagedImageSpec {
        id: id.to_owned(),
        version,
        description,
        artifacts,
        profile,
    })
}

fn read_version(fields: &mut Fields<'_>, problems: &mut Problems) -> String {
    let Some(version) = fields.string(VERSION, problems) else {
        return defaults::IMAGE_VERSION.to_owned();
    };
    let max_bytes = name::MAX_IMAGE_NAME_BYTES;
    if let Err(problem) = name::check_file_name("image version", version.get_ref(), max_bytes) {
        problems.error(version.span(), &problem);
    }
    (*version.get_ref()).to_owned()
}

fn read_profile(fields: &mut Fields<'_>, problems: &mut Problems) -> QemuProfile {
    let command_line =
        fields.line(COMMAND_LINE, problems).and_then(|text| read_option(&text, problems));
    let machine = fields.line(MACHINE, problems).and_then(|text| read_option(&text, problems));
    let tcg_cpu = fields.line(CPU, problems).and_then(|text| read_option(&text, problems));
    let min_memory_mib = size::read_min_memory(fields, problems)
        .map_or(defaults::MIN_MEMORY_MIB, |size| *size.get_ref() / MIB);
    let devices = match fields.lines(DEVICES, problems) {
        Some(devices) => {
            devices.iter().filter_map(|device| read_option(device, problems)).collect()
        }
        None => defaults::DEVICES.map(Device::new).to_vec(),
    };
    let (machine, tcg_cpu) = (machine.unwrap_or_default(), tcg_cpu.unwrap_or_default());
    QemuProfile { command_line, machine, tcg_cpu, min_memory_mib, devices }
}

/// Reads a value that is passed to QEMU; `None` after a problem.
pub(super) fn read_option<T: FromStr<Err = OptionError>>(
    text: &Spanned<&str>,
    problems: &mut Problems,
) -> Option<T> {
    text.get_ref().parse().map_err(|problem| problems.error(text.span(), &problem)).ok()
}

impl Problem for OptionError {
    fn help(&self) -> String {
        Self::help(self)
    }
}

/// Checks that kernel, initramfs and command line are all set, or none of them.
fn check_boot_files(fields: &Fields<'_>, id: &str, problems: &mut Problems) {
    let here = |key| fields.key_span(key);
    let id = || id.to_owned();
    let found: Option<(Range<usize>, ImageProblem)> =
        match (here(KERNEL), here(INITRAMFS), here(COMMAND_LINE)) {
            (Some(kernel), None, _) => Some((kernel, ImageProblem::KernelAlone(id()))),
            (None, Some(initramfs), _) => Some((initramfs, ImageProblem::InitramfsAlone(id()))),
            (Some(kernel), Some(_), None) => Some((kernel, ImageProblem::NoCommandLine(id()))),
            (None, None, Some(line)) => Some((line, ImageProblem::CommandLineAlone(id()))),
            (Some(_), Some(_), Some(_)) | (None, None, None) => None,
        };
    if let Some((span, problem)) = found {
        problems.error(span, &problem);
    }
}
