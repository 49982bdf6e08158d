//! Arguments and variables on their way to the guest: every byte, and as many as the guest's kernel
//! accepts.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;

use castra_engine::cancel::Cancel;
use castra_engine::error::Explain as _;
use castra_engine::guest::ssh::{self, Command, ExecRequest, GuestExit, SshError, Target};
use rustix::process::{Resource, getrlimit};

use super::start;
use crate::ssh::guest::{drain, pipes};

/// Longest argument, in bytes: `MAX_ARG_STRLEN` of Linux, without the NUL.
const LONGEST: usize = 128 * 1024 - 1;

pub(in crate::ssh) fn owned(words: &[&[u8]]) -> Vec<OsString> {
    words.iter().map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// Runs a command without a shell around it, and returns exit and stdout.
pub(in crate::ssh) fn exec(
    target: &Target,
    argv: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: &[u8],
) -> Result<(GuestExit, Vec<u8>), SshError> {
    let (stdio, stdin, stdout, _stderr) = pipes();
    File::from(stdin).write_all(input).expect("fits into a pipe");
    let stdout = drain(stdout);
    let request = ExecRequest {
        command: Command::Argv(argv),
        tty: None,
        environment,
        directory: None,
        stdio,
    };
    let exit = ssh::exec(&Cancel::new(), target, request)?;
    Ok((exit, stdout.join().expect("reads")))
}

/// Returns `sh` with a script and this many bytes of arguments, none of them long by itself.
pub(in crate::ssh) fn many(script: &str, bytes: usize) -> Vec<OsString> {
    let mut argv = owned(&[b"sh", b"-c", script.as_bytes(), b"sh"]);
    argv.extend((0..bytes / 100_000).map(|_| OsString::from("x".repeat(99_991))));
    argv
}

#[test]
fn every_byte_reaches_the_guest() {
    let every: Vec<u8> = (1..=255).collect();
    let argv =
        owned(&[b"sh", b"-c", b"printf '%s|' \"$@\" \"$VALUE\"", b"sh", &every, b"", b"\xff"]);
    let environment = vec![("VALUE".into(), OsString::from_vec(b"a=\xfe\n".to_vec()))];
    let (exit, stdout) = exec(&start().target, argv, environment, b"").expect("runs");
    assert_eq!(exit, GuestExit::Code(0));
    assert_eq!(stdout, [&every, &b"||\xff|a=\xfe\n|"[..]].concat());
}

#[test]
fn stdin_follows_the_arguments() {
    let guest = start();
    for length in [0, 1, 70_000, 1_000_000] {
        let (exit, stdout) =
            exec(&guest.target, many("cat", length), Vec::new(), b"input").expect("runs");
        assert_eq!(
            (exit, &stdout[..]),
            (GuestExit::Code(0), &b"input"[..]),
            "{length} bytes of arguments"
        );
    }
}

#[test]
fn what_the_kernel_takes_works() {
    let guest = start();
    let longest = OsString::from("x".repeat(LONGEST));
    let argv = [owned(&[b"sh", b"-c", b"echo ${#1}", b"sh"]), vec![longest]].concat();
    let (exit, stdout) = exec(&guest.target, argv, Vec::new(), b"").expect("runs");
    assert_eq!((exit, stdout), (GuestExit::Code(0), format!("{LONGEST}\n").into_bytes()));

    let limit = getrlimit(Resource::Stack).current.map_or(6 << 20, |stack| stack / 4).min(6 << 20);
    let bytes = usize::try_from(limit).expect("fits") - 100_000;
    let (exit, stdout) =
        exec(&guest.target, many("echo $#", bytes), Vec::new(), b"").expect("runs");
    assert_eq!((exit, stdout), (GuestExit::Code(0), format!("{}\n", bytes / 100_000).into_bytes()));
}

#[test]
fn more_than_that_is_an_error_and_nothing_runs() {
    let guest = start();
    let mark = guest.scratch().join("ran");
    let script = format!("touch {}", mark.display());
    let one = OsString::from("x".repeat(LONGEST + 1));
    let commands = [
        [owned(&[b"sh", b"-c", script.as_bytes(), b"sh"]), vec![one]].concat(),
        // More than Linux accepts with any limits.
        many(&script, 7 << 20),
        // More than castra sends.
        many(&script, 9 << 20),
    ];
    for argv in commands {
        let error = exec(&guest.target, argv, Vec::new(), b"").expect_err("is refused");
        assert!(matches!(error, SshError::TooLong), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("128 KiB")));
    }
    let line = format!("{script}; : {}", "x".repeat(LONGEST));
    let (stdio, _stdin, _stdout, _stderr) = pipes();
    assert!(matches!(guest.exec_on(stdio, &line, None), Err(SshError::TooLong)));
    assert!(!mark.exists());
    assert_eq!(guest.capture("exit 3").exit, GuestExit::Code(3), "the server is well");
}

#[test]
fn variables_are_limited_by_the_kernel_alone() {
    let environment: Vec<(OsString, OsString)> =
        (0..1000).map(|number| (format!("V{number}").into(), "value".into())).collect();
    let argv = owned(&[b"sh", b"-c", b"env | grep -c ^V.*=value"]);
    let (_, stdout) = exec(&start().target, argv, environment, b"").expect("runs");
    assert_eq!(stdout, b"1000\n");
}

#[test]
fn commands_are_found_and_fail_as_in_a_shell() {
    let target = &start().target;
    for (words, code) in [
        (&[&b"/etc/passwd"[..]][..], 126),
        (&[b"nonexistent-command", b"a"], 127),
        (&[b"a | b"], 127),
        (&[b"A=b"], 127),
        (&[b"exit", b"3"], 3),
    ] {
        let (exit, _) = exec(target, owned(words), Vec::new(), b"").expect("runs");
        assert_eq!(exit, GuestExit::Code(code), "{words:?}");
    }
    let own = vec![("PATH".into(), "/nowhere".into())];
    let (exit, _) = exec(target, owned(&[b"env"]), own, b"").expect("runs");
    assert_eq!(exit, GuestExit::Code(127), "it is the PATH that was asked for");
}
