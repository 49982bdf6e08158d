use bytes::{Bytes, BytesMut};

use super::*;
use crate::Session;

const OLD: Hello = Hello { version: 1, session: Session(0x0102_0304_0506_0708) };
const NEW: Hello = Hello { version: 1, session: Session(0x1112_1314_1516_1718) };

fn frames() -> Vec<Frame> {
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let window = Window { columns: 80, rows: 24, width_px: 0, height_px: 0xffff };
    vec![
        Frame::Data(bytes("stdin")),
        Frame::Data(Bytes::from(vec![0xc5; MAX_PAYLOAD_BYTES])),
        Frame::Stderr(Bytes::new()),
        Frame::EndOfData,
        Frame::Close,
        Frame::Grant(STREAM_WINDOW_BYTES),
        Frame::Open(bytes("target")),
        Frame::Opened,
        Frame::Refused(Refusal::UnknownUser),
        Frame::Signal(bytes("INT")),
        Frame::Resize(window),
        Frame::ExitStatus(u32::MAX),
        Frame::ExitSignal(bytes("KILL")),
        Frame::Ping,
        Frame::Pong,
    ]
}

fn encoded(hello: Hello, frames: &[Frame]) -> BytesMut {
    let mut bytes = BytesMut::from(&hello.encode()[..]);
    for (stream, frame) in (0..).zip(frames) {
        frame.encode(stream, hello.tag(), &mut bytes);
    }
    bytes
}

/// Feeds bytes in pieces of this size and returns all events.
fn decoded(expected: Expected, bytes: &[u8], piece: usize) -> Vec<Event> {
    let mut decoder = Decoder::new(expected);
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        events.extend(std::iter::from_fn(|| decoder.next_event()));
    }
    events
}

#[test]
fn frames_survive_the_wire_in_pieces_of_any_size() {
    let bytes = encoded(OLD, &frames());
    let numbered = (0..).zip(frames()).map(|(stream, frame)| Event::Frame(stream, frame));
    let expected: Vec<_> = std::iter::once(Event::Hello(OLD)).chain(numbered).collect();
    for piece in [1, 7, 4096, bytes.len()] {
        assert_eq!(decoded(Expected::Any, &bytes, piece), expected, "{piece}");
    }
}

/// Wherever a castra is killed, the guest takes the next one's session, and nothing of the one is
/// taken for the other's.
#[test]
fn a_session_begins_wherever_the_last_one_broke_off() {
    let whole = encoded(OLD, &[Frame::Data(Bytes::from_static(b"precious")), Frame::EndOfData]);
    let next = encoded(NEW, &[Frame::Ping]);
    for end in 0..=whole.len() {
        let mut bytes = whole[..end].to_vec();
        bytes.extend_from_slice(&NEW.encode());
        bytes.extend(padding());
        bytes.extend_from_slice(&next);
        let events = decoded(Expected::Any, &bytes, 5);
        let last = [Event::Hello(NEW), Event::Frame(0, Frame::Ping)];
        assert!(events.ends_with(&last), "{end}: {events:?}");
        let of_old = events.iter().take_while(|event| **event != Event::Hello(NEW));
        for event in of_old {
            let known = [
                Event::Hello(OLD),
                Event::Frame(0, Frame::Data(Bytes::from_static(b"precious"))),
                Event::Frame(1, Frame::EndOfData),
                Event::Lost,
            ];
            assert!(known.contains(event), "{end}: {event:?}");
        }
    }
}

#[test]
fn a_host_skips_what_belongs_to_others() {
    let mut bytes = encoded(OLD, &frames());
    bytes.truncate(bytes.len() - 3);
    bytes.extend_from_slice(&encoded(NEW, &[Frame::Pong]));
    // The answer to a hello that was sent twice.
    bytes.extend_from_slice(&encoded(NEW, &[Frame::Opened]));
    let expected =
        [Event::Hello(NEW), Event::Frame(0, Frame::Pong), Event::Frame(0, Frame::Opened)];
    assert_eq!(decoded(Expected::Only(NEW.session), &bytes, 3), expected);
}

#[test]
fn what_is_no_frame_ends_the_session() {
    let mut giant = BytesMut::new();
    giant.extend_from_slice(&[1, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
    let mut wrong_tag = BytesMut::new();
    Frame::Ping.encode(0, NEW.tag(), &mut wrong_tag);
    let mut unknown = BytesMut::new();
    Frame::Ping.encode(0, OLD.tag(), &mut unknown);
    unknown[0] = 99;
    for bad in [giant, wrong_tag, unknown] {
        let mut bytes = encoded(OLD, &[]);
        bytes.extend_from_slice(&bad);
        assert_eq!(decoded(Expected::Any, &bytes, 1), [Event::Hello(OLD), Event::Lost], "{bad:?}");
    }
}

#[test]
fn noise_is_dropped_and_not_kept() {
    let mut decoder = Decoder::new(Expected::Only(NEW.session));
    for _ in 0..100 {
        decoder.buffer().extend_from_slice(&[0xc5; 4096]);
        assert_eq!(decoder.next_event(), None);
        assert!(decoder.buffer().len() < 8);
    }
}

#[test]
fn targets_survive_the_wire() {
    let window = Window { columns: 120, rows: 40, width_px: 1, height_px: 2 };
    let terminal = Terminal { term: "xterm-256color".into(), window };
    let user = || "root".to_owned();
    let targets = [
        Target::Program { user: user(), program: Program::Arguments, terminal: None },
        Target::Program { user: user(), program: Program::Line, terminal: Some(terminal.clone()) },
        Target::Program { user: user(), program: Program::Shell, terminal: Some(terminal.clone()) },
        Target::Files { user: user() },
        Target::Tcp(Host { name: "::1".into(), port: 65_535 }),
        Target::Socket { user: user(), path: "/run/a socket".into() },
        Target::Mount { path: "/src".into(), is_read_only: false, sends_changes: true },
        Target::Mount { path: "/a mount".into(), is_read_only: true, sends_changes: false },
        Target::Service(8080),
        Target::Listeners,
        Target::Kept {
            user: user(),
            program: Program::Line,
            terminal: Some(terminal),
            tag: "a tag".into(),
            limit_ms: 60_000,
        },
        Target::Follow { program: KeptProgram::Pid(u32::MAX), from: None },
        Target::Follow { program: KeptProgram::Tag(String::new()), from: Some(u64::MAX) },
        Target::Control { program: KeptProgram::Tag("a tag".into()), ends_stdin: true },
        Target::KeptPrograms,
        Target::Watch { user: user(), path: "/a directory".into(), is_recursive: true },
    ];
    for target in targets {
        let bytes = target.encode().expect("encodes");
        assert_eq!(Target::decode(&bytes), Ok(target.clone()));
        for length in 0..bytes.len() {
            assert_eq!(Target::decode(&bytes[..length]), Err(TargetError::Malformed), "{target:?}");
        }
    }
    let long = Target::Files { user: "x".repeat(MAX_PAYLOAD_BYTES) };
    assert_eq!(long.encode(), Err(TargetError::TooLong));
}

/// A receiver's window counts the bytes that it keeps, so it must keep no others.
#[test]
fn a_payload_keeps_no_bytes_around_it_in_memory() {
    let mut frames = vec![Frame::Pong; 1000];
    frames.insert(500, Frame::Data(Bytes::from_static(b"x")));
    let events = decoded(Expected::Any, &encoded(OLD, &frames), usize::MAX);
    let mut payloads = events.into_iter().filter_map(|event| match event {
        Event::Frame(_, Frame::Data(payload)) => Some(payload),
        _ => None,
    });
    let payload = payloads.next().expect("the data").try_into_mut().expect("has one owner");
    assert!(payload.capacity() < 100, "{} bytes", payload.capacity());
}

#[test]
fn a_name_that_no_signal_has_ends_the_session() {
    for frame in [Frame::Signal, Frame::ExitSignal] {
        let named = |length: usize| [frame(Bytes::from(vec![b'X'; length]))];
        let events = |length| decoded(Expected::Any, &encoded(OLD, &named(length)), 4096);
        assert!(matches!(events(64)[..], [Event::Hello(_), Event::Frame(..)]));
        assert!(matches!(events(65)[..], [Event::Hello(_), Event::Lost]));
    }
}
