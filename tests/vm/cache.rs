//! A real VM that outlives the cache it came from, and the directory where it was created.

use std::fs;

use castra_test_support::{Project, disks, image_cache, tool};

#[test]
fn a_removed_cache_and_a_moved_project_lose_nothing() {
    disks::alpine();
    let project = Project::isolated();
    // The image as another project has left it in the cache, which this test may remove.
    fs::create_dir_all(project.cache()).expect("a directory");
    let images = image_cache().join("castra/images");
    tool("cp", &["-a", images.to_str().expect("UTF-8"), project.cache().to_str().expect("UTF-8")]);

    project.run(&["--offline", "up"]).ok();
    fs::remove_dir_all(project.cache()).expect("removed while the VM runs");
    project
        .run(&["exec", "--", "sh", "-c", "find /boot /lib -type f -exec cat {} + > /dev/null"])
        .ok();
    project.run(&["exec", "--", "sh", "-c", "echo survives > /root/file"]).ok();
    project.run(&["--offline", "down"]).ok();

    let mut moved = Project::isolated();
    // Another directory of the same user, whose key recognises the project.
    moved.set("XDG_STATE_HOME", project.user_state());
    fs::rename(project.path().join(".castra"), moved.path().join(".castra")).expect("moved");
    moved.run(&["--offline", "up"]).ok().says("in the cache");
    assert_eq!(moved.run(&["exec", "--", "cat", "/root/file"]).ok().text(), "survives\n");
    moved.run(&["--offline", "image", "verify"]).ok().says("is intact");
}
