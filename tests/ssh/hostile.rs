//! A guest whose SSH server was replaced: it lists what it likes, and castra copies from it.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use castra::guest::VmKeys;
use castra::guest::ssh::{Copied, SshError, Target, download};
use castra::layout::ProjectLayout;
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Msg, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use russh_sftp::protocol::{Attrs, Data, File, FileAttributes, Handle, Name, OpenFlags, Status, StatusCode};
use tokio::net::TcpListener;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o106_777;
const LINK: u32 = 0o120_777;

/// What the server lists for each directory: names with their modes. A directory that is not here holds itself.
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
        tokio::spawn(russh_sftp::server::run(opened.into_stream(), files));
        Ok(())
    }
}

struct Files {
    tree: Arc<Tree>,
    left: HashMap<String, Vec<(String, u32)>>,
}

fn attributes(mode: u32) -> FileAttributes {
    FileAttributes { permissions: Some(mode), size: Some(4), ..FileAttributes::empty() }
}

impl Files {
    fn done(id: u32) -> Status {
        Status { id, status_code: StatusCode::Ok, error_message: String::new(), language_tag: String::new() }
    }
}

impl russh_sftp::server::Handler for Files {
    type Error = StatusCode;

    fn unimplemented(&self) -> StatusCode {
        StatusCode::OpUnsupported
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, StatusCode> {
        let mode = if path.ends_with("file") { REGULAR } else { DIRECTORY };
        Ok(Attrs { id, attrs: attributes(mode) })
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, StatusCode> {
        let here = || vec![("deeper-and-deeper-and-deeper".to_owned(), DIRECTORY)];
        let listed = self.tree.get(path.as_str()).cloned().unwrap_or_else(here);
        self.left.insert(path.clone(), listed);
        Ok(Handle { id, handle: path })
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, StatusCode> {
        let listed = self.left.get_mut(&handle).map(std::mem::take).unwrap_or_default();
        if listed.is_empty() {
            return Err(StatusCode::Eof);
        }
        // One name without end: the directory goes on for as long as anybody asks.
        if listed[0].0 == "endless" {
            self.left.insert(handle, listed.clone());
            let one = File { filename: "x".into(), longname: String::new(), attrs: attributes(REGULAR) };
            return Ok(Name { id, files: vec![one; 5000] });
        }
        let files = listed.into_iter().map(|(name, mode)| File::new(name, attributes(mode)));
        Ok(Name { id, files: files.collect() })
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, StatusCode> {
        let target = if path.ends_with("up") { "../../outside" } else { "/etc" };
        Ok(Name { id, files: vec![File::new(target, FileAttributes::empty())] })
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        _flags: OpenFlags,
        _attributes: FileAttributes,
    ) -> Result<Handle, StatusCode> {
        Ok(Handle { id, handle: filename })
    }

    async fn read(
        &mut self,
        id: u32,
        _handle: String,
        offset: u64,
        _length: u32,
    ) -> Result<Data, StatusCode> {
        // More than was asked for.
        if offset == 0 { Ok(Data { id, data: b"evil and more".to_vec() }) } else { Err(StatusCode::Eof) }
    }

    async fn close(&mut self, id: u32, _handle: String) -> Result<Status, StatusCode> {
        Ok(Self::done(id))
    }
}

/// Copies `remote` from a server with this tree into `goal`, which is below `scratch`.
fn copy(tree: Tree, remote: &str, scratch: &Path, goal: &Path) -> Result<Copied, SshError> {
    let layout = ProjectLayout::new(scratch.join(".castra")).vm("box");
    let keys = VmKeys::load_or_create(&layout).expect("makes keys");
    let host_key = PrivateKey::from_openssh(keys.host_private_pem().expect("encodes")).expect("reads");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("makes a runtime");
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("binds a port");
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
        assert!(error.to_string().contains("no file name"), "{name:?}: {error}");
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
    // Whether it comes to its end is the guest's affair; where it writes is not.
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
    let error = copy(Tree::new(), "/deep", scratch.path(), &scratch.path().join("goal")).expect_err("ends");
    assert!(error.to_string().contains("too long"), "{error}");
    let tree = Tree::from([("/wide", vec![("endless".into(), REGULAR)])]);
    let error = copy(tree, "/wide", scratch.path(), &scratch.path().join("goal")).expect_err("ends");
    assert!(error.to_string().contains("too much"), "{error}");
    assert_eq!(names(scratch.path()), [".castra"]);
}
