//! Directories in which commands start, over each way to a guest.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;

use castra_engine::cancel::Cancel;
use castra_engine::guest::ssh::{
    Command, GuestExit, Interruption, Pin, Server, StartDirectory, Stdin, StreamRequest, Target,
    stream,
};

use crate::ssh::guest::Guest;

/// Runs a command in a directory, and returns its exit and its output.
fn run(
    target: &Target,
    command: Command,
    directory: Option<StartDirectory>,
    input: &str,
) -> (GuestExit, Vec<u8>) {
    let request = StreamRequest {
        command,
        environment: vec![("NAME".into(), "value".into())],
        directory,
        stdin: Stdin::Bytes(input.to_owned().into()),
        interruption: Interruption::Cancel,
    };
    let mut output = Vec::new();
    let exit = stream(&Cancel::new(), target, request, &mut |_, bytes| {
        output.extend_from_slice(bytes);
        ControlFlow::Continue(())
    });
    (exit.expect("runs"), output)
}

#[test]
fn commands_lines_and_shells_start_in_their_directory() {
    let (direct, over_ssh) = (Guest::start_without_network(), Guest::start());
    let server = Server::Own(Pin::read(over_ssh.scratch().join("pin")).expect("read"));
    let own_server = Target { server, streams: None, agent: None, ..over_ssh.target.clone() };
    let scratch = over_ssh.scratch().canonicalize().expect("a path");
    let place = scratch.join(OsStr::from_bytes(b"a  b'c\"$HOME;`x`\xff"));
    fs::create_dir(&place).expect("made");
    let missing = scratch.join("missing");

    for (way, target) in
        [("direct", &direct.target), ("SSH", &over_ssh.target), ("own server", &own_server)]
    {
        let commands = [
            (Command::Argv(vec!["pwd".into()]), ""),
            (Command::Line("pwd".into()), ""),
            (Command::Shell, "pwd\nexit\n"),
        ];
        for (command, input) in commands {
            let said = |directory| {
                let (exit, output) = run(target, command.clone(), directory, input);
                let line = output.split(|byte| *byte == b'\n').next().unwrap_or_default();
                (exit, OsStr::from_bytes(line).to_owned())
            };
            let there = (GuestExit::Code(0), place.clone().into_os_string());
            let (named, mounted) = (StartDirectory::Named, StartDirectory::Mounted);
            assert_eq!(said(Some(named(place.clone().into()))), there, "{way} {command:?}");
            assert_eq!(said(Some(mounted(place.clone().into()))), there, "{way} {command:?}");
            assert_eq!(
                said(Some(mounted(missing.clone().into()))),
                said(None),
                "{way} {command:?}"
            );
            let refused = said(Some(named(missing.clone().into())));
            assert_eq!(refused.0, GuestExit::Code(126), "{way} {command:?}: {refused:?}");
        }
    }
}
