//! A guest's own SSH server: its host key is pinned at the first use, and commands are lines.

use std::fs;

use castra_engine::cancel::Cancel;
use castra_engine::guest::ssh::{Pin, Probe, Server, SshError, Target, capture, probe};

use crate::ssh::guest::Guest;

fn own(guest: &Guest, pin: &std::path::Path) -> Target {
    let server = Server::Own(Pin::read(pin.to_owned()).expect("read"));
    Target { server, streams: None, agent: None, ..guest.target.clone() }
}

fn run(target: &Target, argv: &[&str]) -> Result<String, SshError> {
    let argv = argv.iter().map(Into::into).collect();
    let output = capture(&Cancel::new(), target, argv, 10_000)?;
    assert!(output.exit.is_success(), "{output:?}");
    Ok(String::from_utf8(output.stdout).expect("is text"))
}

#[test]
fn a_host_key_is_pinned_at_its_first_use_and_expected_then() {
    let directory = tempfile::tempdir().expect("a directory");
    let pin = directory.path().join("server_key.pub");
    let guest = Guest::start();
    assert!(matches!(probe(&Cancel::new(), &own(&guest, &pin)), Ok(Probe::Accepted)));
    let pinned = fs::read_to_string(&pin).expect("pinned");
    assert!(pinned.starts_with("ssh-ed25519 AAAA"), "{pinned}");
    assert!(matches!(probe(&Cancel::new(), &own(&guest, &pin)), Ok(Probe::Accepted)));

    let other = Guest::start();
    let error = run(&own(&other, &pin), &["true"]).expect_err("is refused");
    assert!(matches!(&error, SshError::ServerKeyChanged { pin: path, .. } if *path == pin));
    assert_eq!(error.to_string().matches("SHA256:").count(), 2, "{error}");
    assert!(matches!(
        probe(&Cancel::new(), &own(&other, &pin)),
        Err(SshError::ServerKeyChanged { .. })
    ));
    assert_eq!(fs::read_to_string(&pin).expect("kept"), pinned);

    fs::write(&pin, "not a key").expect("written");
    assert!(Pin::read(pin).is_err());
}

#[test]
fn arguments_reach_the_command_as_they_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = Guest::start();
    let target = own(&guest, &directory.path().join("pin"));
    let odd = "a  b'c\"d$HOME;`x`\n";
    let said = run(&target, &["printf", "%s|", odd, "", "*"]).expect("runs");
    assert_eq!(said, format!("{odd}||*|"));
    let long = "x".repeat(200 << 10);
    let error = run(&target, &["printf", "%s", &long]).expect_err("is too long");
    assert!(matches!(error, SshError::NotOverOwnServer { .. }), "{error:?}");
}

#[test]
fn a_key_that_is_not_accepted_is_no_silence() {
    let directory = tempfile::tempdir().expect("a directory");
    let guest = Guest::start();
    let other = Guest::start();
    let pin = directory.path().join("pin");
    let client_key = other.target.client_key.clone();
    let target = Target { client_key, ..own(&guest, &pin) };
    assert!(matches!(probe(&Cancel::new(), &target), Ok(Probe::Refused)));
    assert!(!pin.exists(), "nothing is pinned before a login");
    let error = run(&target, &["true"]).expect_err("is refused");
    assert!(matches!(error, SshError::NotAccepted { .. }), "{error:?}");
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    let target = Target { address: address.expect("an address"), ..own(&guest, &pin) };
    assert!(matches!(probe(&Cancel::new(), &target), Ok(Probe::Closed)));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    let address = silent.local_addr().expect("an address");
    let target = Target { address, ..own(&guest, &pin) };
    assert!(matches!(probe(&Cancel::new(), &target), Ok(Probe::Silent)));
}
