//! A guest whose SSH server was replaced: it lists what it likes, and castra copies from it.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use castra_engine::guest::VmKeys;
use castra_engine::guest::ssh::{Copied, SshError, Target, download};
use castra_engine::layout::ProjectLayout;
use castra_sftp::{Attributes, Code, Entry, Reply, Request, read_packet, write_packet};
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Msg, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o106_777;
const LINK: u32 = 0o120_777;

/// Contents that the server lists for each directory: names with their modes. A directory that is
/// not here contains itself.
type Tree = HashMap<&'static str, Vec<(String, u32)>>;

#[derive(Clone)]
struct Server {
    tree: Arc<Tree>,
    channels: Arc<tokio::sync::Mutex<HashMap<ChannelId, Channel<Msg>>>>,
}

impl russh::server::Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.channels.lock().await.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let opened = self.channels.lock().await.remove(&channel).expect("is open");
        session.channel_success(channel)?;
        let files = Files { tree: Arc::clone(&self.tree), left: HashMap::new() };
        tokio::spawn(files.serve(opened.into_stream()));
        Ok(())
    }
}

struct Files {
    tree: Arc<Tree>,
    left: HashMap<Bytes, Vec<(String, u32)>>,
}

fn attributes(mode: u32) -> Attributes {
    Attributes { mode: Some(mode), size: Some(4), ..Attributes::default() }
}

fn entry(name: &str, mode: u32) -> Entry {
    Entry { name: Bytes::from(name.to_owned()), line: Bytes::new(), attributes: attributes(mode) }
}

fn status(code: Code) -> Reply {
    Reply::Status(code, Bytes::new())
}

impl Files {
    async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let (mut input, mut output) = tokio::io::split(stream);
        read_packet(&mut input).await.expect("reads").expect("is greeted");
        write_packet(&mut output, &Reply::version(&[])).await.expect("writes");
        while let Ok(Some(packet)) = read_packet(&mut input).await {
            let (id, request) = Request::parse(packet).expect("is a request");
            if write_packet(&mut output, &self.answer(request).encode(id)).await.is_err() {
                return;
            }
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Stat { path } => Reply::Attributes(attributes(if path.ends_with(b"file") {
                REGULAR
            } else {
                DIRECTORY
            })),
            Request::Opendir { path } => {
                let here = || vec![("deeper-and-deeper-and-deeper".to_owned(), DIRECTORY)];
                let text = std::str::from_utf8(&path).expect("is text");
                self.left.insert(path.clone(), self.tree.get(text).cloned().unwrap_or_else(here));
                Reply::Handle(path)
            }
            Request::Readdir { handle } => {
                let listed = self.left.get_mut(&handle).map(std::mem::take).unwrap_or_default();
                if listed.is_empty() {
                    return status(Code::EOF);
                }
                // A directory without end: it lists one name as often as it is read.
                if listed[0].0 == "endless" {
                    self.left.insert(handle, listed);
                    return Reply::Names(vec![entry("x", REGULAR); 5000]);
                }
                Reply::Names(listed.iter().map(|(name, mode)| entry(name, *mode)).collect())
            }
            Request::Readlink { path } => {
                let target = if path.ends_with(b"up") { "../../outside" } else { "/etc" };
                Reply::Names(vec![entry(target, LINK)])
            }
            Request::Realpath { .. } => Reply::Names(vec![entry("/tree/..", DIRECTORY)]),
            Request::Open { path, .. } => Reply::Handle(path),
            // More than was requested.
            Request::Read { offset: 0, .. } => Reply::Data(Bytes::from_static(b"evil and more")),
            Request::Read { .. } => status(Code::EOF),
            Request::Close { .. } => status(Code::OK),
            _ => status(Code::UNSUPPORTED),
        }
    }
}

/// Copies `remote` from a server with this tree into `goal`, which is below `scratch`.
fn copy(tree: Tree, remote: &str, scratch: &Path, goal: &Path) -> Result<Copied, SshError> {
    let layout = ProjectLayout::unchecked(scratch.join(".castra")).vm("box");
    let keys = VmKeys::load_or_create(&layout).expect("makes keys");
    let host_key =
        PrivateKey::from_openssh(keys.host_private_pem().expect("encodes")).expect("reads");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("makes a runtime");
    let listener =
        runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("binds a port");
    let target: Target = keys.target(listener.local_addr().expect("has an address"), "root");
    let server = Server { tree: Arc::new(tree), channels: Arc::default() };
    runtime.spawn(async move {
        let config = Arc::new(Config { keys: vec![host_key], ..Config::default() });
        let (stream, _) = listener.accept().await.expect("accepts");
        let _ = russh::server::run_stream(config, stream, server).await.expect("runs").await;
    });
    let copied = download(&target, remote, goal, &mut |_| ());
    runtime.shutdown_background();
    copied
}

fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).expect("reads").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_name_that_leads_elsewhere_ends_the_copy() {
    for name in ["../escaped", "/tmp/escaped", "a/../../escaped", "..\0", "", "a/b"] {
        let scratch = tempfile::tempdir().expect("a directory");
        let goal = scratch.path().join("goal");
        let tree = Tree::from([("/tree", vec![("good".into(), REGULAR), (name.into(), REGULAR)])]);
        let error = copy(tree, "/tree", scratch.path(), &goal).expect_err("is refused");
        assert!(error.to_string().contains("not a file name"), "{name:?}: {error}");
        assert_eq!(names(scratch.path()), [".castra"], "{name:?}: nothing is written at all");
    }
}

#[test]
fn links_and_what_goes_by_the_same_name_do_not_lead_outside() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (goal, outside) = (scratch.path().join("goal"), scratch.path().join("outside"));
    fs::create_dir(&outside).expect("a directory");
    let tree = Tree::from([
        ("/tree", vec![("up".into(), LINK), ("up".into(), DIRECTORY), ("sub".into(), DIRECTORY)]),
        ("/tree/up", vec![("stolen".into(), REGULAR)]),
        ("/tree/sub", vec![("up".into(), LINK), ("up".into(), REGULAR)]),
    ]);
    // The guest decides if the copy succeeds, but not where it writes.
    let _ = copy(tree, "/tree", scratch.path(), &goal);
    assert_eq!(names(&outside), Vec::<String>::new());
    assert_eq!(names(scratch.path()), [".castra", "goal", "outside"]);
}

#[test]
fn a_file_is_no_longer_than_it_said_and_lends_no_rights() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = tempfile::tempdir().expect("a directory");
    let goal = scratch.path().join("goal");
    copy(Tree::new(), "/a/file", scratch.path(), &goal).expect("is copied");
    assert_eq!(fs::read(&goal).expect("reads"), b"evil");
    assert_eq!(fs::metadata(&goal).expect("metadata").permissions().mode() & 0o7000, 0);
}

#[test]
fn trees_without_end_come_to_one() {
    let scratch = tempfile::tempdir().expect("a directory");
    let error =
        copy(Tree::new(), "/deep", scratch.path(), &scratch.path().join("goal")).expect_err("ends");
    assert!(error.to_string().contains("too long"), "{error}");
    let tree = Tree::from([("/wide", vec![("endless".into(), REGULAR)])]);
    let error =
        copy(tree, "/wide", scratch.path(), &scratch.path().join("goal")).expect_err("ends");
    assert!(error.to_string().contains("too many entries"), "{error}");
    assert_eq!(names(scratch.path()), [".castra"]);
}

/// The guest reports the name of `.`, and the copy would get that name.
#[test]
fn a_name_of_the_source_that_leads_up_ends_the_copy() {
    let scratch = tempfile::tempdir().expect("a directory");
    let goal = scratch.path().join("goal");
    fs::create_dir(&goal).expect("a directory");
    for remote in ["/tree/.", "/tree/.."] {
        let tree = Tree::from([("/tree/.", vec![("stolen".into(), REGULAR)])]);
        let error = copy(tree, remote, scratch.path(), &goal).expect_err("ends");
        assert!(error.to_string().contains("not a file name"), "{error}");
        assert_eq!(names(scratch.path()), [".castra", "goal"]);
        assert!(names(&goal).is_empty());
    }
}

/// Far fewer entries than allowed, each with a path that is just short enough.
#[test]
fn paths_of_a_tree_take_bounded_memory() {
    let mut tree = Tree::new();
    let mut path = "/long".to_owned();
    let mut insert = |path: &str, entries| tree.insert(&*path.to_owned().leak(), entries);
    for _ in 0..14 {
        let name = "d".repeat(250);
        insert(&path, vec![(name.clone(), DIRECTORY)]);
        path.extend(["/", &name]);
    }
    let numbered = |letter: &str, count: usize, mode| -> Vec<(String, u32)> {
        (0..count).map(|number| (format!("{letter}{number}"), mode)).collect()
    };
    insert(&path, numbered("d", 20, DIRECTORY));
    for number in 0..20 {
        insert(&format!("{path}/d{number}"), numbered("x", 4000, REGULAR));
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let error =
        copy(tree, "/long", scratch.path(), &scratch.path().join("goal")).expect_err("ends");
    assert!(error.to_string().contains("too many entries"), "{error}");
    assert_eq!(names(scratch.path()), [".castra"]);
}

#[test]
fn a_guest_that_breaks_the_protocol_loses_the_session() {
    for name in ["x".repeat(256), "x".repeat(200_000)] {
        let scratch = tempfile::tempdir().expect("a directory");
        let tree = Tree::from([("/tree", vec![(name, REGULAR)])]);
        let error = copy(tree, "/tree", scratch.path(), &scratch.path().join("goal"))
            .expect_err("is refused");
        assert!(error.to_string().contains("not a file name"), "{error}");
    }
    let scratch = tempfile::tempdir().expect("a directory");
    // A packet longer than any may be.
    let tree = Tree::from([("/tree", vec![("x".repeat(300_000), REGULAR)])]);
    let error =
        copy(tree, "/tree", scratch.path(), &scratch.path().join("goal")).expect_err("is refused");
    assert!(matches!(error, SshError::Lost), "{error:?}");
}

/// The second copy meets the links that the first one created, as the guest wanted them.
#[test]
fn links_of_an_earlier_copy_lead_nowhere() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (goal, outside) = (scratch.path().join("goal"), scratch.path().join("outside"));
    for directory in [&goal, &outside] {
        fs::create_dir(directory).expect("a directory");
    }
    let first = Tree::from([("/tree", vec![("up".into(), LINK), ("file".into(), LINK)])]);
    copy(first, "/tree", scratch.path(), &goal).expect("is copied");
    assert!(goal.join("tree/up").is_symlink() && goal.join("tree/up").is_dir(), "it leads outside");
    let second = Tree::from([
        ("/tree", vec![("up".into(), DIRECTORY), ("file".into(), REGULAR)]),
        ("/tree/up", vec![("stolen".into(), REGULAR)]),
    ]);
    copy(second, "/tree", scratch.path(), &goal).expect("is copied");
    assert_eq!(names(&outside), Vec::<String>::new());
    assert_eq!(fs::read(goal.join("tree/up/stolen")).expect("is there"), b"evil");
    // One file into a directory in which the guest has created a link of its name, and a tree
    // likewise.
    std::os::unix::fs::symlink(outside.join("new"), goal.join("file")).expect("links");
    let error = copy(Tree::new(), "/a/file", scratch.path(), &goal).expect_err("is refused");
    assert!(error.to_string().contains("goal/file"), "{error}");
    std::os::unix::fs::symlink(&outside, goal.join("box")).expect("links");
    let boxed = Tree::from([("/box", vec![("stolen".into(), REGULAR)])]);
    let error = copy(boxed, "/box", scratch.path(), &goal).expect_err("is refused");
    assert!(error.to_string().contains("goal/box"), "{error}");
    assert_eq!(names(&outside), Vec::<String>::new());
}
