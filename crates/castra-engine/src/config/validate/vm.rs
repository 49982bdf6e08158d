//! `[[vms]]`: a VM, and everything that VMs must not share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::super::bounds::{DiskPath, resolved};
use super::super::defaults;
use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::machine::Machine;
use super::super::project::{BaseImageSource, BootProfile, Firmware, Proxy, VmDefinition};
use super::super::schema::{Fields, Key, Value, key, to_i128};
use super::base::{self, Base};
use super::image::{Images, read_option};
use super::port::{self, SpannedForward};
use super::provision::OfImage;
use super::size::{self, MIB, format_size};
use super::{Scope, cloud_init, disk, mount, name, path, provision};
use crate::layout::ProjectLayout;
use crate::managed::ArtifactSource;
use crate::qemu::CpuModel;

/// Key of a project's VMs.
pub(super) const VMS: Key = key("vms", "[{ name = \"dev\", managed_image = \"alpine-minimal\" }]");
const NAME: Key = key("name", "\"dev\"");
const DESCRIPTION: Key = key("description", "\"where the tests run\"");
const OVERLAY: Key = key("overlay", "\".castra/dev-overlay.qcow2\"");
const CPUS: Key = key("cpus", "2");
const CPU: Key = key("cpu", "\"max\"");
const BOOT_PROFILE: Key = key("boot_profile", "\"managed\"");
const BOOT_PROFILES: [(&str, BootProfile); 2] =
    [("managed", BootProfile::Managed), ("native", BootProfile::Native)];
const FIRMWARE: Key = key("firmware", "\"uefi\"");
const FIRMWARES: [(&str, Firmware); 2] = [("bios", Firmware::Bios), ("uefi", Firmware::Uefi)];
const MOUNTS: Key = key("mounts", "[{ host = \".\", guest = \"/src\" }]");
const DISKS: Key = key("disks", "[{ name = \"data\", size = \"10 GiB\" }]");
const PROXY: Key = key("proxy", "\"host\"");
const PROXIES: [(&str, Proxy); 2] = [("none", Proxy::None), ("host", Proxy::Host)];
const PORT_FORWARDS: Key = key("port_forwards", "[{ host = 8080, guest = 80 }]");

/// Maximum number of virtual CPUs: QEMU 7.2 refuses 256 of them under TCG, because it has no X2APIC
/// there (*measured*).
const MAX_CPUS: i128 = 255;

/// Error for a VM that cannot be created.
#[derive(Debug, thiserror::Error)]
enum VmProblem {
    #[error("{vm} cannot have {cpus} CPUs")]
    Cpus { vm: String, cpus: i128 },
    #[error("the `cpu` of {vm} is a model, not a number")]
    NumberAsCpu { vm: String, number: i128 },
    #[error("two VMs are called {}", quoted(.0))]
    SameName(String),
    #[error("two VMs are called {} and {}", quoted(.0), quoted(.1))]
    NamesDifferInCase(String, String),
    #[error("two VMs have the same overlay {}", quoted(&.0.to_string_lossy()))]
    SameOverlay(PathBuf),
    #[error("the overlay {} is also a base image", quoted(&.0.to_string_lossy()))]
    OverlayIsBase(PathBuf),
    #[error("the overlay of {vm} would replace {}", quoted(&.path.to_string_lossy()))]
    OverlayReplaces { vm: String, path: PathBuf },
    #[error(
        "{vm} has {} of memory, and the image {} needs {}",
        format_size(*.has), quoted(.image), format_size(*.needs)
    )]
    MemoryBelowImage { vm: String, image: String, has: u64, needs: u64 },
    #[error("{0} has `firmware`, which only a native boot uses")]
    UnusedFirmware(String),
}

impl Problem for VmProblem {
    fn label(&self) -> String {
        match self {
            Self::Cpus { .. } => format!("must be 1 to {MAX_CPUS}"),
            Self::NumberAsCpu { .. } => "should be a string".to_owned(),
            Self::SameName(_) => "and again here".to_owned(),
            Self::NamesDifferInCase(..) => "differs in case only".to_owned(),
            Self::SameOverlay(_) => "also the disk of this one".to_owned(),
            Self::OverlayIsBase(_) => "would be written to".to_owned(),
            Self::UnusedFirmware(_) => "has no effect".to_owned(),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Cpus { .. } => format!("Write for instance {CPUS}."),
            Self::NumberAsCpu { number, .. } => {
                format!(
                    "Write `cpus = {number}` for their number, or a model of QEMU's, for instance \
                    {CPU}."
                )
            }
            Self::SameName(name) => {
                format!("Rename one of them, for instance `name = \"{name}-2\"`.")
            }
            Self::NamesDifferInCase(..) => {
                "On a macOS disk their files would be the same. Rename one of them.".to_owned()
            }
            Self::SameOverlay(_) => {
                "Each VM writes to a disk of its own. Remove `overlay`: the default is one file \
                per VM."
                    .to_owned()
            }
            Self::OverlayIsBase(_) => {
                "A base image is never written to. Remove `overlay`, or name a new file.".to_owned()
            }
            Self::OverlayReplaces { .. } => {
                "Remove `overlay`, or name a file that Castra may create.".to_owned()
            }
            Self::MemoryBelowImage { needs, .. } => {
                format!("Write `memory = \"{}\"`.", format_size(*needs))
            }
            Self::UnusedFirmware(_) => {
                "Remove it, or write `boot_profile = \"native\"` to boot with \
                the disk's own boot loader, without Castra's agent."
                    .to_owned()
            }
        }
    }
}

/// A VM with the spans that a comparison with others needs. Parts with problems hold defaults:
/// after an error, no project is made.
#[derive(Debug)]
pub(super) struct VmDraft {
    vm: VmDefinition,
    span: Range<usize>,
    name_span: Option<Range<usize>>,
    base_span: Range<usize>,
    overlay_span: Option<Range<usize>>,
    forwards: Vec<SpannedForward>,
}

impl VmDraft {
    /// Reports the machine's problems with the VM, whose project has its state in `state`.
    pub(super) fn check_against(
        &self,
        machine: &dyn Machine,
        state: &ProjectLayout,
        problems: &mut Problems,
    ) {
        if let BaseImageSource::Path(path) = &self.vm.base_image
            && let Some(finding) = machine.disk(&self.vm, path)
        {
            problems.found(self.base_span.clone(), &finding);
        }
        for (forward, span) in &self.forwards {
            if let Some(finding) = machine.port(&self.vm, forward, state) {
                problems.found(span.clone(), &finding);
            }
        }
    }

    pub(super) fn into_definition(self) -> VmDefinition {
        self.vm
    }
}

/// Reads the `number`th VM, counted from 1.
pub(super) fn read_vm(
    value: &Value<'_>,
    number: usize,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<VmDraft> {
    let mut fields = Fields::of_element(value, VMS, format!("VM {number}"), problems)?;
    let named = read_name(&mut fields, problems);
    let (name, name_span) = named.map_or((String::new(), None), |(name, span)| (name, Some(span)));
    let title = if name.is_empty() { format!("VM {number}") } else { format!("VM `{name}`") };
    fields.rename(title.clone());

    let description = fields.line(DESCRIPTION, problems).map(|text| (*text.get_ref()).to_owned());
    let base = base::read_base(&mut fields, &title, scope, problems);
    let (overlay, overlay_span) = read_overlay(&mut fields, &title, &name, scope, problems);
    let cpus = read_cpus(&mut fields, &title, problems);
    let cpu = read_cpu(&mut fields, &title, problems);
    let memory_bytes = read_memory(&mut fields, &title, &base, scope, problems);
    let disk_bytes = size::read_disk(&mut fields, problems).unwrap_or(defaults::DISK_BYTES);
    let boot_profile =
        fields.word(BOOT_PROFILE, &BOOT_PROFILES, problems).map(|profile| *profile.get_ref());
    let firmware = read_firmware(&mut fields, &title, boot_profile, problems);
    let cloud_init = cloud_init::read(&mut fields, &title, scope, problems);
    let (forwards, auto_forwards) = match fields.value(PORT_FORWARDS) {
        Some(value) => port::read(value, PORT_FORWARDS, &title, problems),
        None => (Vec::new(), false),
    };
    let mounts = fields.array(MOUNTS, problems).unwrap_or_default();
    let mounts = mount::read(mounts, MOUNTS, &title, scope, problems);
    let disks = fields.array(DISKS, problems).unwrap_or_default();
    let data_disks = disk::read(disks, DISKS, &title, boot_profile, &mounts, problems);
    let has_cloud_init = cloud_init.is_some();
    let of_image = OfImage { steps: scope.images.steps_of(&base.source), span: &base.span };
    let provision = provision::read_of_vm(
        &mut fields,
        &title,
        of_image,
        boot_profile,
        has_cloud_init,
        scope,
        problems,
    );
    let proxy = fields.word(PROXY, &PROXIES, problems).map(|proxy| *proxy.get_ref());
    let span = fields.span();
    fields.warn_unknown(problems);

    let port_forwards = forwards.iter().map(|(forward, _)| *forward).collect();
    let allow_backing_file = base.allow_backing_file;
    let (base_image, base_span) = (base.source, base.span);
    let vm = VmDefinition {
        name,
        description,
        base_image,
        allow_backing_file,
        overlay,
        cpus,
        cpu,
        memory_bytes,
        disk_bytes,
        data_disks,
        boot_profile,
        firmware,
        cloud_init,
        port_forwards,
        auto_forwards,
        mounts,
        provision,
        proxy: proxy.unwrap_or_default(),
    };
    Some(VmDraft { vm, span, name_span, base_span, overlay_span, forwards })
}

/// Reports names, disks and host ports that two VMs claim.
pub(super) fn check_together(drafts: &[VmDraft], images: &Images, problems: &mut Problems) {
    check_names(drafts, problems);
    check_overlays(drafts, problems);
    check_overlays_against_images(drafts, images, problems);
    port::check_host_ports(drafts.iter().flat_map(|draft| &draft.forwards), problems);
}

fn check_names(drafts: &[VmDraft], problems: &mut Problems) {
    let mut taken: HashMap<String, (&str, Range<usize>)> = HashMap::new();
    for draft in drafts {
        let (name, Some(span)) = (&draft.vm.name, &draft.name_span) else { continue };
        match taken.entry(name.to_lowercase()) {
            Entry::Vacant(free) => drop(free.insert((name, span.clone()))),
            Entry::Occupied(earlier) => {
                let (other, there) = earlier.get();
                let problem = if other == name {
                    VmProblem::SameName(name.clone())
                } else {
                    VmProblem::NamesDifferInCase((*other).to_owned(), name.clone())
                };
                problems.error_because_of(span.clone(), &problem, there.clone(), "the first one");
            }
        }
    }
}

fn check_overlays(drafts: &[VmDraft], problems: &mut Problems) {
    // A file may have several names: all comparisons are of resolved paths.
    let bases: HashMap<PathBuf, Range<usize>> = drafts
        .iter()
        .filter_map(|draft| match &draft.vm.base_image {
            BaseImageSource::Path(path) => Some((resolved(path), draft.base_span.clone())),
            BaseImageSource::Managed(_) => None,
        })
        .collect();
    let mut taken: HashMap<PathBuf, &VmDraft> = HashMap::new();
    for draft in drafts.iter().filter(|draft| draft.name_span.is_some()) {
        let overlay: &Path = &draft.vm.overlay;
        let here = draft.overlay_span.clone().unwrap_or_else(|| draft.span.clone());
        if let Some(there) = bases.get(&draft.vm.overlay.resolved()) {
            let problem = VmProblem::OverlayIsBase(overlay.to_owned());
            problems.error_because_of(here.clone(), &problem, there.clone(), "the base image");
        }
        match taken.entry(draft.vm.overlay.resolved()) {
            Entry::Vacant(free) => drop(free.insert(draft)),
            // Two VMs with one name share their default overlay too: the problem of the name covers
            // it.
            Entry::Occupied(earlier) if earlier.get().vm.name == draft.vm.name => {}
            Entry::Occupied(earlier) => {
                let there = earlier
                    .get()
                    .overlay_span
                    .clone()
                    .unwrap_or_else(|| earlier.get().span.clone());
                let problem = VmProblem::SameOverlay(overlay.to_owned());
                problems.error_because_of(here, &problem, there, "the disk of this VM");
            }
        }
    }
}

/// Reports a disk whose path is a file from which an image is made.
fn check_overlays_against_images(drafts: &[VmDraft], images: &Images, problems: &mut Problems) {
    let sources: Vec<PathBuf> = images
        .specs
        .values()
        .flat_map(|spec| &spec.artifacts)
        .filter_map(|artifact| match &artifact.source {
            ArtifactSource::Path(path) => Some(resolved(path)),
            ArtifactSource::Url(_) | ArtifactSource::PythonPackage { .. } => None,
        })
        .collect();
    for draft in drafts.iter().filter(|draft| sources.contains(&draft.vm.overlay.resolved())) {
        let here = draft.overlay_span.clone().unwrap_or_else(|| draft.span.clone());
        problems.error(here, &VmProblem::OverlayIsBase(draft.vm.overlay.to_path_buf()));
    }
}

fn read_name(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<(String, Range<usize>)> {
    if !fields.has(NAME) {
        fields.missing(NAME, problems);
    }
    let name = fields.string(NAME, problems)?;
    match name::check_vm_name(name.get_ref()) {
        Ok(()) => Some(((*name.get_ref()).to_owned(), name.span())),
        Err(problem) => {
            problems.error(name.span(), &problem);
            None
        }
    }
}

fn read_overlay(
    fields: &mut Fields<'_>,
    title: &str,
    name: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> (DiskPath, Option<Range<usize>>) {
    let default = scope.bounds.default_disk(name);
    let Some(text) = fields.string(OVERLAY, problems) else { return (default, None) };
    match path::resolve_file(text.get_ref(), scope.root, scope.home) {
        Ok(path) => {
            if scope.root.starts_with(&path)
                || scope.bounds.state_root().path().starts_with(&path)
                || path == scope.file
            {
                let problem =
                    VmProblem::OverlayReplaces { vm: title.to_owned(), path: path.clone() };
                problems.error(text.span(), &problem);
            } else if let Err(problem) = scope.bounds.disk(path.clone()).confirm() {
                problems.error(text.span(), &problem);
            }
            // Compared with other disks in either case.
            (scope.bounds.disk(path), Some(text.span()))
        }
        Err(problem) => {
            problems.error(text.span(), &problem);
            (default, None)
        }
    }
}

fn read_cpus(fields: &mut Fields<'_>, title: &str, problems: &mut Problems) -> u32 {
    let Some(cpus) = fields.integer(CPUS, problems) else { return defaults::CPUS };
    match u32::try_from(*cpus.get_ref()) {
        Ok(number) if (1..=MAX_CPUS).contains(&i128::from(number)) => number,
        _ => {
            problems.error(
                cpus.span(),
                &VmProblem::Cpus { vm: title.to_owned(), cpus: *cpus.get_ref() },
            );
            defaults::CPUS
        }
    }
}

/// Reads the CPU's model. An integer is a mistake: the number of CPUs has a key of its own.
fn read_cpu(fields: &mut Fields<'_>, title: &str, problems: &mut Problems) -> Option<CpuModel> {
    let value = fields.value(CPU)?;
    if let DeValue::Integer(number) = value.get_ref() {
        let problem = VmProblem::NumberAsCpu { vm: title.to_owned(), number: to_i128(number) };
        problems.error(value.span(), &problem);
        return None;
    }
    read_option(&fields.line(CPU, problems)?, problems)
}

/// Reads the firmware of a native boot.
fn read_firmware(
    fields: &mut Fields<'_>,
    title: &str,
    boot_profile: Option<BootProfile>,
    problems: &mut Problems,
) -> Option<Firmware> {
    let firmware = fields.word(FIRMWARE, &FIRMWARES, problems)?;
    if boot_profile != Some(BootProfile::Native) {
        problems.error(firmware.span(), &VmProblem::UnusedFirmware(title.to_owned()));
    }
    Some(*firmware.get_ref())
}

/// Reads the memory, or returns the image's minimum if that is more than the default.
fn read_memory(
    fields: &mut Fields<'_>,
    title: &str,
    base: &Base,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> u64 {
    let spec = base.user_image.as_ref().and_then(|name| scope.images.specs.get(name));
    let needs = spec.map_or(0, |spec| spec.profile.min_memory_mib * MIB);
    let Some(has) = size::read_memory(fields, problems) else {
        return defaults::MEMORY_BYTES.max(needs);
    };
    if let Some(spec) = spec.filter(|_| *has.get_ref() < needs) {
        let (vm, image) = (title.to_owned(), spec.id.clone());
        let problem = VmProblem::MemoryBelowImage { vm, image, has: *has.get_ref(), needs };
        problems.error(has.span(), &problem);
    }
    *has.get_ref()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::{Surroundings, parse};

    /// Returns the problem of this document in a directory where `disks` is a link to `data`.
    fn problem(text: &str) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::create_dir(root.join("data")).expect("a directory");
        fs::write(root.join("data/a.qcow2"), b"QFI\xfb").expect("written");
        symlink("data", root.join("disks")).expect("linked");
        symlink("data/a.qcow2", root.join("base.qcow2")).expect("linked");
        let surroundings = Surroundings { home: None, known_images: &[], allowed_outside: &[] };
        parse(text, &root.join("castra.toml"), &surroundings)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_link_does_not_hide_that_a_file_has_two_uses() {
        let vm = |name: &str, base: &str, overlay: &str| {
            format!(
                "[[vms]]\nname = \"{name}\"\nbase_image = \"{base}\"\noverlay = \"{overlay}\"\n"
            )
        };
        let shared = vm("a", "x.qcow2", "disks/new.qcow2") + &vm("b", "x.qcow2", "data/new.qcow2");
        assert!(problem(&shared).contains("the same overlay"), "{}", problem(&shared));
        for (base, overlay) in [
            ("data/a.qcow2", "data/a.qcow2"),
            ("base.qcow2", "data/a.qcow2"),
            ("data/a.qcow2", "disks/a.qcow2"),
            ("disks/new.qcow2", "data/new.qcow2"),
        ] {
            let text = vm("a", base, ".castra/a.qcow2") + &vm("b", "x.qcow2", overlay);
            assert!(
                problem(&text).contains("is also a base image"),
                "{base} {overlay}: {}",
                problem(&text)
            );
        }
        let source = format!(
            "[images.own.rootfs]\npath = \"base.qcow2\"\nsha256 = \"{}\"\n\
             [[vms]]\nname = \"a\"\nmanaged_image = \"own\"\noverlay = \"disks/a.qcow2\"\n",
            "ab".repeat(32)
        );
        assert!(problem(&source).contains("is also a base image"), "{}", problem(&source));
    }
}
