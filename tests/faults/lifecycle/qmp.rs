//! A machine protocol with errors. Waits take their full time here, so they run in parallel.

use std::thread;

use castra_test_support::Fake;

/// Every way to spoil an answer.
const FAULTS: [&str; 6] =
    ["qmp-silent", "qmp-garbage", "qmp-half-line", "qmp-giant-line", "qmp-wrong-id", "qmp-reset"];

/// Runs an attempt under each fault, in a project each, in parallel.
fn under_each_fault(attempt: impl Fn(&Fake, &str) + Sync) {
    thread::scope(|scope| {
        for fault in FAULTS {
            scope.spawn(|| attempt(&Fake::new(&["vm"]), fault));
        }
    });
}

#[test]
fn up_gives_up_and_leaves_nothing() {
    under_each_fault(|fake, fault| {
        fake.behave("vm", fault);
        let ended = fake.run(&["up", "--cold"]).code(69);
        assert!(ended.stderr.contains("hint:"), "{fault}: {}", ended.stderr);
        assert_eq!(fake.state("vm"), "stopped", "{fault}");
        assert!(!fake.lives("vm"), "{fault}");
        assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new(), "{fault}");
        fake.behave("vm", "");
        fake.run(&["up", "--cold"]).ok();
    });
}

#[test]
fn down_reaches_its_end_without() {
    under_each_fault(|fake, fault| {
        fake.run(&["up", "--cold"]).ok();
        // The agent does not help either, so QMP is asked.
        fake.behave("vm", &format!("{fault} ignores-powerdown"));
        fake.run(&["down", "--timeout", "1"])
            .code(69)
            .says("was stopped by SIGTERM, like a power cut");
        assert_eq!(fake.state("vm"), "stopped", "{fault}");
        assert!(!fake.lives("vm"), "{fault}");
        assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new(), "{fault}");
    });
}

#[test]
fn suspend_leaves_a_vm_that_runs() {
    under_each_fault(|fake, fault| {
        fake.run(&["up", "--cold"]).ok();
        fake.behave("vm", fault);
        fake.run(&["suspend"]).code(69).says("is not responding");
        assert_eq!(fake.state("vm"), "running", "{fault}");
        fake.behave("vm", "");
        fake.run(&["suspend"]).ok();
        fake.run(&["up"]).ok();
        let journal = fake.journal("vm");
        assert!(!journal.contains("mismatched"), "{fault}: {journal}");
    });
}

#[test]
fn a_state_that_cannot_be_saved_leaves_a_vm_that_runs() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    fake.behave("vm", "save-fails");
    fake.run(&["suspend"]).code(69).says("the disk is full");
    assert_eq!(fake.state("vm"), "running");
    fake.behave("vm", "");
    fake.run(&["suspend"]).ok();
    assert_eq!(fake.state("vm"), "suspended");
}
