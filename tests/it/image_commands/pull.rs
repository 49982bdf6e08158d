//! Images that are fetched, and their destinations.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, eventually};

use crate::image_commands::fixture::{
    SIZE, blob, cached, configuration, disk, inode, names, neighbour, pinned, project, rootfs,
    serve, sha256,
};

#[test]
fn what_the_vms_need_is_put_into_the_project_and_fetched_once_for_all() {
    let server = serve();
    let one = project(&server);
    one.run(&["image", "pull"]).ok().says("disk v1 is in this project");
    let other = neighbour(&one, &server);
    other.run(&["image", "pull"]).ok();
    other.run(&["image", "pull", "--offline"]).ok().says("in the cache");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(inode(&rootfs(&one)), inode(&rootfs(&other)));
    assert_eq!(inode(&rootfs(&one)), inode(&cached(&one)));
    assert_eq!(names(&one.cache().join("projects")).len(), 2);
}

#[test]
fn an_image_that_no_vm_here_needs_goes_into_the_cache_alone() {
    let server = serve();
    let project = project(&server);
    let other_vm = "[[vms]]\nname = \"dev\"\nmanaged_image = \"alpine-minimal\"\n";
    let text = pinned(&server).split("[[vms]]").next().expect("a first part").to_owned() + other_vm;
    project.write("castra.toml", &text);
    project.run(&["image", "pull", "disk@v1"]).ok().says("disk v1 is in the cache");
    assert!(cached(&project).is_file());
    assert!(!project.path().join(".castra").exists(), "this directory was made a project");
    project.run(&["image", "pull", "disk"]).ok().says("in the cache");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn an_unknown_image_is_an_error_with_a_way_out() {
    let project = Project::isolated();
    project
        .run(&["image", "pull", "alpine-minmal"])
        .code(66)
        .says("Did you mean alpine-minimal v1?");
    project.run(&["image", "show", "alpine-minimal@v9"]).code(66).says("in version `v9`");
    project
        .run(&["image", "verify", "alpine-minimal"])
        .code(66)
        .says("castra image pull alpine-minimal@v1");
}

#[test]
fn a_missing_digest_is_reported_and_pinning_it_makes_the_next_pull_a_hit() {
    let server = serve();
    let project = Project::isolated();
    let url = server.url("/disk.raw");
    project.write("castra.toml", &configuration(&url, ""));
    project.run(&["up"]).code(65).says("has no digest").says("castra image pull");
    let digest = format!("sha256 = \"{}\"", sha256(&disk()));
    project.run(&["image", "pull"]).code(65).says(&digest).says("262144 bytes");
    assert!(blob(&project).is_file() && !project.path().join(".castra").exists());

    project.write("castra.toml", &configuration(&url, &digest));
    project.run(&["image", "pull", "--offline"]).ok();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_placeholder_is_a_missing_digest_and_other_mistakes_are_reported_first() {
    let server = serve();
    let project = Project::isolated();
    let placeholder = configuration(&server.url("/disk.raw"), "sha256 = \"?\"");
    project.write("castra.toml", &format!("{placeholder}cpus = 0\n"));
    project.run(&["image", "pull"]).code(65).says("cpus");
    assert!(server.requests().is_empty());
    project.write("castra.toml", &placeholder);
    project.run(&["image", "pull", "--offline"]).code(69).says("network is disabled");
    project.run(&["image", "pull"]).code(65).says(&sha256(&disk()));
}

#[test]
fn bytes_of_two_attempts_are_not_put_together_where_nothing_pins_them() {
    let content = disk();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, None).cut(content.len() / 2),
        _ => Reply::file(request, &content, None),
    });
    let project = Project::isolated();
    project.write("castra.toml", &configuration(&server.url("/disk.raw"), ""));
    project.run(&["image", "pull"]).code(65).says(&sha256(&disk()));
    assert_eq!(server.ranges(), [None, None]);
}

#[test]
fn a_web_page_is_not_pinned() {
    let server = Server::start(|_| Reply::new(200, b"<!DOCTYPE html><html>log in first</html>"));
    let project = Project::isolated();
    project.write("castra.toml", &configuration(&server.url("/disk.raw"), ""));
    project.run(&["image", "pull"]).code(65).says("returned a web page");
    assert_eq!(names(&project.cache().join("blobs/sha256")), Vec::<String>::new());
}

#[test]
fn a_mirror_of_the_environment_cannot_change_what_is_pinned() {
    let content = disk();
    let mirror = Server::start(move |request| Reply::file(request, &content, None).flip_bit(7));
    let server = serve();
    let project = project(&server);
    let mut pull = project.castra(&["image", "pull"]);
    let output = pull.env("CASTRA_MIRROR", mirror.url("/alpine/")).output().expect("castra runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("was expected; trying"), "{said}");
    assert_eq!(mirror.requests()[0].path, "/alpine/disk.raw");
    assert_eq!(fs::read(blob(&project)).expect("is there"), disk());
}

#[test]
fn a_cache_that_is_removed_meanwhile_is_begun_again() {
    let project = Project::isolated();
    let (content, cache) = (disk(), project.cache());
    let first = Arc::new(AtomicBool::new(true));
    let server = Server::start(move |request| {
        if first.swap(false, Ordering::Relaxed) {
            fs::remove_dir_all(&cache).expect("is there");
        }
        Reply::file(request, &content, None)
    });
    project.write("castra.toml", &pinned(&server));
    project.run(&["image", "pull"]).ok().says("starting over");
    assert_eq!(server.requests().len(), 2);
    project.run(&["image", "verify"]).ok().says("is intact");
}

#[test]
fn what_another_project_has_described_is_listed_too() {
    let server = serve();
    let here = project(&server);
    here.run(&["image", "pull"]).ok();
    assert!(here.run(&["image", "list"]).ok().text().contains("in this project"));
    let elsewhere = Project::with_cache(here.cache().parent().expect("a parent").to_owned());
    let listed = elsewhere.run(&["image", "list"]).ok().text();
    let row = listed.lines().find(|line| line.starts_with("disk")).expect("a row");
    assert!(row.contains("in the cache") && row.contains("another castra.toml"), "{listed}");
}

#[test]
fn two_whose_locks_were_removed_do_not_write_into_the_same_bytes() {
    let content = disk();
    let server =
        Server::start(move |request| Reply::file(request, &content, None).slowly(SIZE / 50));
    let one = project(&server);
    let other = neighbour(&one, &server);
    let mut first =
        one.castra(&["image", "pull"]).stderr(Stdio::null()).spawn().expect("castra runs");
    let partial = one.cache().join(format!("blobs/sha256/{}.partial", sha256(&disk())));
    eventually("bytes come", Duration::from_secs(30), || {
        fs::metadata(&partial).is_ok_and(|metadata| metadata.len() > 0)
    });
    fs::remove_dir_all(one.cache().join("locks")).expect("is there");
    other.run(&["image", "pull"]).ok().says("waiting for another castra downloading");
    assert!(first.wait().expect("ends").success());
    for project in [&one, &other] {
        project.run(&["image", "verify", "--offline"]).ok().says("is intact");
    }
}

#[test]
#[cfg(feature = "fail-points")]
fn a_download_that_is_being_converted_is_not_pruned() {
    let server = serve();
    let project = project(&server);
    let other = neighbour(&project, &server);
    let reached = project.path().join("reached");
    let mut pull = project.castra(&["image", "pull"]);
    pull.env("CASTRA_PARK_AT", "work-made").env("CASTRA_PARK_FILE", &reached);
    let mut pull = pull.stderr(Stdio::null()).spawn().expect("castra runs");
    eventually("the download is about to be converted", Duration::from_secs(60), || {
        reached.exists()
    });
    other.run(&["image", "prune", "--downloads"]).ok();
    let is_there = blob(&project).is_file();
    pull.kill().expect("killed");
    pull.wait().expect("ended");
    assert!(is_there, "a download in use was pruned");
    other.run(&["image", "prune", "--downloads"]).ok();
    assert!(!blob(&project).exists(), "a download is kept for a castra that has ended");
}

#[test]
fn pulling_and_pruning_at_once_do_not_hurt_each_other() {
    let server = serve();
    let first = project(&server);
    let projects: Vec<Project> = (0..6).map(|_| neighbour(&first, &server)).collect();
    std::thread::scope(|scope| {
        let pull = |project: &Project| {
            let ended = project.run(&["image", "pull"]).ok();
            assert!(!ended.stderr.contains("starting over"), "{}", ended.stderr);
        };
        let pulls: Vec<_> =
            projects.iter().map(|project| scope.spawn(move || pull(project))).collect();
        while !pulls.iter().all(|pull| pull.is_finished()) {
            first.run(&["image", "prune", "--downloads"]).ok();
        }
    });
    for project in &projects {
        project.run(&["image", "verify", "--offline"]).ok().says("is intact");
    }
}
