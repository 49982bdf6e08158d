//! Images that travel by hand, and archives that lie.

use std::fs;
use std::path::{Path, PathBuf};

use castra_test_support::Project;
use sha2::{Digest as _, Sha512};
use tar::{Builder, EntryType, Header};

use crate::image_commands::fixture::{blob, configuration, disk, names, project, serve, sha256};

/// Returns a project on another machine, with the same `castra.toml` and no network.
fn elsewhere(server_url: &str) -> Project {
    let project = Project::isolated();
    project.write(
        "castra.toml",
        &configuration(server_url, &format!("sha256 = \"{}\"", sha256(&disk()))),
    );
    project
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Returns an archive of the image.
fn exported(project: &Project) -> PathBuf {
    let archive = project.path().join("disk.tar");
    project.run(&["image", "export", "disk", text(&archive)]).ok();
    archive
}

#[test]
fn what_is_exported_is_imported_where_there_is_no_network() {
    let server = serve();
    let here = project(&server);
    let archive = exported(&here);
    here.run(&["image", "export", "disk@v1", text(&archive)]).code(73).says("already exists");
    here.run(&["image", "export", "disk", "again.tar"]).ok();
    assert_eq!(
        fs::read(&archive).expect("is there"),
        fs::read(here.path().join("again.tar")).expect("is there")
    );
    assert!(!here.path().join(".castra").exists(), "an export needs no project");
    assert_eq!(server.requests().len(), 1);

    let there = elsewhere(&server.url("/disk.raw"));
    there
        .run(&["--offline", "image", "export", "disk", "x.tar"])
        .code(69)
        .says("network is disabled");
    assert_eq!(names(&there.path()), ["castra.toml"]);
    there
        .run(&["--offline", "image", "import", text(&archive)])
        .ok()
        .says("disk v1 no longer needs the network");
    there.run(&["--offline", "image", "pull"]).ok();
    there.run(&["--offline", "image", "verify"]).ok().says("is intact");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_file_is_recognised_by_either_digest() {
    let sha512: String = Sha512::digest(disk()).iter().map(|byte| format!("{byte:02x}")).collect();
    for pin in [format!("sha256 = \"{}\"", sha256(&disk())), format!("sha512 = \"{sha512}\"")] {
        let project = Project::isolated();
        project.write("castra.toml", &configuration("https://example.invalid/disk.raw", &pin));
        fs::write(project.path().join("brought.raw"), disk()).expect("written");
        project.run(&["--offline", "image", "import", "brought.raw"]).ok().says("for disk v1");
        project.run(&["--offline", "image", "pull"]).ok();
    }
}

#[test]
fn what_no_image_is_made_from_is_refused() {
    let project = elsewhere("https://example.invalid/disk.raw");
    let mut bytes = disk();
    bytes[7] ^= 1;
    fs::write(project.path().join("other.raw"), &bytes).expect("written");
    project
        .run(&["image", "import", "other.raw"])
        .code(65)
        .says(&sha256(&bytes))
        .says("castra image show");
    project.run(&["image", "import", "nothing"]).code(66).says("no such file");
    project.run(&["image", "import", "."]).code(66).says("not a regular file");
    assert_eq!(names(&project.cache().join("blobs/sha256")), Vec::<String>::new());
}

#[test]
fn an_image_that_is_not_known_here_can_be_brought_all_the_same() {
    let server = serve();
    let archive = exported(&project(&server));
    let there = Project::isolated();
    // The archive's project is gone by now, and the archive with it.
    assert!(!archive.exists());
    let here = project(&server);
    there.run(&["image", "import", text(&exported(&here))]).ok().says("no image of the catalog");
    assert_eq!(fs::read(blob(&there)).expect("is there"), disk());
}

/// One member of an archive.
struct Part {
    name: &'static str,
    kind: EntryType,
    bytes: Vec<u8>,
}

impl Part {
    fn file(name: &'static str, bytes: &[u8]) -> Self {
        Self { name, kind: EntryType::Regular, bytes: bytes.to_vec() }
    }
}

fn description(size: usize) -> Part {
    let digest = sha256(&disk());
    let text = format!(
        r#"{{"format":1,"image":{{"id":"disk","version":"v1"}},"castra_version":"0",
            "blobs":[{{"name":"blob-0","digest":{{"sha256":"{digest}"}},"size_bytes":{size},"source":"x"}}]}}"#
    );
    Part::file("castra-image.json", text.as_bytes())
}

fn archive(path: &Path, parts: &[Part]) {
    let mut archive = Builder::new(fs::File::create(path).expect("made"));
    for part in parts {
        let mut header = Header::new_ustar();
        // Written as bytes: the crate's own setters refuse the values to be tried here.
        header.as_old_mut().name[..part.name.len()].copy_from_slice(part.name.as_bytes());
        header.set_entry_type(part.kind);
        header.set_size(part.bytes.len() as u64);
        if part.kind == EntryType::Symlink {
            header.set_link_name("/etc/passwd").expect("fits");
        }
        header.set_cksum();
        archive.append(&header, part.bytes.as_slice()).expect("written");
    }
    archive.finish().expect("written");
}

#[track_caller]
fn is_refused(parts: &[Part], said: &str) {
    let project = elsewhere("https://example.invalid/disk.raw");
    archive(&project.path().join("hostile.tar"), parts);
    project
        .run(&["image", "import", "hostile.tar"])
        .code(65)
        .says("not a valid image archive")
        .says(said);
    assert_eq!(names(&project.path()), ["castra.toml", "hostile.tar"]);
    let left = names(&project.cache().join("blobs/sha256"));
    assert!(left.iter().all(|name| *name == sha256(&disk())), "{left:?}");
}

#[test]
fn members_with_names_of_their_own_are_refused() {
    for name in
        ["../../escape", "/tmp/escape", "blob-1", "blob-0/../x", "images/disk/v1/rootfs.qcow2"]
    {
        is_refused(&[description(disk().len()), Part::file(name, &disk())], "unexpected member");
    }
}

#[test]
fn members_that_are_no_files_are_refused() {
    // Includes the extensions that would give the next member another name.
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ] {
        let part = Part { name: "blob-0", kind, bytes: Vec::new() };
        is_refused(&[description(disk().len()), part], "unexpected member");
    }
    for kind in [EntryType::XHeader, EntryType::GNULongName] {
        let part = Part { name: "blob-0", kind, bytes: b"../../escape\0".to_vec() };
        is_refused(
            &[description(disk().len()), part, Part::file("blob-0", &disk())],
            "unexpected member",
        );
    }
}

#[test]
fn members_that_are_not_as_described_are_refused() {
    let mut wrong = disk();
    wrong[99] ^= 1;
    is_refused(&[description(disk().len()), Part::file("blob-0", &wrong)], "has digest");
    is_refused(&[description(disk().len()), Part::file("blob-0", b"short")], "its declared size");
    is_refused(&[description(disk().len())], "is missing");
    let twice = || Part::file("blob-0", &disk());
    is_refused(&[description(disk().len()), twice(), twice()], "unexpected member");
}

#[test]
fn descriptions_that_no_export_writes_are_refused() {
    let with = |text: &str| [Part::file("castra-image.json", text.as_bytes())];
    is_refused(&with("{"), "cannot be read");
    is_refused(&with(r#"{"format":2}"#), "a newer castra");
    let named = |name: &str, hex: &str| {
        format!(
            r#"{{"format":1,"image":{{"id":"x","version":"v1"}},"castra_version":"0",
                "blobs":[{{"name":"{name}","digest":{{"sha256":"{hex}"}},"size_bytes":1,"source":"x"}}]}}"#
        )
    };
    is_refused(&with(&named("../x", &sha256(b"x"))), "is invalid");
    is_refused(&with(&named("blob-0", "../../../x")), "is invalid");
}

#[test]
fn an_archive_that_is_cut_off_anywhere_is_refused() {
    let server = serve();
    let here = project(&server);
    let whole = fs::read(exported(&here)).expect("is there");
    for length in [600, 1024, 1536, 2048, whole.len() / 2, 1536 + disk().len() - 1] {
        let there = elsewhere(&server.url("/disk.raw"));
        fs::write(there.path().join("cut.tar"), &whole[..length]).expect("written");
        there.run(&["image", "import", "cut.tar"]).code(65).says("not a valid image archive");
        assert_eq!(
            names(&there.cache().join("blobs/sha256")),
            Vec::<String>::new(),
            "after {length} bytes"
        );
    }
}
