//! Messages for each mistake, in `snapshots/`.

use super::*;

#[test]
fn refused_no_vms() {
    assert_refusals(
        "no_vms",
        &[r#"version = "1""#.to_owned(), "vms = []".to_owned(), "".to_owned()],
    );
}

#[test]
fn refused_vms_in_single_brackets() {
    assert_refusals(
        "vms_in_single_brackets",
        &[
            r#"[vms]
name = "dev""#
                .to_owned(),
            "[vms.dev]\ncpus = 2".to_owned(),
            r#"vms = "dev""#.to_owned(),
        ],
    );
}

#[test]
fn refused_no_image() {
    assert_refusals(
        "no_image",
        &[
            r#"[[vms]]
name = "dev"
cpus = 2"#
                .to_owned(),
            r#"[[vms]]
name = "dev"
managed_imge = "alpine-minimal""#
                .to_owned(),
        ],
    );
}

#[test]
fn refused_two_images() {
    assert_refusals(
        "two_images",
        &[r#"[[vms]]
name = "dev"
base_image = "a.qcow2"
managed_image = "alpine-minimal""#
            .to_owned()],
    );
}

#[test]
fn refused_names() {
    let names = [
        r#""""#,
        r#""../up""#,
        r#""a/b""#,
        r#"".hidden""#,
        r#""-rf""#,
        r#""bell\u0007""#,
        r#""an-exceedingly-long-name-that-no-socket-path-can-hold""#,
        "7",
    ];
    let mut documents = each("[[vms]]\nname = @\nmanaged_image = \"alpine-minimal\"", &names);
    documents.push("[[vms]]\nmanaged_image = \"alpine-minimal\"".to_owned());
    assert_refusals("names", &documents);
}

#[test]
fn refused_project_names() {
    let documents = each(&format!("[project]\nname = @\n{}", vm("")), &[r#""""#, r#""../up""#]);
    assert_refusals("project_names", &documents);
}

#[test]
fn refused_same_name() {
    assert_refusals(
        "same_name",
        &[
            r#"[[vms]]
name = "dev"
managed_image = "alpine-minimal"

[[vms]]
name = "dev"
managed_image = "alpine-minimal""#
                .to_owned(),
            r#"[[vms]]
name = "dev"
managed_image = "alpine-minimal"

[[vms]]
name = "Dev"
managed_image = "alpine-minimal""#
                .to_owned(),
        ],
    );
}

#[test]
fn refused_same_host_port() {
    assert_refusals(
        "same_host_port",
        &[r#"[[vms]]
name = "web"
managed_image = "alpine-minimal"
port_forwards = [{ host = 8080, guest = 80 }, { host = 8080, guest = 80, protocol = "udp" }]

[[vms]]
name = "api"
managed_image = "alpine-minimal"

  [[vms.port_forwards]]
  host = 8080
  guest = 3000"#
            .to_owned()],
    );
}

#[test]
fn refused_ports() {
    assert_refusals(
        "ports",
        &[r#"[[vms]]
name = "web"
managed_image = "alpine-minimal"
port_forwards = [
  { host = 0, guest = 80 },
  { host = 8081, guest = 0 },
  { host = 65536, guest = 80 },
  { host = 8082, guest = -1 },
  { host = "8083", guest = 80 },
  { host = 8084 },
  { host = 8085, guest = 80, protocol = "tpc" },
  { host = 8086, guest = 80, protocol = "sctp" },
  8087,
]"#
        .to_owned()],
    );
}

#[test]
fn refused_forwards() {
    let values = [
        r#""always""#,
        "8080",
        r#"["auto", "8080:80"]"#,
        r#""automatic""#,
        r#""3000:99999""#,
        r#"[{ host = "8000-8010", guest = "8000-8010" }]"#,
    ];
    assert_refusals("forwards", &each(&vm("port_forwards = @"), &values));
}

#[test]
fn refused_cpus() {
    let documents =
        each(&vm("cpus = @"), &["0", "-1", "256", "99999999999999999999999999", "2.0", r#""2""#]);
    assert_refusals("cpus", &documents);
}

#[test]
fn refused_memory() {
    let documents = each(
        &vm("memory = @"),
        &[
            r#""1.5 GiB""#,
            "0",
            r#""-1 GiB""#,
            r#""63 MiB""#,
            "32",
            r#""99999999999999999999 GiB""#,
            r#""lots""#,
            r#""512""#,
            r#""2 GHz""#,
            "1.5",
            "true",
            r#""65537 KiB""#,
            "-5",
        ],
    );
    assert_refusals("memory", &documents);
}

#[test]
fn refused_disks() {
    let documents =
        each(&vm("disk = @"), &[r#""0 GiB""#, r#""3000 TiB""#, "10", "1.5", r#""10""#, "[]"]);
    assert_refusals("disks", &documents);
}

#[test]
fn refused_data_disks() {
    let disks = [
        "{ name = \"data\" }",
        "{ size = \"1 GiB\" }",
        "{ name = \"12345678901234567890a\", size = \"1 GiB\" }",
        "{ name = \"a/b\", size = \"1 GiB\" }",
        "{ name = \"a\", size = \"1023 KiB\" }",
        "{ name = \"a\", size = \"9 TiB\" }",
        "{ name = \"a\", size = 10 }",
        "{ name = \"a\", size = \"1 GiB\", guest = \"data\" }",
        "{ name = \"a\", size = \"1 GiB\", guest = \"/etc\" }",
        "{ name = \"a\", size = \"1 GiB\" }, { name = \"a\", size = \"1 GiB\" }",
        "{ name = \"a\", size = \"1 GiB\" }, { name = \"A\", size = \"1 GiB\" }",
        "{ name = \"a\", size = \"1 GiB\", guest = \"/d\" }, \
         { name = \"b\", size = \"1 GiB\", guest = \"/d/\" }",
        "{ name = \"a\", size = \"1 GiB\", guest = \"/d/e\" }, \
         { name = \"b\", size = \"1 GiB\", guest = \"/d\" }",
        "{ name = \"a\", size = \"1 GiB\", guest = \"/m/e\" }",
    ];
    let mut documents =
        each(&vm("mounts = [{ host = \".\", guest = \"/m\" }]\ndisks = [@]"), &disks);
    let many: Vec<String> =
        (0..17).map(|n| format!("{{ name = \"d{n}\", size = \"1 MiB\" }}")).collect();
    documents.push(vm(&format!("disks = [{}]", many.join(", "))));
    let long = "ä".repeat(120);
    documents
        .push(vm(&format!("disks = [{{ name = \"a\", size = \"1 MiB\", guest = \"/{long}\" }}]")));
    assert_refusals("data_disks", &documents);
}

#[test]
fn refused_overlays() {
    assert_refusals(
        "overlays",
        &[
            image("rootfs = { path = \"d\", sha256 = \"SHA\" }")
                .replace("\n\n", "\noverlay = \"./d\"\n\n"),
            r#"[[vms]]
name = "a"
managed_image = "alpine-minimal"
overlay = "disk.qcow2"

[[vms]]
name = "b"
managed_image = "alpine-minimal"
overlay = "./x/../disk.qcow2""#
                .to_owned(),
            r#"[[vms]]
name = "a"
managed_image = "alpine-minimal"
overlay = ".castra/b-overlay.qcow2"

[[vms]]
name = "b"
managed_image = "alpine-minimal""#
                .to_owned(),
            r#"[[vms]]
name = "a"
base_image = "disk.qcow2"
overlay = "disk.qcow2""#
                .to_owned(),
            vm(r#"overlay = """#),
            vm(r#"overlay = "disks/""#),
            vm(r#"overlay = ".""#),
            vm(r#"overlay = "castra.toml""#),
            vm(r#"overlay = ".castra""#),
            vm(r#"overlay = "~bob/x.qcow2""#),
            vm(r#"overlay = "C:\temp""#),
            vm(r#"overlay = "a\u0000b""#),
        ],
    );
}

#[test]
fn refused_places() {
    let overlays = [
        r#"overlay = "~/.ssh/authorized_keys""#,
        r#"overlay = "../other/disk.qcow2""#,
        r#"overlay = ".git/hooks/post-checkout""#,
        r#"overlay = "sub/.castra/web-overlay.qcow2""#,
        r#"overlay = ".castra/vms/dev/vm.json""#,
        r#"overlay = ".castra/layer-0123456789abcdef.qcow2""#,
    ];
    let states = each(
        &format!("[project]\nstate_dir = @\n{}", vm("")),
        &[r#""../other/.castra""#, r#""~/.ssh""#, r#"".git/castra""#, r#""sub/.castra""#],
    );
    let documents: Vec<String> = overlays.iter().map(|line| vm(line)).chain(states).collect();
    assert_refusals("places", &documents);
}

#[test]
fn refused_state_directories() {
    let documents = each(
        &format!("[project]\nstate_dir = @\n{}", vm("")),
        &[r#""""#, r#"".""#, r#""/""#, r#""..""#, "3"],
    );
    assert_refusals("state_directories", &documents);
}

#[test]
fn refused_boot_profiles() {
    assert_refusals(
        "boot_profiles",
        &[vm(r#"boot_profile = "nativ""#), vm(r#"boot_profile = "uefi""#)],
    );
}

#[test]
fn refused_firmware() {
    let native = |line: &str| vm(&format!("boot_profile = \"native\"\n{line}"));
    assert_refusals(
        "firmware",
        &[
            native(r#"firmware = "efi""#),
            native("firmware = true"),
            vm(r#"firmware = "uefi""#),
            vm("firmware = \"bios\"\nboot_profile = \"managed\""),
        ],
    );
}

#[test]
fn refused_unknown_images() {
    let images = [
        r#""alpine-minmal""#,
        r#""windows""#,
        r#""alpine-minimal@v9""#,
        r#"{ name = "alpine-minimal", version = "1" }"#,
        r#"{ version = "v1" }"#,
        r#"{ name = "alpine-minimal", disk = "rootf" }"#,
        r#"["alpine-minimal"]"#,
        r#""""#,
        r#""alpine-minimal@""#,
    ];
    let documents = each("[[vms]]\nname = \"dev\"\nmanaged_image = @", &images);
    assert_refusals("unknown_images", &documents);
}

#[test]
fn refused_catalog_names_are_taken() {
    assert_refusals(
        "catalog_names_are_taken",
        &[
            r#"[[vms]]
name = "dev"
managed_image = "alpine-minimal"
[images.alpine-minimal]
rootfs = { path = "d.qcow2", sha256 = "SHA" }"#
                .replace("SHA", SHA),
            r#"[[vms]]
name = "dev"
managed_image = "alpine-minimal"
[images."../evil"]
version = "../v"
rootfs = { path = "d.qcow2", sha256 = "SHA" }"#
                .replace("SHA", SHA),
            "images = 3".to_owned(),
        ],
    );
}

#[test]
fn refused_kernels() {
    assert_refusals(
        "kernels",
        &[
            image(
                r#"rootfs = { path = "d.qcow2", sha256 = "SHA" }
kernel = { path = "k", sha256 = "SHA" }
command_line = "root=/dev/vda""#,
            ),
            image(
                r#"rootfs = { path = "d.qcow2", sha256 = "SHA" }
initramfs = { path = "i", sha256 = "SHA" }"#,
            ),
            image(
                r#"rootfs = { path = "d.qcow2", sha256 = "SHA" }
kernel = { path = "k", sha256 = "SHA" }
initramfs = { path = "i", sha256 = "SHA" }"#,
            ),
            image(
                r#"rootfs = { path = "d.qcow2", sha256 = "SHA" }
command_line = "root=/dev/vda""#,
            ),
            image(r#"version = "1""#),
        ],
    );
}

#[test]
fn refused_digests() {
    assert_refusals(
        "digests",
        &[
            image(r#"rootfs = { url = "https://a.example/d", sha256 = "8f58" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha256 = "sha256:SHA" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha256 = "SHASHA" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha512 = "SHA" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha256 = "SHA", sha512 = "SHASHA" }"#),
            image(r#"rootfs = { url = "https://a.example/d" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha256 = "?" }"#),
            image(r#"rootfs = { python = { package = "p", version = "1", platform = "any" } }"#),
            image(r#"rootfs = { path = "not-there.qcow2" }"#),
            image(r#"rootfs = { url = "https://a.example/d", sha256 = 5 }"#),
        ],
    );
}

#[test]
fn refused_sources() {
    assert_refusals(
        "sources",
        &[
            image(r#"rootfs = { sha256 = "SHA" }"#),
            image(r#"rootfs = { url = "https://a.example/d", path = "d", sha256 = "SHA" }"#),
            image(r#"rootfs = { urls = [], sha256 = "SHA" }"#),
            image(r#"rootfs = { path = "d/", sha256 = "SHA" }"#),
            image(
                r#"command_line = "root=/dev/vda"
rootfs = { path = "d", sha256 = "SHA" }
kernel = {}
initramfs = { size = 3, pipeline = ["strip-vhd-footer"] }"#,
            ),
            image(r#"rootfs = { path = "d", sha256 = "SHA", size = 0 }"#),
            image(
                r#"rootfs = { python = { package = "--index-url", version = ">=1" }, sha256 = "SHA" }"#,
            ),
            image(r#"rootfs = { python = "quicksand", sha256 = "SHA" }"#),
            image(r#"rootfs = { python = { }, sha256 = "SHA" }"#),
            image(r#"rootfs = "d.qcow2""#),
            image(
                r#"rootfs = { url = "https://a.example/d", sha256 = "SHA" }
kernel = { url = "https://a.example/d", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }"#,
            ),
        ],
    );
}

#[test]
fn refused_urls() {
    let urls = [
        r#""a.example/d""#,
        r#""ftp://a.example/d""#,
        r#""https://""#,
        r#""https://a b/""#,
        r#""file:///etc/passwd""#,
        r#""""#,
    ];
    let mut documents = each(&image("rootfs = { url = @, sha256 = \"SHA\" }"), &urls);
    let mirrors = [r#"["http://m.example"]"#, r#""https://m.example""#, r#"["m.example", 3]"#];
    documents.extend(each(&vm("[images]\nmirrors = @"), &mirrors));
    assert_refusals("urls", &documents);
}

#[test]
fn refused_keys() {
    let keys = [
        "{ debian = \"keys/debian.asc\" }",
        "{ ubunut = \"keys/ubuntu.asc\" }",
        "{ ubuntu = \"\" }",
        "{ ubuntu = [\"a.asc\"] }",
        "{ fedora = \"keys/\" }",
        "\"keys/ubuntu.asc\"",
    ];
    assert_refusals("keys", &each(&vm("[images]\nkeys = @"), &keys));
}

#[test]
fn refused_pipelines() {
    let pipelines = [
        r#"["strip-vhd-foter"]"#,
        r#"["gunzip"]"#,
        r#"["decompress"]"#,
        r#"[{ extract = "/x" }]"#,
        r#"[{ extract-file = "boot/x" }]"#,
        r#"[{ convert = { from = "img", to = "qcow" } }]"#,
        r#"[{ convert = { from = "raw" } }]"#,
        r#"[{ convert = { from = "qcow2", to = "raw" } }]"#,
        r#"[{ decompress = "bzip2" }]"#,
        r#"[{ rename = "../x" }]"#,
        r#"[{ unzip = "" }]"#,
        r#"[{ unzip = "a", rename = "b" }]"#,
        "[3]",
        r#""strip-vhd-footer""#,
    ];
    let rootfs = "rootfs = { path = \"d\", sha256 = \"SHA\", pipeline = @ }";
    assert_refusals("pipelines", &each(&image(rootfs), &pipelines));
}

#[test]
fn refused_image_memory() {
    assert_refusals(
        "image_memory",
        &[image(
            r#"min_memory = "2 GiB"
rootfs = { path = "d", sha256 = "SHA" }
[[vms]]
name = "small"
managed_image = "mine"
memory = "512 MiB""#,
        )],
    );
}

#[test]
fn refused_versions() {
    assert_refusals(
        "versions",
        &[
            format!(
                r#"version = "one"
{}"#,
                vm("")
            ),
            format!(
                r#"version = -1
{}"#,
                vm("")
            ),
            format!(
                r#"version = 1.0
{}"#,
                vm("")
            ),
            format!(
                r#"version = ""
{}"#,
                vm("")
            ),
            format!(
                r#"version = "2"
{}"#,
                vm("")
            ),
            "version = 7\nnot_even_known = true".to_owned(),
            r#"version = "1.0.0"
vms = 3"#
                .to_owned(),
        ],
    );
}

#[test]
fn refused_syntax_errors() {
    assert_refusals(
        "syntax_errors",
        &[
            "[[vms]]\nname = dev\nmanaged_image = alpine-minimal".to_owned(),
            r#"[[vms]
name = "dev""#
                .to_owned(),
            r#"[[vms]]
name = "dev"#
                .to_owned(),
            "[[vms]]\nname".to_owned(),
            "name: dev".to_owned(),
            r#"[[vms]]
name = "dev"
name = "dev2""#
                .to_owned(),
            r#"[project]
name = "x"
[project]
name = "y""#
                .to_owned(),
            "[[vms]]\nmemory = 512MiB".to_owned(),
            "[[vms]]\nport_forwards = [{ host = 80, guest = 80 }".to_owned(),
            "a = 01".to_owned(),
            r#"{ "vms": [] }"#.to_owned(),
            "x = \"\u{7}\"".to_owned(),
            "vms:\n  - name: dev\n    memory: 1GiB\n".to_owned(),
        ],
    );
}

#[test]
fn refused_everything_at_once() {
    assert_refusals(
        "everything_at_once",
        &[r#"version = "1"

[project]
nam = "demo"

[[vms]]
name = "web"
managed_image = "alpine-minmal"
cpu = 4
memory = "1.5 GiB"

[[vms]]
name = "web"
managed_image = "alpine-minimal"
cpus = 0
prot_forwards = []
"#
        .to_owned()],
    );
}

#[test]
fn a_path_without_a_digest_is_answered_with_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let disk = directory.path().join("disk.qcow2");
    std::fs::write(&disk, "abc").expect("a file");
    let text =
        refusal(&image(&format!("rootfs = {{ path = '{}', sha256 = \"?\" }}", disk.display())));
    // FIPS 180-2, appendix B.1: the digest of `abc`.
    assert!(
        text.contains(
            "sha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\""
        ),
        "{text}"
    );
}

#[test]
fn refused_qemu_options() {
    let with =
        |line: &str| image(&format!("{line}\nrootfs = {{ path = \"d\", sha256 = \"SHA\" }}"));
    let devices = [
        "loader,file=~/.ssh/id_ed25519,addr=0x20000,force-raw=on",
        "usb-mtp,rootdir=/home/ada,readonly=off",
        "virtio-rng",
        "virtio-rng-pci,max-byte=1",
        "virtio-rng-pci,rng=x",
        "virtio-rng-pci,max-bytes=1k",
        "e1000,romfile=/etc/passwd",
        "usb-kbd,pcap=/home/ada/.bash_aliases",
        "virtio-rng-pci,period=1,period=2",
    ];
    let mut documents: Vec<String> = devices
        .iter()
        .map(|device| with(&format!("devices = [\"qemu-xhci,id=usb\", \"{device}\"]")))
        .collect();
    let machines = [
        "microvm",
        "q35,firmware=/x",
        "q35,sat=off",
        "q35,sata=maybe",
        "q35,sata",
        "q35,sata=off,sata=on",
    ];
    documents.extend(machines.iter().map(|machine| with(&format!("machine = \"{machine}\""))));
    let cpus = ["a=b", "max,pdpe1gb=on", "max,+"].map(|cpu| format!("cpu = \"{cpu}\""));
    documents.extend(cpus.iter().map(|cpu| with(cpu)));
    documents.extend(cpus.iter().map(|cpu| vm(cpu)));
    assert_refusals("qemu_options", &documents);
}

#[test]
fn refused_data_for_cloud_init() {
    let values = [
        r#""user-data.yaml""#,
        "{}",
        r#"{ user_data = "" }"#,
        r#"{ user_data = 7 }"#,
        r#"{ user_data = "data/" }"#,
        r#"{ network_config = "net.yaml" }"#,
    ];
    let document = "[[vms]]\nname = \"dev\"\nbase_image = \"a.qcow2\"\ncloud_init = @";
    assert_refusals("data_for_cloud_init", &each(document, &values));
}

#[test]
fn refused_steps() {
    let too_many = format!("[{}]", "\"true\", ".repeat(33));
    let values = [
        "\"apk add nginx\"",
        "[7]",
        r#"[" "]"#,
        r#"["a\u0000b"]"#,
        "[{}]",
        r#"[{ script = "a.sh", copy = { from = "a", to = "/a" } }]"#,
        r#"[{ script = "." }]"#,
        r#"[{ script = "../a.sh" }]"#,
        r#"[{ script = "/etc/passwd" }]"#,
        r#"[{ script = "~/a.sh" }]"#,
        r#"[{ script = ".castra/vms/dev/client_key" }]"#,
        r#"[{ copy = { from = "a/../../b", to = "/b" } }]"#,
        r#"[{ copy = { from = "a" } }]"#,
        r#"[{ copy = { from = "a", to = "srv" } }]"#,
        r#"[{ copy = { from = "a", to = "/srv/../etc" } }]"#,
        r#"[{ run = " " }]"#,
        r#"[{ run = "true", script = "a.sh" }]"#,
        r#"[{ run = "true", secrets = "env:A" }]"#,
        r#"[{ run = "true", secrets = ["A"] }]"#,
        r#"[{ run = "true", secret = "env:A=B" }]"#,
        r#"[{ run = "true", secret = "env:A\u0000" }]"#,
        r#"[{ run = "true", secrets = ["env:A", "env:A"] }]"#,
        r#"[{ run = "true", secrets = ["env:A"], secret = "env:B" }]"#,
        r#"[{ copy = { from = "a", to = "/a" }, secret = "env:A" }]"#,
        r#"[{ run = "true", network = "none" }]"#,
        too_many.as_str(),
    ];
    assert_refusals("steps", &each(&vm("provision = @"), &values));
}

#[test]
fn refused_steps_without_an_agent_or_with_cloud_init() {
    let lines = ["boot_profile = \"native\"", "cloud_init = { user_data = \"a.yaml\" }"];
    let document = "[[vms]]\nname = \"dev\"\nbase_image = \"a.qcow2\"\nprovision = [\"true\"]\n@";
    assert_refusals("steps_without_an_agent", &each(document, &lines));
}

#[test]
fn refused_disks_without_an_agent() {
    let disk = r#"disks = [{ name = "data", size = "1 GiB", guest = "/data" }]"#;
    let document =
        "[[vms]]\nname = \"dev\"\nbase_image = \"a.qcow2\"\nboot_profile = \"native\"\n@\n";
    assert_refusals("disks_without_an_agent", &each(document, &[disk]));
}

#[test]
fn refused_steps_of_images() {
    let vm = "[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n";
    let many = format!("[{}]", "\"true\", ".repeat(20));
    let documents = [
        format!("[images.alpine-minimal]\nprovision = [\" \"]\n{vm}"),
        format!("[images.alpine-minimal]\nprovision = [\"true\"]\nversion = \"v2\"\n{vm}"),
        format!("[images.nothing]\nprovision = [\"true\"]\n{vm}"),
        format!("[images.alpine-minimal]\nprovision = {many}\n{vm}provision = {many}\n"),
        format!("[images.alpine-minimal]\nprovision = [\"true\"]\n{vm}boot_profile = \"native\"\n"),
    ];
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    assert_refusals("steps_of_images", &each("@", &documents));
}
