use std::time::Duration;

use bytes::{Bytes, BytesMut};
use castra_wire::Session;
use castra_wire::stream::{
    Decoder, Expected, Frame, Hello, Program, STREAM_WINDOW_BYTES, Target, padding,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::{Incoming, Message, Outgoing};

const HELLO: Hello = Hello { version: 1, session: Session::new(7) };

/// Both ends of a link, connected in memory. The guest's streams come out of the receiver.
struct Pair {
    host: Link,
    requested: mpsc::UnboundedReceiver<(Target, Incoming, Outgoing)>,
    guest_end: JoinHandle<End>,
    host_end: JoinHandle<End>,
}

fn pair() -> Pair {
    let (host_side, guest_side) = duplex(16 * 1024);
    let (sender, requested) = mpsc::unbounded_channel();
    let guest_end = tokio::spawn(guest(guest_side, sender));
    let host = Link::new(Side::Host, &HELLO);
    let host_end = tokio::spawn(drive_host(host.clone(), host_side));
    Pair { host, requested, guest_end, host_end }
}

async fn guest(
    port: DuplexStream,
    sender: mpsc::UnboundedSender<(Target, Incoming, Outgoing)>,
) -> End {
    let (mut reader, writer) = split(port);
    let mut decoder = Decoder::new(Expected::Any);
    let hello = receive_hello(&mut decoder, &mut reader).await.expect("reads").expect("a hello");
    let link = Link::new(Side::Guest, &hello);
    let opening = |opening: Opening| {
        opening.outgoing.opened().expect("a link");
        let _ = sender.send((opening.target, opening.incoming.into(), opening.outgoing.into()));
    };
    link.drive(&mut decoder, reader, writer, opening).await
}

async fn drive_host(link: Link, port: DuplexStream) -> End {
    let (mut reader, mut writer) = split(port);
    // A hostile guest may have hung up already.
    let _ = writer.write_all(&HELLO.encode()).await;
    let mut decoder = Decoder::new(Expected::Only(HELLO.session));
    receive_hello(&mut decoder, &mut reader).await.expect("reads").expect("a hello");
    link.drive(&mut decoder, reader, writer, |_| unreachable!("a guest opens nothing")).await
}

fn files() -> Bytes {
    Target::Files { user: "root".into() }.encode().expect("encodes")
}

async fn open(pair: &mut Pair) -> (Incoming, Outgoing, Incoming, Outgoing) {
    let (incoming, outgoing) = pair.host.open(files()).expect("opens");
    let (target, theirs, answers) = pair.requested.recv().await.expect("a request");
    assert_eq!(target, Target::Files { user: "root".into() });
    let mut incoming = Incoming::from(incoming);
    assert!(matches!(incoming.next().await, Some(Message::Opened)));
    (incoming, outgoing.into(), theirs, answers)
}

async fn data(incoming: &mut Incoming) -> Option<Vec<u8>> {
    match incoming.next().await? {
        Message::Data(data) => Some(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let mut pair = pair();
    let (mut output, stdin, mut input, answers) = open(&mut pair).await;
    stdin.send(Bytes::from_static(b"question")).await.expect("sends");
    stdin.end_data().await.expect("sends");
    assert_eq!(data(&mut input).await.as_deref(), Some(&b"question"[..]));
    assert!(matches!(input.next().await, Some(Message::EndOfData)));
    answers.send(Bytes::from_static(b"answer")).await.expect("sends");
    answers.send_stderr(Bytes::from_static(b"warning")).await.expect("sends");
    answers.exit_signal("KILL", false).await.expect("sends");
    answers.close().await.expect("sends");
    assert_eq!(data(&mut output).await.as_deref(), Some(&b"answer"[..]));
    assert!(matches!(output.next().await, Some(Message::Stderr(data)) if &*data == b"warning"));
    assert!(matches!(output.next().await, Some(Message::ExitSignal(name)) if name == "KILL"));
    assert!(matches!(output.next().await, Some(Message::Closed)));
    assert_eq!(stdin.send(Bytes::from_static(b"late")).await, Err(Gone));
    drop(stdin);
    assert!(output.next().await.is_none(), "both sides have closed it");
}

/// An unread stream fills its window and holds up no other.
#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let mut pair = pair();
    let (mut unread, _stdin, _input, flood) = open(&mut pair).await;
    let (mut read, _other_stdin, _other_input, answers) = open(&mut pair).await;
    let chunk = Bytes::from(vec![7; 4 * STREAM_WINDOW_BYTES as usize]);
    let expected = chunk.len();
    let flooding = tokio::spawn(async move { flood.send(chunk).await });
    for _ in 0..100 {
        answers.send(Bytes::from_static(b"alive")).await.expect("sends");
        assert_eq!(data(&mut read).await.as_deref(), Some(&b"alive"[..]));
    }
    timeout(Duration::from_secs(30), pair.host.ping()).await.expect("in time").expect("alive");
    assert!(!flooding.is_finished(), "the window is full");
    let mut total = 0;
    while total < expected {
        total += data(&mut unread).await.expect("data").len();
    }
    flooding.await.expect("ends").expect("sends");
}

#[tokio::test]
async fn all_channels_end_with_their_link() {
    let mut pair = pair();
    let (mut output, stdin, mut input, answers) = open(&mut pair).await;
    let flooding = tokio::spawn(async move {
        answers.send(Bytes::from(vec![0; 8 * STREAM_WINDOW_BYTES as usize])).await
    });
    pair.host_end.abort();
    assert!(matches!(pair.guest_end.await, Ok(End::HungUp | End::Failed(_))));
    assert_eq!(flooding.await.expect("ends"), Err(Gone));
    assert!(input.next().await.is_none());
    while output.next().await.is_some() {}
    assert_eq!(stdin.send(Bytes::from_static(b"x")).await, Err(Gone));
    assert!(pair.host.open(files()).is_err());
    assert!(pair.host.ping().await.is_err());
}

/// Sends frames to a host, and returns how its link ends.
async fn hostile(frames: &[(u16, Frame)], is_violation: bool) -> (End, Option<Message>) {
    let (host_side, mut guest_side) = duplex(1 << 20);
    let host = Link::new(Side::Host, &HELLO);
    let (incoming, _outgoing) = host.open(files()).expect("opens");
    let driven = tokio::spawn(drive_host(host.clone(), host_side));
    let mut bytes = BytesMut::from(&HELLO.encode()[..]);
    for (stream, frame) in frames {
        frame.encode(*stream, HELLO.tag(), &mut bytes);
    }
    // Ends by itself if the frames are a violation; else this hangs up when all is read.
    let hang_up = async move {
        let _ = guest_side.write_all(&bytes).await;
        if is_violation {
            std::future::pending::<()>().await;
        }
        let _ = guest_side.shutdown().await;
        let _ = guest_side.read_to_end(&mut Vec::new()).await;
    };
    tokio::spawn(hang_up);
    let end = timeout(Duration::from_secs(30), driven).await.expect("ends").expect("no panic");
    let message = Incoming::from(incoming).next().await;
    (end, message)
}

#[tokio::test]
async fn a_hostile_guest_ends_its_link_and_nothing_else() {
    let kilobyte = || Frame::Data(Bytes::from(vec![0; 1024]));
    let too_much: Vec<_> = (0..2048).map(|_| (1, kilobyte())).collect();
    let tiny: Vec<_> = (0..100_000).map(|_| (1, Frame::Data(Bytes::new()))).collect();
    let signs: Vec<_> = (0..100_000).map(|_| (1, Frame::ExitStatus(0))).collect();
    for frames in [too_much, tiny, signs] {
        let (end, _) = hostile(&frames, true).await;
        assert!(matches!(end, End::Lost), "{end:?}");
    }
    for frame in [Frame::Open(files()), Frame::Signal(Bytes::new())] {
        assert!(matches!(hostile(&[(1, frame)], true).await.0, End::Lost));
    }
    // Answers about streams that do not exist, and too many answers.
    let harmless = [
        (9, Frame::Data(Bytes::from_static(b"x"))),
        (9, Frame::Close),
        (1, Frame::Grant(u32::MAX)),
        (1, Frame::Grant(u32::MAX)),
        (0, Frame::Pong),
        (1, Frame::Opened),
    ];
    let (end, message) = hostile(&harmless, false).await;
    assert!(matches!(end, End::HungUp | End::Failed(_)), "{end:?}");
    assert!(matches!(message, Some(Message::Opened)), "{message:?}");
}

#[tokio::test]
async fn a_flood_of_pings_costs_bounded_memory() {
    let link = Link::new(Side::Host, &HELLO);
    for _ in 0..1_000_000 {
        link.receive(0, Frame::Ping).expect("permitted");
    }
    assert!(link.state().take_output().len() < 1 << 20);
}

#[tokio::test]
async fn another_host_replaces_a_session_that_was_cut_off() {
    let (mut port, guest_side) = duplex(1 << 20);
    let (sender, mut requested) = mpsc::unbounded_channel();
    let guest_end = tokio::spawn(guest(guest_side, sender));
    let mut bytes = BytesMut::from(&HELLO.encode()[..]);
    let target = Target::Program { user: "root".into(), program: Program::Shell, terminal: None };
    Frame::Open(target.encode().expect("encodes")).encode(1, HELLO.tag(), &mut bytes);
    Frame::Data(Bytes::from_static(b"rm -rf precious-directory")).encode(
        1,
        HELLO.tag(),
        &mut bytes,
    );
    bytes.truncate(bytes.len() - 10);
    let next = Hello { version: 1, session: Session::new(8) };
    bytes.extend_from_slice(&next.encode());
    bytes.extend_from_slice(&padding());
    port.write_all(&bytes).await.expect("writes");
    let (_, mut input, _outgoing) = requested.recv().await.expect("a request");
    assert!(input.next().await.is_none(), "half a frame is delivered to no program");
    assert!(matches!(guest_end.await, Ok(End::Lost)));
}

#[tokio::test]
async fn a_relay_outlives_no_peer_that_has_sent_everything() {
    let mut pair = pair();
    let (output, stdin, input, answers) = open(&mut pair).await;
    let (stream, mut service) = duplex(1024);
    let relay = tokio::spawn(crate::relay(input, answers, stream, None));
    stdin.end_data().await.expect("sends");
    assert_eq!(service.read(&mut [0]).await.expect("reads"), 0);
    // The service has not ended its side, as one that answers at length.
    stdin.close().await.expect("sends");
    drop(output);
    timeout(Duration::from_secs(60), relay).await.expect("it ends").expect("without a panic");
}

/// A stream whose other end has reset it, and which writes nothing.
struct Reset;

impl AsyncRead for Reset {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

impl AsyncWrite for Reset {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::task::Poll::Pending
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Pending
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_relay_ends_with_a_stream_that_was_reset() {
    let mut pair = pair();
    let (mut output, _stdin, input, answers) = open(&mut pair).await;
    tokio::spawn(crate::relay(input, answers, Reset, None));
    let ended = timeout(Duration::from_secs(60), output.next()).await.expect("it ends");
    assert!(matches!(ended, Some(Message::Closed)), "{ended:?}");
}
