//! qcow2 files and their chains: every byte is the one that QEMU's own program reads.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use castra_disk::{Format, HeaderError, Image, ImageError, Layer, Source};
use castra_test_support::{noise, tool};

use crate::made::{text, write_at};

const MIB: usize = 1 << 20;

fn layer(path: &Path, format: Format) -> Layer {
    Layer { file: File::open(path).expect("opened"), format }
}

/// Reads all of an image, in pieces of an odd size.
fn content(layers: impl IntoIterator<Item = Layer>) -> Vec<u8> {
    let image = Image::open(layers).unwrap_or_else(|error| panic!("{error:?}"));
    let mut content = vec![0; image.length() as usize];
    for (index, piece) in content.chunks_mut(100_003).enumerate() {
        image.read_at(index as u64 * 100_003, piece).expect("read");
    }
    content
}

/// Bytes of a disk: some that compress badly, some that compress well, and holes.
fn sample(directory: &Path) -> PathBuf {
    let mut bytes = vec![0; 8 * MIB];
    bytes[..MIB].copy_from_slice(&noise(MIB));
    bytes[3 * MIB..5 * MIB].copy_from_slice(&b"castra! ".repeat(MIB / 4));
    bytes[8 * MIB - 700..].copy_from_slice(&noise(700));
    let path = directory.join("raw");
    fs::write(&path, bytes).expect("written");
    path
}

/// Makes a qcow2 of a raw file, with these options of qemu-img.
fn converted(raw: &Path, name: &str, options: &[&str]) -> PathBuf {
    let qcow2 = raw.with_file_name(name);
    let arguments = ["convert", "-f", "raw", "-O", "qcow2"];
    tool("qemu-img", &[&arguments, options, &[text(raw), text(&qcow2)]].concat());
    qcow2
}

#[test]
fn every_kind_of_qcow2_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = sample(directory.path());
    let expected = fs::read(&raw).expect("read");
    let kinds: [&[&str]; 8] = [
        &[],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "extended_l2=on"],
        &["-c", "-o", "extended_l2=on,cluster_size=128k"],
    ];
    for options in kinds {
        let qcow2 = converted(&raw, "qcow2", options);
        assert!(content([layer(&qcow2, Format::Qcow2)]) == expected, "{options:?}");
    }
}

#[test]
fn overlays_are_read_over_what_is_below() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = sample(directory.path());
    let base = converted(&raw, "base", &["-c"]);
    let writes = [
        "write -P 0x11 0 4k",
        "write -P 0x22 1M 100k",
        "write -z 3M 1M",
        "write -z -u 4M 64k",
        "write -P 0x33 9M 1",
        "discard 5M 64k",
    ];
    for (bottom, format) in [(&base, Format::Qcow2), (&raw, Format::Raw)] {
        for options in ["cluster_size=64k", "extended_l2=on"] {
            let [middle, top] = ["middle", "top"].map(|name| directory.path().join(name));
            let name = if format == Format::Raw { "raw" } else { "qcow2" };
            let create = ["create", "-q", "-f", "qcow2", "-o", options];
            let on = ["-F", name, "-b", text(bottom), text(&middle), "12M"];
            tool("qemu-img", &[&create[..], &on].concat());
            let on = ["-F", "qcow2", "-b", text(&middle), text(&top)];
            tool("qemu-img", &[&create[..], &on].concat());
            for (index, write) in writes.iter().enumerate() {
                let file = if index % 2 == 0 { &middle } else { &top };
                tool("qemu-io", &["-f", "qcow2", "-c", write, text(file)]);
            }
            let flat = directory.path().join("flat");
            let convert = ["convert", "-f", "qcow2", "-O", "raw"];
            tool("qemu-img", &[&convert[..], &[text(&top), text(&flat)]].concat());
            let layers =
                [layer(&top, Format::Qcow2), layer(&middle, Format::Qcow2), layer(bottom, format)];
            let expected = fs::read(flat).expect("read");
            assert_eq!(expected.len(), 12 * MIB);
            assert!(content(layers) == expected, "{format:?} {options}");
        }
    }
}

#[test]
fn a_chain_has_the_layers_that_its_headers_need() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = sample(directory.path());
    let base = converted(&raw, "base", &[]);
    let top = directory.path().join("top");
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&top)];
    tool("qemu-img", &create);
    let refused = |layers: Vec<Layer>| Image::open(layers).err().expect("refused");
    assert!(matches!(refused(Vec::new()), ImageError::Empty));
    let alone = refused(vec![layer(&top, Format::Qcow2)]);
    assert!(matches!(alone, ImageError::NoBacking { layer: 0 }));
    let more = || vec![layer(&base, Format::Qcow2), layer(&raw, Format::Raw)];
    assert!(matches!(refused(more()), ImageError::NotBacked { layer: 0 }));
    let raw_above = vec![layer(&raw, Format::Raw), layer(&base, Format::Qcow2)];
    assert!(matches!(refused(raw_above), ImageError::NotBacked { layer: 0 }));
    let not_qcow2 = refused(vec![layer(&raw, Format::Qcow2)]);
    let expected = ImageError::Header { layer: 0, source: HeaderError::NotQcow2 };
    assert_eq!(not_qcow2.to_string(), expected.to_string());
}

#[test]
fn headers_that_lie_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = sample(directory.path());
    for (offset, bytes, expected) in [
        (4, &[0, 0, 0, 4][..], HeaderError::Version(4)),
        (20, &[0, 0, 0, 63], HeaderError::Geometry("cluster size")),
        (24, &[0xff; 8], HeaderError::Geometry("level-1 table")),
        (35, &[1], HeaderError::Encrypted),
        (36, &[0; 4], HeaderError::Geometry("level-1 table")),
        (47, &[1], HeaderError::Geometry("offset of the level-1 table")),
        (79, &[2], HeaderError::Corrupt),
        (79, &[4], HeaderError::ExternalData),
        (72, &[1], HeaderError::UnknownFeatures(1 << 56)),
        (104, &[9], HeaderError::Compression(9)),
        (100, &[0xff; 4], HeaderError::Geometry("header length")),
    ] {
        let qcow2 = converted(&raw, "qcow2", &[]);
        write_at(&qcow2, offset, bytes);
        let error = Image::open([layer(&qcow2, Format::Qcow2)]).err().expect("refused");
        let ImageError::Header { source, .. } = error else { panic!("{error}") };
        assert_eq!(source, expected);
    }
}
