//! Steps from a download to a file, and inputs that are refused on the way.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

use castra_engine::error::{Explain, Kind};
use castra_engine::files::Digest;
use castra_engine::managed::{
    ArtifactRole, ArtifactSource, Compression, ImageError, ManagedImageSpec, TransformError,
    TransformStep,
};
use castra_test_support::http::{Reply, Server};

use crate::images::fixture::{Fixture, convert, disk_image, payload, profile, raw_of, shown};
use crate::images::vhd::{MIB, artifact, ext4_disk, extract, footer, kernel, tool, vhd_image};

fn serve(bytes: &[u8]) -> Server {
    let content = bytes.to_vec();
    Server::start(move |request| Reply::file(request, &content, None))
}

#[test]
fn a_fixed_vhd_becomes_disk_kernel_and_initramfs_by_one_download() {
    let fixture = Fixture::new();
    let disk = ext4_disk(fixture.directory.path());
    let vhd = [disk.as_slice(), &footer(2)].concat();
    let server = serve(&vhd);
    let image = vhd_image(&vhd, &server.url("/disk.vhd"));
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(raw_of(&paths.disk), disk);
    assert_eq!(std::fs::read(paths.kernel.expect("has one")).expect("reads"), kernel());
    assert_eq!(
        std::fs::read(paths.initramfs.expect("has one")).expect("reads"),
        b"070701 not really"
    );
    let disk_blocks = std::fs::metadata(&paths.disk).expect("is there").blocks() * 512;
    assert!(disk_blocks < 2 * MIB as u64, "holes stay holes: {disk_blocks}");
    let cache = fixture.cache().images().root().join("disk");
    assert!(!cache.join(".v1.work").exists(), "nothing in the making is left");
}

#[test]
fn vhds_that_are_not_fixed_are_refused() {
    let raw = payload(MIB);
    for (disk_type, kind) in [(3, "dynamic"), (4, "differencing")] {
        let vhd = [raw.as_slice(), &footer(disk_type)].concat();
        let server = serve(&vhd);
        let fixture = Fixture::new();
        let error =
            fixture.ensure(&vhd_image(&vhd, &server.url("/disk.vhd"))).expect_err("is refused");
        let text = shown(error);
        assert!(text.contains(kind) && text.contains("\"vpc\""), "{text}");
    }
}

#[test]
fn a_dynamic_vhd_of_qemus_is_refused_by_the_step_and_converted_from_vpc() {
    let fixture = Fixture::new();
    let (raw, vhd) = (fixture.path("raw"), fixture.path("vhd"));
    let disk = payload(MIB);
    std::fs::write(&raw, &disk).expect("writes");
    let arguments = ["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"];
    tool("qemu-img", &[&arguments[..], &[raw.to_str().expect("is UTF-8")]].concat(), &vhd);
    let vhd = std::fs::read(vhd).expect("reads");
    let server = serve(&vhd);
    let mut image = vhd_image(&vhd, &server.url("/disk.vhd"));
    let error = fixture.ensure(&image).expect_err("is refused");
    let refused = matches!(
        &error,
        ImageError::Transform(TransformError::NotFixedVhd { kind: "dynamic", .. })
    );
    assert!(refused, "{error}");
    image.artifacts =
        vec![artifact(ArtifactRole::Rootfs, &vhd, &server.url("/"), vec![convert("vpc")])];
    image.profile = profile(None);
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk)[..MIB], disk);
    assert_eq!(server.requests().len(), 1, "the download was right, and is kept");
}

/// A disk whose size matches no geometry of cylinders, heads and sectors, by a creator that QEMU
/// does not know, is as long as its footer says.
#[test]
fn a_vhd_whose_geometry_is_too_small_keeps_its_end() {
    let disk = payload(MIB + 3 * 512);
    for subformat in ["fixed", "dynamic"] {
        let fixture = Fixture::new();
        let (raw, path) = (fixture.path("raw"), fixture.path("vhd"));
        std::fs::write(&raw, &disk).expect("writes");
        let options = format!("subformat={subformat},force_size=on");
        let arguments = ["convert", "-f", "raw", "-O", "vpc", "-o", &options];
        tool("qemu-img", &[&arguments[..], &[raw.to_str().expect("is UTF-8")]].concat(), &path);
        let mut vhd = std::fs::read(path).expect("reads");
        let footers =
            if subformat == "fixed" { vec![vhd.len() - 512] } else { vec![0, vhd.len() - 512] };
        for at in footers {
            by_another_creator(&mut vhd[at..at + 512]);
        }
        let server = serve(&vhd);
        let mut image = vhd_image(&vhd, &server.url("/disk.vhd"));
        image.artifacts =
            vec![artifact(ArtifactRole::Rootfs, &vhd, &server.url("/"), vec![convert("vpc")])];
        image.profile = profile(None);
        let paths = fixture.ensure(&image).expect("is prepared");
        assert_eq!(raw_of(&paths.disk), disk, "{subformat}");
    }
}

/// Rewrites a VHD's footer as if by another program, with the smallest possible geometry.
fn by_another_creator(footer: &mut [u8]) {
    footer[28..32].copy_from_slice(b"test");
    footer[56..60].copy_from_slice(&[0, 1, 4, 17]);
    footer[64..68].fill(0);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn a_vhd_with_a_damaged_footer_is_refused() {
    let mut vhd = [payload(MIB).as_slice(), &footer(2)].concat();
    let last = vhd.len() - 1;
    vhd[last] ^= 1;
    let server = serve(&vhd);
    let error =
        Fixture::new().ensure(&vhd_image(&vhd, &server.url("/disk.vhd"))).expect_err("is refused");
    assert!(matches!(&error, ImageError::Transform(TransformError::NotVhd { .. })), "{error}");
}

#[test]
fn a_file_that_is_not_in_the_filesystem_is_named() {
    let fixture = Fixture::new();
    let vhd = [ext4_disk(fixture.directory.path()).as_slice(), &footer(2)].concat();
    let server = serve(&vhd);
    let mut image = vhd_image(&vhd, &server.url("/disk.vhd"));
    image.artifacts[1].pipeline[1] = extract("vmlinuz-lts");
    let error = fixture.ensure(&image).expect_err("is refused");
    let Some(TransformError::NoSuchFile { file, .. }) = transform(&error) else {
        panic!("{error}")
    };
    assert_eq!(file, "/boot/vmlinuz-lts");
}

#[test]
fn what_is_no_filesystem_is_refused() {
    let vhd = [payload(MIB).as_slice(), &footer(2)].concat();
    let server = serve(&vhd);
    let error =
        Fixture::new().ensure(&vhd_image(&vhd, &server.url("/disk.vhd"))).expect_err("is refused");
    assert!(matches!(transform(&error), Some(TransformError::Ext4 { .. })), "{error}");
}

fn transform(error: &ImageError) -> Option<&TransformError> {
    match error {
        ImageError::Transform(error) => Some(error),
        _ => None,
    }
}

/// Returns an image of a disk in an archive or compressed, from a file on this machine.
fn packed(fixture: &Fixture, packed: &[u8], steps: Vec<TransformStep>) -> ManagedImageSpec {
    let path = fixture.path("packed");
    std::fs::write(&path, packed).expect("writes");
    let mut image = disk_image(packed, &[]);
    image.artifacts[0].source = ArtifactSource::Path(path);
    image.artifacts[0].pipeline = steps;
    image
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        archive.start_file(*name, zip::write::SimpleFileOptions::default()).expect("starts");
        archive.write_all(bytes).expect("writes");
    }
    archive.finish().expect("finishes").into_inner()
}

fn unzip(member: &str) -> TransformStep {
    TransformStep::Unzip { member: member.to_owned() }
}

#[test]
fn archives_and_compressed_files_are_unpacked_with_holes() {
    let mut raw = payload(MIB / 8);
    raw.resize(2 * MIB, 0);
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&raw).expect("writes");
        encoder.finish().expect("finishes")
    };
    let xz = {
        let mut encoder =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0))
                .expect("is made");
        encoder.write_all(&raw).expect("writes");
        encoder.finish().expect("finishes")
    };
    let zstd = zstd::encode_all(raw.as_slice(), 1).expect("encodes");
    let decompress = |format| TransformStep::Decompress { format };
    let rename = TransformStep::Rename { name: "disk.img".to_owned() };
    for (bytes, steps) in [
        (gzip, vec![decompress(Compression::Gzip), rename.clone(), convert("raw")]),
        (xz, vec![rename.clone(), decompress(Compression::Xz), convert("raw")]),
        (zstd, vec![decompress(Compression::Zstd), convert("raw"), rename]),
        (zip(&[("other", b"x"), ("a/disk.raw", &raw)]), vec![unzip("a/disk.raw"), convert("raw")]),
    ] {
        let fixture = Fixture::new();
        let paths = fixture.ensure(&packed(&fixture, &bytes, steps.clone())).expect("is prepared");
        assert!(raw_of(&paths.disk) == raw, "{steps:?}");
    }
}

#[test]
fn damaged_and_foreign_archives_are_refused() {
    let raw = payload(64 * 1024);
    let archive = zip(&[("disk", &raw)]);
    let mut spoilt = archive.clone();
    spoilt[1000] ^= 1;
    type Wanted = fn(&TransformError) -> bool;
    let cases: [(&[u8], TransformStep, Wanted); 5] = [
        (&archive, unzip("../disk"), |error| matches!(error, TransformError::NoSuchMember { .. })),
        (&raw, unzip("disk"), |error| matches!(error, TransformError::Archive { .. })),
        (&spoilt, unzip("disk"), |error| matches!(error, TransformError::Archive { .. })),
        (&raw, TransformStep::Decompress { format: Compression::Xz }, is_compressed),
        (&raw, TransformStep::Decompress { format: Compression::Zstd }, is_compressed),
    ];
    for (bytes, step, wanted) in cases {
        let fixture = Fixture::new();
        let error =
            fixture.ensure(&packed(&fixture, bytes, vec![step.clone()])).expect_err("is refused");
        assert!(transform(&error).is_some_and(wanted), "{step:?}: {error}");
        assert!(
            !fixture.project("project").images().image("disk", "v1").join("rootfs.qcow2").exists()
        );
    }
}

fn is_compressed(error: &TransformError) -> bool {
    matches!(error, TransformError::Compressed { .. })
}

#[test]
fn a_disk_that_leans_on_another_file_is_refused() {
    let fixture = Fixture::new();
    let (base, overlay) = (fixture.path("base.raw"), fixture.path("overlay.qcow2"));
    std::fs::write(&base, payload(MIB)).expect("writes");
    let base = base.to_str().expect("is UTF-8");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base], &overlay);
    let overlay = std::fs::read(overlay).expect("reads");
    // As it is, and in a case in which conversion would include the other file.
    for steps in [vec![], vec![convert("qcow2")]] {
        let error = fixture.ensure(&packed(&fixture, &overlay, steps)).expect_err("is refused");
        let Some(TransformError::BadDisk { problem, .. }) = transform(&error) else {
            panic!("{error}")
        };
        assert!(problem.contains("backing file"), "{problem}");
    }

    let (disk, data) = (
        fixture.path("disk.qcow2"),
        format!("data_file={}", fixture.path("data").display().to_string().replace(',', ",,")),
    );
    let path = disk.to_str().expect("is UTF-8");
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", &data, path],
        std::path::Path::new("1M"),
    );
    // Opening the missing file would fail.
    std::fs::remove_file(fixture.path("data")).expect("removed");
    let disk = std::fs::read(disk).expect("reads");
    for steps in [vec![], vec![convert("qcow2")]] {
        let error = fixture.ensure(&packed(&fixture, &disk, steps)).expect_err("is refused");
        assert!(error.to_string().contains("has an external data file"), "{error}");
    }

    let secret = fixture.path("secret");
    std::fs::write(&secret, payload(64 * 1024)).expect("writes");
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n\
        createType=\"monolithicFlat\"\n\
        RW 128 FLAT \"{}\" 0\n",
        secret.display()
    );
    let step = convert("vmdk");
    let error = fixture
        .ensure(&packed(&fixture, descriptor.as_bytes(), vec![step]))
        .expect_err("is refused");
    assert!(error.to_string().contains("has an external data file"), "{error}");
}

#[test]
fn files_that_are_not_what_they_should_be_are_refused() {
    let fixture = Fixture::new();
    let raw = payload(MIB);
    let error = fixture.ensure(&packed(&fixture, &raw, vec![])).expect_err("is refused");
    assert!(error.to_string().contains("is raw, not qcow2"), "{error}");

    let disk = ext4_disk(fixture.directory.path());
    let vhd = [disk.as_slice(), &footer(2)].concat();
    let server = serve(&vhd);
    let mut image = vhd_image(&vhd, &server.url("/disk.vhd"));
    image.artifacts[1].pipeline[1] = extract("initramfs-virt");
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(matches!(transform(&error), Some(TransformError::BadKernel { .. })), "{error}");

    let mut image = vhd_image(&vhd, &server.url("/disk.vhd"));
    image.artifacts[2].product_digest = Some(Digest::Sha256("0".repeat(64)));
    let error = fixture.ensure(&image).expect_err("is refused");
    let Some(TransformError::WrongProduct { role, .. }) = transform(&error) else {
        panic!("{error}")
    };
    assert_eq!(*role, ArtifactRole::Initramfs);
}

#[test]
fn without_qemu_img_nothing_is_downloaded() {
    let server = serve(&payload(MIB));
    let mut fixture = Fixture::new();
    fixture.context.environment =
        fixture.context.environment.clone().with("PATH", fixture.directory.path());
    let error =
        fixture.ensure(&disk_image(&payload(MIB), &[server.url("/disk")])).expect_err("is refused");
    assert!(matches!(transform(&error), Some(TransformError::MissingQemuImg)), "{error}");
    assert_eq!(error.kind(), Kind::Unavailable);
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("install") && hint.contains("qemu"), "{hint}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_file_of_this_machine_must_be_the_pinned_one() {
    let fixture = Fixture::new();
    let mut image = packed(&fixture, &payload(MIB), vec![convert("raw")]);
    std::fs::write(fixture.path("packed"), payload(MIB / 2)).expect("writes");
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(matches!(error, ImageError::DigestMismatch(_)), "{error}");
    image.artifacts[0].source = ArtifactSource::Path(fixture.path("nowhere"));
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(error.to_string().contains("nowhere"), "{error}");
}
