//! Valid inputs, from which spoilt ones are made.

use bytes::{Bytes, BytesMut};
use castra_engine::managed::{Catalog, Manifest};
use castra_sftp::{Attributes, Code, Entry, Flags, Reply, Request};
use castra_wire::stream::{
    Frame, Hello, Host, Program, Refusal, Target, Terminal, Window, padding,
};
use castra_wire::{
    AgentTask, Envelope, ExecHeader, GuestMessage, HostMessage, PROTOCOL_VERSION, Personality,
    Secret, Session, Stage, StageReached, StartDirectory, encode,
};

const REFERENCE: &str = include_str!("../../../../../docs/config.md");

/// Returns one footer of each kind.
pub(crate) fn vhd_footers() -> Vec<Vec<u8>> {
    let footer = |kind: u8| {
        let mut footer = vec![0_u8; 512];
        footer[..8].copy_from_slice(b"conectix");
        footer[63] = kind;
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        footer
    };
    (0..6).map(footer).collect()
}

/// Returns manifests without files: the form of files is covered by the manifest's own tests.
pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let of = |image| Manifest::new(image, Vec::new()).to_text();
    Catalog::builtin().images().iter().map(of).collect()
}

/// Returns checksum files in the forms of all publishers.
pub(crate) fn checksum_files() -> Vec<Vec<u8>> {
    let (short, long) = ("ab".repeat(32), "cd".repeat(64));
    let name = "Rocky-9-GenericCloud-Base-9.9-20261112.0.x86_64.qcow2";
    let files = [
        format!("{long}  debian-13-genericcloud-amd64.qcow2\n{long}  other.raw\n"),
        format!("{short} *ubuntu-24.04-server-cloudimg-amd64.img\r\n"),
        format!("# {name}: 42 bytes\nSHA256 ({name}) = {short}\n"),
    ];
    files.map(String::into_bytes).to_vec()
}

/// Returns files with one image and with two.
pub(crate) fn lock_files() -> Vec<Vec<u8>> {
    let entry = |name: &str, version: &str, digest: &str| {
        format!(
            "[[images]]\nname = \"{name}\"\nversion = \"{version}\"\n\
            urls = [\"https://example.org/a.qcow2\"]\n{digest}\nsize_bytes = 7\n"
        )
    };
    let arch = entry("arch", "20261122.7", &format!("sha256 = \"{}\"", "ab".repeat(32)));
    let signed = format!("sha512 = \"{}\"\nsigned_by = \"AB12\"", "cd".repeat(64));
    let debian = entry("debian-13", "20261115-2700", &signed);
    let files = [format!("version = 1\n{arch}"), format!("version = 1\n{debian}{arch}")];
    files.map(String::into_bytes).to_vec()
}

/// Returns a key, a detached signature and a signed text, as GnuPG writes them.
pub(crate) fn signatures() -> Vec<Vec<u8>> {
    let files: [&[u8]; 3] = [
        include_bytes!("openpgp/key.asc"),
        include_bytes!("openpgp/detached.asc"),
        include_bytes!("openpgp/inline.asc"),
    ];
    files.map(<[u8]>::to_vec).to_vec()
}

/// Returns the examples of the reference.
pub(crate) fn configurations() -> Vec<Vec<u8>> {
    let blocks = REFERENCE.split("```toml\n").skip(1);
    blocks
        .filter_map(|rest| rest.split("```").next())
        .map(|block| block.as_bytes().to_vec())
        .collect()
}

/// Returns one of each message, and a whole conversation.
pub(crate) fn control_messages() -> Vec<Vec<u8>> {
    let personality = Personality {
        machine_id: "0".repeat(32),
        time_unix_ns: 1,
        entropy: Secret::new(vec![7; 32]),
        hostname: "vm".to_owned(),
        host_key: Secret::new(b"key".to_vec()),
        authorized_keys: vec!["ssh-ed25519 AAAA".to_owned()],
        relays: None,
        disks: None,
    };
    let reached = StageReached { stage: Stage::Ready, uptime_ms: 5 };
    let hello = GuestMessage::Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: "1".to_owned(),
        kernel: "6".to_owned(),
        personalised: false,
        stages: vec![reached],
        uptime_ms: Some(2),
        root_mounted_ms: Some(1),
    };
    let failed = GuestMessage::Failed { task: AgentTask::Network, reason: "none".to_owned() };
    let mut messages = vec![
        encode(&HostMessage::Attach),
        encode(&Envelope { session: Some(Session::new(9)), message: GuestMessage::Synced }),
        encode(&HostMessage::Personalise(personality)),
        encode(&HostMessage::PowerOff),
        encode(&hello),
        encode(&GuestMessage::Stage(reached)),
        encode(&GuestMessage::Personalised),
        encode(&failed),
    ];
    messages.push(messages.concat());
    messages
}

/// Returns a short header and one with everything a header can have.
pub(crate) fn exec_headers() -> Vec<Vec<u8>> {
    let short =
        ExecHeader { arguments: vec!["true".into()], environment: Vec::new(), directory: None };
    let arguments = ["printf", "", "%s\n", "x"].map(Into::into).to_vec();
    let environment = vec![("A".into(), "".into()), ("LANG".into(), "C.UTF-8".into())];
    let directory = Some(StartDirectory::Mounted("/src".into()));
    let long = ExecHeader { arguments, environment, directory };
    [short, long].iter().map(|header| header.encode().expect("encodes").split_off(4)).collect()
}

/// Returns sessions with most kinds of frames, one cut off and followed by another, and requests.
pub(crate) fn stream_ports() -> Vec<Vec<u8>> {
    let window = Window { columns: 80, rows: 24, width_px: 0, height_px: 0 };
    let terminal = Terminal { term: "xterm".into(), window };
    let user = || "root".to_owned();
    let shell = Program::Shell;
    let targets = [
        Target::Program { user: user(), program: shell, terminal: Some(terminal) },
        Target::Files { user: user() },
        Target::Tcp(Host { name: "localhost".into(), port: 80 }),
        Target::Socket { user: user(), path: "/run/s".into() },
        Target::Mount { path: "/src".into(), is_read_only: true, sends_changes: true },
    ];
    let targets = targets.map(|target| target.encode().expect("encodes"));
    let hello = Hello::of(Session::new(7));
    let mut session = BytesMut::from(&hello.encode()[..]);
    let frames = [
        Frame::Open(targets[0].clone()),
        Frame::Data(Bytes::from_static(b"x")),
        Frame::Resize(window),
        Frame::Grant(9),
        Frame::Refused(Refusal::UnknownUser),
        Frame::ExitStatus(3),
        Frame::Ping,
    ];
    for (stream, frame) in (0..).zip(&frames) {
        frame.encode(stream, hello.tag(), &mut session);
    }
    let cut = [&session[..session.len() - 5], &padding()[..100], &session[..]].concat();
    targets.iter().map(|target| target.to_vec()).chain([session.to_vec(), cut]).collect()
}

/// Returns most requests and replies, and a stream of them.
pub(crate) fn sftp_packets() -> Vec<Vec<u8>> {
    let text = Bytes::from_static(b"/a/\xff");
    let attributes = Attributes {
        size: Some(1),
        owner: Some((2, 3)),
        mode: Some(0o100_644),
        times: Some((4, 5)),
    };
    let entry = Entry { name: text.clone(), line: text.clone(), attributes };
    let requests = [
        Request::Open { path: text.clone(), flags: Flags::READ.and(Flags::CREATE), attributes },
        Request::Write { handle: text.clone(), offset: 7, data: text.clone() },
        Request::Read { handle: text.clone(), offset: 7, length: 9 },
        Request::Setstat { path: text.clone(), attributes },
        Request::Rename { from: text.clone(), to: text.clone() },
        Request::PosixRename { from: text.clone(), to: text.clone() },
        Request::Statvfs { path: text.clone() },
        Request::Limits,
    ];
    let replies = [
        Reply::Status(Code::FAILURE, text.clone()),
        Reply::Handle(text.clone()),
        Reply::Data(text.clone()),
        Reply::Names(vec![entry.clone(), entry]),
        Reply::Attributes(attributes),
        Reply::Extended(text),
    ];
    let mut packets = vec![Request::init(), Reply::version(&[("posix-rename@openssh.com", "1")])];
    packets.extend(requests.iter().map(|request| request.encode(1)));
    packets.extend(replies.iter().map(|reply| reply.encode(1)));
    let framed = |packet: &Bytes| [&(packet.len() as u32).to_be_bytes()[..], packet].concat();
    let stream = packets.iter().flat_map(framed).collect();
    packets.iter().map(|packet| packet.to_vec()).chain([stream]).collect()
}
