//! `castra config check` and `config show`: their findings and their output, for people and for
//! programs.

use std::net::TcpListener;

use castra_test_support::Project;
use serde_json::Value;

const TWO_ERRORS: &str = r#"[[vms]]
name = "web"
managed_image = "alpine-minimal"
memory = "1.5 GiB"
dsk = 3

[[vms]]
name = "own"
base_image = "é/not-here.qcow2"
"#;

#[test]
fn all_problems_are_reported_at_once_with_their_places() {
    let project = Project::isolated();
    project.write("castra.toml", TWO_ERRORS);
    let checked = project.run(&["config", "check"]).code(65);
    let text = checked.text();
    for part in [
        "the size `1.5 GiB` has a fraction",
        "castra.toml:4:10",
        "Did you mean `disk`?",
        "the base image of VM `own` is missing",
        "castra.toml:9:14",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    checked.says("cannot be used: 2 errors, 1 warning");
    assert!(!project.path().join(".castra").exists(), "nothing was made");

    let checked = project.run(&["config", "check", "--json"]).code(65);
    let document = checked.document("config check");
    assert_eq!(document["usable"], false);
    let found: Vec<&Value> = document["diagnostics"].as_array().expect("a list").iter().collect();
    let severities: Vec<&str> = found.iter().filter_map(|one| one["severity"].as_str()).collect();
    assert_eq!(severities, ["error", "warning", "error"]);
    assert_eq!((&found[0]["start"]["line"], &found[0]["start"]["column"]), (&4.into(), &10.into()));
    assert_eq!((&found[2]["start"]["line"], &found[2]["end"]["column"]), (&9.into(), &32.into()));
    assert!(found.iter().all(|one| one["hint"].as_str().is_some_and(|hint| !hint.is_empty())));
    assert!(checked.stderr.is_empty(), "{}", checked.stderr);
}

#[test]
fn a_taken_port_is_a_warning_and_a_text_is_no_disk() {
    let project = Project::isolated();
    let holder = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
    let port = holder.local_addr().expect("an address").port();
    let vm = "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n";
    project
        .write("castra.toml", &format!("{vm}port_forwards = [{{ host = {port}, guest = 80 }}]\n"));
    let checked = project.run(&["config", "check"]).ok();
    assert!(checked.text().contains(&format!("port {port}/tcp")), "{}", checked.text());
    checked.says("can be used: 1 warning");
    drop(holder);
    project.run(&["config", "check"]).ok().says("is valid");

    project.write("disk.qcow2", &"not a disk ".repeat(100));
    project.write("castra.toml", "[[vms]]\nname = \"own\"\nbase_image = \"disk.qcow2\"\n");
    let checked = project.run(&["config", "check"]).code(65);
    assert!(checked.text().contains("qcow2"), "{}", checked.text());
}

#[test]
fn the_file_that_is_meant_is_looked_at() {
    let project = Project::isolated();
    project.run(&["config", "check"]).ok().says("There is no castra.toml here");
    std::fs::create_dir(project.path().join("other")).expect("a directory");
    project.write("other/castra.toml", TWO_ERRORS);
    project.run(&["config", "check", "other"]).code(65);
    project.run(&["config", "check", "other/castra.toml"]).code(65);
    project.run(&["--config", "other", "config", "check"]).code(65);
    project.run(&["config", "check", "nowhere.toml"]).code(66).says("nowhere.toml");
    project.write("castra.toml", "[[vms]");
    let checked = project.run(&["config", "check"]).code(65);
    assert!(checked.text().contains("castra.toml:1:"), "{}", checked.text());
    project.write("castra.toml", "version = 7\n");
    project.run(&["config", "check"]).code(65).says("formats up to 1");
}

#[test]
fn what_comes_of_a_file_is_shown_with_its_reasons() {
    let project = Project::isolated();
    let default = project.run(&["config", "show"]).ok().text();
    assert!(
        default.contains("the first available of alpine-minimal@v1, alpine-pypi@v1"),
        "{default}"
    );
    project.run(&["init"]).ok();
    project.run(&["config", "check"]).ok().says("is valid");
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"web\"\nmanaged_image = \"mine\"\ncpus = 2\n\n[images.mine]\n\
        min_memory = \"2 GiB\"\n\
        rootfs = { path = \"d.qcow2\", sha256 = \
        \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\" }\n",
    );
    let text = project.run(&["config", "show"]).ok().text();
    for part in [
        "mine@v1",
        "line 3, described in this file",
        "the image has no kernel",
        "(line 4)",
        "the image's minimum",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let shown = project.run(&["config", "show", "--json"]).ok();
    let document = shown.document("config show");
    let vm = &document["vms"][0];
    assert_eq!((&vm["cpus"]["value"], &vm["cpus"]["line"]), (&2.into(), &4.into()));
    assert_eq!(
        (&vm["disk_bytes"]["value"], &vm["disk_bytes"]["line"]),
        (&10_737_418_240_u64.into(), &Value::Null)
    );
    project.write("castra.toml", TWO_ERRORS);
    project.run(&["config", "show"]).code(65).says("has a fraction");
}
