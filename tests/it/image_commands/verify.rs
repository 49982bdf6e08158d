//! Damage that is found, quarantined and repaired; a file that cannot be repaired is not used.

use std::fs;

use castra_test_support::Project;

use crate::image_commands::fixture::{
    blob, cached, disk, names, neighbour, project, rootfs, rot, serve, sha256, unlock,
};

fn digest(path: &std::path::Path) -> String {
    sha256(&fs::read(path).expect("is there"))
}

#[test]
fn a_flipped_bit_that_no_stamp_shows_is_found_quarantined_and_repaired() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    let right = digest(&rootfs(&project));
    project.run(&["image", "verify"]).ok().says("disk v1 is intact (3 files)");
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    let wrong = digest(&rootfs(&project));
    project
        .run(&["image", "verify", "--offline"])
        .ok()
        .says("is damaged; it was quarantined as")
        .says("has been repaired");
    assert_eq!((digest(&rootfs(&project)), digest(&cached(&project))), (right.clone(), right));
    for quarantine in
        [project.path().join(".castra/quarantine"), project.cache().join("quarantine")]
    {
        assert_eq!(names(&quarantine), ["disk-v1-rootfs.qcow2"]);
        assert_eq!(digest(&quarantine.join("disk-v1-rootfs.qcow2")), wrong);
    }
    project.run(&["image", "verify"]).ok().says("is intact");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn without_a_way_to_repair_it_the_image_is_an_error_until_there_is_one() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    for file in [rootfs(&project), blob(&project)] {
        unlock(&file);
        rot(&file);
    }
    project
        .run(&["image", "verify", "--offline"])
        .code(65)
        .says("could not be repaired")
        .says("--offline");
    project.run(&["image", "verify", "--offline"]).code(65).says("rootfs.qcow2 is missing");
    assert!(!rootfs(&project).exists() && !cached(&project).exists() && !blob(&project).exists());
    project.run(&["up", "--offline"]).code(69);
    assert!(!project.path().join(".castra/dev-overlay.qcow2").exists());
    project.run(&["image", "verify"]).ok().says("has been repaired");
    assert_eq!(fs::read(blob(&project)).expect("is there"), disk());
}

#[test]
fn a_damaged_download_is_quarantined_and_fetched_when_it_is_needed() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    unlock(&blob(&project));
    rot(&blob(&project));
    project.run(&["image", "verify", "--offline"]).ok().says("fetched again if needed");
    assert!(!blob(&project).exists());
    assert_eq!(names(&project.cache().join("quarantine")), [format!("sha256-{}", sha256(&disk()))]);
    project.run(&["image", "verify", "--offline"]).ok().says("is intact (2 files)");
}

#[test]
fn the_cache_s_own_copy_is_repaired_from_the_project_s() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    // A copy, as when the cache is on another filesystem.
    let copy = fs::read(cached(&project)).expect("is there");
    fs::remove_file(cached(&project)).expect("is ours");
    fs::write(cached(&project), copy).expect("written");
    rot(&cached(&project));
    fs::remove_file(blob(&project)).expect("is ours");
    project.run(&["image", "verify", "--offline"]).ok().says("has been repaired");
    assert_eq!(digest(&cached(&project)), digest(&rootfs(&project)));
    assert!(!project.path().join(".castra/quarantine").exists(), "the project's copy was right");
}

#[test]
fn a_link_in_the_place_of_a_file_is_quarantined_and_not_followed() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    let elsewhere = project.path().join("elsewhere");
    fs::rename(rootfs(&project), &elsewhere).expect("moved");
    std::os::unix::fs::symlink(&elsewhere, rootfs(&project)).expect("linked");
    project.run(&["image", "verify"]).ok().says("has been repaired");
    assert!(
        fs::symlink_metadata(rootfs(&project)).expect("is there").is_file() && elsewhere.is_file()
    );
}

#[test]
fn an_edited_manifest_is_quarantined() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    let manifest = rootfs(&project).with_file_name("manifest.json");
    let text = fs::read_to_string(&manifest).expect("is there");
    fs::remove_file(&manifest).expect("is ours");
    fs::write(&manifest, text.replace("rootfs.qcow2", "../../../x")).expect("written");
    project
        .run(&["image", "verify"])
        .ok()
        .says("changed after it was written")
        .says("has been repaired");
    project.run(&["image", "verify"]).ok().says("is intact");
}

#[test]
fn a_disk_is_never_based_on_a_damaged_image() {
    let server = serve();
    let project = project(&server);
    // A disk of noise does not boot, but QEMU runs all the same.
    project.run(&["up", "dev"]).ok();
    project.run(&["down", "--force"]).ok();
    let overlay = project.path().join(".castra/dev-overlay.qcow2");
    let before = digest(&overlay);
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    fs::File::open(rootfs(&project))
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .expect("set");
    fs::remove_file(blob(&project)).expect("is ours");
    project.run(&["up", "--offline"]).code(69).says("network is disabled");
    assert!(!project.pidfile("dev").exists());
    assert_eq!(digest(&overlay), before);
    project.run(&["up"]).ok().says("is damaged; it was quarantined as");
    project.run(&["image", "verify", "--offline"]).ok().says("is intact");
}

#[test]
fn no_disk_is_made_on_a_base_whose_digest_is_wrong_whatever_its_stamp_says() {
    let server = serve();
    let project = project(&server);
    project.run(&["image", "pull"]).ok();
    let kept = fs::read(blob(&project)).expect("is there");
    fs::remove_file(blob(&project)).expect("is ours");
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    project.run(&["up", "--offline"]).code(65).says("could not be repaired");
    assert!(!project.path().join(".castra/dev-overlay.qcow2").exists());
    fs::write(blob(&project), kept).expect("written");
    rot_again(&project);
    project.run(&["up", "--offline"]).ok().says("is damaged; it was quarantined as");
    project.run(&["image", "verify", "--offline"]).ok().says("is intact");
}

/// Restores the image, and damages it again.
fn rot_again(project: &Project) {
    project.run(&["image", "pull", "--offline"]).ok();
    unlock(&rootfs(project));
    rot(&rootfs(project));
}

#[test]
fn a_vm_that_runs_on_damaged_files_is_named() {
    let server = serve();
    let project = project(&server);
    project.run(&["up", "dev"]).ok();
    unlock(&rootfs(&project));
    rot(&rootfs(&project));
    project
        .run(&["image", "verify"])
        .ok()
        .says("VM `dev` is running on the damaged files")
        .says("castra down dev");
    assert!(project.run(&["status"]).ok().text().contains("running"));
}

#[test]
fn all_images_here_are_verified_and_those_that_are_not_here_are_no_error() {
    let empty = Project::isolated();
    empty.run(&["image", "verify"]).ok().says("There are no images here yet");
    let server = serve();
    let one = project(&server);
    one.run(&["image", "pull"]).ok();
    let other = neighbour(&one, &server);
    other.run(&["image", "verify"]).ok().says("disk v1 is intact (2 files)");
    assert!(!other.path().join(".castra").exists());
}
