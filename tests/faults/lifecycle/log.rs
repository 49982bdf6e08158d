//! `CASTRA_LOG`: what castra does inside.

use castra_test_support::Fake;

#[test]
fn the_log_shows_decisions_and_no_keys() {
    let fake = Fake::new(&["vm"]);
    let up = fake.castra(&["up", "--cold"]).env("CASTRA_LOG", "debug").output().expect("runs");
    let log = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(up.status.success(), "{log}");
    for line in [
        "DEBUG up vm=vm: starting a process program=",
        "DEBUG up vm=vm: QMP command=\"qmp_capabilities\"",
        "DEBUG up vm=vm: to the guest agent kind=\"personalise\"",
        "DEBUG up vm=vm: from the guest agent kind=\"personalised\"",
        "DEBUG up vm=vm: no template: a cold boot was asked for",
        "DEBUG up vm=vm: booting accelerator=",
        "DEBUG up vm=vm: OverlayCreated",
    ] {
        assert!(log.contains(line), "{line}\n{log}");
    }
    for secret in ["PRIVATE KEY", "ssh-ed25519"] {
        assert!(!log.contains(secret), "{log}");
    }
    let down = fake.castra(&["down"]).env("CASTRA_LOG", "debug").output().expect("runs");
    let log = String::from_utf8_lossy(&down.stderr).into_owned();
    assert!(log.contains("DEBUG down vm=vm: to the guest agent kind=\"power-off\""), "{log}");
}

#[test]
fn without_the_variable_there_is_no_log_and_a_wrong_level_is_named() {
    let fake = Fake::new(&["vm"]);
    let up = fake.run(&["up", "--cold"]).ok();
    assert!(!up.stderr.contains("DEBUG"), "{}", up.stderr);
    let status = fake.castra(&["status"]).env("CASTRA_LOG", "loud").output().expect("runs");
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    let warning = "warning: CASTRA_LOG is `loud`, which is none of error, warn, info, debug and \
        trace\n";
    assert!(status.status.success() && said.contains(warning), "{said}");
}
