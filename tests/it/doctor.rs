//! `castra doctor` on this machine and on machines that lack something.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use castra_test_support::{Ended, Project, image_cache, linked_cache};
use serde_json::Value;

#[track_caller]
fn finding(ended: &Ended, check: &str) -> Value {
    let document = ended.document("doctor");
    let findings = document["findings"].as_array().expect("a list").clone();
    let found = findings.into_iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("{check} was not looked at: {document:#}"))
}

#[test]
fn this_machine_can_run_vms() {
    let project = Project::isolated();
    let ended = project.run(&["doctor", "--offline", "--json"]).ok();
    assert_eq!(ended.document("doctor")["healthy"], true);
    for check in [
        "qemu-version",
        "qemu-img-version",
        "qemu-features",
        "tcg",
        "clock",
        "cache",
        "configuration",
    ] {
        assert_eq!(finding(&ended, check)["severity"], "good", "{check}: {}", ended.text());
    }
    let text = project.run(&["doctor", "--offline"]).ok().says("can run").text();
    assert!(text.contains("QEMU\n  ✓ ") && text.contains("tcg works"), "{text}");
    assert!(
        fs::read_dir(project.path()).expect("listed").next().is_none(),
        "looking makes nothing"
    );
}

#[test]
fn what_is_missing_is_a_problem_with_a_way_out() {
    let project = Project::isolated();
    let mut command = project.castra(&["doctor", "--offline", "--json"]);
    command.env("PATH", project.path());
    let ended = Ended::of(command).code(78);
    for check in ["qemu", "qemu-img"] {
        let found = finding(&ended, check);
        assert_eq!(found["severity"], "problem");
        assert!(found["fix"].as_str().is_some_and(|fix| fix.contains("apt install")), "{found:#}");
    }
    // A program of that name that is not QEMU.
    let mut command = project.castra(&["doctor", "--offline", "--json"]);
    command.env("CASTRA_QEMU", "/bin/false");
    assert_eq!(finding(&Ended::of(command).code(78), "qemu-features")["severity"], "problem");
    project.write("castra.toml", "[[vms]]\nname = \"a b\"\nmanaged_image = \"alpine-minimal\"\n");
    let ended = project.run(&["doctor", "--offline", "--json"]).code(78);
    let found = finding(&ended, "configuration");
    assert!(found["message"].as_str().is_some_and(|text| text.ends_with("(1 error)")), "{found:#}");
}

#[test]
fn what_can_be_mended_is_mended() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    let runtime = project.path().with_file_name("run").join("castra");
    fs::create_dir(&runtime).expect("made");
    fs::set_permissions(&runtime, Permissions::from_mode(0o755)).expect("set");
    let templates = project.cache().join("templates");
    let template = fs::read_dir(&templates).expect("listed").flatten().map(|entry| entry.path());
    let manifest = template.map(|path| path.join("template.json")).find(|path| path.is_file());
    let manifest = manifest.expect("a warm template");
    let text = fs::read_to_string(&manifest).expect("read");
    // A link from the shared cache: another file takes its place.
    fs::remove_file(&manifest).expect("removed");
    fs::write(&manifest, text.replace("/qemu-system-x86_64", "/older/qemu-system-x86_64"))
        .expect("written");

    let ended = project.run(&["doctor", "--offline", "--json"]).ok();
    for check in ["runtime-directory", "outdated-templates"] {
        let found = finding(&ended, check);
        assert_eq!(
            (&found["severity"], &found["can_be_mended"]),
            (&"warning".into(), &true.into()),
            "{found:#}"
        );
    }
    project.run(&["doctor", "--offline", "--strict"]).code(78);
    let ended = project.run(&["doctor", "--offline", "--fix", "--json"]).ok();
    let document = ended.document("doctor");
    assert_eq!(document["mended"].as_array().map(Vec::len), Some(2), "{document:#}");
    assert_eq!(finding(&ended, "runtime-directory")["severity"], "good");
    assert!(!manifest.exists());
    assert_eq!(fs::metadata(&runtime).expect("there").permissions().mode() & 0o777, 0o700);
}

#[test]
fn vms_that_are_not_as_they_should_be_are_reported() {
    let project = Project::with_cache(image_cache());
    for (vm, record) in [("cut", "{"), ("newer", r#"{"format": 99}"#)] {
        let directory = project.path().join(".castra/vms").join(vm);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("vm.json"), record).expect("written");
    }
    project.adopt();
    let document = project.run(&["doctor", "--offline", "--json"]).code(78).document("doctor");
    let about = |word: &str| {
        let findings = document["findings"].as_array().expect("a list");
        let found = findings
            .iter()
            .find(|finding| finding["message"].as_str().is_some_and(|text| text.contains(word)));
        found.unwrap_or_else(|| panic!("nothing about {word}: {document:#}")).clone()
    };
    assert!(about("`cut` is damaged")["fix"].is_string());
    assert!(about("format 99")["fix"].as_str().is_some_and(|fix| fix.contains("Update castra")));
}
