use castra_flow::link::HELLO_READ_BYTES;
use castra_wire::stream::{Event, Frame};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::guest::{StreamPort, StreamPorts, Streams, VmKeys};
use crate::layout::{ProjectLayout, SocketsLayout};

const OLD: Hello = Hello { version: 1, session: Session::new(0x0102_0304_0000_0000) };
const NEW: Hello = Hello { version: 1, session: Session::new(0x5555_0000_0000_0000) };

/// Runs the exchange against a guest of this kind, for at most a second.
async fn against<G: Future<Output = ()> + Send + 'static>(
    guest: impl FnOnce(UnixStream) -> G,
) -> io::Result<Hello> {
    let (mut host, far) = UnixStream::pair().expect("a pair");
    let guest = tokio::spawn(guest(far));
    let mut decoder = Decoder::new(Expected::Only(NEW.session));
    let exchanged = exchange(&mut host, &NEW, &mut decoder);
    let exchanged = timeout(Duration::from_secs(1), exchanged).await;
    guest.abort();
    assert!(
        decoder.buffer().len() <= HELLO_READ_BYTES,
        "{} bytes are kept",
        decoder.buffer().len()
    );
    exchanged.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Answers each hello, as the agent does; begins with these bytes.
async fn answer_all(mut stream: UnixStream, before: Bytes) {
    let mut decoder = Decoder::new(Expected::Any);
    decoder.buffer().extend_from_slice(&before);
    loop {
        while let Some(event) = decoder.next_event() {
            if let Event::Hello(hello) = event {
                let _ = stream.write_all(&hello.encode()).await;
            }
        }
        if stream.read_buf(decoder.buffer()).await.is_ok_and(|count| count == 0) {
            return;
        }
    }
}

/// Returns what a castra has sent that was killed in the middle of a frame of this size.
fn broken_off(size: usize) -> Bytes {
    let mut sent = bytes::BytesMut::from(&*OLD.encode());
    Frame::Data(vec![7; size].into()).encode(1, OLD.tag(), &mut sent);
    sent.truncate(OLD.encode().len() + 10);
    sent.freeze()
}

#[tokio::test(flavor = "current_thread")]
async fn a_guest_that_waits_for_the_rest_of_a_frame_is_found_again() {
    for size in [3, 100, stream::MAX_PAYLOAD_BYTES] {
        let before = broken_off(size);
        let answer = against(|stream| answer_all(stream, before)).await;
        assert_eq!(answer.expect("answers"), NEW, "{size}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn answers_to_others_are_not_taken_for_ones_own() {
    let answer = against(async |mut stream: UnixStream| {
        for session in 0..100 {
            let other = Hello { version: 1, session: Session::new(session) };
            let _ = stream.write_all(&other.encode()).await;
        }
        answer_all(stream, Bytes::new()).await;
    });
    assert_eq!(answer.await.expect("answers"), NEW);
}

#[tokio::test(flavor = "current_thread")]
async fn endless_noise_is_neither_an_answer_nor_kept() {
    // The last is the beginning of a hello.
    for noise in [vec![0; 4096], vec![0xc5; 4096], NEW.encode()[..12].repeat(100)] {
        let answer = against(
            async move |mut stream: UnixStream| {
                while stream.write_all(&noise).await.is_ok() {}
            },
        );
        assert_eq!(answer.await.expect_err("none").kind(), io::ErrorKind::TimedOut);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_port_that_is_closed_is_an_error_at_once() {
    for length in [0, 1, NEW.encode().len() - 1] {
        let answer = against(async move |mut stream: UnixStream| {
            let _ = stream.write_all(&NEW.encode()[..length]).await;
        });
        assert_ne!(answer.await.expect_err("none").kind(), io::ErrorKind::TimedOut);
    }
}

/// Directory with sockets of stream ports on which a guest answers.
fn answering_ports(directory: &std::path::Path, count: u32) -> StreamPorts {
    let sockets = SocketsLayout::new(directory.join("castra/project/vm"));
    std::fs::create_dir_all(sockets.directory()).expect("made");
    for index in 0..count {
        let listener = tokio::net::UnixListener::bind(sockets.stream(index)).expect("listens");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                answer_all(stream, Bytes::new()).await;
            }
        });
    }
    StreamPorts { sockets, count }
}

#[tokio::test(flavor = "current_thread")]
async fn a_session_keeps_its_port_to_itself_until_it_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let ports = answering_ports(directory.path(), 3);
    let files = ProjectLayout::unchecked(directory.path().join(".castra")).vm("vm");
    let keys = VmKeys::load_or_create(&files).expect("keys");
    let target = keys.target((std::net::Ipv4Addr::LOCALHOST, 1).into(), "root");
    let streams = Streams::Shared(ports.clone());
    let greet = async || {
        let port = streams.take().expect("no trouble").expect("a free port");
        Direct::greet(port, &target).await.expect("the guest answers")
    };
    let free = || StreamPort::acquire(&ports).expect("no trouble").map(|port| port.index());
    let first = greet().await;
    // The session's own task has run, too.
    tokio::task::yield_now().await;
    assert_eq!(free(), Some(1));
    let second = greet().await;
    tokio::task::yield_now().await;
    assert_eq!(free(), Some(2));
    drop(first);
    tokio::task::yield_now().await;
    assert_eq!(free(), Some(0));
    drop(second);
}
