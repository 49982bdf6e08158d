//! `castra image update`, against publishers with their addresses and layouts.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use castra_test_support::Project;
use castra_test_support::publishers::Publishers;
use sha2::{Digest as _, Sha512};

use crate::image_commands::fixture::{disk, names, sha256};

const HOSTS: [&str; 7] = [
    "download.opensuse.org",
    "cloud.debian.org",
    "cloud-images.ubuntu.com",
    "dl.fedoraproject.org",
    "repo.almalinux.org",
    "dl.rockylinux.org",
    "geo.mirror.pkgbuild.com",
];
const TRIXIE: &str = "https://cloud.debian.org/images/cloud/trixie";
const NOBLE: &str = "https://cloud-images.ubuntu.com/releases/noble";
const ALMA: &str = "https://repo.almalinux.org/almalinux/9/cloud/x86_64/images";
const ROCKY: &str = "https://dl.rockylinux.org/pub/rocky";
const FEDORA: &str =
    "https://dl.fedoraproject.org/pub/archive/fedora/linux/releases/42/Cloud/x86_64/images";
const LEAP: &str = "https://download.opensuse.org/distribution/leap/16.0/appliances";
const ARCH: &str = "https://geo.mirror.pkgbuild.com/images";

fn sha512(bytes: &[u8]) -> String {
    Sha512::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a project with a VM on each of these images.
fn project(publishers: &Publishers, images: &[&str]) -> Project {
    let mut project = Project::isolated();
    for (name, value) in publishers.environment() {
        project.set(name, value);
    }
    let vm = |(index, image): (usize, &&str)| {
        format!("[[vms]]\nname = \"vm{index}\"\nmanaged_image = \"{image}\"\n")
    };
    project.write("castra.toml", &images.iter().enumerate().map(vm).collect::<String>());
    project
}

fn lock(project: &Project) -> String {
    fs::read_to_string(project.path().join("castra.lock")).expect("is there")
}

/// Publishes this disk as a build of Debian 13, and as the newest one.
fn publish_trixie(publishers: &Publishers, version: &str, disk: &[u8]) {
    let other = sha512(b"another image");
    let line =
        |name: &str| format!("{}  {name}\n{other}  debian-13-nocloud-amd64.raw\n", sha512(disk));
    publishers
        .put(&format!("{TRIXIE}/latest/SHA512SUMS"), line("debian-13-genericcloud-amd64.qcow2"));
    let file = format!("debian-13-genericcloud-amd64-{version}.qcow2");
    publishers.put(&format!("{TRIXIE}/{version}/SHA512SUMS"), line(&file));
    publishers.put(&format!("{TRIXIE}/{version}/{file}"), disk);
    let listing = format!(
        "<html><a href=\"20250801-2000/\">20250801-2000/</a><a href=\"{version}/\">{version}/</a>\
         <a href=\"daily/\">daily/</a><a href=\"latest/\">latest/</a></html>"
    );
    publishers.put(&format!("{TRIXIE}/"), listing);
}

#[test]
fn a_new_build_is_pinned_and_used_by_a_team() {
    let publishers = Publishers::start(&HOSTS);
    let project = project(&publishers, &["debian-13"]);
    publish_trixie(&publishers, "20261115-2700", &disk());
    project
        .run(&["image", "update"])
        .ok()
        .says("debian-13 20261001-2618 → 20261115-2700")
        .says("commit");
    let text = lock(&project);
    for line in [
        "version = 1",
        "name = \"debian-13\"",
        "version = \"20261115-2700\"",
        &format!("sha512 = \"{}\"", sha512(&disk())),
        &format!("size_bytes = {}", disk().len()),
        &format!("\"{TRIXIE}/20261115-2700/debian-13-genericcloud-amd64-20261115-2700.qcow2\""),
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let metadata = fs::metadata(project.path().join("castra.lock")).expect("is there");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o644);
    assert_eq!(names(&project.path()), ["castra.lock", "castra.toml"]);

    // Nothing is new: one question, and the file stays.
    publishers.asked();
    let shown = project.run(&["image", "--json", "update"]).ok().document("image update");
    assert_eq!(shown["images"][0]["change"], "none");
    assert_eq!(publishers.asked(), [format!("{TRIXIE}/latest/SHA512SUMS")]);
    let after = fs::metadata(project.path().join("castra.lock")).expect("is there");
    assert_eq!((after.ino(), lock(&project)), (metadata.ino(), text.clone()));

    // A colleague gets the same bytes, whatever is newest by then.
    publish_trixie(&publishers, "20261130-2800", b"newer");
    let there = self::project(&publishers, &["debian-13"]);
    there.write("castra.lock", &text);
    there.run(&["config", "check"]).ok();
    let shown = there.run(&["image", "--json", "show", "debian-13"]).ok().document("image show");
    assert_eq!(shown["image"]["version"], "20261115-2700");
    there.run(&["image", "pull"]).code(65).says("is raw, not qcow2");
    let blob = there.cache().join("blobs/sha512").join(sha512(&disk()));
    assert_eq!(fs::read(blob).expect("is there"), disk());

    // The next build; the earlier one stays for VMs that have it.
    project.run(&["image", "update"]).ok().says("20261115-2700 → 20261130-2800");
    let versions: Vec<String> = lock(&project)
        .lines()
        .filter(|line| line.contains("version = \""))
        .map(str::to_owned)
        .collect();
    assert_eq!(versions, ["version = \"20261130-2800\"", "version = \"20261115-2700\""]);
    project.run(&["image", "show", "debian-13@20261115-2700"]).ok();
    project.run(&["image", "show", "debian-13@20261001-2618"]).ok();
}

/// Publishes openSUSE Leap: builds beside each other, with a file each, and one name that moves.
fn publish_leap(publishers: &Publishers, bytes: &[u8]) {
    let hex = sha256(bytes);
    let name = "Leap-16.0-Minimal-VM.x86_64-Cloud";
    let sums = |name: &str| format!("{hex}  {name}.qcow2\n");
    publishers.put(&format!("{LEAP}/{name}.qcow2.sha256"), sums(name));
    publishers.put(
        &format!("{LEAP}/"),
        format!("<a href=\"{name}-Build18.9.qcow2\"> <a href=\"{name}-Build18.72.qcow2\">"),
    );
    let dated = format!("{LEAP}/{name}-Build18.72.qcow2");
    publishers.put(&format!("{dated}.sha256"), sums(&format!("{name}-Build18.72")));
    publishers.put(&dated, bytes);
}

#[test]
fn the_layouts_of_all_publishers_are_understood() {
    let publishers = Publishers::start(&HOSTS);
    let bytes = disk();
    let hex = sha256(&bytes);
    // Ubuntu: the same names everywhere, and directories with dates.
    let sums = format!("{hex} *ubuntu-24.04-server-cloudimg-amd64.img\n");
    publishers.put(&format!("{NOBLE}/release/SHA256SUMS"), sums.as_str());
    publishers.put(&format!("{NOBLE}/release-20261120/SHA256SUMS"), "");
    publishers.put(&format!("{NOBLE}/release-20261110/SHA256SUMS"), sums.as_str());
    publishers.put(
        &format!("{NOBLE}/"),
        "<a href=\"release/\">release/</a> <a href=\"release-20261120/\"> \
        <a href=\"release-20261110/\"> <a href=\"release-20261125/\">",
    );
    let image = "ubuntu-24.04-server-cloudimg-amd64.img";
    publishers.put(&format!("{NOBLE}/release-20261110/{image}"), bytes.clone());
    // AlmaLinux: dated names and one that moves, in one file.
    let other = sha256(b"other");
    publishers.put(
        &format!("{ALMA}/CHECKSUM"),
        format!(
            "{other}  AlmaLinux-9-GenericCloud-9.8-20260810.x86_64.qcow2\n\
            {hex}  AlmaLinux-9-GenericCloud-9.9-20261112.x86_64.qcow2\n\
            {hex}  AlmaLinux-9-GenericCloud-latest.x86_64.qcow2\n\
            {other}  AlmaLinux-9-GenericCloud-ext4-9.9-20261112.x86_64.qcow2\n"
        ),
    );
    let image = "AlmaLinux-9-GenericCloud-9.9-20261112.x86_64.qcow2";
    publishers.put(&format!("{ALMA}/{image}"), bytes.clone());
    // Rocky Linux: the same in the form of BSD, with sizes, and a directory per release.
    let name = "Rocky-9-GenericCloud-Base-9.9-20261112.0.x86_64.qcow2";
    publishers.put(
        &format!("{ROCKY}/9/images/x86_64/CHECKSUM"),
        format!(
            "# {name}: 7777 bytes\nSHA256 ({name}) = {hex}\n\
            # Rocky-9-GenericCloud-Base.latest.x86_64.qcow2: 7777 bytes\n\
            SHA256 (Rocky-9-GenericCloud-Base.latest.x86_64.qcow2) = {hex}\n"
        ),
    );
    // Fedora: one build, signed inside of the file.
    let name = "Fedora-Cloud-Base-Generic-42-1.1.x86_64.qcow2";
    let fedora = "e401a4db2e5e04d1967b6729774faa96da629bcf3ba90b67d8d9cce9906bec0f";
    publishers.put(
        &format!("{FEDORA}/Fedora-Cloud-42-1.1-x86_64-CHECKSUM"),
        format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# {name}: 532217856 bytes\n\
            SHA256 ({name}) = {fedora}\n-----BEGIN PGP SIGNATURE-----\n\niQ==\n\
            -----END PGP SIGNATURE-----\n"
        ),
    );
    publish_leap(&publishers, &bytes);
    // Arch: a file per image, with the dated name or without.
    let name = "Arch-Linux-x86_64-cloudimg";
    let sums = |name: &str| format!("{hex}  {name}.qcow2\n");
    publishers.put(&format!("{ARCH}/latest/{name}.qcow2.SHA256"), sums(name));
    publishers.put(&format!("{ARCH}/"), "<a href=\"v20261115.123456/\">v20261115.123456/</a>");
    let dated = format!("{ARCH}/v20261115.123456/{name}-20261115.123456.qcow2");
    publishers.put(&format!("{dated}.SHA256"), sums(&format!("{name}-20261115.123456")));
    publishers.put(&dated, bytes);

    let images =
        ["ubuntu-24.04", "almalinux-9", "rocky-9", "fedora-42", "opensuse-leap-16.0", "arch"];
    let project = project(&publishers, &images);
    let shown = project.run(&["image", "--json", "update"]).ok().document("image update");
    let found: Vec<[String; 4]> = shown["images"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|image| {
            let text = |value: &serde_json::Value| value.to_string().replace('"', "");
            let label = &image["image"];
            [&label["name"], &label["version"], &image["change"], &image["size_bytes"]].map(text)
        })
        .collect();
    let size = disk().len().to_string();
    assert_eq!(
        found,
        [
            ["almalinux-9", "9.9-20261112", "newer", &size],
            ["arch", "20261115.123456", "newer", &size],
            ["fedora-42", "42-1.1", "pinned", "532217856"],
            ["opensuse-leap-16.0", "18.72", "newer", &size],
            ["rocky-9", "9.9-20261112.0", "newer", "7777"],
            ["ubuntu-24.04", "20261110", "newer", &size],
        ]
        .map(|row| row.map(str::to_owned))
    );
    let first_url = |index: usize| shown["images"][index]["urls"][0].as_str().expect("a URL");
    assert_eq!(
        first_url(4),
        format!("{ROCKY}/9.9/images/x86_64/Rocky-9-GenericCloud-Base-9.9-20261112.0.x86_64.qcow2")
    );
    assert_eq!(
        first_url(5),
        format!("{NOBLE}/release-20261110/ubuntu-24.04-server-cloudimg-amd64.img")
    );
    let text = lock(&project);
    project.run(&["image", "update"]).ok().says("rocky-9 9.9-20261112.0 is the newest");
    assert_eq!(lock(&project), text);

    // Arch with the dated name in the file: no directory is needed.
    publishers.put(
        &format!("{ARCH}/latest/{name}.qcow2.SHA256"),
        format!("{}  {name}-20261122.7.qcow2\n", sha256(b"newer")),
    );
    publishers.put(&format!("{ARCH}/v20261122.7/{name}-20261122.7.qcow2"), "newer");
    project.run(&["image", "update", "arch"]).ok().says("20261115.123456 → 20261122.7");
}

#[test]
fn nothing_is_changed_by_an_update_that_fails() {
    let publishers = Publishers::start(&HOSTS);
    let project = project(&publishers, &["debian-13", "almalinux-9"]);
    publish_trixie(&publishers, "20261115-2700", &disk());
    let refused = |said: &str, code: i32| {
        let ended = project.run(&["image", "update"]);
        ended.code(code).says(said);
        assert_eq!(names(&project.path()), ["castra.toml"], "{said}");
    };
    refused("responded 404", 69);
    let sums = format!("{ALMA}/CHECKSUM");
    publishers.put(&sums, "<!DOCTYPE html><html>log in first</html>");
    refused("returned a web page, not a checksum file", 65);
    publishers.put(&sums, format!("{}  AlmaLinux-9-OpenNebula-latest.x86_64.qcow2\n", sha256(b"")));
    refused("does not name `almalinux-9`", 65);
    let older = "AlmaLinux-9-GenericCloud-9.7-20251118.x86_64.qcow2";
    publishers.put(&sums, format!("{}  {older}\n", sha256(b"")));
    refused("9.7-20251118, older than 9.8-20260810", 65);
    let same = "AlmaLinux-9-GenericCloud-9.8-20260810.x86_64.qcow2";
    publishers.put(&sums, format!("{}  {same}\n", sha256(b"")));
    refused("another digest for `almalinux-9` 9.8-20260810", 65);
    let hex = (sha256(b"a"), sha256(b"b"));
    publishers.put(&sums, format!("{}  {same}\n{}  {same}\n", hex.0, hex.1));
    refused("twice, with different digests", 65);
    publishers.put(&sums, vec![b'x'; (1 << 20) + 1]);
    refused("sends more than the expected 1 MiB", 65);
    let newer = "AlmaLinux-9-GenericCloud-9.9-20261112.x86_64.qcow2";
    publishers.put(&sums, format!("{}  {newer}\n", sha256(b"")));
    refused("responded 404", 69);
    publishers.remove(&format!("{TRIXIE}/20261115-2700/SHA512SUMS"));
    project.run(&["image", "update", "debian-13"]).code(65).says("none of the newest dated builds");
    let ended = project.run(&["--offline", "image", "update"]);
    ended.code(69).says("the network is disabled");
}

#[test]
fn only_images_of_distributions_beside_a_castra_toml_are_updated() {
    let publishers = Publishers::start(&HOSTS);
    let project = project(&publishers, &["alpine-minimal", "debian-13@20261001-2618"]);
    project.run(&["image", "update"]).ok().says("No VM here uses the newest image");
    project.run(&["image", "update", "alpine-minimal"]).code(64).says("change with castra");
    project.run(&["image", "update", "debian-31"]).code(66).says("Did you mean debian-13");
    project
        .run(&["image", "update", "debian-13@20261001-2618"])
        .code(64)
        .says("Name it without the version");
    assert_eq!(publishers.asked(), Vec::<String>::new());
    fs::remove_file(project.path().join("castra.toml")).expect("is there");
    project.run(&["image", "update", "debian-13"]).code(66).says("castra init");
}

#[test]
fn a_lock_file_that_cannot_be_used_names_the_way_out() {
    let publishers = Publishers::start(&HOSTS);
    let project = project(&publishers, &["debian-13"]);
    let entry = |name: &str, version: &str, digest: &str| {
        format!(
            "[[images]]\nname = \"{name}\"\nversion = \"{version}\"\n\
            urls = [\"https://example.org/x.qcow2\"]\n{digest}\n"
        )
    };
    let good = format!("sha256 = \"{}\"", sha256(b"x"));
    for (text, said, hint) in [
        ("version = 1\nimages = 7\n".to_owned(), "line 2", "version control"),
        ("<<<<<<< ours\n".to_owned(), "line 1", "version control"),
        ("version = 2\nfuture = true\n".to_owned(), "newer castra", "Update Castra"),
        (
            format!("version = 1\n{}", entry("debian-31", "1", &good)),
            "pins the image `debian-31`",
            "Did you mean `debian-13`?",
        ),
        (
            format!("version = 1\n{}", entry("debian-13", "../../x", &good)),
            "`../../x` is not a name",
            "version control",
        ),
        (
            format!("version = 1\n{}", entry("debian-13", "1", "sha256 = \"abc\"")),
            "digest that is not 64",
            "version control",
        ),
        (
            format!("version = 1\n{}", entry("debian-13", "1", "")),
            "needs either `sha256` or `sha512`",
            "version control",
        ),
        (
            format!("version = 1\n{}", entry("debian-13", "20261001-2618", &good)),
            "with another digest than the one that castra knows",
            "version control",
        ),
        (
            format!("version = 1\n{0}{0}", entry("debian-13", "1", &good)),
            "pins `debian-13 1` twice",
            "version control",
        ),
    ] {
        project.write("castra.lock", &text);
        for command in [&["image", "pull"][..], &["config", "check"], &["image", "update"]] {
            project.run(command).code(65).says("castra.lock cannot be used").says(said).says(hint);
        }
    }
    assert_eq!(publishers.asked(), Vec::<String>::new());

    // Another digest than that of the file: the bytes are refused.
    publish_trixie(&publishers, "20261115-2700", &disk());
    project.run(&["image", "--json", "update"]).code(65);
    fs::remove_file(project.path().join("castra.lock")).expect("is there");
    project.run(&["image", "update"]).ok();
    let spoilt = lock(&project).replace(&sha512(&disk()), &sha512(b"another"));
    project.write("castra.lock", &spoilt);
    project.run(&["image", "pull"]).code(65).says("was expected").says(&sha512(&disk()));
    assert_eq!(names(&project.cache().join("blobs/sha512")), Vec::<String>::new());
}
