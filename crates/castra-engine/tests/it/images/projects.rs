//! Projects, the cache they share, manifests, and the default choice.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use castra_engine::managed::{
    ChosenImage, ImageError, ImageManager, ManagedImagePaths, ManagedImageSpec, Manifest,
};
use castra_engine::report::Event;
use castra_test_support::http::{Reply, Server};

use crate::images::downloads::closed_port;
use crate::images::fixture::{Fixture, disk_image, payload, raw_of, shown};

const SIZE: usize = 64 * 1024;

fn serve() -> Server {
    let content = payload(SIZE);
    Server::start(move |request| Reply::file(request, &content, None))
}

/// Returns an image of one disk, and the server that has it.
fn served_image() -> (Server, ManagedImageSpec) {
    let server = serve();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    (server, image)
}

fn ensure_in(
    fixture: &Fixture,
    project: &str,
    image: &ManagedImageSpec,
) -> Result<ManagedImagePaths, ImageError> {
    let manager = ImageManager::new(&fixture.project(project)).with_timeouts(fixture.timeouts);
    manager.ensure_image(image, &fixture.context)
}

fn inode(path: &Path) -> u64 {
    std::fs::metadata(path).expect("is there").ino()
}

fn is_hit(event: &Event) -> bool {
    matches!(event, Event::ImageCacheHit { .. })
}

#[test]
fn a_project_stands_by_itself() {
    let (server, image) = served_image();
    let mut fixture = Fixture::new();
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(std::fs::metadata(&paths.disk).expect("is there").mode() & 0o777, 0o444);
    std::fs::remove_dir_all(fixture.cache().root()).expect("is ours");
    drop(server);
    fixture.context.offline = true;
    let started = Instant::now();
    assert_eq!(fixture.ensure(&image).expect("is there"), paths);
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(fixture.events.count(is_hit), 1);
    assert!(!fixture.cache().root().exists(), "a hit does not touch the cache");
    let names = std::fs::read_dir(&paths.directory)
        .expect("reads")
        .flatten()
        .map(|entry| entry.file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["manifest.json", "rootfs.qcow2"]);
}

#[test]
fn projects_share_one_file() {
    let (server, image) = served_image();
    let fixture = Fixture::new();
    let one = ensure_in(&fixture, "one", &image).expect("is prepared");
    let other = ensure_in(&fixture, "other", &image).expect("is prepared");
    assert_eq!(inode(&one.disk), inode(&other.disk));
    assert_eq!(server.requests().len(), 1);
    let stored = fixture.manager().list(&fixture.context);
    assert_eq!(stored.len(), 1);
    assert!(stored[0].in_cache && !stored[0].in_project && stored[0].size_bytes > SIZE as u64);
}

#[test]
fn a_project_that_was_copied_is_verified_and_not_fetched_again() {
    let (_server, image) = served_image();
    let mut fixture = Fixture::new();
    ensure_in(&fixture, "one", &image).expect("is prepared");
    let status = std::process::Command::new("cp")
        .args(["-r", "one", "copy"])
        .current_dir(fixture.directory.path())
        .status()
        .expect("cp runs");
    assert!(status.success());
    std::fs::remove_dir_all(fixture.cache().root()).expect("is ours");
    fixture.context.offline = true;
    let paths = ensure_in(&fixture, "copy", &image).expect("is verified");
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    assert_eq!(fixture.events.count(is_hit), 0);
    ensure_in(&fixture, "copy", &image).expect("is there");
    assert_eq!(fixture.events.count(is_hit), 1, "the new stamps are remembered");
}

/// Damages the manifest of a project, and checks that the image is taken from the cache again with
/// a warning.
fn distrusted(spoil: impl FnOnce(String) -> String, said: &str) {
    let (server, image) = served_image();
    let fixture = Fixture::new();
    let paths = fixture.ensure(&image).expect("is prepared");
    let text = std::fs::read_to_string(&paths.manifest).expect("reads");
    std::fs::remove_file(&paths.manifest).expect("is ours");
    std::fs::write(&paths.manifest, spoil(text)).expect("writes");
    let is_trusted = || Manifest::load(&paths.directory).is_ok();
    assert!(!is_trusted());
    assert_eq!(fixture.ensure(&image).expect("is rebuilt"), paths);
    assert!(fixture.events.warnings().contains(said), "{}", fixture.events.warnings());
    assert_eq!(fixture.events.count(is_hit), 0);
    assert_eq!(server.requests().len(), 1);
    assert!(is_trusted());
}

#[test]
fn a_manifest_that_is_cut_off() {
    distrusted(|text| text[..text.len() / 2].to_owned(), "is damaged");
}

#[test]
fn a_manifest_that_was_edited() {
    distrusted(
        |text| text.replace("\"size_bytes\": ", "\"size_bytes\": 1"),
        "changed after it was written",
    );
}

#[test]
fn a_manifest_of_a_newer_castra() {
    distrusted(|text| text.replace("\"format\": 1", "\"format\": 2"), "newer castra");
}

#[test]
fn a_manifest_that_is_missing() {
    let (server, image) = served_image();
    let fixture = Fixture::new();
    let paths = fixture.ensure(&image).expect("is prepared");
    std::fs::remove_file(&paths.manifest).expect("is ours");
    assert_eq!(fixture.manager().find(&image, &fixture.context).in_project, None);
    fixture.ensure(&image).expect("is rebuilt");
    assert_eq!((fixture.events.count(is_hit), server.requests().len()), (0, 1));
}

#[test]
fn a_file_that_is_missing_is_put_back() {
    let (server, image) = served_image();
    let fixture = Fixture::new();
    let paths = fixture.ensure(&image).expect("is prepared");
    std::fs::remove_file(&paths.disk).expect("is ours");
    fixture.ensure(&image).expect("is mended");
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn another_description_of_the_same_version_replaces_the_image() {
    let (server, image) = served_image();
    let fixture = Fixture::new();
    let before = fixture.ensure(&image).expect("is prepared");
    let mut moved = image.clone();
    moved.profile.min_memory_mib += 1;
    fixture.ensure(&moved).expect("is the same disk");
    assert_eq!(server.requests().len(), 1);

    let other_bytes = payload(SIZE * 2);
    let content = other_bytes.clone();
    let other = Server::start(move |request| Reply::file(request, &content, None));
    let after =
        fixture.ensure(&disk_image(&other_bytes, &[other.url("/disk")])).expect("is replaced");
    assert_eq!(before.disk, after.disk);
    assert_eq!(raw_of(&after.disk), other_bytes);
}

#[test]
fn a_cache_that_cannot_be_written_to_is_done_without() {
    let (_server, image) = served_image();
    let mut fixture = Fixture::new();
    let file = fixture.path("file");
    std::fs::write(&file, b"no directory").expect("writes");
    fixture.context.cache = castra_engine::layout::CacheLayout::new(file.join("castra"));
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    assert!(fixture.events.warnings().contains("the cache cannot be used"));
    let own = fixture.project("project").own_cache();
    assert!(own.root().exists() && !own.images().root().exists() && !fixture.blob(&image).exists());
    fixture.ensure(&image).expect("is there");
    assert_eq!(fixture.events.count(is_hit), 1);
}

#[test]
fn what_is_missing_is_named_while_the_network_is_off() {
    let server = serve();
    let mut fixture = Fixture::new();
    fixture.context.offline = true;
    let error = fixture
        .ensure(&disk_image(&payload(SIZE), &[server.url("/disk")]))
        .expect_err("is offline");
    assert!(matches!(&error, ImageError::Offline { what } if what.ends_with("/disk")), "{error}");
    let blobs = fixture.cache().root().join("blobs/sha256");
    assert_eq!(std::fs::read_dir(blobs).expect("reads").count(), 0);
    assert!(server.requests().is_empty());
}

#[test]
fn the_log_has_a_line_for_each_step() {
    let server = serve();
    let fixture = Fixture::new();
    fixture.ensure(&disk_image(&payload(SIZE), &[server.url("/disk")])).expect("is prepared");
    let log =
        std::fs::read_to_string(fixture.project("project").image_manager_log()).expect("is there");
    for step in [
        "downloading http://",
        "converting raw to qcow2",
        "qemu-img convert",
        "complete in the project",
    ] {
        assert!(log.contains(step), "{step} in {log}");
    }
    assert!(log.lines().all(|line| line.starts_with("20") && line.contains("Z disk v1 ")), "{log}");
}

fn choose(fixture: &Fixture, candidates: &[ManagedImageSpec]) -> Result<ChosenImage, ImageError> {
    fixture.manager().choose_default(candidates, &fixture.context)
}

fn candidates(first: String, second: String) -> [ManagedImageSpec; 2] {
    let second =
        ManagedImageSpec { id: "second".to_owned(), ..disk_image(&payload(SIZE), &[second]) };
    [disk_image(&payload(SIZE * 2), &[first]), second]
}

#[test]
fn the_first_choice_is_taken_if_it_answers() {
    let content = payload(SIZE * 2);
    let (first, second) =
        (Server::start(move |request| Reply::file(request, &content, None)), serve());
    let fixture = Fixture::new();
    let chosen =
        choose(&fixture, &candidates(first.url("/disk"), second.url("/disk"))).expect("is there");
    assert_eq!(chosen.spec.id, "disk");
    assert!(second.requests().is_empty());
    assert!(
        matches!(&fixture.events.all()[0], Event::ImageChosen { image, .. } if image.id == "disk")
    );
}

#[test]
fn the_second_is_taken_if_the_first_is_out_of_reach() {
    let refusing = format!("http://127.0.0.1:{}/disk", closed_port());
    let silent = Server::start(|_| Reply::silence());
    let missing = Server::start(|_| Reply::new(404, b""));
    for first in [refusing, silent.url("/disk"), missing.url("/disk")] {
        let second = serve();
        let mut fixture = Fixture::new();
        fixture.timeouts.probe = Duration::from_secs(1);
        let chosen =
            choose(&fixture, &candidates(first.clone(), second.url("/disk"))).expect("is there");
        assert_eq!(chosen.spec.id, "second", "{first}");
        assert!(chosen.reason.contains("disk v1 is unreachable") && chosen.reason.contains(&first));
    }
}

#[test]
fn a_cached_fallback_never_outranks_a_first_choice_that_answers() {
    let (content, is_away) = (payload(SIZE * 2), Arc::new(AtomicBool::new(true)));
    let away = is_away.clone();
    let first = Server::start(move |request| match away.load(Ordering::Relaxed) {
        true => Reply::new(503, b""),
        false => Reply::file(request, &content, None),
    });
    let second = serve();
    let both = candidates(first.url("/disk"), second.url("/disk"));
    let fixture = Fixture::new();
    let manager = |project: &str| {
        ImageManager::new(&fixture.project(project)).with_timeouts(fixture.timeouts)
    };
    let choose =
        |project| manager(project).choose_default(&both, &fixture.context).expect("is there");
    assert_eq!(choose("one").spec.id, "second");
    let cached = choose("two");
    assert_eq!(cached.spec.id, "second");
    assert!(
        cached.reason.starts_with("cached; a disk; disk v1 is unreachable"),
        "{}",
        cached.reason
    );
    is_away.store(false, Ordering::Relaxed);
    assert_eq!(choose("three").spec.id, "disk", "the first choice is back");
}

#[test]
fn slowness_is_remembered_for_a_minute_where_another_image_is_cached() {
    let silent = Server::start(|_| Reply::silence());
    let second = serve();
    let both = candidates(silent.url("/disk"), second.url("/disk"));
    let mut fixture = Fixture::new();
    fixture.timeouts.probe = Duration::from_millis(300);
    assert_eq!(choose(&fixture, &both).expect("is there").spec.id, "second");
    let asked = silent.requests().len();
    assert_eq!(asked, 1, "a silent server is asked once");
    let again = choose(&fixture, &both).expect("is there");
    assert_eq!(silent.requests().len(), asked, "and not again at once");
    assert!(again.reason.contains("less than a minute ago"), "{}", again.reason);
    let note = fixture.cache().slow_source("disk", "v1");
    for time in
        [SystemTime::now() - Duration::from_secs(61), SystemTime::now() + Duration::from_secs(3600)]
    {
        std::fs::File::options()
            .write(true)
            .open(&note)
            .expect("is there")
            .set_modified(time)
            .expect("sets");
        choose(&fixture, &both).expect("is there");
        assert!(silent.requests().len() > asked, "a minute is over, or the clock was wrong");
        std::fs::File::options()
            .write(true)
            .open(&note)
            .expect("is there")
            .set_modified(time)
            .expect("sets");
    }
    fixture.context.offline = true;
    assert!(
        !choose(&fixture, &both).expect("is there").reason.contains("a minute ago"),
        "nothing was asked"
    );
}

#[test]
fn what_is_cached_is_taken_without_asking_a_server() {
    let content = payload(SIZE * 2);
    let (first, second) =
        (Server::start(move |request| Reply::file(request, &content, None)), serve());
    let both = candidates(first.url("/disk"), second.url("/disk"));
    let mut fixture = Fixture::new();
    ensure_in(&fixture, "elsewhere", &both[1]).expect("is prepared");
    assert!(fixture.manager().is_cached(&both[1], &fixture.context));
    fixture.context.offline = true;
    let chosen = choose(&fixture, &both).expect("is there");
    assert_eq!(chosen.spec.id, "second");
    assert!(
        chosen.reason.starts_with("cached; a disk; disk v1 is unreachable"),
        "{}",
        chosen.reason
    );
    assert!(first.requests().is_empty());
}

#[test]
fn a_tampered_first_choice_is_an_error_and_no_reason_to_look_further() {
    let content = payload(SIZE * 2);
    let first = Server::start(move |request| Reply::file(request, &content, None).flip_bit(0));
    let second = serve();
    let fixture = Fixture::new();
    let error = choose(&fixture, &candidates(first.url("/disk"), second.url("/disk")))
        .expect_err("is refused");
    assert!(matches!(error, ImageError::DigestMismatch(_)), "{error}");
    assert!(second.requests().is_empty());
}

#[test]
fn none_of_them_names_each() {
    let unreachable = || format!("http://127.0.0.1:{}/disk", closed_port());
    let mut fixture = Fixture::new();
    let error =
        choose(&fixture, &candidates(unreachable(), unreachable())).expect_err("there is none");
    let text = shown(error);
    assert!(
        text.contains("disk v1: cannot download") && text.contains("second v1: cannot download"),
        "{text}"
    );
    fixture.context.offline = true;
    let error =
        choose(&fixture, &candidates(unreachable(), unreachable())).expect_err("there is none");
    assert!(shown(error).contains("network is disabled"));
}
