//! Fuzz target: requests of any bytes. Each that wants a reply gets one, nothing outside of the
//! directory changes, and nothing panics. `fuzz/` runs the same function under libFuzzer.

use std::fs;
use std::path::Path;

use castra_fuse::{Access, Directory, Owner, Server};

/// Maximum number of requests of an input.
const MAX_REQUESTS: usize = 200;
/// Length of a request's header, in bytes.
const HEADER: usize = 40;
/// Content that no request may reach.
const SECRET: &str = "not of the guest's";

/// Sends requests. Each is two bytes of length, the operation, and a node, a selector and an index
/// of what replaces the first number of the body: a handle or a node that the server gave.
pub(crate) fn requests(data: &[u8]) {
    let around = tempfile::tempdir().expect("a directory");
    let served = around.path().join("served");
    fill(&served);
    fs::write(around.path().join("secret"), SECRET).expect("written");
    let owner = Owner { uid: 0, gid: 0 };
    let directory = Directory::open(&served, Access::ReadWrite, owner).expect("opened");
    let server = Server::new(directory);
    let (mut nodes, mut handles) = (vec![1], Vec::new());
    let mut rest = data;
    for unique in 0..MAX_REQUESTS as u64 {
        let Some(([low, high, opcode, node, selector, index], after)) = rest.split_first_chunk()
        else {
            break;
        };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (body, after) = after.split_at(length);
        rest = after;
        let known =
            |ids: &[u64], index: u8| ids.get(usize::from(index) % ids.len().max(1)).copied();
        let mut body = body.to_vec();
        let replacing = match selector % 4 {
            0 => None,
            1 => known(&nodes, *index),
            _ => known(&handles, *index),
        };
        if let (Some(id), Some(place)) = (replacing, body.first_chunk_mut()) {
            *place = id.to_le_bytes();
        }
        let node = known(&nodes, *node).unwrap_or(1);
        let stated = if selector & 0x80 == 0 { HEADER + body.len() } else { length };
        let mut request = Vec::new();
        request.extend((stated as u32).to_le_bytes());
        request.extend(u32::from(*opcode).to_le_bytes());
        request.extend(unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        let reply = server.answer(&request);
        assert_eq!(reply.is_none(), [2, 36, 41, 42].contains(opcode), "{opcode}");
        if let Some(reply) = reply {
            check(&reply, unique);
            learn(*opcode, &reply[16..], &mut nodes, &mut handles);
        }
    }
    let secret = fs::read(around.path().join("secret")).expect("still there");
    assert_eq!(secret, SECRET.as_bytes());
    assert_eq!(fs::read(served.join(".castra")).expect("still there"), SECRET.as_bytes());
    assert_eq!(fs::read_dir(around.path()).expect("listed").count(), 2);
}

fn fill(served: &Path) {
    fs::create_dir_all(served.join("d/e")).expect("made");
    fs::write(served.join("a"), "content").expect("written");
    fs::write(served.join(".castra"), SECRET).expect("written");
    std::os::unix::fs::symlink("../secret", served.join("l")).expect("made");
}

fn check(reply: &[u8], unique: u64) {
    let length = reply.first_chunk().copied().map(u32::from_le_bytes);
    assert_eq!(length.map(|length| length as usize), Some(reply.len()));
    assert_eq!(reply[8..16], unique.to_le_bytes());
    let error = i32::from_le_bytes([reply[4], reply[5], reply[6], reply[7]]);
    assert!(error == 0 || (-4095..0).contains(&error) && reply.len() == 16);
    assert!(reply.len() <= 16 + castra_fuse::MAX_WRITE as usize);
    assert!(!reply.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()));
}

/// Remembers the IDs in a reply.
fn learn(opcode: u8, body: &[u8], nodes: &mut Vec<u64>, handles: &mut Vec<u64>) {
    let number = |at: usize| body.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
    match opcode {
        1 | 6 | 8 | 9 | 13 | 35 => {
            nodes.extend(number(0).filter(|node| *node != 0));
            handles.extend(number(128).filter(|_| opcode == 35));
        }
        14 | 27 => handles.extend(number(0)),
        _ => {}
    }
}
