//! Fuzz targets: parsers of foreign input, tried with any bytes. None may panic, and parsed input
//! must mean what was written. `fuzz/` runs the same functions under libFuzzer.

use std::path::Path;

use bytes::Bytes;
use castra_engine::config::{Surroundings, parse};
use castra_engine::managed::{
    Checksums, Keyring, LockFile, Manifest, SignatureProblem, VhdKind, parse_vhd_footer,
};
use castra_sftp::{Reply, Request};
use castra_wire::stream::{Decoder, Event, Expected, Frame, Target};
use castra_wire::{
    Envelope, ExecHeader, GuestMessage, HostMessage, Lines, MAX_LINE_BYTES, Session, decode, encode,
};

/// Parses the last 512 bytes of a VHD.
pub(crate) fn vhd_footer(data: &[u8]) {
    let mut footer = [0; 512];
    let length = data.len().min(footer.len());
    footer[..length].copy_from_slice(&data[..length]);
    let Ok(kind) = parse_vhd_footer(&footer) else {
        return;
    };
    assert_eq!(footer[60..64], [0, 0, 0, kind as u8], "{kind:?}");
    // The checksum covers all of it.
    for at in [0, 60, 63, 64, 100, 511] {
        let mut changed = footer;
        changed[at] ^= 1;
        assert!(parse_vhd_footer(&changed).is_err(), "byte {at} counts");
    }
    assert!(matches!(kind, VhdKind::Fixed | VhdKind::Dynamic | VhdKind::Differencing));
}

/// Parses a `manifest.json`.
pub(crate) fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        let text = manifest.to_text();
        assert_eq!(Manifest::parse(&text).as_ref(), Ok(&manifest));
    }
}

/// Parses a publisher's checksum file.
pub(crate) fn checksums(data: &[u8]) {
    let Ok(checksums) = Checksums::parse(&String::from_utf8_lossy(data)) else { return };
    for (name, digest) in checksums.files() {
        assert!(!name.contains('/') && !name.is_empty(), "{name}");
        assert!(matches!(digest.hex().len(), 64 | 128));
        assert_eq!(checksums.digest_of(name), Some(digest));
    }
}

/// Parses a `castra.lock`.
pub(crate) fn lock_file(data: &[u8]) {
    if let Ok(lock_file) = LockFile::parse(&String::from_utf8_lossy(data)) {
        let again = LockFile::parse(&lock_file.to_text()).expect("is as written");
        assert_eq!(again, lock_file);
        for image in lock_file.images() {
            assert!(!image.version.contains('/'), "{}", image.version);
        }
    }
}

/// Key, made for this test with GnuPG.
const KEY: &[u8] = include_bytes!("openpgp/key.asc");
/// Text that the key has signed.
const TEXT: &[u8] = include_bytes!("openpgp/text");
/// Signature of the text.
const DETACHED: &[u8] = include_bytes!("openpgp/detached.asc");
/// The text with its signature.
const INLINE: &[u8] = include_bytes!("openpgp/inline.asc");

/// Reads keys, a detached signature and a signed text. Nothing but the signed text may count as
/// signed.
pub(crate) fn signatures(data: &[u8]) {
    let _ = Keyring::parse(data);
    let keys = Keyring::parse(KEY).expect("is a key");
    let _ = keys.verify_detached(TEXT, data);
    let is_text = |text: &str| text.lines().eq(String::from_utf8_lossy(TEXT).lines());
    if let Ok((text, _)) = keys.verify_inline(data) {
        assert!(is_text(&text), "{text}");
    }
    if data != TEXT {
        assert!(keys.verify_detached(data, DETACHED).is_err());
    }
}

/// Verifies the signatures that the other inputs are made from.
pub(crate) fn verify_unspoilt() {
    let keys = Keyring::parse(KEY).expect("is a key");
    let key = keys.verify_detached(TEXT, DETACHED).expect("is signed");
    assert_eq!(key.len(), 40, "{key}");
    let (_, by) = keys.verify_inline(INLINE).expect("is signed");
    assert_eq!(by, key);
    signatures(INLINE);
    // The same key would be good for another hash.
    let keys = Keyring::parse(include_bytes!("openpgp/rsa.asc")).expect("is a key");
    let weak = keys.verify_detached(TEXT, include_bytes!("openpgp/weak.asc"));
    assert_eq!(weak, Err(SignatureProblem::Weak("SHA1".to_owned())));
}

/// Parses a `castra.toml`, and renders everything that is reported about it.
pub(crate) fn config(data: &[u8]) {
    let known_images = [("alpine-minimal", "v1"), ("alpine-pypi", "v1")];
    let surroundings = Surroundings {
        home: Some(Path::new("/home/ada")),
        known_images: &known_images,
        allowed_outside: &[],
    };
    let text = String::from_utf8_lossy(data);
    match parse(&text, Path::new("/project/castra.toml"), &surroundings) {
        Ok(project) => assert!(!project.vms.is_empty(), "a project has a VM"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Reads the control port: a stream of lines in arbitrary pieces, and the messages in them.
pub(crate) fn control_port(data: &[u8]) {
    let at_once = lines(data, data.len().max(1));
    let piece = data.first().map_or(1, |byte| usize::from(*byte) + 1);
    assert_eq!(lines(data, piece), at_once, "in pieces of {piece}");
    for line in at_once.into_iter().flatten() {
        if let Ok(message) = decode::<Envelope<HostMessage>>(&line) {
            assert_eq!(decode::<Envelope<HostMessage>>(&encode(&message)).ok(), Some(message));
        }
        if let Ok(message) = decode::<Envelope<GuestMessage>>(&line) {
            assert_eq!(decode::<Envelope<GuestMessage>>(&encode(&message)).ok(), Some(message));
        }
    }
}

/// Returns the lines of a stream; `None` for one that is too long.
fn lines(data: &[u8], piece: usize) -> Vec<Option<Vec<u8>>> {
    let (mut lines, mut found) = (Lines::new(), Vec::new());
    for piece in data.chunks(piece) {
        lines.push(piece);
        while let Some(line) = lines.next_line() {
            let line = line.ok().map(<[u8]>::to_vec);
            assert!(line.as_ref().is_none_or(|line| line.len() <= MAX_LINE_BYTES));
            found.push(line);
        }
    }
    found
}

/// Decodes a command as an array: the bytes after the header's length.
pub(crate) fn exec_header(data: &[u8]) {
    if let Ok(header) = ExecHeader::decode(data) {
        assert_eq!(header.encode().expect("is as long").split_off(4), data);
    }
}

/// Decodes the bytes of a stream port on both sides, and each request for a stream.
pub(crate) fn stream_port(data: &[u8]) {
    for expected in [Expected::Any, Expected::Only(Session::new(7))] {
        let mut decoder = Decoder::new(expected);
        for piece in data.chunks(data.len().div_ceil(3).max(1)) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(event) = decoder.next_event() {
                if let Event::Frame(_, Frame::Open(target)) = event
                    && let Ok(decoded) = Target::decode(&target)
                {
                    assert_eq!(decoded.encode().expect("is as long"), target);
                }
            }
            assert!(decoder.buffer().len() <= data.len());
        }
    }
    if let Ok(target) = Target::decode(data) {
        assert_eq!(&target.encode().expect("is as long")[..], data);
    }
}

/// Decodes SFTP: a packet as a request and as a reply, and a stream of packets.
pub(crate) fn sftp(data: &[u8]) {
    let packet = Bytes::copy_from_slice(data);
    if let Ok((id, request)) = Request::parse(packet.clone()) {
        assert_eq!(Request::parse(request.encode(id)), Ok((id, request)));
    }
    if let Ok((id, reply)) = Reply::parse(packet.clone()) {
        assert_eq!(Reply::parse(reply.encode(id)), Ok((id, reply)));
    }
    let _ = (Request::parse_init(packet.clone()), Reply::parse_version(packet));
    // Slices are always ready, so a runtime without drivers suffices.
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut stream = data;
    while let Ok(Some(packet)) = runtime.block_on(castra_sftp::read_packet(&mut stream)) {
        assert!(packet.len() <= castra_sftp::MAX_PACKET_BYTES as usize);
    }
}
