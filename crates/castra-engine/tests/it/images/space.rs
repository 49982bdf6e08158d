//! A disk that is full, or read-only.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use castra_engine::managed::{ArtifactSource, Compression, ManagedImageSpec, TransformStep};
use castra_test_support::http::{Reply, Server};
use castra_test_support::skip;

use crate::images::fixture::{Fixture, convert, disk_image, payload, raw_of, sha256, unpinned};
use crate::images::processes::{Run, STATE_ROOT};

const MIB: usize = 1024 * 1024;
/// Length of the compressed disk below, and half of the disk's own; more than the space check asks
/// for.
const HALF: usize = 12 * MIB;

/// Returns a disk without zeros that is half as long while it is compressed: each stage takes more
/// space than the one before.
fn raw() -> Vec<u8> {
    let mut raw = payload(HALF);
    raw.resize(2 * HALF, b'x');
    raw
}

/// Starts a server that announces no sizes, with its image: only the disk itself can show that
/// there is no space.
fn compressed() -> (Server, ManagedImageSpec) {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&raw()).expect("writes");
    let packed = encoder.finish().expect("finishes");
    let content = packed.clone();
    let server = Server::start(move |request| Reply::file(request, &content, None).chunked());
    let mut image = unpinned(disk_image(&packed, &[server.url("/disk.gz")]));
    image.artifacts[0].digest = sha256(&packed);
    image.artifacts[0].pipeline =
        vec![TransformStep::Decompress { format: Compression::Gzip }, convert("raw")];
    (server, image)
}

/// Returns the stage that an error is about.
fn stage(error: &str) -> &'static str {
    let signs = ["no space left", "not enough space", "larger than the file-size limit allows"];
    assert!(signs.iter().any(|sign| error.contains(sign)), "{error}");
    let stages = [(".partial", "download"), (".step-0", "decompress"), (".step-1", "convert")];
    stages
        .iter()
        .find(|(sign, _)| error.contains(sign))
        .map_or("before or after", |(_, stage)| stage)
}

#[test]
fn files_that_may_not_become_longer_end_in_a_clear_error() {
    let (_server, image) = compressed();
    let fixture = Fixture::new();
    let disk = fixture.project("project").images().image("disk", "v1").join("rootfs.qcow2");
    let mut stages = Vec::new();
    // In units of 512 bytes: too small for the download, for the decompressed disk, for the qcow2.
    for limit in [HALF / 2, HALF + HALF / 2, 2 * HALF + MIB / 16] {
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", limit / 512);
        let error =
            Run::of(&image).by_script(&[], &script).end(&fixture).expect_err("does not fit");
        stages.push(stage(&error));
        assert!(!disk.exists(), "{error}");
    }
    assert_eq!(stages, ["download", "decompress", "convert"]);
    Run::of(&image).end(&fixture).expect("there is room now");
    assert!(raw_of(&disk) == raw());
}

/// Returns the command that creates a mount namespace, or `None` if this user may not create one,
/// which is reported.
fn namespace() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-Urm"]];
    let way = ways.into_iter().find(|way| {
        let trial = Command::new(way[0])
            .args(&way[1..])
            .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .stderr(Stdio::null())
            .status();
        trial.is_ok_and(|status| status.success())
    });
    if way.is_none() {
        skip("this user may not make a mount namespace");
    }
    way
}

/// Runs on a filesystem of `$SIZE`, keeps what that leaves, and runs again where there is space.
const SMALL: &str = r#"
mount -t tmpfs -o "size=$SIZE" tmpfs "$ROOM" || exit 9
"$@"; first=$?
cp -a "$ROOM" "$SEEN"
mount -t tmpfs -o remount,size=128m tmpfs "$ROOM" || exit 9
"$@" || exit 8
cp -a "$ROOM" "$AFTER"
exit $first
"#;

#[test]
fn a_disk_that_is_full_at_whatever_stage_ends_in_a_clear_error() {
    let Some(namespace) = namespace() else { return };
    let (_server, image) = compressed();
    let mut stages = BTreeSet::new();
    for mib in [1, 11, 20, 34, 42, 56, 96] {
        let mut fixture = Fixture::new();
        let (room, seen, after) =
            (fixture.path("room"), fixture.path("seen"), fixture.path("after"));
        std::fs::create_dir(&room).expect("a directory");
        fixture.context.cache = castra_engine::layout::CacheLayout::new(room.join("cache/castra"));
        let size = format!("{mib}m");
        let run = Run::of(&image).in_project("room/project").by_script(namespace, SMALL);
        let run = run.with("ROOM", &room).with("SEEN", &seen).with("AFTER", &after);
        std::fs::create_dir(fixture.path("error-room")).expect("a directory");
        let outcome = run.with("SIZE", size.as_ref()).end(&fixture);
        let disk = "project/.castra/images/disk/v1/rootfs.qcow2";
        let finished = raw_of(&after.join(disk));
        assert!(finished == raw(), "after {mib} MiB");
        match outcome {
            Ok(()) => stages.insert("none"),
            Err(error) => {
                assert!(
                    !seen.join(disk).exists() || raw_of(&seen.join(disk)) == finished,
                    "{mib} MiB"
                );
                assert!(!seen.join("cache/castra/images/disk/.v1.work").exists(), "{mib} MiB");
                stages.insert(stage(&error))
            }
        };
    }
    let wanted = ["before or after", "convert", "decompress", "download", "none"];
    assert_eq!(stages.into_iter().collect::<Vec<_>>(), wanted);
}

/// Fills the cache from one project if `$FILL` says so, and uses it from another once it is
/// read-only.
const READ_ONLY: &str = r#"
mount -t tmpfs tmpfs "$ROOM" || exit 9
if [ -s "$FILL" ]; then CASTRA_TEST_STATE_ROOT="$OTHER" "$@" || exit 8; fi
mount -t tmpfs -o remount,ro tmpfs "$ROOM" || exit 9
"$@"
"#;

#[test]
fn a_cache_that_can_only_be_read_is_read() {
    let Some(namespace) = namespace() else { return };
    let content = payload(MIB);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let image = disk_image(&payload(MIB), &[server.url("/disk")]);
    assert_eq!(STATE_ROOT, "CASTRA_TEST_STATE_ROOT");
    for (filled, requests) in [(true, 1), (false, 2)] {
        let mut fixture = Fixture::new();
        let (room, fill) = (fixture.path("room"), fixture.path("fill"));
        std::fs::create_dir(&room).expect("a directory");
        fixture.context.cache = castra_engine::layout::CacheLayout::new(room.join("castra"));
        if filled {
            std::fs::write(&fill, b"yes").expect("writes");
        }
        let run =
            Run::of(&image).by_script(namespace, READ_ONLY).with("ROOM", &room).with("FILL", &fill);
        run.with("OTHER", fixture.project("other").state_root())
            .end(&fixture)
            .expect("is prepared");
        let project = fixture.project("project");
        assert!(raw_of(&project.images().image("disk", "v1").join("rootfs.qcow2")) == payload(MIB));
        assert_eq!(server.requests().len(), requests);
        assert!(
            !project.own_cache().root().join("blobs").exists(),
            "nothing is left of the stand-in"
        );
    }
}

/// A compressed file whose contents would fill any disk: the actual disk ends it.
#[test]
fn a_bomb_ends_at_the_edge_of_the_disk() {
    let bomb = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mebibyte = vec![b'!'; MIB];
        (0..64).for_each(|_| encoder.write_all(&mebibyte).expect("writes"));
        encoder.finish().expect("finishes")
    };
    let fixture = Fixture::new();
    std::fs::write(fixture.path("bomb"), &bomb).expect("writes");
    let mut image = disk_image(&bomb, &[]);
    image.artifacts[0].source = ArtifactSource::Path(fixture.path("bomb"));
    image.artifacts[0].pipeline =
        vec![TransformStep::Decompress { format: Compression::Gzip }, convert("raw")];
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", 8 * MIB / 512);
    let error = Run::of(&image).by_script(&[], &script).end(&fixture).expect_err("does not fit");
    assert_eq!(stage(&error), "decompress");
    assert!(
        !fixture.cache().images().root().join("disk/.v1.work").exists(),
        "nothing of it is left"
    );
}
