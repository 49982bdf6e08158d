//! An image on its way from a server, from pip or from a file into a project.

use std::process::{Command, Stdio};

use castra_engine::failpoint::Point;
use castra_engine::managed::{ArtifactSource, ManagedImageSpec};
use castra_test_support::http::{Reply, Server};
use castra_test_support::parked::{kill_at_each_visit, succeeds};

use crate::images::fixture::Fixture;
use crate::images::processes::{SPEC, STATE_ROOT};
use crate::images::tree::tree;
use crate::images::vhd::{ext4_disk, footer, vhd_image};
use crate::images::wheels;

/// Returns a helper process that prepares an image in the fixture's project.
fn prepare(fixture: &Fixture, image: &ManagedImageSpec) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("has a path"));
    command
        .args(["--exact", "images::processes::helper", "--ignored", "--quiet", "--nocapture"])
        .env_clear()
        .envs(fixture.context.environment.variables())
        .env("XDG_CACHE_HOME", fixture.cache().root().parent().expect("a parent"))
        .env("CASTRA_ALLOW_PRIVATE_SOURCES", "127.0.0.1")
        .env(STATE_ROOT, fixture.project("project").state_root())
        .env(SPEC, serde_json::to_string(image).expect("is plain data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Kills at each of these points, and checks that the next run leaves exactly the files of an
/// undisturbed one.
fn the_next_run_makes_good(
    points: &[Point],
    surroundings: impl Fn() -> (Fixture, ManagedImageSpec),
) {
    let (undisturbed, image) = surroundings();
    succeeds(prepare(&undisturbed, &image), "no point");
    let expected = tree(undisturbed.directory.path());
    for point in points {
        let start = || {
            let (fixture, image) = surroundings();
            let command = prepare(&fixture, &image);
            ((fixture, image), command)
        };
        kill_at_each_visit(point.name(), start, |(fixture, image), visit| {
            succeeds(prepare(fixture, image), visit);
            assert_eq!(tree(fixture.directory.path()), expected, "after a kill at {visit}");
        });
    }
}

/// Prepares an image like the official one from a server, with kills at these points, and returns
/// the number of requests.
fn from_a_server(points: &[Point]) -> usize {
    let scratch = tempfile::tempdir().expect("a directory");
    let vhd = [ext4_disk(scratch.path()).as_slice(), &footer(2)].concat();
    let content = vhd.clone();
    let server = Server::start(move |request| Reply::file(request, &content, Some("\"v1\"")));
    let image = vhd_image(&vhd, &server.url("/disk.vhd"));
    the_next_run_makes_good(points, || (Fixture::new(), image.clone()));
    server.requests().len()
}

#[test]
fn a_download_is_taken_up_again() {
    from_a_server(Point::DOWNLOAD);
}

#[test]
fn a_transformation_is_done_again_without_another_download() {
    let visits = visits_of(Point::TRANSFORM);
    assert_eq!(from_a_server(Point::TRANSFORM), visits, "each image was downloaded once");
}

/// Returns the least number of images that [`from_a_server`] prepares: an undisturbed one, one for
/// each kill, and one that is not killed for each point.
fn visits_of(points: &[Point]) -> usize {
    // Three artifacts: a directory each, two steps each, a verified file each.
    let kills = points.iter().map(|point| if *point == Point::StepDone { 6 } else { 3 });
    1 + points.len() + kills.sum::<usize>()
}

#[test]
fn a_publication_is_finished() {
    from_a_server(Point::PUBLISH);
}

#[test]
fn a_manifest_is_written_again() {
    from_a_server(&[Point::StateWritten]);
}

#[test]
fn a_file_of_this_machine_is_taken_again() {
    let disk = crate::images::fixture::payload(64 * 1024);
    the_next_run_makes_good(Point::COLLECT, || {
        let fixture = Fixture::new();
        std::fs::write(fixture.path("disk.raw"), &disk).expect("writes");
        let mut image = crate::images::fixture::disk_image(&disk, &[]);
        image.artifacts[0].source = ArtifactSource::Path(fixture.path("disk.raw"));
        (fixture, image)
    });
}

#[test]
fn a_wheel_is_fetched_again() {
    the_next_run_makes_good(Point::COLLECT, || {
        let (fixture, wheel, image) = wheels::fixture();
        wheels::put(&fixture, &wheel);
        (fixture, image)
    });
}
