//! The default image's fallback comes from a third party: its guest agent, which would run as root,
//! does not run, and its user, who could become root, cannot be used.

use castra_test_support::Project;

const LOOK: &str = "ps -o comm,args | grep -i quicksand | grep -v grep; ls -d \
    /etc/runlevels/*/quicksand* /etc/sudoers.d/* 2>/dev/null; netstat -lnt | grep -v ':6022 ' | \
    grep -c LISTEN; grep -c '^quicksand:!:' /etc/shadow; su quicksand -c 'sudo -n id -u' \
    >/dev/null 2>&1 || echo refused";

#[test]
fn vm_of_the_fallback_runs_no_agent_of_a_third_party() {
    let project = Project::new();
    project.write(
        "castra.toml",
        "[[vms]]\nname = \"warm\"\nmanaged_image = \"alpine-pypi\"\n[[vms]]\nname = \"cold\"\n\
        managed_image = \"alpine-pypi\"\n",
    );
    project.run(&["up", "warm"]).ok();
    project.run(&["up", "--cold", "--wait", "services", "cold"]).ok();
    for vm in ["warm", "cold"] {
        assert_eq!(
            project.run(&["exec", vm, "--", "sh", "-c", LOOK]).text(),
            "0\n1\nrefused\n",
            "{vm}"
        );
    }
}
