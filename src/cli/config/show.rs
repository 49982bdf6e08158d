//! `castra config show`: the effective configuration, each value with the reason for it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use castra_engine::config::{
    BaseImageSource, BootProfile, CloudInitText, DataDisk, Firmware, KeyLines, PortForward,
    ProjectConfig, Proxy, VmDefinition, defaults, format_size, key_lines,
};
use castra_engine::error::Result;
use castra_engine::guest::Mount;
use castra_engine::managed::{ArtifactSource, ManagedImageSpec};
use castra_engine::qemu::CpuModel;
use castra_engine::vm::{self, BasePlan, Plan, Record, VmPlan};
use schemars::JsonSchema;
use serde::Serialize;

use super::table::table;
use crate::cli::context::CommandContext;

/// The result of `castra config show`.
#[derive(Serialize, JsonSchema)]
pub(in super::super) struct ConfigShown {
    /// The file; `null` if there is none.
    file: Option<PathBuf>,
    /// Name of the project.
    project: String,
    /// Directory of the VMs' files.
    state_directory: PathBuf,
    /// Files outside the project that the configuration makes castra read or write; `null` if there
    /// are none.
    outside: Option<OutsideShown>,
    /// VMs as `up` would start them.
    vms: Vec<VmShown>,
}

/// Files that a configuration reaches outside the project's directory.
#[derive(Default, PartialEq, Eq, Serialize, JsonSchema)]
struct OutsideShown {
    /// Files read.
    reads: Vec<PathShown>,
    /// Files and directories written.
    writes: Vec<PathShown>,
}

/// A path, and the setting that names it.
#[derive(PartialEq, Eq, Serialize, JsonSchema)]
struct PathShown {
    path: PathBuf,
    /// Setting that names the path, in words.
    why: String,
}

/// One VM, as `up` would start it.
#[derive(Serialize, JsonSchema)]
struct VmShown {
    name: String,
    description: Option<String>,
    /// Image that the VM's disk is based on, as `NAME@VERSION`, or the path of the user's own disk.
    image: Setting<String>,
    boot_profile: Setting<String>,
    /// Firmware that a native boot uses; `null` for another boot, or if the disk is not there.
    firmware: Setting<Option<Firmware>>,
    /// Data for cloud-init; `null` if there are none.
    cloud_init: Setting<Option<CloudInitShown>>,
    cpus: Setting<u32>,
    /// CPU model, used under emulation.
    cpu: Setting<String>,
    memory_bytes: Setting<u64>,
    disk_bytes: Setting<u64>,
    /// Disks in addition to that one.
    disks: Setting<Vec<DiskShown>>,
    /// The VM's own disk.
    overlay: Setting<PathBuf>,
    port_forwards: Setting<Vec<PortForward>>,
    /// True if whatever listens in the VM is forwarded.
    auto_forwards: Setting<bool>,
    /// Directories of this machine that the VM sees.
    mounts: Setting<Vec<Mount>>,
    /// Steps that prepare the disk, each as one short line.
    provision: Setting<Vec<String>>,
    /// Proxies in the environment of commands.
    proxy: Setting<Proxy>,
    /// Warnings about the VM.
    warnings: Vec<String>,
}

/// A data disk of a VM.
#[derive(Serialize, JsonSchema)]
struct DiskShown {
    name: String,
    size_bytes: u64,
    /// Path in the VM at which it is mounted; `null` if castra does not mount it.
    guest: Option<String>,
}

impl From<&DataDisk> for DiskShown {
    fn from(disk: &DataDisk) -> Self {
        let (name, size_bytes) = (disk.name.to_string(), disk.size_bytes);
        Self { name, size_bytes, guest: disk.guest.clone() }
    }
}

/// Origin of a VM's data for cloud-init.
#[derive(Serialize, JsonSchema)]
struct CloudInitShown {
    /// File with the user data; `null` if they are in castra.toml.
    user_data: Option<PathBuf>,
    /// True if there is a network configuration.
    has_network_config: bool,
    /// File with the network configuration; `null` if it is in castra.toml, or if there is none.
    network_config: Option<PathBuf>,
}

/// A value, and where it comes from.
#[derive(Serialize, JsonSchema)]
struct Setting<T> {
    value: T,
    /// Line of castra.toml that sets the value; `null` if none does.
    line: Option<usize>,
    /// Origin of the value, in words.
    why: String,
}

impl<T> Setting<T> {
    /// Returns a value set by `line` of the file, or else by the reason `why`.
    fn new(value: T, line: Option<usize>, why: &str) -> Self {
        let why = line.map_or_else(|| why.to_owned(), |line| format!("line {line}"));
        Self { value, line, why }
    }
}

/// Shows the configuration, defaults included.
pub(super) fn run(context: &CommandContext) -> Result<ExitCode> {
    let config = context.unchecked_config()?;
    context.printer.diagnostics(&config.warnings);
    let lines = config.file.as_deref().map(key_lines).transpose()?.unwrap_or_default();
    let layout = config.state_root.open(&context.runtime)?;
    let plan = Plan::new(config, &[], &config.catalog(), &Record::all(&layout))?;
    let line = |number: usize| lines.get(number).cloned().unwrap_or_default();
    let vms = plan
        .vms
        .iter()
        .enumerate()
        .map(|(number, vm)| show_vm(vm, &line(number), config, context))
        .collect();
    let shown = ConfigShown {
        project: config.name.clone(),
        state_directory: config.state_root.path().to_owned(),
        outside: outside(config),
        vms,
        file: config.file.clone(),
    };
    for warning in shown.vms.iter().flat_map(|vm| &vm.warnings) {
        context.printer.warning(warning);
    }
    context.printer.show(&shown, &text(&shown))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns everything that the configuration names outside the project's directory, each once.
fn outside(config: &ProjectConfig) -> Option<OutsideShown> {
    let add = |list: &mut Vec<PathShown>, path: &Path, why: String| {
        if config.bounds.is_outside(path) && !list.iter().any(|known| known.path == path) {
            list.push(PathShown { path: path.to_owned(), why });
        }
    };
    let mut shown = OutsideShown::default();
    let state_root = config.state_root.path();
    add(&mut shown.writes, state_root, "state directory".to_owned());
    for vm in &config.vms {
        if let BaseImageSource::Path(path) = &vm.base_image {
            add(&mut shown.reads, path, format!("base image of VM `{}`", vm.name));
        }
        if !vm.overlay.starts_with(state_root) {
            add(&mut shown.writes, &vm.overlay, format!("disk of VM `{}`", vm.name));
        }
    }
    for artifact in config.images.values().flat_map(|image| &image.artifacts) {
        if let ArtifactSource::Path(path) = &artifact.source {
            add(&mut shown.reads, path, "source of an image".to_owned());
        }
    }
    (shown != OutsideShown::default()).then_some(shown)
}

fn show_vm(
    plan: &VmPlan,
    lines: &KeyLines,
    config: &ProjectConfig,
    context: &CommandContext,
) -> VmShown {
    let definition = &plan.definition;
    let line = |key: &str| lines.get(key).copied();
    let spec = match &plan.base {
        BasePlan::Image(spec) => Some(spec),
        BasePlan::FirstOf(candidates) => candidates.first(),
        BasePlan::Path(_) => None,
    };
    let boot = match definition.boot_profile {
        Some(BootProfile::Managed) | None => "managed",
        Some(BootProfile::Native) => "native",
    };
    let boot_why = match spec {
        Some(spec) if spec.profile.command_line.is_some() => "the image has a kernel",
        Some(_) => "the image has no kernel: with its disk's, or natively if that has none",
        None => "with the disk's kernel, or natively if it has none",
    };
    let has_more = definition.memory_bytes > defaults::MEMORY_BYTES;
    let memory_why = if has_more { "the image's minimum" } else { "default" };
    let own_overlay = format!(
        "default: {} of the state directory",
        config
            .state_root
            .names()
            .overlay(&definition.name)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
    );
    VmShown {
        name: definition.name.clone(),
        description: definition.description.clone(),
        image: image(&plan.base, lines, config),
        boot_profile: Setting::new(boot.to_owned(), line("boot_profile"), boot_why),
        firmware: firmware(plan, line("firmware"), context),
        cloud_init: cloud_init(definition, line("cloud_init")),
        cpus: Setting::new(definition.cpus, line("cpus"), "default"),
        cpu: cpu(definition, spec, line("cpu")),
        memory_bytes: Setting::new(definition.memory_bytes, line("memory"), memory_why),
        disk_bytes: Setting::new(definition.disk_bytes, line("disk"), "default"),
        overlay: Setting::new(definition.overlay.to_path_buf(), line("overlay"), &own_overlay),
        port_forwards: Setting::new(
            definition.port_forwards.clone(),
            line("port_forwards"),
            "default",
        ),
        auto_forwards: Setting::new(
            definition.auto_forwards,
            line("port_forwards").filter(|_| definition.auto_forwards),
            "default",
        ),
        provision: Setting::new(
            definition.provision.iter().map(ToString::to_string).collect(),
            line("provision"),
            if definition.provision.is_empty() { "default" } else { "of the image" },
        ),
        disks: Setting::new(
            definition.data_disks.iter().map(DiskShown::from).collect(),
            line("disks"),
            "default",
        ),
        mounts: Setting::new(
            definition.mounts.iter().map(|declared| declared.mount.clone()).collect(),
            line("mounts"),
            "default",
        ),
        proxy: Setting::new(definition.proxy, line("proxy"), "default"),
        warnings: plan.warnings.clone(),
    }
}

/// Returns the firmware of a native boot: the VM's own, or the one that its disk is made for.
fn firmware(
    plan: &VmPlan,
    line: Option<usize>,
    context: &CommandContext,
) -> Setting<Option<Firmware>> {
    let definition = &plan.definition;
    if definition.boot_profile != Some(BootProfile::Native) {
        return Setting::new(None, line, "a native boot has one");
    }
    let disk = match &plan.base {
        _ if definition.overlay.exists() => Some(definition.overlay.to_path_buf()),
        BasePlan::Path(path) => Some(path.clone()),
        BasePlan::Image(_) | BasePlan::FirstOf(_) => None,
    };
    let found = disk.and_then(|disk| vm::firmware_of(definition, &disk, &context.runtime));
    match found {
        Some((firmware, why)) => Setting::new(Some(firmware), line, why),
        None => Setting::new(definition.firmware, line, "the disk decides when it is there"),
    }
}

/// Returns the origin of the data for cloud-init.
fn cloud_init(definition: &VmDefinition, line: Option<usize>) -> Setting<Option<CloudInitShown>> {
    let file = |text: &CloudInitText| match text {
        CloudInitText::Inline(_) => None,
        CloudInitText::File { path, .. } => Some(path.clone()),
    };
    let shown = definition.cloud_init.as_ref().map(|data| CloudInitShown {
        user_data: file(&data.user_data),
        has_network_config: data.network_config.is_some(),
        network_config: data.network_config.as_ref().and_then(file),
    });
    Setting::new(shown, line, "cloud-init does not run")
}

/// Returns the data for cloud-init in words.
fn data(shown: Option<&CloudInitShown>) -> String {
    let Some(shown) = shown else { return "none".to_owned() };
    let origin = |path: Option<&PathBuf>| {
        path.map_or("in castra.toml".to_owned(), |path| path.display().to_string())
    };
    let user_data = format!("user data {}", origin(shown.user_data.as_ref()));
    if !shown.has_network_config {
        return user_data;
    }
    format!("{user_data}, network configuration {}", origin(shown.network_config.as_ref()))
}

/// Returns the CPU under TCG: the VM's own, its image's, or the default.
fn cpu(
    definition: &VmDefinition,
    image: Option<&ManagedImageSpec>,
    line: Option<usize>,
) -> Setting<String> {
    let default = CpuModel::default();
    let of_image = image.map(|spec| &spec.profile.tcg_cpu).filter(|cpu| **cpu != default);
    let why =
        if of_image.is_some() { "from the image, when emulated" } else { "default, when emulated" };
    let value = definition.cpu.as_ref().or(of_image).unwrap_or(&default);
    Setting::new(value.to_string(), line, why)
}

fn image(base: &BasePlan, lines: &KeyLines, config: &ProjectConfig) -> Setting<String> {
    let label = |spec: &ManagedImageSpec| format!("{}@{}", spec.id, spec.version);
    let line = lines.get("managed_image").or(lines.get("base_image")).copied();
    match base {
        BasePlan::Path(path) => Setting::new(path.display().to_string(), line, ""),
        BasePlan::Image(spec) => {
            let whose = if config.images.contains_key(&spec.id) {
                "described in this file"
            } else {
                "from the catalog"
            };
            let why = match line {
                Some(line) => format!("line {line}, {whose}"),
                None => "chosen when the VM was first started".to_owned(),
            };
            Setting { value: label(spec), line, why }
        }
        BasePlan::FirstOf(candidates) => {
            let labels: Vec<String> = candidates.iter().map(label).collect();
            let why = format!("default: the first available of {}", labels.join(", "));
            Setting { value: labels.into_iter().next().unwrap_or_default(), line: None, why }
        }
    }
}

fn text(shown: &ConfigShown) -> String {
    let file = shown.file.as_ref().map_or("none".into(), |file| file.display().to_string());
    let head = [
        ("castra.toml", file),
        ("project", shown.project.clone()),
        ("state", shown.state_directory.display().to_string()),
    ];
    let rows: Vec<[String; 2]> =
        head.into_iter().map(|(key, value)| [key.to_owned(), value]).collect();
    let mut text = table(&rows);
    if let Some(outside) = &shown.outside {
        let row =
            |what: &str, path: &PathShown| row(what, path.path.display().to_string(), &path.why);
        let reads = outside.reads.iter().map(|path| row("reads", path));
        let rows: Vec<_> =
            reads.chain(outside.writes.iter().map(|path| row("writes", path))).collect();
        text.push_str(&format!("\noutside the project\n{}", table(&rows)));
    }
    for vm in &shown.vms {
        let rows = [
            row("image", vm.image.value.clone(), &vm.image.why),
            row("boot", vm.boot_profile.value.clone(), &vm.boot_profile.why),
            row(
                "firmware",
                vm.firmware.value.map_or("none", Firmware::name).to_owned(),
                &vm.firmware.why,
            ),
            row("cloud-init", data(vm.cloud_init.value.as_ref()), &vm.cloud_init.why),
            row("cpus", vm.cpus.value.to_string(), &vm.cpus.why),
            row("cpu", vm.cpu.value.clone(), &vm.cpu.why),
            row("memory", format_size(vm.memory_bytes.value), &vm.memory_bytes.why),
            row("disk", format_size(vm.disk_bytes.value), &vm.disk_bytes.why),
            row("data disks", disks(&vm.disks.value), &vm.disks.why),
            row("overlay", vm.overlay.value.display().to_string(), &vm.overlay.why),
            row("ports", ports(vm), &vm.port_forwards.why),
            row("mounts", mounts(&vm.mounts.value), &vm.mounts.why),
            row("provision", steps(&vm.provision.value), &vm.provision.why),
            row("proxy", vm.proxy.value.name().to_owned(), &vm.proxy.why),
        ];
        let title =
            vm.description.as_ref().map_or(vm.name.clone(), |text| format!("{}: {text}", vm.name));
        text.push_str(&format!("\n{title}\n{}", table(&rows)));
    }
    text
}

fn row(key: &str, value: String, why: &str) -> [String; 3] {
    [format!("  {key}"), value, format!("({why})")]
}

/// Formats steps: `apk add nginx, copy site to /var/www`.
fn steps(steps: &[String]) -> String {
    if steps.is_empty() {
        return "none".to_owned();
    }
    steps.join(", ")
}

/// Formats data disks: `data 10 GiB → /data, scratch 1 GiB`.
fn disks(disks: &[DiskShown]) -> String {
    if disks.is_empty() {
        return "none".to_owned();
    }
    let one = |disk: &DiskShown| {
        let place = disk.guest.as_ref().map(|guest| format!(" → {guest}")).unwrap_or_default();
        format!("{} {}{place}", disk.name, format_size(disk.size_bytes))
    };
    disks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Formats mounts: `/home/ada/shop → /src, /home/ada/data → /data (read-only)`.
fn mounts(mounts: &[Mount]) -> String {
    if mounts.is_empty() {
        return "none".into();
    }
    mounts.iter().map(Mount::to_string).collect::<Vec<_>>().join(", ")
}

fn ports(vm: &VmShown) -> String {
    let one =
        |forward: &PortForward| format!("{}→{}/{}", forward.host, forward.guest, forward.protocol);
    let declared = vm.port_forwards.value.iter().map(one);
    let auto = vm.auto_forwards.value.then(|| "auto".to_owned());
    let all: Vec<_> = declared.chain(auto).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}
