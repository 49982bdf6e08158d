use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use castra_engine::guest::VmKeys;
use castra_engine::guest::ssh::{GuestExit, SshError, Target, capture};
use castra_engine::layout::ProjectLayout;

use crate::ssh::guest::Guest;

fn whoami(target: &Target) -> Result<String, SshError> {
    let output = capture(
        &castra_engine::cancel::Cancel::new(),
        target,
        ["id", "-un"].map(Into::into).to_vec(),
        1000,
    )?;
    Ok(String::from_utf8(output.stdout).expect("is text").trim().to_owned())
}

/// Returns keys that the guest does not know.
fn other_keys() -> (tempfile::TempDir, VmKeys) {
    let directory = tempfile::tempdir().expect("makes a directory");
    let layout = ProjectLayout::unchecked(directory.path().to_owned()).vm("other");
    let keys = VmKeys::load_or_create(&layout).expect("makes keys");
    (directory, keys)
}

#[test]
fn another_host_key_is_not_accepted() {
    let guest = Guest::start();
    let (_directory, other) = other_keys();
    let server = other.target(guest.target.address, "root").server;
    let error = whoami(&Target { server, ..guest.target.clone() }).expect_err("is refused");
    assert!(matches!(error, SshError::HostKeyMismatch { .. }), "{error:?}");
    assert_eq!(error.to_string().matches("SHA256:").count(), 2, "{error}");
}

#[test]
fn another_client_key_is_refused() {
    let guest = Guest::start();
    let (_directory, other) = other_keys();
    let client_key = other.target(guest.target.address, "root").client_key;
    let error = whoami(&Target { client_key, ..guest.target.clone() }).expect_err("is refused");
    assert!(matches!(error, SshError::Refused { .. }), "{error:?}");
}

#[test]
fn an_unknown_user_is_distinguished_from_a_wrong_key() {
    let guest = Guest::start();
    let error = whoami(&Target { user: "no-such-user".into(), ..guest.target.clone() })
        .expect_err("is refused");
    assert!(
        matches!(&error, SshError::UnknownUser { user } if user == "no-such-user"),
        "{error:?}"
    );
}

#[test]
fn a_port_without_a_vm_is_unreachable() {
    let guest = Guest::start();
    let free =
        TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has an address");
    let error = whoami(&Target { address: free, ..guest.target.clone() }).expect_err("fails");
    assert!(matches!(error, SshError::Unreachable { .. }), "{error:?}");
}

#[test]
fn a_port_that_closes_at_once_is_a_failed_handshake() {
    let guest = Guest::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let address = listener.local_addr().expect("has an address");
    let closer = thread::spawn(move || drop(listener.accept().expect("accepts")));
    let error = whoami(&Target { address, ..guest.target.clone() }).expect_err("fails");
    assert!(matches!(error, SshError::Handshake { .. }), "{error:?}");
    closer.join().expect("ends");
}

#[test]
fn connections_wait_for_the_keys() {
    let guest = Guest::start_without_keys();
    thread::scope(|scope| {
        let early = scope.spawn(|| whoami(&guest.target));
        thread::sleep(Duration::from_millis(100));
        assert!(!early.is_finished());
        guest.personalise();
        assert_eq!(early.join().expect("ends").expect("logs in"), guest.target.user);
    });
}

#[test]
fn new_keys_replace_the_old() {
    let guest = Guest::start();
    let (_directory, other) = other_keys();
    let pem = other.host_private_pem().expect("encodes");
    guest.server.personalise(&pem, &[other.client_public_line()]).expect("takes the keys");
    let old = whoami(&guest.target).expect_err("is another VM now");
    assert!(matches!(old, SshError::HostKeyMismatch { .. }), "{old:?}");
    let new = other.target(guest.target.address, &guest.target.user);
    assert_eq!(whoami(&new).expect("logs in"), guest.target.user);
}

#[test]
fn broken_keys_change_nothing() {
    let guest = Guest::start();
    guest.server.personalise(b"nonsense", &[]).expect_err("is no key");
    let keys = VmKeys::load_or_create(&guest.layout).expect("reads keys");
    let pem = keys.host_private_pem().expect("encodes");
    let error =
        guest.server.personalise(&pem, &["ssh-ed25519 nonsense".into()]).expect_err("is no key");
    assert!(error.to_string().starts_with("authorised key 1 "), "{error}");
    assert_eq!(whoami(&guest.target).expect("logs in"), guest.target.user);
}

#[test]
fn root_becomes_another_user_with_all_groups() {
    if !rustix::process::geteuid().is_root() {
        castra_test_support::skip("only root can become another user");
        return;
    }
    let guest = Guest::start();
    let target = Target { user: "nobody".into(), ..guest.target.clone() };
    // The user's shell may be nologin; SFTP needs none, and shows the rights.
    let private = guest.scratch().join("private");
    std::fs::write(&private, "secret").expect("writes");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o600)).expect("sets");
    let goal = guest.scratch().join("copy");
    let path = private.to_str().expect("is text");
    let error = castra_engine::guest::ssh::download(&target, path, &goal, &mut |_| ())
        .expect_err("is not allowed");
    assert!(error.to_string().contains("ermission denied"), "{error}");
    castra_engine::guest::ssh::download(&guest.target, path, &goal, &mut |_| ()).expect("root may");
    assert_eq!(rustix::process::geteuid().as_raw(), 0, "only that thread gave up its rights");
    let output = guest.capture("id -u; exit 0");
    assert_eq!((output.exit, output.stdout), (GuestExit::Code(0), b"0\n".to_vec()));
}

/// Any program of the guest can open connections, and any user of this machine.
#[test]
fn connections_that_never_log_in_give_way_to_newer_ones() {
    let guest = Guest::start();
    let open = |_| {
        let mut stream = TcpStream::connect(guest.target.address).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        stream.read_exact(&mut [0; 8]).expect("a greeting");
        stream
    };
    let mut idle: Vec<_> = (0..80).map(open).collect();
    let is_over = |stream: &mut TcpStream| {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).is_ok()
    };
    assert!(idle[..16].iter_mut().all(is_over), "the oldest have ended");
    assert!(whoami(&guest.target).is_ok());
    idle[79].set_read_timeout(Some(Duration::from_millis(50))).expect("set");
    assert!(!is_over(&mut idle[79]), "the newest has not");
}
