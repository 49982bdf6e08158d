//! Wheels for pip to find, and a pip that finds nothing else.

use std::io::Write as _;

use castra_engine::managed::{ArtifactSource, ManagedImageSpec, TransformStep};

use crate::images::fixture::{Fixture, convert, disk_image, payload};

/// Returns a fixture whose pip knows only this directory and no index, with the wheel to put there.
pub(crate) fn fixture() -> (Fixture, Vec<u8>, ManagedImageSpec) {
    let mut fixture = Fixture::new();
    let wheels = fixture.path("wheels");
    std::fs::create_dir(&wheels).expect("a directory");
    fixture.context.environment = fixture
        .context
        .environment
        .clone()
        .with("PIP_FIND_LINKS", &wheels)
        .with("PIP_NO_INDEX", "1");
    let wheel = wheel(&payload(64 * 1024));
    let mut image = disk_image(&wheel, &[]);
    image.artifacts[0].source = ArtifactSource::PythonPackage {
        name: "castra-test-disk".to_owned(),
        version: "1.0".to_owned(),
        platform: Some("manylinux_2_17_x86_64".to_owned()),
    };
    image.artifacts[0].pipeline = vec![
        TransformStep::Unzip { member: "castra_test_disk/disk.raw".to_owned() },
        convert("raw"),
    ];
    (fixture, wheel, image)
}

/// Returns a wheel, as small as pip accepts it.
pub(crate) fn wheel(disk: &[u8]) -> Vec<u8> {
    let metadata = b"Metadata-Version: 2.1\nName: castra-test-disk\nVersion: 1.0\n";
    let tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\n\
        Tag: py3-none-manylinux_2_17_x86_64\n";
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let members: [(&str, &[u8]); 4] = [
        ("castra_test_disk/disk.raw", disk),
        ("castra_test_disk-1.0.dist-info/METADATA", metadata),
        ("castra_test_disk-1.0.dist-info/WHEEL", tags),
        ("castra_test_disk-1.0.dist-info/RECORD", b""),
    ];
    for (name, bytes) in members {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).expect("starts");
        archive.write_all(bytes).expect("writes");
    }
    archive.finish().expect("finishes").into_inner()
}

pub(crate) fn put(fixture: &Fixture, wheel: &[u8]) {
    let name = "wheels/castra_test_disk-1.0-py3-none-manylinux_2_17_x86_64.whl";
    std::fs::write(fixture.path(name), wheel).expect("writes");
}
