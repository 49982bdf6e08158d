//! Results of valid documents.

use crate::config::{
    BaseImageSource, BootProfile, CloudInitText, Firmware, ImageVersion, ManagedImageSelection,
    PortForward, defaults,
};
use crate::files::Digest;
use crate::managed::{ArtifactRole, ArtifactSource, Compression, ManagedDiskKind, TransformStep};
use crate::sockets::Protocol;

use super::*;
use crate::config::{ProvisionStep, StepAction, StepSecret};
use crate::qemu::Network;

#[test]
fn a_minimal_file_gets_every_default() {
    let project = project(&vm(""));
    let dev = &project.vms[0];
    assert_eq!(project.name, "project");
    assert_eq!(project.root, Path::new("/project"));
    assert_eq!(project.state_root.path(), Path::new("/project/.castra"));
    assert_eq!(&*dev.overlay, Path::new("/project/.castra/dev-overlay.qcow2"));
    assert_eq!(
        (dev.cpus, dev.memory_bytes, dev.disk_bytes),
        (defaults::CPUS, defaults::MEMORY_BYTES, defaults::DISK_BYTES)
    );
    assert_eq!((&dev.cpu, dev.boot_profile, dev.firmware), (&None, None, None));
    let disk = ManagedDiskKind::Rootfs;
    let (name, version) = ("alpine-minimal".into(), ImageVersion::Newest("v2".into()));
    let newest = ManagedImageSelection::Exact { name, version, disk };
    assert_eq!(dev.base_image, BaseImageSource::Managed(newest));
    assert!(project.warnings.is_empty());
}

#[test]
fn every_key_of_a_vm() {
    let project = project(
        r#"
        version = "0.1.0"
        [project]
        name = "Adas machine"
        state_dir = "vms/state"
        [[vms]]
        name = "web"
        description = "the server"
        base_image = "../images/debian.qcow2"
        overlay = "disks/web.qcow2"
        cpus = 0x4
        cpu = "Haswell-v4,-svm"
        memory = 512
        boot_profile = "native"
        firmware = "uefi"
        disk = "20G"
        port_forwards = [{ host = 8080, guest = 80 }, { host = 8080, guest = 53, protocol = "udp" }]
        "#,
    );
    let web = &project.vms[0];
    assert_eq!(project.name, "Adas machine");
    assert_eq!(project.state_root.path(), Path::new("/project/vms/state"));
    assert_eq!(web.description.as_deref(), Some("the server"));
    assert_eq!(web.base_image, BaseImageSource::Path("/images/debian.qcow2".into()));
    assert_eq!(&*web.overlay, Path::new("/project/disks/web.qcow2"));
    assert_eq!((web.cpus, web.memory_bytes, web.disk_bytes), (4, 512 << 20, 20 << 30));
    assert_eq!(web.cpu.as_ref().map(ToString::to_string).as_deref(), Some("Haswell-v4,-svm"));
    assert_eq!(web.boot_profile, Some(BootProfile::Native));
    assert_eq!(web.firmware, Some(Firmware::Uefi));
    let tcp = PortForward { host: 8080, guest: 80, protocol: Protocol::Tcp };
    let udp = PortForward { host: 8080, guest: 53, protocol: Protocol::Udp };
    assert_eq!(web.port_forwards, [tcp, udp]);
}

#[test]
fn data_disks_have_a_size_and_perhaps_a_place() {
    let text = vm("disks = [{ name = \"data\", size = \"10GiB\", guest = \"//srv/data/\" },
        { name = \"scratch.1\", size = \"1048577 B\" }]");
    let project = parsed(&text).expect("is valid");
    let disks = &project.vms[0].data_disks;
    let shown: Vec<_> = disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.size_bytes, disk.guest.as_deref()))
        .collect();
    // Sectors are whole.
    let expected = [("data", 10 << 30, Some("/srv/data")), ("scratch.1", (1 << 20) + 512, None)];
    assert_eq!(shown, expected);
}

#[test]
fn forwards_are_declared_or_find_themselves_or_both() {
    let forwards = |value: &str| {
        let base = "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n";
        let vm = project(&format!("{base}port_forwards = {value}\n")).vms.remove(0);
        (vm.port_forwards.len(), vm.auto_forwards)
    };
    assert_eq!(forwards("[]"), (0, false));
    assert_eq!(forwards("\"auto\""), (0, true));
    assert_eq!(forwards("[\"auto\", { host = 8080, guest = 80 }]"), (1, true));
}

#[test]
fn a_file_of_the_older_castra_is_read_and_its_other_tables_are_warned_of() {
    let project = project(
        r#"
version = "0.2.0"

[project]
name = "castra-dev-env"

[workflows]
init = ["scripts/setup.sh"]

[[vms]]
name = "devbox"
managed_image = { name = "alpine-minimal", version = "v1", disk = "rootfs" }
overlay = ".castra/devbox/overlay.qcow2"
cpus = 4
memory = "4096 MiB"

  [[vms.port_forwards]]
  host = 2222
  guest = 22
  protocol = "tcp"

  [vms.bootstrap]
  mode = "auto"
"#,
    );
    assert_eq!(project.vms[0].memory_bytes, 4 << 30);
    assert_shown("an_older_file", &project.warnings.to_string());
}

#[test]
fn the_forms_of_managed_image() {
    let named = || ImageVersion::Named("v1".to_owned());
    let newest = || ImageVersion::Newest("v2".to_owned());
    for (form, version) in [
        ("\"alpine-minimal@v1\"", named()),
        ("\"alpine-minimal\"", newest()),
        ("{ name = \"alpine-minimal\" }", newest()),
        ("{ name = \"alpine-minimal\", version = \"v1\" }", named()),
    ] {
        let project = project(&format!("[[vms]]\nname = \"dev\"\nmanaged_image = {form}\n"));
        let (name, disk) = ("alpine-minimal".into(), ManagedDiskKind::Rootfs);
        let expected = ManagedImageSelection::Exact { name, version, disk };
        assert_eq!(project.vms[0].base_image, BaseImageSource::Managed(expected), "{form}");
    }
}

#[test]
fn an_image_with_every_key() {
    let text = image(
        r#"
version = "13"
description = "Debian"
command_line = "root=/dev/vda1 console=ttyS0"
machine = "q35"
cpu = "max"
min_memory = "2 GiB"
devices = []
rootfs = { sha256 = "SHA", size = 12, urls = [
  "https://a.example/d.vhd",
  "http://b.example/d.vhd",
], pipeline = [
  "strip-vhd-footer",
  { convert = { from = "raw", to = "qcow2" } },
] }
kernel = { pipeline = ["strip-vhd-footer", { extract-file = "/boot/vmlinuz" }] }

[images.mine.initramfs]
python = { package = "an-image", version = "1.0+x", platform = "any" }
sha512 = "SHASHA"
pipeline = [{ unzip = "a/b" }, { decompress = "xz" }, { rename = "initrd.img" }]
"#,
    );
    let project = project(&text);
    assert!(project.warnings.is_empty(), "{}", project.warnings);
    let mine = &project.images["mine"];
    assert_eq!(
        (mine.id.as_str(), mine.version.as_str(), mine.description.as_str()),
        ("mine", "13", "Debian")
    );
    assert_eq!(
        mine.profile.command_line.as_ref().map(|line| line.as_str()),
        Some("root=/dev/vda1 console=ttyS0")
    );
    assert_eq!(
        (mine.profile.machine.to_string(), mine.profile.tcg_cpu.to_string()),
        ("q35".into(), "max".into())
    );
    assert_eq!((mine.profile.min_memory_mib, mine.profile.devices.len()), (2048, 0));
    let roles: Vec<ArtifactRole> = mine.artifacts.iter().map(|artifact| artifact.role).collect();
    assert_eq!(roles, [ArtifactRole::Rootfs, ArtifactRole::Kernel, ArtifactRole::Initramfs]);
    let [rootfs, kernel, initramfs] = &mine.artifacts[..] else { panic!("three artifacts") };
    assert_eq!(rootfs.digest, Digest::Sha256(SHA.into()));
    assert_eq!(
        (&kernel.source, &kernel.digest, kernel.size_bytes),
        (&rootfs.source, &rootfs.digest, Some(12))
    );
    assert_eq!(kernel.pipeline[1], TransformStep::ExtractFile { path: "/boot/vmlinuz".into() });
    assert!(matches!(
        &initramfs.source,
        ArtifactSource::PythonPackage { version, .. } if version == "1.0+x"
    ));
    assert_eq!(initramfs.digest, Digest::Sha512(SHA.repeat(2)));
    assert_eq!(initramfs.pipeline[1], TransformStep::Decompress { format: Compression::Xz });
    assert_eq!(
        project.vms[0].memory_bytes,
        2 << 30,
        "what the image needs is more than the default"
    );
}

#[test]
fn an_image_without_a_kernel_boots_natively() {
    let project = project(
        &image("rootfs = { path = \"~/d.qcow2\", sha256 = \"SHA\" }")
            .replace(SHA, &SHA.to_uppercase()),
    );
    assert_eq!(project.vms[0].boot_profile, None);
    let rootfs = &project.images["mine"].artifacts[0];
    assert_eq!(rootfs.source, ArtifactSource::Path("/home/ada/d.qcow2".into()));
    assert_eq!(rootfs.digest, Digest::Sha256(SHA.into()));
}

#[test]
fn keys_are_files() {
    let keys = "[images.keys]\nubuntu = \"keys/ubuntu.asc\"\nfedora = \"~/fedora.asc\"\n";
    let project = project(&format!("{}{keys}", vm("")));
    let files: Vec<(&str, &Path)> =
        project.keys.iter().map(|(name, file)| (name.as_str(), file.as_path())).collect();
    assert_eq!(
        files,
        [
            ("fedora", Path::new("/home/ada/fedora.asc")),
            ("ubuntu", Path::new("/project/keys/ubuntu.asc"))
        ]
    );
}

#[test]
fn mirrors_are_base_urls() {
    let project = project(&format!("{}[images]\nmirrors = [\"https://m.example/x/\"]\n", vm("")));
    assert_eq!(project.mirrors, ["https://m.example/x"]);
    assert!(project.images.is_empty());
}

#[test]
fn data_for_cloud_init() {
    let vm = |value: &str| {
        let text = "[[vms]]\nname = \"dev\"\nbase_image = \"a.qcow2\"\ncloud_init = ";
        let project = project(&format!("{text}{value}\n"));
        assert!(project.warnings.is_empty(), "{}", project.warnings);
        project.vms[0].cloud_init.clone().expect("is there")
    };
    let inline = vm(r##"{ user_data = "#cloud-config\npackages: [git]\n" }"##);
    assert_eq!(
        (inline.user_data, inline.network_config),
        (CloudInitText::Inline("#cloud-config\npackages: [git]\n".into()), None)
    );
    let files = vm(r#"{ user_data = "cloud/user.yaml", network_config = "net.yaml" }"#);
    let paths = [Some(files.user_data), files.network_config].map(|text| match text {
        Some(CloudInitText::File { path, root }) => path.strip_prefix(root).map(Path::to_owned),
        other => panic!("{other:?}"),
    });
    assert_eq!(paths, [Ok("cloud/user.yaml".into()), Ok("net.yaml".into())]);
}

#[test]
fn steps_name_files_of_the_project() {
    let steps = r#"provision = [
        "apk add nginx\n\ttrue",
        { script = "./setup/run.sh" },
        { copy = { from = ".", to = "/srv/app/" } },
        { copy = { from = "..config", to = "/" } },
        { run = "npm ci", secrets = ["env:NPM", "env:A"], network = "full" },
        { script = "a.sh", secret = "env:A", network = "isolated" },
    ]"#;
    let project = project(&vm(steps));
    let path = |below: &str| crate::config::ProjectPath {
        root: "/project".into(),
        below: below.into(),
        state_root: "/project/.castra".into(),
    };
    let copy = |from, to: &str| StepAction::Copy { from: path(from), to: to.to_owned() };
    let secret = |name: &str| StepSecret { name: name.to_owned(), root: "/project".into() };
    let expected = [
        StepAction::Run("apk add nginx\n\ttrue".to_owned()).alone(),
        StepAction::Script(path("setup/run.sh")).alone(),
        copy("", "/srv/app/").alone(),
        copy("..config", "/").alone(),
        ProvisionStep {
            secrets: vec![secret("A"), secret("NPM")],
            ..StepAction::Run("npm ci".to_owned()).alone()
        },
        ProvisionStep {
            action: StepAction::Script(path("a.sh")),
            secrets: vec![secret("A")],
            network: Network::Isolated,
        },
    ];
    assert_eq!(project.vms[0].provision, expected);
}

#[test]
fn steps_of_an_image_come_before_those_of_a_vm() {
    let project = project(
        "[images.alpine-minimal]\nprovision = [\"one\"]\n\
         [images.own]\nprovision = [\"two\"]\nrootfs = { path = \"a.qcow2\", sha256 = \"@\" }\n\
         [[vms]]\nname = \"a\"\nmanaged_image = \"alpine-minimal\"\nprovision = [\"three\"]\n\
         [[vms]]\nname = \"b\"\nmanaged_image = \"own\"\n\
         [[vms]]\nname = \"c\"\nbase_image = \"own\"\n"
            .replace('@', &"ab".repeat(32))
            .as_str(),
    );
    let steps: Vec<Vec<String>> = project
        .vms
        .iter()
        .map(|vm| vm.provision.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(steps, [vec!["one", "three"], vec!["two"], vec![]]);
    assert_eq!(project.images.len(), 1);
}
