//! As much of FUSE's messages as a relay has to know (`<linux/fuse.h>`).

use castra_wire::MAX_MOUNT_MESSAGE_BYTES;

/// Size of a request's header, and the places of what the relay reads of it.
const REQUEST_HEADER_BYTES: usize = 40;
const OPCODE: usize = 4;
const UNIQUE: usize = 8;

/// Size of an answer's header: length, error, number of the request.
const ANSWER_HEADER_BYTES: usize = 16;

const FORGET: u32 = 2;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const NOTIFY_REPLY: u32 = 41;
const BATCH_FORGET: u32 = 42;

/// Room for one request. The kernel refuses a read with less than its largest request needs.
pub(super) const REQUEST_BYTES: usize = MAX_MOUNT_MESSAGE_BYTES - 1;

/// Meaning of a request to the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first one, which is repeated to each process that answers.
    Init,
    /// One that is answered.
    Answered,
    /// One without an answer.
    Unanswered,
    /// The end of an open file. The answer has no content, and no program waits for it, so the
    /// relay gives it: that spares the guest a message.
    Release,
    /// One that the relay drops: the request that it is to interrupt runs to its end.
    Dropped,
}

/// Returns a request's number and kind; `None` if it has no header.
pub(super) fn describe(request: &[u8]) -> Option<(u64, Kind)> {
    if request.len() < REQUEST_HEADER_BYTES {
        return None;
    }
    let opcode = u32::from_ne_bytes(request[OPCODE..OPCODE + 4].try_into().ok()?);
    let kind = match opcode {
        INIT => Kind::Init,
        FORGET | BATCH_FORGET | NOTIFY_REPLY => Kind::Unanswered,
        RELEASE | RELEASEDIR => Kind::Release,
        INTERRUPT => Kind::Dropped,
        _ => Kind::Answered,
    };
    Some((u64::from_ne_bytes(request[UNIQUE..UNIQUE + 8].try_into().ok()?), kind))
}

/// Returns the number of the request that this answers; `None` if it has no header.
pub(super) fn answered(answer: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(answer.get(8..ANSWER_HEADER_BYTES)?.try_into().ok()?))
}

/// Returns the answer that a request failed.
pub(super) fn failure(unique: u64, error: rustix::io::Errno) -> [u8; ANSWER_HEADER_BYTES] {
    answer(unique, -error.raw_os_error())
}

/// Returns the answer without content that a request succeeded.
pub(super) fn success(unique: u64) -> [u8; ANSWER_HEADER_BYTES] {
    answer(unique, 0)
}

fn answer(unique: u64, error: i32) -> [u8; ANSWER_HEADER_BYTES] {
    let mut answer = [0; ANSWER_HEADER_BYTES];
    answer[..4].copy_from_slice(&16u32.to_ne_bytes());
    answer[4..8].copy_from_slice(&error.to_ne_bytes());
    answer[8..].copy_from_slice(&unique.to_ne_bytes());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: u32, unique: u64) -> Vec<u8> {
        let mut request = vec![0; REQUEST_HEADER_BYTES];
        request[4..8].copy_from_slice(&opcode.to_ne_bytes());
        request[8..16].copy_from_slice(&unique.to_ne_bytes());
        request
    }

    #[test]
    fn a_request_says_whether_it_is_answered() {
        for (opcode, kind) in [
            (1, Kind::Answered),
            (FORGET, Kind::Unanswered),
            (BATCH_FORGET, Kind::Unanswered),
            (RELEASE, Kind::Release),
            (INIT, Kind::Init),
            (INTERRUPT, Kind::Dropped),
        ] {
            assert_eq!(describe(&request(opcode, 7)), Some((7, kind)));
        }
        assert_eq!(describe(&[0; REQUEST_HEADER_BYTES - 1]), None);
    }

    #[test]
    fn an_answer_names_its_request() {
        assert_eq!(success(9)[..8], [16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answered(&success(9)), Some(9));
        let answer = failure(9, rustix::io::Errno::IO);
        assert_eq!(answered(&answer), Some(9));
        assert_eq!(answer[4..8], (-5i32).to_ne_bytes());
        assert_eq!(answered(&answer[..15]), None);
    }
}
