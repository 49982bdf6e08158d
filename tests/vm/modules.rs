//! A real guest whose kernel's modules were replaced by those of another, as by an upgrade of the
//! kernel's package.

use std::process::Stdio;

use castra_test_support::Project;

const VM: &str = "alpine-minimal";

/// Words of the warning.
const WARNING: &str = "modprobe fails";

fn sh(project: &Project, line: &str) -> castra_test_support::Ended {
    project.run(&["exec", "--", "sh", "-c", line])
}

/// Puts the modules back as castra advises: those of the image, from a VM of its own.
fn put_back(project: &Project, kernel: &str) {
    let pack =
        ["run", "--image", "alpine-pypi@v1", "--", "tar", "-C", "/lib/modules", "-cf", "-", kernel];
    let mut run = project.castra(&pack).stdout(Stdio::piped()).spawn().expect("castra runs");
    let packed = run.stdout.take().expect("a pipe");
    let mut exec = project.castra(&["exec", VM, "--", "tar", "-C", "/lib/modules", "-xf", "-"]);
    assert!(exec.stdin(packed).status().expect("castra runs").success());
    assert!(run.wait().expect("castra ends").success());
}

#[test]
fn a_kernel_whose_modules_are_gone_is_reported_with_a_way_out_that_works() {
    let project = Project::new();
    project.write(
        "castra.toml",
        &format!("[[vms]]\nname = \"{VM}\"\nmanaged_image = \"alpine-pypi@v1\"\n"),
    );
    let up = project.run(&["up"]).ok();
    assert!(!up.stderr.contains(WARNING), "{}", up.stderr);
    let kernel = sh(&project, "uname -r").ok().text().trim().to_owned();
    sh(&project, "modprobe dummy && mv /lib/modules/$(uname -r) /lib/modules/9.9.9-other").ok();
    // After a command that asks, and after each boot.
    project.run(&["up"]).ok().says(WARNING);
    project.run(&["down"]).ok();
    let advice = format!(
        "`castra run --image alpine-pypi@v1 -- tar -C /lib/modules -cf - {kernel} | castra exec \
        {VM} -- tar -C /lib/modules -xf -`"
    );
    project.run(&["up"]).ok().says(WARNING).says(&kernel).says("9.9.9-other").says(&advice);
    sh(&project, "modprobe dummy").code(1);
    let details = project.run(&["status", "-v"]).ok().text();
    assert!(details.contains(WARNING) && details.contains(&advice), "{details}");
    let document: serde_json::Value =
        serde_json::from_slice(&project.run(&["status", "--json"]).ok().stdout).expect("JSON");
    let missing = &document["vms"][0]["missing_modules"];
    assert_eq!(
        (&missing["kernel"], &missing["installed"][0]),
        (&kernel.as_str().into(), &"9.9.9-other".into())
    );

    put_back(&project, &kernel);
    sh(&project, "modprobe dummy").ok();
    let up = project.run(&["up"]).ok();
    assert!(!up.stderr.contains(WARNING), "{}", up.stderr);
    let details = project.run(&["status", "-v"]).ok().text();
    assert!(!details.contains(WARNING), "{details}");
}
