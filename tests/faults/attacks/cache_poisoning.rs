//! A repository that brings files of an image, with a manifest that declares them right.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, noise};
use sha2::{Digest as _, Sha256};

/// Size in bytes of the disk that the description pins.
const SIZE: usize = 256 * 1024;
const DISK: &str = "images/disk/v1/rootfs.qcow2";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn honest() -> Server {
    let content = noise(SIZE);
    Server::start(move |request| Reply::file(request, &content, None))
}

/// Returns a `castra.toml` with this image.
fn configuration(server: &Server) -> String {
    format!(
        "[images.disk.rootfs]\nurl = \"{}\"\nsha256 = \"{}\"\n\
         pipeline = [{{ convert = {{ from = \"raw\", to = \"qcow2\" }} }}]\n\
         [[vms]]\nname = \"dev\"\nmanaged_image = \"disk\"\ndisk = \"1 GiB\"\n",
        server.url("/disk.raw"),
        sha256(&noise(SIZE))
    )
}

/// Returns a qcow2 with other bytes.
fn backdoored(directory: &Path) -> Vec<u8> {
    let (raw, disk) = (directory.join("evil.raw"), directory.join("evil.qcow2"));
    fs::write(&raw, vec![0x66; SIZE]).expect("written");
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &disk])
        .status();
    assert!(converted.expect("qemu-img runs").success());
    fs::read(disk).expect("read")
}

/// Plants the files that an attacker commits: an image that castra made, whose disk was exchanged
/// and whose manifest was sealed again.
fn plant(server: &Server, configuration: &str, evil: &[u8], into: &Path) {
    let attacker = Project::isolated();
    attacker.write("castra.toml", configuration);
    attacker.run(&["image", "pull"]).ok();
    drop(server.requests());
    let from = attacker.path().join(".castra/images/disk/v1");
    fs::create_dir_all(into).expect("a directory");
    let text = fs::read_to_string(from.join("manifest.json")).expect("read");
    let right = fs::read(from.join("rootfs.qcow2")).expect("read");
    let text = text.replace(&sha256(&right), &sha256(evil));
    let size = |bytes: &[u8]| format!("\"size_bytes\": {}", bytes.len());
    let text = text.replace(&size(&right), &size(evil));
    fs::write(into.join("rootfs.qcow2"), evil).expect("written");
    fs::write(into.join("manifest.json"), sealed(&text)).expect("written");
    for name in ["rootfs.qcow2", "manifest.json"] {
        fs::set_permissions(into.join(name), fs::Permissions::from_mode(0o444)).expect("changed");
    }
}

/// Seals a manifest as castra does: with the digest of its own compact text, which anyone can
/// compute.
fn sealed(text: &str) -> String {
    let (start, rest) = text.split_once("\"seal\": \"").expect("a seal");
    let (_, end) = rest.split_once('"').expect("its end");
    let unsealed = format!("{start}\"seal\": \"{}", &format!("\"{end}"));
    let manifest = castra_engine::managed::Manifest::parse;
    let compact: String = compact(&unsealed);
    let seal = sha256(compact.as_bytes());
    let text = format!("{start}\"seal\": \"{seal}\"{end}");
    manifest(text.as_bytes()).expect("castra takes the seal for its own");
    text
}

/// Removes the white space between the tokens of a JSON text.
fn compact(text: &str) -> String {
    let mut in_text = false;
    let is_kept = |one: &char| {
        in_text ^= *one == '"';
        in_text || !one.is_whitespace()
    };
    text.chars().filter(is_kept).collect()
}

fn is(path: PathBuf, bytes: &[u8]) -> bool {
    fs::read(path).is_ok_and(|found| found == bytes)
}

/// Returns a victim with a cold cache and a state root of their own, into which the attacker's
/// files came later.
fn victim(server: &Server, evil: &[u8]) -> Project {
    let victim = Project::isolated();
    let text = configuration(server);
    victim.write("castra.toml", &text);
    victim.run(&["image", "pull"]).ok();
    let planted = victim.path().join(".castra/images/disk/v1");
    for made in [&victim.cache(), &planted] {
        fs::remove_dir_all(made).expect("removed");
    }
    plant(server, &text, evil, &planted);
    victim
}

#[test]
fn a_planted_image_reaches_neither_the_cache_nor_another_project() {
    let server = honest();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let evil = backdoored(elsewhere.path());
    for command in [["image", "pull", "disk"], ["image", "verify", "disk"]] {
        let victim = victim(&server, &evil);
        // An image that none of the project's VMs uses is pulled into the cache alone.
        let text = configuration(&server);
        victim.write(
            "castra.toml",
            &text.replace("managed_image = \"disk\"", "managed_image = \"alpine-minimal\""),
        );
        victim.run(&command).ok();
        assert!(!is(victim.cache().join(DISK), &evil), "{command:?} put it into the cache");
        let neighbour = Project::with_cache(victim.cache().parent().expect("a parent").to_owned());
        neighbour.write("castra.toml", &text);
        neighbour.run(&["image", "pull"]).ok();
        assert!(
            !is(neighbour.path().join(".castra").join(DISK), &evil),
            "{command:?} reached another project"
        );
    }
}

#[test]
fn a_planted_image_is_not_used_in_its_own_project_either() {
    let server = honest();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let evil = backdoored(elsewhere.path());
    let victim = victim(&server, &evil);
    victim.run(&["image", "pull"]).ok();
    assert!(!is(victim.path().join(".castra").join(DISK), &evil));
    victim.run(&["image", "verify"]).ok().says("is intact");
}

#[test]
fn verify_does_not_take_the_manifest_beside_a_file_for_a_witness() {
    let server = honest();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let evil = backdoored(elsewhere.path());
    let victim = victim(&server, &evil);
    // Nothing can be fetched, so nothing can be repaired.
    let ended = victim.run(&["image", "verify", "--offline"]);
    ended.code(65).says("only the manifest beside it describes it");
    assert!(!is(victim.path().join(".castra").join(DISK), &evil), "it stays in its place");
}

#[test]
fn a_cache_that_was_poisoned_before_is_made_right() {
    let server = honest();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let evil = backdoored(elsewhere.path());
    let project = Project::isolated();
    let text = configuration(&server);
    project.write("castra.toml", &text);
    plant(&server, &text, &evil, &project.cache().join("images/disk/v1"));
    project.run(&["image", "pull"]).ok();
    for path in [project.cache().join(DISK), project.path().join(".castra").join(DISK)] {
        assert!(!is(path, &evil));
    }
}

/// A stranger's description can pin anything, but nothing that another description would accept.
#[test]
fn two_descriptions_of_one_name_never_share_a_file() {
    let evil = vec![0x66; SIZE];
    let content = evil.clone();
    let strange = Server::start(move |request| Reply::file(request, &content, None));
    let server = honest();
    let stranger = Project::isolated();
    let text = configuration(&strange).replace(&sha256(&noise(SIZE)), &sha256(&evil));
    stranger.write("castra.toml", &text);
    stranger.run(&["image", "pull"]).ok();
    let evil = fs::read(stranger.cache().join(DISK)).expect("read");
    let neighbour = Project::with_cache(stranger.cache().parent().expect("a parent").to_owned());
    neighbour.write("castra.toml", &configuration(&server));
    neighbour.run(&["image", "pull"]).ok();
    assert!(!is(neighbour.path().join(".castra").join(DISK), &evil));
    neighbour.run(&["image", "verify"]).ok().says("is intact");
}

#[test]
fn an_honest_project_without_any_notes_keeps_its_files() {
    let server = honest();
    let project = Project::isolated();
    project.write("castra.toml", &configuration(&server));
    project.run(&["image", "pull"]).ok();
    let disk = fs::read(project.path().join(".castra").join(DISK)).expect("read");
    // An earlier castra wrote no notes.
    for notes in [project.cache().join("products"), project.user_state().join("castra/products")] {
        fs::remove_dir_all(notes).expect("removed");
    }
    project.run(&["image", "verify", "--offline"]).ok().says("is intact");
    assert!(is(project.path().join(".castra").join(DISK), &disk));
    assert!(
        !project.path().join(".castra/quarantine").exists()
            && !project.cache().join("quarantine").exists()
    );
    assert_eq!(server.requests().len(), 1, "nothing is fetched again");
}
