//! Words that castra does not understand, and names that do not exist.

use castra_test_support::{Fake, Project, shown_in_terminal};

use crate::newcomer::transcript::{holds, transcript};

#[test]
fn an_unknown_subcommand() {
    holds("unknown_subcommand", &transcript(&Project::isolated(), &["strat"]));
}

#[test]
fn exec_without_a_command() {
    let fake = Fake::new(&["vm"]);
    holds("exec_without_dashes", &transcript(&fake, &["exec", "ls", "-l"]));
    holds("exec_without_command", &transcript(&fake, &["exec"]));
}

#[test]
fn a_vm_that_does_not_run() {
    let fake = Fake::new(&["web"]);
    holds("exec_before_up", &transcript(&fake, &["exec", "--", "true"]));
    fake.run(&["up", "--no-wait", "--cold"]).ok();
    fake.run(&["suspend"]).ok();
    holds("exec_in_a_suspended_vm", &transcript(&fake, &["exec", "--", "true"]));
    holds("down_of_a_suspended_vm", &transcript(&fake, &["down", "web"]));
    let dropped = fake.run(&["down", "--discard-suspended"]).ok();
    assert!(!dropped.stderr.contains("was not running"), "{}", dropped.stderr);
    dropped.says("dropped its saved memory; its disk is kept");
    holds("exec_in_a_stopped_vm", &transcript(&fake, &["exec", "--", "true"]));
    holds("suspend_of_a_stopped_vm", &transcript(&fake, &["suspend", "web"]));
}

/// The names in tips are those that the next command needs.
#[test]
fn one_vm_of_several_is_named_in_the_tips() {
    let fake = Fake::new(&["web", "db"]);
    let tips = |words: &[&str]| fake.run(words).ok().stderr;
    let of_one = tips(&["up", "web", "--cold"]);
    assert!(of_one.contains("castra shell web\n  castra down web\n"), "{of_one}");
    let of_both = tips(&["up", "--cold"]);
    assert!(of_both.contains("castra shell db\n"), "{of_both}");
    assert!(of_both.ends_with("castra down\n"), "{of_both}");
    let single = Fake::new(&["web"]).run(&["up", "--cold"]).ok().stderr;
    assert!(single.ends_with("  castra shell\n  castra down\n"), "{single}");
}

/// Once, and only where someone reads it and has not decided yet.
#[test]
fn the_first_start_of_a_project_suggests_a_mount() {
    const SUGGESTION: &str = "  castra mount web .:/src    ";
    let fake = Fake::new(&["web"]);
    let up = || shown_in_terminal(fake.castra(&["up", "--cold"]));
    let first = up();
    assert!(first.contains(SUGGESTION), "{first}");
    fake.run(&["down", "--force"]).ok();
    let second = up();
    assert!(second.contains("castra shell") && !second.contains(SUGGESTION), "{second}");
    let piped = Fake::new(&["web"]).run(&["up", "--cold"]).ok().stderr;
    assert!(!piped.contains(SUGGESTION), "{piped}");
}

#[test]
fn a_vm_that_does_not_exist() {
    let fake = Fake::new(&["web", "db"]);
    holds("up_of_an_unknown_vm", &transcript(&fake, &["up", "wbe"]));
    fake.run(&["up", "--no-wait", "--cold"]).ok();
    holds("exec_without_a_name", &transcript(&fake, &["exec", "--", "true"]));
    holds("exec_in_an_unknown_vm", &transcript(&fake, &["exec", "wbe", "--", "true"]));
    holds("down_of_an_unknown_vm", &transcript(&fake, &["down", "zebra"]));
}

#[test]
fn a_configuration_that_makes_no_sense() {
    let project = Project::isolated();
    for (name, text) in [
        ("broken_toml", "[[vms]\nname = \"web\"\n"),
        ("no_vm", "[project]\nname = \"shop\"\n"),
        (
            "long_name",
            &format!(
                "[[vms]]\nname = \"{}\"\nmanaged_image = \"alpine-minimal\"\n",
                "x".repeat(41)
            ),
        ),
        ("unknown_image", "[[vms]]\nname = \"web\"\nmanaged_image = \"alpin-minimal\"\n"),
        (
            "bad_size",
            "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\n\
            memory = \"1 gigabyte\"\n",
        ),
    ] {
        project.write("castra.toml", text);
        holds(name, &transcript(&project, &["up"]));
    }
    holds("no_such_configuration", &transcript(&project, &["--config", "other.toml", "up"]));
}

/// An unknown key is a warning, since it stops nothing.
#[test]
fn an_unknown_key() {
    let project = Project::isolated();
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"web\"\nmanaged_image = \"alpine-minimal\"\ncpuss = 2\n",
    );
    holds("unknown_key", &transcript(&project, &["image", "pull", "nothing"]));
}
