//! Steps of images and of throw-away VMs, and shells on the disk as a step finds it.

use std::fs;
use std::path::Path;

use castra_test_support::{Project, linked_cache};

/// Returns the names in a directory of the cache.
fn names(cache: &Path, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(cache.join("castra").join(directory)).into_iter().flatten();
    entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect()
}

#[test]
fn a_run_is_prepared_once_by_its_scripts() {
    let cache = linked_cache();
    let project = Project::with_cache(cache.path().to_owned());
    project.write("one.sh", "#!/bin/sh\necho one >> /etc/made; echo said by the first\n");
    project.write("two.sh", "echo two >> /etc/made\n");
    let run = |more: &[&str]| {
        let scripts = ["run", "--provision", "one.sh", "--provision", "two.sh"];
        project.run(&[&scripts, more, &["--", "cat", "/etc/made"]].concat())
    };
    let first = run(&[]).ok().says("run: 1 | said by the first").says("step 2 of 2: script two.sh");
    assert_eq!(first.text(), "one\ntwo\n");
    let second = run(&[]).ok();
    assert_eq!(second.text(), "one\ntwo\n");
    assert_eq!(second.stderr, "", "it ran something again");
    // An isolated VM is restored from the same template.
    let isolated = run(&["--network", "isolated", "--provision-network", "full"]).ok();
    assert_eq!((isolated.text().as_str(), isolated.stderr.as_str()), ("one\ntwo\n", ""));

    project.write("one.sh", "exit 7");
    let failed = run(&[]).code(255).says("(script one.sh) failed with exit code 7");
    assert!(!failed.stderr.contains("--at-step"), "{}", failed.stderr);
    let missing = ["run", "--provision", "none.sh", "--", "true"];
    project.run(&missing).code(255).says("cannot read the script none.sh");
    assert_eq!(names(cache.path(), "steps").len(), 2);
}

#[test]
fn a_shell_shows_the_disk_as_a_step_finds_it_and_keeps_nothing() {
    let cache = linked_cache();
    let mut project = Project::with_cache(cache.path().to_owned());
    project.set("TOKEN", "of-the-step");
    let declare = |steps: &str| {
        project.write(
            "castra.toml",
            &format!(
                "[images.alpine-pypi]\nprovision = ['echo image > /etc/image']\n\
                 [[vms]]\nname = 'dev'\nprovision = [{steps}]\n\
                 managed_image = {{ name = 'alpine-pypi', version = 'v1' }}\n"
            ),
        );
    };
    declare("{ run = 'cp /etc/image /etc/copy; false', secrets = ['env:TOKEN'] }");
    let shell = |step: &str, line: &str| {
        project.run_with_input(&["shell", "--at-step", step, "dev"], line.as_bytes())
    };
    // Before there is anything: the steps before it are run.
    shell("2", "").code(77);
    project.run(&["up", "--allow-secrets"]).code(65).says("castra shell --at-step 2 dev");
    let seen =
        shell("2", "cat /etc/image; ls /etc/copy; echo $TOKEN; touch /etc/lost; sync; exit 9");
    let seen = seen.code(9).says("as step 2 finds it").says("are gone");
    assert_eq!(seen.text(), "image\nof-the-step\n");
    let again = shell("2", "ls /etc/lost || echo lost").code(0);
    assert_eq!(again.text(), "lost\n");
    for bad in ["0", "4", "x"] {
        shell(bad, "").code(64);
    }
    assert_eq!(project.processes(), [""; 0]);
    assert_eq!(names(cache.path(), "steps").len(), 1, "the layer of the image's step alone");

    declare("'echo vm > /etc/copy'");
    let shown = project.run(&["config", "show"]).ok().text();
    assert!(shown.contains("echo image > /etc/image, echo vm > /etc/copy"), "{shown}");
    let after = shell("3", "cat /etc/image /etc/copy").ok().says("step 2 of 2 done");
    assert_eq!(after.text(), "image\nvm\n");
    assert!(!project.path().join(".castra/vms/dev/vm.json").exists(), "the VM was made");
    let run =
        project.run(&["run", "--image", "alpine-pypi", "--", "ls", "/etc/image", "/etc/copy"]);
    assert_eq!(run.text(), "/etc/image\n");
}
