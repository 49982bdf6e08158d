use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::Command;

use castra_engine::guest::ssh::{capture, quote};
use proptest::prelude::*;

use crate::ssh::guest::Guest;

/// Returns any bytes but NUL, which no argument can hold.
fn argument() -> impl Strategy<Value = OsString> {
    prop_oneof![
        prop::collection::vec(1_u8.., 0..24).prop_map(OsString::from_vec),
        r#"[ '"\\$`!*?~=;&|<>(){}\[\]#%^\n\t-]{0,12}"#.prop_map(OsString::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_argument_survives_a_shell(arguments in prop::collection::vec(argument(), 0..6)) {
        let mut argv: Vec<OsString> = ["printf", "%s\\0"].map(OsString::from).to_vec();
        argv.extend(arguments.iter().cloned());
        let line = quote(&argv);
        let line = OsStr::from_bytes(&line);
        let output = Command::new("sh").arg("-c").arg(line).output().expect("runs");
        let mut expected: Vec<u8> =
            arguments.iter().flat_map(|one| [one.as_bytes(), b"\0"].concat()).collect();
        if arguments.is_empty() {
            expected.push(0);
        }
        prop_assert_eq!(output.stdout, expected);
    }
}

#[test]
fn a_first_word_is_a_program_whatever_it_looks_like() {
    for word in ["A=b", "~root", "if", "#"] {
        let line = quote(&[OsString::from(word)]);
        let output =
            Command::new("sh").arg("-c").arg(OsStr::from_bytes(&line)).output().expect("runs");
        assert_eq!(output.status.code(), Some(127), "{word} is not found");
    }
}

#[test]
fn arguments_reach_the_guest_unchanged() {
    let arguments = ["a b", "", "it's", "$HOME", "\u{e9}\n", "*"];
    let argv = ["printf", "%s|"].iter().chain(&arguments).map(OsString::from).collect();
    let output = capture(&castra_engine::cancel::Cancel::new(), &Guest::start().target, argv, 1000)
        .expect("runs");
    assert_eq!(String::from_utf8(output.stdout).expect("is text"), "a b||it's|$HOME|\u{e9}\n|*|");
}
