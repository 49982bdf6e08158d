//! `docs/config.md` against the code: its examples are valid, and it names every key and every
//! default.

use std::collections::BTreeSet;
use std::path::Path;

use castra_engine::config::{
    ConfigError, Diagnostics, ProjectConfig, Surroundings, defaults, format_size, parse,
};

const REFERENCE: &str = include_str!("../../docs/config.md");

/// Every table of the schema, each with a key that does not exist.
const EVERY_TABLE: &str = r#"
zzz = 1
[project]
zzz = 1
[[vms]]
zzz = 1
name = "dev"
managed_image = { name = "alpine-minimal", zzz = 1 }
port_forwards = [{ host = 1, guest = 1, zzz = 1 }]
mounts = [{ host = ".", guest = "/src", zzz = 1 }]
disks = [{ name = "data", size = "1 GiB", zzz = 1 }]
provision = [{ script = "a", zzz = 1 }, { copy = { from = "a", to = "/a", zzz = 1 } }]
[images.mine]
zzz = 1
[images.mine.rootfs]
zzz = 1
path = "x"
sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
pipeline = [{ convert = { from = "raw", to = "qcow2", zzz = 1 } }]
[images.packaged.rootfs]
python = { package = "p", version = "1", zzz = 1 }
sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
"#;

fn parsed(text: &str) -> Result<ProjectConfig, ConfigError> {
    let known_images = [("alpine-minimal", "v1"), ("alpine-pypi", "v1"), ("ubuntu-24.04", "1")];
    let surroundings = Surroundings {
        home: Some(Path::new("/home/ada")),
        known_images: &known_images,
        allowed_outside: &[],
    };
    parse(text, Path::new("/project/castra.toml"), &surroundings)
}

/// Returns the words in backquotes of a text.
fn quoted_words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_example_is_valid() {
    let blocks: Vec<&str> = REFERENCE
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a block's end"))
        .collect();
    assert!(blocks.len() >= 6, "the examples are gone");
    for block in blocks {
        let project = parsed(block).unwrap_or_else(|error| panic!("{error}"));
        assert!(project.warnings.is_empty(), "{}", project.warnings);
    }
}

#[test]
fn every_key_is_documented() {
    let warnings: Diagnostics = parsed(EVERY_TABLE).expect("only warnings").warnings;
    assert_eq!(warnings.iter().count(), 13, "one for each table with an unknown key: {warnings}");
    let keys: BTreeSet<&str> =
        warnings.iter().flat_map(|warning| quoted_words(&warning.help)).collect();
    let documented: BTreeSet<&str> =
        REFERENCE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-').collect();
    let tables: BTreeSet<&str> = ["dev", "mine"].into();
    for key in keys.difference(&tables) {
        assert!(documented.contains(key), "docs/config.md does not mention `{key}`");
    }
    assert!(keys.len() > 30, "the schema's keys: {keys:?}");
}

#[test]
fn every_default_is_documented() {
    let row = |key: &str| {
        let begin = format!("| `{key}` |");
        REFERENCE
            .lines()
            .find(|line| line.starts_with(&begin))
            .unwrap_or_else(|| panic!("no row of {key}"))
    };
    for (key, default) in [
        ("cpus", format!("`{}`", defaults::CPUS)),
        ("memory", format!("`\"{}\"`", format_size(defaults::MEMORY_BYTES))),
        ("disk", format!("`\"{}\"`", format_size(defaults::DISK_BYTES))),
        ("machine", format!("`\"{}\"`", castra_engine::qemu::MachineType::default())),
        ("cpu", format!("`\"{}\"`", castra_engine::qemu::CpuModel::default())),
        (
            "devices",
            format!("`{:?}`", defaults::DEVICES.map(castra_engine::qemu::DeviceModel::name)),
        ),
        ("min_memory", format!("{} MiB", defaults::MIN_MEMORY_MIB)),
    ] {
        assert!(
            row(key).contains(&default),
            "{key} is {default} in the code, and in docs/config.md:\n{}",
            row(key)
        );
    }
    assert!(REFERENCE.contains(&format!("`\"{}\"` |", defaults::IMAGE_VERSION)));
    assert!(REFERENCE.contains(&format!(
        "A VM's has at most {} bytes",
        castra_engine::layout::MAX_VM_NAME_BYTES
    )));
}

#[test]
fn every_device_and_switch_is_documented() {
    use castra_engine::qemu::{DeviceModel, options::Switch};

    for switch in Switch::ALL {
        assert!(REFERENCE.contains(&format!("`{}`", switch.name())), "{}", switch.name());
    }
    for model in DeviceModel::ALL {
        let name = format!("`{}`", model.name());
        let row = REFERENCE.lines().find(|line| line.starts_with('|') && line.contains(&name));
        let row = row.unwrap_or_else(|| panic!("no row of {name}"));
        for property in model.properties().iter().map(|one| one.name()).filter(|one| *one != "id") {
            assert!(row.contains(&format!("`{property}`")), "{property} is missing: {row}");
        }
    }
    assert!(REFERENCE.contains(castra_engine::qemu::options::UserArguments::VARIABLE));
}
