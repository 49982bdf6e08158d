//! Requests, tried with spoilt input.

mod targets;

use castra_test_support::try_out;

#[test]
fn requests() {
    try_out("fuse", targets::requests, &seeds());
}

/// Selector of a handle in place of the first number.
const HANDLE: u8 = 2;
/// Selector of a node in place of the first number.
const NODE: u8 = 1;

/// Returns conversations that reach every operation.
fn seeds() -> Vec<Vec<u8>> {
    let attributes = |valid: u32| {
        let mut body = valid.to_le_bytes().to_vec();
        body.resize(16, 0);
        body.extend(5_u64.to_le_bytes());
        body.resize(68, 0);
        body.extend(0o600_u32.to_le_bytes());
        body.resize(88, 0);
        body
    };
    let after = |zeros: usize, rest: &[u8]| [&vec![0; zeros], rest].concat();
    let read = [[0; 16].as_slice(), &4096_u32.to_le_bytes(), &[0; 20]].concat();
    let files = [
        said(1, 0, 0, b"a\0"),
        said(3, 1, 0, &[0; 16]),
        said(4, 1, 0, &attributes(0b1001)),
        said(4, 1, 0, &attributes(0b11_0000)),
        said(14, 1, 0, &[2, 0, 0, 0, 0, 0, 0, 0]),
        said(15, 1, HANDLE, &read),
        said(16, 1, HANDLE, &[&[0; 16], &[3, 0, 0, 0][..], &[0; 20], b"new"].concat()),
        said(20, 1, HANDLE, &[0; 16]),
        said(43, 1, HANDLE, &[&[0; 16], &[9, 0, 0, 0, 0, 0, 0, 0][..], &[0; 8]].concat()),
        said(46, 1, HANDLE, &[&[0; 16], &[3, 0, 0, 0, 0, 0, 0, 0][..]].concat()),
        said(47, 1, HANDLE, &[0; 56]),
        said(34, 1, 0, &[4, 0, 0, 0, 0, 0, 0, 0]),
        said(18, 1, HANDLE, &[0; 24]),
        said(2, 1, 0, &[1, 0, 0, 0, 0, 0, 0, 0]),
        said(17, 0, 0, &[]),
    ];
    let names = [
        said(26, 0, 0, &[&[7, 0, 0, 0, 38, 0, 0, 0][..], &[0xff; 8], &[0; 48]].concat()),
        said(35, 0, 0, &[&[0x42, 0, 0, 0, 0xa4, 1, 0, 0][..], &[0; 8], b"n\0"].concat()),
        said(9, 0, 0, &[&[0xed, 1, 0, 0][..], &[0; 4], b"m\0"].concat()),
        said(8, 0, 0, &[&[0xa4, 0x81, 0, 0][..], &[0; 12], b"k\0"].concat()),
        said(6, 2, 0, b"s\0../../secret\0"),
        said(1, 0, 0, b"l\0"),
        said(5, 5, 0, &[]),
        said(13, 2, NODE, &after(8, b"h\0")),
        said(12, 0, NODE, &after(8, b"n\0o\0")),
        said(45, 0, NODE, &after(16, b"o\0p\0")),
        said(10, 0, 0, b"p\0"),
        said(11, 0, 0, b"m\0"),
        said(42, 0, 0, &[&[1, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat()),
    ];
    let listing = [
        said(27, 0, 0, &[0; 8]),
        said(28, 0, HANDLE, &read),
        said(44, 0, HANDLE, &read),
        said(30, 0, HANDLE, &[0; 16]),
        said(29, 0, HANDLE, &[0; 24]),
        said(36, 0, 0, &[0; 8]),
        said(38, 0, 0, &[]),
    ];
    vec![files.concat(), names.concat(), listing.concat()]
}

/// Returns a request in the target's form, with the latest ID selected.
fn said(opcode: u8, node: u8, selector: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("short").to_le_bytes();
    [&length, &[opcode, node, selector, 0][..], body].concat()
}
