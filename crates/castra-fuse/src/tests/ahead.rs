//! Contents that come with the reply to an OPEN.

use std::cell::RefCell;
use std::fs;

use super::guest::{Guest, body, request, u32_at, u64_at};
use crate::abi::{NOTIFY_STORE, ROOT, opcode, open};

/// Opens a node, and returns the handle and the contents that came before.
fn open_with_contents(guest: &Guest, node: u64, flags: u32) -> (u64, Option<Vec<u8>>) {
    let request = request(opcode::OPEN, 7, node, &body().u32(flags).u32(0).0);
    let notices = RefCell::new(Vec::new());
    let notify = |notice| notices.borrow_mut().push(notice);
    let reply = guest.server.answer_with(&request, &notify).expect("a reply");
    assert_eq!(u32_at(&reply, 4), 0, "{reply:?}");
    let mut notices = notices.into_inner();
    assert!(notices.len() <= 1);
    let contents = notices.pop().map(|notice| {
        assert_eq!(u32_at(&notice, 0) as usize, notice.len());
        assert_eq!(u32_at(&notice, 4).cast_signed(), NOTIFY_STORE);
        assert_eq!((u64_at(&notice, 8), u64_at(&notice, 16), u64_at(&notice, 24)), (0, node, 0));
        assert_eq!(u32_at(&notice, 32) as usize, notice.len() - 40);
        notice[40..].to_vec()
    });
    (u64_at(&reply, 16), contents)
}

#[test]
fn small_files_come_once_per_version() {
    let guest = Guest::new();
    let path = guest.host.join("a");
    fs::write(&path, "first").expect("written");
    let node = guest.walk("a").expect("there").node;
    let open_and_close = || {
        let (handle, contents) = open_with_contents(&guest, node, open::READ_ONLY);
        guest.release(node, handle).expect("closed");
        contents
    };
    assert_eq!(open_and_close().as_deref(), Some(b"first".as_slice()));
    assert_eq!(open_and_close(), None, "the kernel has it");
    fs::write(&path, "second one").expect("written");
    assert_eq!(open_and_close().as_deref(), Some(b"second one".as_slice()));
    // Neither nothing nor much.
    fs::write(&path, "").expect("written");
    assert_eq!(open_and_close(), None);
    fs::write(&path, vec![1; 65_537]).expect("written");
    assert_eq!(open_and_close(), None);
    fs::write(&path, vec![1; 65_536]).expect("written");
    assert_eq!(open_and_close().map(|contents| contents.len()), Some(65_536));
}

#[test]
fn an_open_file_is_left_to_its_readers() {
    let guest = Guest::new();
    let (entry, writer) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    guest.write(entry.node, writer, 0, 0, b"text").expect("written");
    let (reader, contents) = open_with_contents(&guest, entry.node, open::READ_ONLY);
    assert_eq!(contents, None, "a page may be locked");
    for handle in [writer, reader] {
        guest.release(entry.node, handle).expect("closed");
    }
    let (writer, contents) = open_with_contents(&guest, entry.node, open::READ_WRITE);
    assert_eq!(contents, None, "it is opened for writing");
    guest.release(entry.node, writer).expect("closed");
    let (_, contents) = open_with_contents(&guest, entry.node, open::READ_ONLY);
    assert_eq!(contents.as_deref(), Some(b"text".as_slice()));
}
