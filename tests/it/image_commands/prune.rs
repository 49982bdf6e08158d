//! Files that are removed from the cache, and files that never are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use castra_test_support::Project;

use crate::image_commands::fixture::{
    blob, cached, disk, names, neighbour, project, rootfs, rot, serve, sha256, unlock,
};

/// Plants an image of another project, which is in the cache and which no project needs.
fn waste(project: &Project) -> PathBuf {
    let directory = project.cache().join("images/old/v1");
    fs::create_dir_all(&directory).expect("made");
    fs::write(directory.join("rootfs.qcow2"), vec![7; 1 << 20]).expect("written");
    fs::write(directory.join("manifest.json"), b"{}").expect("written");
    let blobs = project.cache().join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("made");
    fs::write(blobs.join(sha256(b"old")), vec![8; 1 << 20]).expect("written");
    fs::write(blobs.join(format!("{}.partial", sha256(b"cut"))), vec![9; 1 << 20])
        .expect("written");
    fs::write(blobs.join(format!("{}.partial.json", sha256(b"cut"))), b"{}").expect("written");
    fs::create_dir_all(project.cache().join("images/half/.v1~workX3a/rootfs")).expect("made");
    directory
}

#[test]
fn what_no_project_needs_goes_and_the_rest_stays() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    let directory = waste(&project);
    let dry =
        project.run(&["image", "prune", "--dry-run"]).ok().says("3 MiB would be freed").text();
    for expected in [
        "old v1",
        "half v1",
        &format!("sha256:{}", sha256(b"old")),
        &format!("sha256:{}", sha256(b"cut")),
    ] {
        assert!(dry.contains(expected), "{expected}: {dry}");
    }
    assert!(!dry.contains("disk v1") && directory.is_dir());
    let wet = project.run(&["image", "prune"]).ok().says("3 MiB freed").text();
    assert_eq!(dry, wet);
    assert_eq!(names(&project.cache().join("images")), ["disk"]);
    assert_eq!(names(&project.cache().join("blobs/sha256")), [sha256(&disk())]);
    project.run(&["image", "prune"]).ok().says("nothing to remove");
    project.run(&["image", "verify", "--offline"]).ok().says("is intact (3 files)");
}

#[test]
fn downloads_go_when_that_is_wanted() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    assert!(project.run(&["image", "prune", "--downloads"]).ok().text().contains(&sha256(&disk())));
    assert!(!blob(&project).exists() && cached(&project).is_file());
    let other = neighbour(&project, &server);
    other.run(&["image", "pull", "--offline"]).ok();
}

#[test]
fn a_project_that_is_gone_does_not_count() {
    let server = serve();
    let here = project(&server);
    let gone = neighbour(&here, &server);
    gone.run(&["image", "pull"]).ok();
    here.run(&["image", "prune"]).ok().says("nothing to remove");
    fs::remove_dir_all(gone.path().join(".castra")).expect("is ours");
    let output = here.run(&["image", "prune"]).ok().text();
    assert!(output.contains("disk v1") && output.contains("project/.castra"), "{output}");
    assert_eq!(names(&here.cache().join("images")), Vec::<String>::new());
    assert_eq!(names(&here.cache().join("projects")), Vec::<String>::new());
}

#[test]
fn a_project_that_was_moved_keeps_its_image_and_counts_again_once_it_is_used() {
    let server = serve();
    let here = project(&server);
    here.run(&["image", "pull"]).ok();
    let moved = neighbour(&here, &server);
    fs::rename(here.path().join(".castra"), moved.path().join(".castra")).expect("moved");
    let before = fs::metadata(cached(&here)).expect("is there").nlink();
    let output = here.run(&["image", "prune"]).ok().text();
    assert!(!output.contains("disk v1"), "{output}");
    assert_eq!(fs::metadata(cached(&here)).expect("is there").nlink(), before);
    moved.run(&["image", "pull", "--offline"]).ok().says("in the cache");
    assert_eq!(names(&here.cache().join("projects")).len(), 1);
    moved.run(&["image", "prune"]).ok().says("nothing to remove");
    assert!(rootfs(&moved).is_file());
}

#[test]
fn what_a_running_castra_has_locked_stays() {
    let project = Project::isolated();
    let directory = waste(&project);
    let locks = project.cache().join("locks");
    fs::create_dir_all(&locks).expect("made");
    let partial = sha256(b"cut");
    let held: Vec<fs::File> =
        ["image-old-v1.lock".to_owned(), format!("blob-sha256-{partial}.lock")]
            .iter()
            .map(|name| fs::File::create(locks.join(name)).expect("made"))
            .collect();
    held.iter().for_each(|file| file.lock().expect("free"));
    let output = project.run(&["image", "prune"]).ok().text();
    assert!(!output.contains("old v1") && !output.contains(&partial), "{output}");
    assert!(directory.join("manifest.json").is_file());
    drop(held);
    assert!(project.run(&["image", "prune"]).ok().text().contains("old v1"));
    assert!(!directory.exists());
}

#[test]
fn the_quarantine_goes_with_it_and_no_castra_toml_is_needed() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    project.run(&["image", "verify"]).ok();
    let output = project.run(&["image", "prune"]).ok().text();
    assert_eq!(output.matches("quarantine").count(), 2, "{output}");
    assert!(names(&project.path().join(".castra/quarantine")).is_empty());
    project.write("castra.toml", "this is no TOML");
    project.run(&["image", "prune"]).ok().says("nothing to remove");
    Project::isolated().run(&["image", "prune"]).ok().says("nothing to remove");
}

#[test]
fn what_a_newer_castra_has_noted_stops_it_before_anything_is_removed() {
    let project = Project::isolated();
    let directory = waste(&project);
    let projects = project.cache().join("projects");
    fs::create_dir_all(&projects).expect("made");
    fs::write(projects.join("x.json"), r#"{"format": 2, "shape": "unknown"}"#).expect("written");
    project.run(&["image", "prune"]).code(65).says("newer castra").says("nothing was removed");
    assert!(directory.is_dir());
    fs::write(projects.join("x.json"), "junk").expect("written");
    assert!(project.run(&["image", "prune"]).ok().text().contains("x.json"));
    assert!(!directory.exists());
}
