//! Obstacles planted by others, and names that lead elsewhere.

use std::path::{Path, PathBuf};

use castra_engine::files::FileError;
use castra_engine::layout::ProjectLayout;
use castra_engine::managed::{ImageError, ManagedImageSpec, TransformError, TransformStep};
use castra_test_support::http::{Reply, Server};
use castra_test_support::skip;
use rustix::fs::{CWD, FileType, Mode};

use crate::images::fixture::{Fixture, convert, disk_image, payload, raw_of};

const SIZE: usize = 64 * 1024;
/// User id that is neither root nor the one that runs the tests: `nobody`, as the kernel numbers
/// it.
const OTHER_USER: u32 = 65534;

fn serve() -> (Server, ManagedImageSpec) {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    (server, image)
}

/// Paths at which Castra opens a file by name, and objects planted there: those that are refused,
/// and those that are quarantined.
struct Places {
    refused: [PathBuf; 4],
    replaced: [PathBuf; 4],
    ignored: PathBuf,
}

fn places(fixture: &Fixture, image: &ManagedImageSpec) -> Places {
    let (cache, project) = (fixture.cache(), fixture.project("project"));
    let hex = image.artifacts[0].digest.hex();
    let here = project.images().image("disk", "v1");
    let there = cache.images().image("disk", "v1");
    Places {
        refused: [
            fixture.partial(image),
            cache.partial_sidecar("sha256", hex),
            fixture.blob(image),
            cache.lock("image-disk-v1"),
        ],
        replaced: [
            here.join("rootfs.qcow2"),
            here.join("manifest.json"),
            there.join("rootfs.qcow2"),
            there.join("manifest.json"),
        ],
        ignored: project.image_manager_log(),
    }
}

fn plant_fifo(path: &Path) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
    // The file there is in the way.
    let _ = std::fs::remove_file(path);
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from(0o600), 0).expect("is made");
}

#[test]
fn a_fifo_in_the_way_never_blocks() {
    let (server, image) = serve();
    for number in 0..4 {
        let fixture = Fixture::new();
        let path = &places(&fixture, &image).refused[number];
        plant_fifo(path);
        let error = fixture.ensure(&image).expect_err("is refused");
        assert!(
            matches!(
                &error,
                ImageError::File(FileError::NotAFile { path: found }) if found == path
            ),
            "{error}"
        );
    }
    assert!(server.requests().is_empty());
    for number in 0..4 {
        let fixture = Fixture::new();
        fixture.ensure(&image).expect("is prepared");
        let path = &places(&fixture, &image).replaced[number];
        plant_fifo(path);
        if number > 1 {
            std::fs::remove_dir_all(fixture.path("project")).expect("is ours");
        }
        let paths = fixture.ensure(&image).expect("is put right");
        assert_eq!(raw_of(&paths.disk), payload(SIZE));
        assert!(std::fs::symlink_metadata(path).expect("is there").is_file(), "{}", path.display());
    }
}

#[test]
fn a_log_that_leads_elsewhere_is_not_written() {
    let (_server, image) = serve();
    let fixture = Fixture::new();
    let log = places(&fixture, &image).ignored;
    let victim = fixture.path("victim");
    std::fs::write(&victim, b"precious").expect("writes");
    std::fs::create_dir_all(log.parent().expect("a parent")).expect("a directory");
    std::os::unix::fs::symlink(&victim, &log).expect("links");
    std::fs::write(fixture.project("project").mark(), "").expect("writes");
    fixture.ensure(&image).expect("is prepared all the same");
    assert_eq!(std::fs::read(&victim).expect("reads"), b"precious");
    plant_fifo(&log);
    std::fs::remove_dir_all(fixture.project("project").images().root()).expect("is ours");
    fixture.ensure(&image).expect("is prepared all the same");
}

/// Gives a file to another user, who could change it at any time. Returns `false` if this user may
/// not.
fn give_away(path: &Path) -> bool {
    std::os::unix::fs::chown(path, Some(OTHER_USER), Some(OTHER_USER)).is_ok()
}

fn owner(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::symlink_metadata(path).expect("is there"))
}

#[test]
fn a_partial_of_another_user_does_not_become_the_download() {
    let (server, image) = serve();
    let fixture = Fixture::new();
    fixture.leave_partial(&image, &payload(SIZE)[..SIZE / 2]);
    if !give_away(&fixture.partial(&image)) {
        skip("only root can give a file away");
        return;
    }
    fixture.ensure(&image).expect("is prepared");
    assert_ne!(owner(&fixture.blob(&image)), OTHER_USER);
    assert_eq!(server.ranges(), [None], "nothing of it is used");
}

#[test]
fn files_of_another_user_are_not_relied_on() {
    let (server, image) = serve();
    let fixture = Fixture::new();
    let paths = fixture.ensure(&image).expect("is prepared");
    if !give_away(&paths.disk) {
        skip("only root can give a file away");
        return;
    }
    // The cached file is the same one under another name.
    fixture.ensure(&image).expect("is copied");
    assert_ne!(owner(&paths.disk), OTHER_USER);
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    assert_eq!(server.requests().len(), 1);

    give_away(&fixture.blob(&image));
    let mut other = image.clone();
    other.id = "other".to_owned();
    fixture.ensure(&other).expect("is fetched again");
    assert_ne!(owner(&fixture.blob(&image)), OTHER_USER);
    assert_eq!(server.requests().len(), 2);
    assert!(
        fixture.events.warnings().contains("belongs to another user"),
        "{}",
        fixture.events.warnings()
    );
}

/// Returns every file below a directory that is not one of Castra's own.
fn strangers(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for path in std::fs::read_dir(directory).expect("reads").flatten().map(|entry| entry.path())
        {
            if path.is_dir() {
                open.push(path);
            } else if !path.to_string_lossy().contains("castra/") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn names_in_an_archive_are_only_compared() {
    let long = "n".repeat(300);
    let names = ["../../up", "/tmp/castra-absolute", "nul\0byte", &long, "good"];
    let disk = payload(SIZE);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for name in names {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).expect("starts");
        std::io::Write::write_all(&mut archive, &disk).expect("writes");
    }
    let packed = archive.finish().expect("finishes").into_inner();
    for name in names {
        let fixture = Fixture::new();
        let content = packed.clone();
        let server = Server::start(move |request| Reply::file(request, &content, None));
        let mut image = disk_image(&packed, &[server.url("/disk.zip")]);
        image.artifacts[0].pipeline =
            vec![TransformStep::Unzip { member: name.to_owned() }, convert("raw")];
        // A name is compared with the one in the description, and leads nowhere: each is a member
        // like any other.
        let paths = fixture.ensure(&image).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(raw_of(&paths.disk), disk, "{name:?}");
        assert_eq!(strangers(fixture.directory.path()), Vec::<PathBuf>::new(), "{name}");
        assert!(!Path::new("/tmp/castra-absolute").exists());
    }
}

#[test]
fn a_filesystem_that_claims_to_be_huge_is_refused() {
    let fixture = Fixture::new();
    let honest = crate::images::vhd::ext4_disk(fixture.directory.path());
    // Number of blocks, low and high; shift of a block's size; blocks per group.
    for (at, number) in [(0x4, u32::MAX), (0x150, 1), (0x18, 60), (0x20, 0)] {
        let mut disk = honest.clone();
        disk[1024 + at..1024 + at + 4].copy_from_slice(&number.to_le_bytes());
        let vhd = [disk.as_slice(), &crate::images::vhd::footer(2)].concat();
        let content = vhd.clone();
        let server = Server::start(move |request| Reply::file(request, &content, None));
        let image = crate::images::vhd::vhd_image(&vhd, &server.url("/disk.vhd"));
        let error = fixture.ensure(&image).expect_err("is refused");
        let ImageError::Transform(TransformError::Ext4 { source, .. }) = error else {
            panic!("{at:#x}: {error}");
        };
        assert!(source.to_string().contains("larger than its disk"), "{at:#x}: {source}");
    }
}

#[test]
fn names_in_a_filesystem_stay_in_it() {
    let fixture = Fixture::new();
    let disk = crate::images::vhd::ext4_disk(fixture.directory.path());
    let vhd = [disk.as_slice(), &crate::images::vhd::footer(2)].concat();
    let content = vhd.clone();
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let project: ProjectLayout = fixture.project("project");
    let long = format!("/{}", "n".repeat(300));
    for path in
        ["/../../../../../etc/hostname", "/boot/../../etc/passwd", "/boot/nul\0", &long, "relative"]
    {
        let mut image = crate::images::vhd::vhd_image(&vhd, &server.url("/disk.vhd"));
        image.artifacts[2].pipeline[1] = TransformStep::ExtractFile { path: path.to_owned() };
        let error = fixture.ensure(&image).expect_err("is not there");
        assert!(matches!(error, ImageError::Transform(_) | ImageError::Spec(_)), "{path}: {error}");
        assert!(!project.images().image("disk", "v1").join("initramfs").exists());
    }
}
