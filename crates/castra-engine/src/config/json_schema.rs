//! The JSON Schema of `castra.toml`, for editors.
//!
//! The parser keeps a place for every value and continues after mistakes, so it does not
//! deserialise into structs (`schema.rs`). These structs exist only for the schema; nothing is ever
//! read into them. Tests keep the two consistent: every key and word that the parser knows is here
//! and no other, whatever it accepts without a warning is valid here, and what it refuses is
//! refused here too, except for mistakes that no schema can detect (two VMs with one name, an image
//! without a description).

#![expect(dead_code, reason = "only the types are looked at")]

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use super::defaults;
use super::provision::{MAX_COMMAND_BYTES, MAX_STEPS};
use super::validate::size::format_size;
use crate::layout::{MAX_VM_NAME_BYTES, STATE_DIRECTORY};
use crate::qemu::options::{Board, Switch};
use crate::qemu::{CpuModel, DeviceModel, MAX_DATA_DISKS, MAX_DISK_NAME_BYTES, MachineType};

/// URL at which the schema of this version is published.
pub const SCHEMA_URL: &str = concat!(
    env!("CARGO_PKG_REPOSITORY"),
    "/raw/v",
    env!("CARGO_PKG_VERSION"),
    "/docs/castra.schema.json"
);

/// Returns the JSON Schema of `castra.toml` (draft 7, which TOML editors understand).
pub fn json_schema() -> Value {
    let settings = SchemaSettings::draft07().with_transform(NoNull).with_transform(JoinLines);
    let generator = settings.into_generator();
    let mut schema = generator.into_root_schema_for::<CastraToml>();
    schema.insert("$id".into(), SCHEMA_URL.into());
    schema.to_value()
}

/// Removes null from the schema: TOML has none, and optional keys are simply left out.
#[derive(Debug, Clone)]
struct NoNull;

impl Transform for NoNull {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = types.as_slice() {
                let only = only.clone();
                schema.insert("type".into(), only);
            }
        }
        if let Some(Value::Array(choices)) = schema.get_mut("anyOf") {
            choices.retain(|choice| choice != &json!({ "type": "null" }));
            if let [Value::Object(only)] = choices.as_slice() {
                let only = only.clone();
                schema.remove("anyOf");
                // In draft 7, siblings of a reference are ignored, except for annotations.
                match only.get("$ref") {
                    Some(_) => drop(schema.insert("allOf".into(), json!([only]))),
                    None => schema.ensure_object().extend(only),
                }
            }
        }
        transform_subschemas(self, schema);
    }
}

/// Joins the lines of descriptions, which are wrapped in the source but not for readers of a
/// schema.
#[derive(Debug, Clone)]
pub struct JoinLines;

impl Transform for JoinLines {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            *description = description.replace('\n', " ");
        }
        transform_subschemas(self, schema);
    }
}

/// A line without control characters.
const LINE: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";
/// A path to a file: it does not end in a slash.
const FILE: &str = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x1f\x7f-\x9f/]$";
/// A text with a line break, or a path to a file.
const TEXT_OR_FILE: &str = r"\n|^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x1f\x7f-\x9f/]$";
/// An absolute path that is not `/`.
const GUEST_PATH: &str = r"^/[^\x00-\x1f\x7f-\x9f]*[^\x00-\x1f\x7f-\x9f/]/*$";
/// A variable of castra's environment.
const SECRET: &str = "^env:[A-Za-z_][A-Za-z0-9_]{0,254}$";
/// Lines with something in them.
const COMMAND: &str =
    r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x08\x0b-\x1f\x7f-\x9f]*$";
/// A path below the file's directory.
const PROJECT_FILE: &str = r"^(?![/~]|\.castra(/|$)|(.*/)?\.\.(/|$))[^\x00-\x1f\x7f-\x9f]+$";
/// An absolute path without `..`.
const DESTINATION: &str = r"^/(?!(.*/)?\.\.(/|$))[^\x00-\x1f\x7f-\x9f]*$";
const NAME: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]*$";
const NAME_AND_VERSION: &str = r"^[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?$";
const PROJECT_NAME: &str = r"^[^\x00-\x1f\x7f-\x9f/\\\s.-][^\x00-\x1f\x7f-\x9f/\\]*$";
const SIZE: &str = r"^\s*(0[0-9_]*)?[1-9][0-9_]*\s*([KkMmGgTt]([Ii]?[Bb])?|[Bb])\s*$";
const VERSION: &str = r"^v*0*[01](\.[0-9]+){0,2}$";
const URL: &str = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#\s]\S*$";
const MIRROR: &str = r"^[Hh][Tt][Tt][Pp][Ss]://[^/?#\s][^?\s]*$";
const PIP_WORD: &str = r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$";
const MAX_IMAGE_NAME: usize = super::validate::name::MAX_IMAGE_NAME_BYTES;

/// VMs that `castra up` starts, and their images. The reference is docs/config.md of Castra.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "castra.toml")]
struct CastraToml {
    /// Format of this file.
    #[schemars(extend("default" = "1"))]
    version: Option<Version>,
    /// The project as a whole.
    project: Option<Project>,
    /// The VMs, each in a `[[vms]]`.
    #[schemars(length(min = 1))]
    vms: Vec<Vm>,
    /// Images of your own, by name, and mirrors.
    images: Option<Images>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Version {
    Text(#[schemars(extend("pattern" = VERSION))] String),
    Number(#[schemars(range(min = 0, max = 1))] i64),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Project {
    /// Shown in messages. Default: the name of the directory.
    #[schemars(length(max = 100), extend("pattern" = PROJECT_NAME))]
    name: Option<String>,
    /// Directory of disks, logs and images, relative to this file. Deleting it deletes the VMs.
    #[schemars(extend("pattern" = LINE, "default" = STATE_DIRECTORY))]
    state_dir: Option<String>,
}

/// One VM. It has exactly one of `managed_image` and `base_image`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["managed_image"] }, { "required": ["base_image"] }]))]
#[schemars(extend("dependencies" = {
    "allow_backing_file": ["base_image"],
    "firmware": {
        "required": ["boot_profile"],
        "properties": { "boot_profile": { "const": "native" } }
    }
}))]
struct Vm {
    /// Name of the VM, unique in the file: letters, digits, `-`, `_` and `.`.
    #[schemars(length(max = MAX_VM_NAME_BYTES), extend("pattern" = NAME))]
    name: String,
    /// Purpose of the VM.
    #[schemars(extend("pattern" = LINE))]
    description: Option<String>,
    /// An image of Castra's catalog or of `[images]`, fetched and verified: `"NAME"`,
    /// `"NAME@VERSION"` or a table.
    managed_image: Option<ManagedImage>,
    /// A qcow2 of your own, relative to this file. It is never written to.
    #[schemars(extend("pattern" = FILE))]
    base_image: Option<String>,
    /// Permits `base_image` to have backing files, as its header names them. Only for a disk whose
    /// origin you know.
    #[schemars(extend("default" = false))]
    allow_backing_file: Option<bool>,
    /// The VM's own disk, relative to this file. Default: `<state_dir>/<name>-overlay.qcow2`.
    #[schemars(extend("pattern" = FILE))]
    overlay: Option<String>,
    /// Virtual CPUs.
    #[schemars(range(min = 1, max = 255), extend("default" = defaults::CPUS))]
    cpus: Option<u32>,
    /// A CPU model and flags in the syntax of QEMU's `-cpu`, used when the CPU is emulated.
    /// Default: the image's.
    #[schemars(extend("pattern" = CpuModel::PATTERN))]
    cpu: Option<String>,
    /// Memory, for instance `"512 MiB"`; an integer is MiB.
    #[schemars(extend("default" = format_size(defaults::MEMORY_BYTES)))]
    memory: Option<Memory>,
    /// Largest size of the disk, for instance `"20 GiB"`. Only what is used takes room.
    #[schemars(extend("pattern" = SIZE, "default" = format_size(defaults::DISK_BYTES)))]
    disk: Option<String>,
    /// Disks in addition to that one, which stay when the VM is removed.
    #[schemars(length(max = MAX_DATA_DISKS))]
    disks: Option<Vec<DataDisk>>,
    /// Boot method. Without it: `managed` if the image or the disk has a kernel, else `native`.
    boot_profile: Option<BootProfile>,
    /// Firmware that starts the disk's own boot loader, with `boot_profile = "native"`. Without it:
    /// what the disk is made for, and `bios` if it is made for both.
    firmware: Option<Firmware>,
    /// Data for cloud-init in the VM, if its disk has cloud-init.
    cloud_init: Option<CloudInit>,
    /// Ports of this machine (127.0.0.1 only) that are forwarded to the VM: declared ones, and with
    /// `"auto"` one for each TCP port on which something in the VM listens.
    port_forwards: Option<PortForwards>,
    /// Directories of this machine that the VM sees.
    mounts: Option<Vec<Mount>>,
    /// Steps that prepare the VM's disk, as root, each once for all VMs that have it and those
    /// before it.
    #[schemars(length(max = MAX_STEPS))]
    provision: Option<Vec<ProvisionStep>>,
    /// Proxies in the environment of the VM's commands: with `host`, those of castra's environment,
    /// without users and passwords.
    #[schemars(extend("default" = "none"))]
    proxy: Option<Proxy>,
}

/// A disk in addition to the one that the VM boots from.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DataDisk {
    /// Name of the disk, unique in the VM. In the VM it is `/dev/disk/by-id/virtio-NAME`.
    #[schemars(length(max = MAX_DISK_NAME_BYTES), extend("pattern" = NAME))]
    name: String,
    /// Largest size of the disk, at most `"8 TiB"`. Only what is used takes room. It can grow
    /// later.
    #[schemars(extend("pattern" = SIZE))]
    size: String,
    /// Absolute path in the VM at which the disk is mounted. A blank disk gets an ext4 filesystem
    /// first. Without it: the disk is left as it is.
    #[schemars(extend("pattern" = GUEST_PATH))]
    guest: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Proxy {
    /// Those that the VM itself has.
    None,
    /// Those of castra's environment.
    Host,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum ManagedImage {
    /// `"NAME"` for the newest version, or `"NAME@VERSION"`.
    Short(#[schemars(extend("pattern" = NAME_AND_VERSION))] String),
    Long(ManagedImageTable),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ManagedImageTable {
    /// The image.
    #[schemars(extend("pattern" = NAME))]
    name: String,
    /// Version of the image. Without it: the newest.
    #[schemars(extend("pattern" = NAME))]
    version: Option<String>,
    /// Disk of the image; there is one so far.
    #[schemars(extend("default" = "rootfs"))]
    disk: Option<Disk>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Disk {
    Rootfs,
}

/// A size with a unit, or a number of MiB.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Memory {
    Text(#[schemars(extend("pattern" = SIZE))] String),
    Mib(#[schemars(range(min = defaults::MIN_MEMORY_MIB))] u64),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum BootProfile {
    /// With Castra's guest agent, and the kernel of the image or, if it has none, of the disk.
    Managed,
    /// From the disk's own boot loader, as on a real machine.
    Native,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Firmware {
    /// QEMU's BIOS.
    Bios,
    /// OVMF, which must be installed, with variables that belong to the VM.
    Uefi,
}

/// Data for cloud-init. A text with line breaks is the data itself, any other the path of a file in
/// the project, relative to this file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CloudInit {
    /// User data: `#cloud-config`, a script, or another of cloud-init's formats.
    #[schemars(extend("pattern" = TEXT_OR_FILE))]
    user_data: String,
    /// Network configuration in cloud-init's format.
    #[schemars(extend("pattern" = TEXT_OR_FILE))]
    network_config: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Mount {
    /// Directory of this machine, relative to this file. One that is outside the project, or that
    /// the VM may write to, needs your consent, once.
    #[schemars(length(min = 1))]
    host: String,
    /// Absolute path in the VM. The directory is made if it is missing, and what is in it is
    /// hidden.
    #[schemars(extend("pattern" = GUEST_PATH))]
    guest: String,
    /// The VM can only read.
    #[schemars(extend("default" = false))]
    read_only: Option<bool>,
    /// Programs in the VM that watch files are notified of changes that this machine makes.
    #[schemars(extend("default" = true))]
    notify: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum ProvisionStep {
    /// Lines for the VM's `/bin/sh`.
    Command(#[schemars(length(max = MAX_COMMAND_BYTES), extend("pattern" = COMMAND))] String),
    Run(RunStep),
    Script(ScriptStep),
    Copy(CopyStep),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[schemars(extend("not" = { "required": ["secrets", "secret"] }))]
struct RunStep {
    /// Lines for the VM's `/bin/sh`.
    #[schemars(length(max = MAX_COMMAND_BYTES), extend("pattern" = COMMAND))]
    run: String,
    /// Variables of castra's environment that the step sees: `env:NAME`.
    #[schemars(inner(regex(pattern = SECRET)), extend("uniqueItems" = true))]
    secrets: Option<Vec<String>>,
    /// One secret, instead of `secrets`.
    #[schemars(extend("pattern" = SECRET))]
    secret: Option<String>,
    /// Network of the step.
    #[schemars(extend("default" = "full"))]
    network: Option<StepNetwork>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum StepNetwork {
    /// That of the VM.
    Full,
    /// None.
    Isolated,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[schemars(extend("not" = { "required": ["secrets", "secret"] }))]
struct ScriptStep {
    /// A script of the project's, relative to this file.
    #[schemars(extend("pattern" = PROJECT_FILE))]
    script: String,
    /// Variables of castra's environment that the script sees: `env:NAME`.
    #[schemars(inner(regex(pattern = SECRET)), extend("uniqueItems" = true))]
    secrets: Option<Vec<String>>,
    /// One secret, instead of `secrets`.
    #[schemars(extend("pattern" = SECRET))]
    secret: Option<String>,
    /// Network of the step.
    #[schemars(extend("default" = "full"))]
    network: Option<StepNetwork>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct CopyStep {
    /// A file or directory of the project's that is copied into the VM.
    copy: Copied,
    /// Network of the step.
    #[schemars(extend("default" = "full"))]
    network: Option<StepNetwork>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Copied {
    /// The file or directory, relative to this file.
    #[schemars(extend("pattern" = PROJECT_FILE))]
    from: String,
    /// Path in the VM. A directory that exists there keeps its other files.
    #[schemars(extend("pattern" = DESTINATION))]
    to: String,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum PortForwards {
    /// Forwards whatever listens in the VM.
    Auto(Auto),
    All(Vec<PortForwardOrAuto>),
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum PortForwardOrAuto {
    /// Forwards whatever listens in the VM, too.
    Auto(Auto),
    One(PortForward),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Auto {
    Auto,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct PortForward {
    /// Port of this machine, unique in the file for each protocol.
    #[schemars(range(min = 1, max = 65535))]
    host: u16,
    /// Port in the VM.
    #[schemars(range(min = 1, max = 65535))]
    guest: u16,
    /// Protocol of both.
    #[schemars(extend("default" = "tcp"))]
    protocol: Option<Protocol>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(JsonSchema)]
#[schemars(extend("propertyNames" = { "pattern": NAME, "maxLength": MAX_IMAGE_NAME }))]
struct Images {
    /// Base URLs to try before an image's own addresses.
    #[schemars(inner(regex(pattern = MIRROR)))]
    mirrors: Option<Vec<String>>,
    /// Files of the public keys by which publishers of distributions sign, for `castra image
    /// update`.
    keys: Option<Keys>,
    /// An image of your own, or steps of one of the catalog.
    #[schemars(flatten)]
    images: BTreeMap<String, NamedImage>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum NamedImage {
    Own(Box<Image>),
    OfCatalog(StepsOfImage),
}

/// Steps of an image of the catalog.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StepsOfImage {
    /// Steps of new VMs with this image, before their own.
    #[schemars(length(max = MAX_STEPS))]
    provision: Vec<ProvisionStep>,
}

/// Files of publishers' public keys in ASCII armor, relative to this file.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Keys {
    /// Key of Ubuntu's cloud images.
    #[schemars(extend("pattern" = FILE))]
    ubuntu: Option<String>,
    /// Keys of Fedora's releases.
    #[schemars(extend("pattern" = FILE))]
    fedora: Option<String>,
    /// Keys of AlmaLinux's releases.
    #[schemars(extend("pattern" = FILE))]
    almalinux: Option<String>,
    /// Keys of Rocky Linux's releases.
    #[schemars(extend("pattern" = FILE))]
    rocky: Option<String>,
    /// Key of Arch Linux's images.
    #[schemars(extend("pattern" = FILE))]
    arch: Option<String>,
}

/// An image of your own: a disk, and perhaps a kernel with its initramfs and command line.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[schemars(extend("dependencies" = {
    "kernel": ["initramfs", "command_line"],
    "initramfs": ["kernel", "command_line"],
    "command_line": ["kernel", "initramfs"],
}))]
struct Image {
    /// Change it when you change the image.
    #[schemars(
        length(max = MAX_IMAGE_NAME),
        extend("pattern" = NAME, "default" = defaults::IMAGE_VERSION),
    )]
    version: Option<String>,
    /// One line about it.
    #[schemars(extend("pattern" = LINE))]
    description: Option<String>,
    /// The disk, finally a qcow2.
    rootfs: Rootfs,
    /// The kernel.
    kernel: Option<BootFile>,
    /// The initramfs.
    initramfs: Option<BootFile>,
    /// The kernel's command line.
    #[schemars(extend("pattern" = LINE))]
    command_line: Option<String>,
    /// The machine and its switches, as QEMU's `-machine` takes them.
    #[schemars(extend(
        "pattern" = machine_pattern(),
        "default" = MachineType::default().to_string(),
    ))]
    machine: Option<String>,
    /// A CPU model and flags in the syntax of QEMU's `-cpu`, used when the CPU is emulated.
    #[schemars(extend("pattern" = CpuModel::PATTERN, "default" = CpuModel::default().to_string()))]
    cpu: Option<String>,
    /// Memory below which the image does not boot; an integer is MiB.
    #[schemars(extend("default" = format!("{} MiB", defaults::MIN_MEMORY_MIB)))]
    min_memory: Option<Memory>,
    /// Further devices, as QEMU's `-device` takes them.
    #[schemars(
        inner(regex(pattern = device_pattern())),
        extend("default" = defaults::DEVICES.map(DeviceModel::name)),
    )]
    devices: Option<Vec<String>>,
    /// Steps of new VMs with this image, before their own.
    #[schemars(length(max = MAX_STEPS))]
    provision: Option<Vec<ProvisionStep>>,
}

/// Source of a file: one of `url`, `urls`, `path` and `python`, pinned by `sha256` or `sha512`.
#[derive(JsonSchema)]
#[schemars(transparent, extend("allOf" = [one_source(), one_digest()]))]
struct Rootfs(Artifact);

/// As for a disk, or only a `pipeline`, which starts from the disk's download.
#[derive(JsonSchema)]
#[schemars(transparent, extend("anyOf" = [
    { "allOf": [one_source(), one_digest()] },
    { "required": ["pipeline"], "not": { "anyOf": origin_keys() } },
]))]
struct BootFile(Artifact);

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
struct Artifact {
    /// An `https://` or `http://` address.
    #[schemars(extend("pattern" = URL))]
    url: Option<String>,
    /// Several addresses of the same bytes, tried in order.
    #[schemars(length(min = 1), inner(regex(pattern = URL)))]
    urls: Option<Vec<String>>,
    /// A file on this machine, relative to this file.
    #[schemars(extend("pattern" = FILE))]
    path: Option<String>,
    /// A file of a Python package, fetched with pip.
    python: Option<Python>,
    /// SHA-256 of the bytes as they come, 64 hexadecimal digits. `castra image pull` prints it.
    #[schemars(extend("pattern" = "^[0-9A-Fa-f]{64}$"))]
    sha256: Option<String>,
    /// SHA-512 of the bytes as they come, 128 hexadecimal digits.
    #[schemars(extend("pattern" = "^[0-9A-Fa-f]{128}$"))]
    sha512: Option<String>,
    /// Expected number of bytes, to check as well.
    #[schemars(range(min = 1))]
    size: Option<u64>,
    /// Steps from those bytes to the file.
    pipeline: Option<Vec<Step>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Python {
    /// Name of the package.
    #[schemars(extend("pattern" = PIP_WORD))]
    package: String,
    /// Exact version of the package.
    #[schemars(extend("pattern" = PIP_WORD))]
    version: String,
    /// The wheel's platform tag, unless it is a pure wheel.
    #[schemars(extend("pattern" = PIP_WORD))]
    platform: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Step {
    /// Strip the footer of a fixed VHD, leaving the raw disk.
    StripVhdFooter,
    /// `qemu-img convert`.
    Convert(Convert),
    /// One file out of a raw disk that is one ext4 filesystem.
    ExtractFile(#[schemars(extend("pattern" = r"^/[^\x00-\x1f\x7f-\x9f]*$"))] String),
    /// One member of a ZIP archive; a wheel is one.
    Unzip(#[schemars(extend("pattern" = LINE))] String),
    /// Decompress.
    Decompress(Compression),
    /// Another file name for the next step, where a tool requires one.
    Rename(#[schemars(length(max = 255), extend("pattern" = NAME))] String),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Convert {
    /// Input format.
    from: Format,
    /// Output format.
    to: Format,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Format {
    Qcow2,
    Raw,
    Vdi,
    Vhd,
    Vhdx,
    Vmdk,
    Vpc,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Compression {
    Gzip,
    Gz,
    Xz,
    Zstd,
    Zst,
}

fn machine_pattern() -> String {
    let switches = Switch::ALL.map(Switch::name).join("|");
    format!("^{}(,({switches})=(on|off))*$", Board::PATTERN)
}

fn device_pattern() -> String {
    let properties = |model: DeviceModel| {
        let forms =
            model.properties().iter().map(|one| format!("{}={}", one.name(), one.pattern()));
        forms.collect::<Vec<_>>().join("|")
    };
    let forms =
        DeviceModel::ALL.map(|model| format!("{}(,({}))*", model.name(), properties(model)));
    format!("^({})$", forms.join("|"))
}

fn one_source() -> Value {
    json!({ "oneOf": required(&["url", "urls", "path", "python"]) })
}

fn one_digest() -> Value {
    json!({ "oneOf": required(&["sha256", "sha512"]) })
}

fn origin_keys() -> Value {
    required(&["url", "urls", "path", "python", "sha256", "sha512", "size"])
}

fn required(keys: &[&str]) -> Value {
    keys.iter().map(|key| json!({ "required": [key] })).collect()
}
