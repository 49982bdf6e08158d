//! Programs in a real VM that watch files of a mount, and changes that the host makes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use castra_test_support::{Project, eventually};

use super::mounts::{VM, sh};

/// Time in which a notification must come on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);

/// Time in which everything that was to come has come.
const QUIET: Duration = Duration::from_secs(3);

/// Returns a project whose VM sees `shared`, with these settings, and watches it and what is in it.
fn watched(settings: &str) -> Project {
    let project = Project::new();
    let shared = project.path().join("shared");
    fs::create_dir_all(shared.join("sub")).expect("directories");
    fs::write(shared.join("edited"), "old").expect("written");
    fs::write(shared.join("saved"), "old").expect("written");
    fs::write(shared.join("run"), "#!/bin/sh\necho old\n").expect("written");
    let program = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(shared.join("run"), program).expect("set");
    project.write(
        "castra.toml",
        &format!(
            "[[vms]]\nname = \"{VM}\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n\
             mounts = [{{ host = \"shared\", guest = \"/src\"{settings} }}]\n"
        ),
    );
    project.run(&["up", "--allow-mounts"]).ok();
    // What is watched: writes, closings, attributes, new and removed names, moves, and the ends of
    // single files.
    let watch = "cd /src && (exec inotifyd - /src:cwenymdD /src/sub:cwenymd /src/saved:D \
        >> /tmp/events) </dev/null >/dev/null 2>&1 & sleep 1";
    sh(&project, watch).ok();
    project
}

/// Returns the events since the last call: a letter of inotifyd's, the directory and the name.
fn events(project: &Project) -> Vec<String> {
    // The watcher appends whole lines meanwhile.
    let next = "n=$(cat /tmp/seen 2>/dev/null || echo 0); \
        tail -c +$((n+1)) /tmp/events > /tmp/next; \
        echo $((n + $(wc -c < /tmp/next))) > /tmp/seen; cat /tmp/next";
    let text = sh(project, next).ok().text();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).collect()
}

/// Waits for events of which the last one is this one. Returns all of them.
#[track_caller]
fn until(project: &Project, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    eventually(last, LIMIT, || {
        all.extend(events(project));
        all.iter().any(|event| event == last)
    });
    all
}

/// Returns a tree's paths, with contents, times and numbers.
fn digest(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;

    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).expect("listed") {
        let path = entry.expect("read").path();
        let found = fs::symlink_metadata(&path).expect("there");
        let content = if found.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        let (inode, mode, links) = (found.ino(), found.mode(), found.nlink());
        let (changed, nanoseconds) = (found.ctime(), found.ctime_nsec());
        lines.push(format!(
            "{} {inode} {mode:o} {links} {changed}.{nanoseconds} {content:?}",
            path.display()
        ));
        if found.is_dir() {
            lines.extend(digest(&path));
        }
    }
    lines.sort();
    lines
}

fn count(events: &[String], event: &str) -> usize {
    events.iter().filter(|other| *other == event).count()
}

#[test]
fn programs_that_watch_files_see_what_the_host_does() {
    let project = watched("");
    let shared = project.path().join("shared");
    let path = |name: &str| shared.join(name);

    // In place. What the guest has in its cache is not used any more.
    assert_eq!(sh(&project, "cat /src/edited; /src/run").ok().text(), "oldold\n");
    events(&project);
    fs::write(path("edited"), "new").expect("written");
    let seen = until(&project, "w /src edited");
    assert!(seen.contains(&"c /src edited".to_owned()), "{seen:?}");
    assert_eq!(sh(&project, "cat /src/edited").ok().text(), "new");
    fs::write(path("run"), "#!/bin/sh\necho new\n").expect("written");
    until(&project, "c /src run");
    assert_eq!(sh(&project, "/src/run").ok().text(), "new\n");

    // As editors save: the file that was watched has come to its end.
    fs::write(path("saved.tmp"), "new").expect("written");
    fs::rename(path("saved.tmp"), path("saved")).expect("moved");
    let seen = until(&project, "y /src saved");
    assert!(seen.contains(&"m /src saved.tmp".to_owned()), "{seen:?}");
    assert!(seen.contains(&"D /src/saved".to_owned()), "{seen:?}");
    assert_eq!(sh(&project, "cat /src/saved; ls /src").ok().text(), "newedited\nrun\nsaved\nsub\n");

    // New, removed and moved.
    fs::write(path("new"), "x").expect("written");
    let seen = until(&project, "w /src new");
    assert_eq!(count(&seen, "n /src new"), 1, "{seen:?}");
    fs::rename(path("new"), path("sub/moved")).expect("moved");
    let seen = until(&project, "y /src/sub moved");
    assert!(seen.contains(&"m /src new".to_owned()), "{seen:?}");
    fs::remove_file(path("sub/moved")).expect("removed");
    until(&project, "d /src/sub moved");
    fs::create_dir(path("made")).expect("made");
    until(&project, "n /src made");
    assert_eq!(sh(&project, "ls /src/made").ok().text(), "");
    let watch = "(exec inotifyd - /src/made:n >> /tmp/events) </dev/null >/dev/null 2>&1 & sleep 1";
    sh(&project, watch).ok();
    fs::write(path("made/inside"), "x").expect("written");
    until(&project, "n /src/made inside");
    fs::remove_dir_all(path("made")).expect("removed");
    until(&project, "d /src made");
    assert_eq!(
        sh(&project, "ls /src /src/sub").ok().text(),
        "/src:\nedited\nrun\nsaved\nsub\n\n/src/sub:\n"
    );

    // Nothing of that has had an effect here, and nothing is repeated.
    let before = digest(&shared);
    std::thread::sleep(QUIET);
    events(&project);
    std::thread::sleep(QUIET);
    assert_eq!(events(&project), [""; 0]);
    assert_eq!(digest(&shared), before);
    project.run(&["umount", VM, "/src"]).code(69).says("open");
    project.run(&["down", "--force"]).ok();
}

#[test]
fn the_guests_own_changes_are_notified_once() {
    let project = watched("");
    events(&project);
    let own = "cd /src; echo x > own; echo y >> own; mv own sub/own; rm sub/own; mkdir d; rmdir d";
    sh(&project, own).ok();
    std::thread::sleep(QUIET);
    let seen = events(&project);
    for event in
        ["n /src own", "m /src own", "y /src/sub own", "d /src/sub own", "n /src d", "d /src d"]
    {
        assert_eq!(count(&seen, event), 1, "{event}: {seen:?}");
    }
    assert_eq!(count(&seen, "w /src own"), 2, "{seen:?}");

    // A burst, while a process here makes again what is being removed.
    let shared = project.path().join("shared");
    for number in 0..2000 {
        fs::write(shared.join(format!("sub/{number}")), "x").expect("written");
    }
    // What the guest mounts on a directory before it is notified of that stays mounted.
    fs::create_dir(shared.join("late")).expect("made");
    sh(&project, "mount -t tmpfs none /src/late && echo inside > /src/late/kept").ok();
    fs::write(shared.join("sub/made"), "x").expect("written");
    let mut seen = until(&project, "w /src/sub made");
    assert_eq!(sh(&project, "cat /src/late/kept && umount /src/late").ok().text(), "inside\n");
    assert_eq!(fs::read_dir(shared.join("late")).expect("listed").count(), 0);
    for number in 0..2000 {
        fs::remove_file(shared.join(format!("sub/{number}"))).expect("removed");
        fs::write(shared.join(format!("sub/{number}")), "again").expect("written");
    }
    fs::remove_file(shared.join("sub/made")).expect("removed");
    let before = digest(&shared);
    seen.extend(until(&project, "d /src/sub made"));
    assert_eq!(digest(&shared), before, "a nudge has had an effect");
    let missing = |letter: &str| {
        (0..2000).filter(|number| count(&seen, &format!("{letter} /src/sub {number}")) == 0).count()
    };
    assert_eq!((missing("n"), missing("d")), (0, 0));
    assert_eq!(sh(&project, "cat /src/sub/* | wc -c").ok().text().trim(), "10000");

    // Through a suspend.
    project.run(&["suspend"]).ok();
    project.run(&["up"]).ok();
    events(&project);
    fs::write(shared.join("edited"), "after").expect("written");
    until(&project, "w /src edited");
    assert_eq!(sh(&project, "cat /src/edited").ok().text(), "after");
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_mount_that_is_read_only_notifies_and_one_that_does_not_is_silent() {
    let project = watched(", read_only = true");
    let shared = project.path().join("shared");
    events(&project);
    fs::write(shared.join("sub/new"), "x").expect("written");
    until(&project, "n /src/sub new");
    assert_ne!(sh(&project, "echo x > /src/edited").code, Some(0));
    assert_eq!(fs::read_to_string(shared.join("edited")).expect("read"), "old");
    project.run(&["down", "--force"]).ok();

    let project = watched(", notify = false");
    events(&project);
    fs::write(project.path().join("shared/new"), "x").expect("written");
    fs::write(project.path().join("shared/edited"), "new").expect("written");
    std::thread::sleep(QUIET);
    assert_eq!(events(&project), [""; 0]);
    eventually("the change itself", LIMIT, || {
        sh(&project, "cat /src/edited /src/new").ok().text() == "newx"
    });
    project.run(&["down", "--force"]).ok();
}
