//! Documents that no one would write: many problems, escape sequences, noise.

use proptest::prelude::*;

use super::*;

#[test]
fn many_problems_are_counted_not_shown() {
    let lines: String = (0..100).map(|number| format!("unknown{number} = 1\n")).collect();
    let text = project(&vm(&lines)).warnings.render(false);
    assert_eq!(text.matches("warning: ").count(), 20);
    assert!(text.ends_with("… and 80 more."), "{text}");
}

#[test]
fn colour_only_where_it_is_wanted() {
    let Err(ConfigError::Invalid(diagnostics)) = parsed("vms = []") else {
        panic!("it must be refused")
    };
    assert!(diagnostics.render(true).contains('\u{1b}'));
    assert!(!diagnostics.render(false).contains('\u{1b}'));
}

#[test]
fn a_file_cannot_drive_the_terminal() {
    let text = refusal(
        "[[vms]]\nname = \"\\u001b[31m\"\nmanaged_image = \"\\u001b]0;x\\u0007\"\n\
        \"\\u001b[2J\" = 1\n",
    );
    assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
}

/// Generates lines that mean something, right or wrong, for documents that get past the parser.
fn lines() -> impl Strategy<Value = String> {
    let keys = prop::sample::select(vec![
        "version",
        "name",
        "cpus",
        "memory",
        "disk",
        "overlay",
        "base_image",
        "managed_image",
        "boot_profile",
        "firmware",
        "port_forwards",
        "state_dir",
        "mirrors",
        "keys",
        "url",
        "path",
        "sha256",
        "pipeline",
        "rootfs",
        "kernel",
        "é",
    ]);
    let values = prop::sample::select(vec![
        "1",
        "-1",
        "0x10",
        "1.5",
        "nan",
        "true",
        "\"\"",
        "\"a\"",
        "\"é\"",
        "\"..\"",
        "\"1 GiB\"",
        "\"~/x\"",
        "[]",
        "{}",
        "[{}]",
        "[1, \"x\"]",
        "{ name = \"x\" }",
        "[{ host = 1, guest = 1 }]",
        "1979-05-27",
        "\"alpine-minimal\"",
    ]);
    let headers = prop::sample::select(vec![
        "[[vms]]",
        "[vms]",
        "[project]",
        "[images]",
        "[images.x]",
        "[images.x.rootfs]",
        "[[vms.port_forwards]]",
    ]);
    let assignments = (keys, values).prop_map(|(key, value)| format!("{key} = {value}\n"));
    prop_oneof![3 => assignments, 1 => headers.prop_map(|header| format!("{header}\n"))]
}

proptest! {
    #[test]
    fn any_text_is_a_project_or_a_refusal(text in any::<String>()) {
        if let Err(error) = parsed(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_document_is_a_project_or_a_refusal(lines in prop::collection::vec(lines(), 0..12)) {
        match parsed(&lines.concat()) {
            Ok(project) => {
                prop_assert!(!project.vms.is_empty());
                prop_assert_eq!(is_valid(&lines.concat()), project.warnings.is_empty());
            }
            Err(ConfigError::Invalid(problems)) => {
                prop_assert!(problems.render(true).contains("help"));
            }
            Err(ConfigError::TooNew { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
