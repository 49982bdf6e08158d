//! The `castra.toml` that `castra init` writes.

use std::path::Path;

use super::defaults;
use super::json_schema::SCHEMA_URL;
use super::validate::size::format_size;

/// Base of the VM in a new `castra.toml`.
#[derive(Debug, Clone, Copy)]
pub enum TemplateBase<'a> {
    /// A managed image, by its ID.
    Managed(&'a str),
    /// A disk of the user's own.
    File(&'a Path),
}

/// Returns a commented `castra.toml` for a project with this name and one VM. Lines that are
/// commented out show the defaults.
pub fn template(project: &str, vm: &str, base: TemplateBase<'_>) -> String {
    let project = toml::Value::from(project);
    let base = match base {
        TemplateBase::Managed(image) => format!(
            "# Fetched and verified by Castra. For a qcow2 of your own, write \
            `base_image = \"path/to/disk.qcow2\"` instead.\nmanaged_image = {}",
            toml::Value::from(image)
        ),
        TemplateBase::File(path) => format!(
            "# Your own disk; never written to. For an image that Castra fetches, write \
            `managed_image = \"{}\"` instead.\nbase_image = {}",
            defaults::IMAGE,
            toml::Value::from(path.to_string_lossy().into_owned())
        ),
    };
    let (cpus, memory, disk) =
        (defaults::CPUS, format_size(defaults::MEMORY_BYTES), format_size(defaults::DISK_BYTES));
    format!(
        r#"#:schema {SCHEMA_URL}
# What `castra up` starts in this directory. A key behind `#` shows its default.

version = "1"

[project]
name = {project}

# Where Castra keeps the VMs' disks, their logs and images. Deleting it deletes the VMs.
# state_dir = ".castra"

# One VM. Repeat from here for more; names must differ.
[[vms]]
name = "{vm}"

{base}

# cpus = {cpus}
# memory = "{memory}"

# Maximum size of its disk; only used space is allocated on this machine.
# disk = "{disk}"

# Ports of this machine (127.0.0.1 only) forwarded to the VM: `port_forwards = "auto"` is for
# whatever listens there, and a table for a single one, for instance a web server:
#
#   [[vms.port_forwards]]
#   host = 8080
#   guest = 80
"#,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        BaseImageSource, ConfigOptions, ImageVersion, ManagedImageSelection, ProjectConfig,
        Surroundings, discovery::load_or_default_project, parse,
    };
    use crate::managed::ManagedDiskKind;

    const FILE: &str = "/nowhere/demo/castra.toml";

    fn demo() -> String {
        template("demo", "alpine-minimal", TemplateBase::Managed("alpine-minimal"))
    }

    fn parsed(text: &str) -> ProjectConfig {
        let surroundings = Surroundings {
            home: None,
            known_images: &[("alpine-minimal", "v1")],
            allowed_outside: &[],
        };
        parse(text, Path::new(FILE), &surroundings)
            .unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// Returns the default project, with the settings that only a file can have.
    fn default_with_an_image() -> ProjectConfig {
        let options = ConfigOptions { skip_discovery: true, ..ConfigOptions::default() };
        let mut project =
            load_or_default_project(&options, Path::new("/nowhere/demo"), &Surroundings::default())
                .expect("the default project");
        let (name, version) = ("alpine-minimal".to_owned(), ImageVersion::Newest("v1".to_owned()));
        let exact = ManagedImageSelection::Exact { name, version, disk: ManagedDiskKind::Rootfs };
        project.vms[0].base_image = BaseImageSource::Managed(exact);
        project.file = Some(FILE.into());
        project
    }

    /// Returns the text with every commented-out `key = value` activated, except in the example
    /// block.
    fn uncommented(text: &str) -> String {
        text.lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(code) if code.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')) => {
                    code
                }
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn as_written_it_is_the_default_project() {
        assert_eq!(parsed(&demo()), default_with_an_image());
    }

    #[test]
    fn what_is_commented_out_are_the_defaults() {
        let text = demo();
        let all = uncommented(&text);
        for key in ["state_dir", "cpus", "memory", "disk"] {
            assert!(all.contains(&format!("\n{key} = ")), "{all}");
            assert!(!text.contains(&format!("\n{key} = ")), "{text}");
        }
        assert_eq!(parsed(&all), default_with_an_image());
    }

    #[test]
    fn its_example_of_a_port_works() {
        let text = demo();
        let (head, example) = text.split_once("#   [[vms.port_forwards]]").expect("the example");
        let project = parsed(&format!("{head}[[vms.port_forwards]]{}", example.replace('#', "")));
        assert_eq!(project.vms[0].port_forwards.len(), 1);
    }

    #[test]
    fn a_disk_of_ones_own_is_written_as_such() {
        let text = template("demo", "mine", TemplateBase::File(Path::new("/images/my \"disk\"")));
        let vm = parsed(&text).vms.remove(0);
        assert_eq!(vm.name, "mine");
        assert_eq!(vm.base_image, BaseImageSource::Path("/images/my \"disk\"".into()));
    }

    #[test]
    fn any_name_is_quoted_right() {
        let name = "Ada's \"box\" #1";
        assert_eq!(
            parsed(&template(name, "alpine-minimal", TemplateBase::Managed("alpine-minimal"))).name,
            name
        );
    }
}
