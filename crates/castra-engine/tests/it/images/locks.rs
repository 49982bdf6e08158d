//! Many processes at once, some of them killed.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use castra_engine::error::{Explain, Kind};
use castra_engine::managed::ImageManager;
use castra_engine::report::Event;
use castra_test_support::http::{Reply, Server};

use crate::images::fixture::{Fixture, disk_image, payload, raw_of, timeouts, wait_until};
use crate::images::processes::Run;

const SIZE: usize = 128 * 1024;

/// Variable with the file that the process below locks.
const LOCK: &str = "CASTRA_TEST_LOCK";

/// A helper process, run from other tests.
#[test]
#[ignore = "started by other tests"]
fn holder() {
    let path = std::env::var(LOCK).expect("is given");
    let file = std::fs::File::create(&path).expect("is made");
    file.lock().expect("is free");
    std::fs::write(format!("{path}.held"), b"").expect("writes");
    // Holds the lock until it is killed; its stdin ends with the process that started it.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("reads");
}

fn slow_server() -> Server {
    let content = payload(SIZE);
    Server::start(move |request| Reply::file(request, &content, Some("\"x\"")).slowly(SIZE / 20))
}

#[test]
fn twenty_threads_download_once() {
    let server = slow_server();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let fixture = Fixture::new();
    let ready = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..20 {
            let (fixture, image, ready) = (&fixture, &image, &ready);
            scope.spawn(move || {
                // Ten projects, two threads in each.
                let project = fixture.project(&format!("project-{}", number / 2));
                let manager = ImageManager::new(&project).with_timeouts(timeouts());
                let paths = manager.ensure_image(image, &fixture.context).expect("is prepared");
                assert!(paths.disk.is_file());
                ready.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!((ready.into_inner(), server.requests().len()), (20, 1));
    assert!(fixture.events.count(|event| matches!(event, Event::Waiting { .. })) > 0);
    assert_eq!(fixture.events.warnings(), "");
}

#[test]
fn twenty_processes_download_once() {
    let server = slow_server();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        let fixture = &fixture;
        let run =
            |number| Run::of(&image).in_project(&format!("project-{}", number / 2)).start(fixture);
        let runs: Vec<_> = (0..20).map(run).collect();
        runs.into_iter().for_each(|run| drop(scope.spawn(|| run.end().expect("is prepared"))));
    });
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_waiter_proceeds_when_the_holder_is_killed() {
    let server = slow_server();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let fixture = Fixture::new();
    let lock = fixture.cache().lock("image-disk-v1");
    let mut holder = hold(&lock);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.ensure(&image));
        fixture
            .events
            .wait_for(|event| matches!(event, Event::Waiting { what } if what.contains("disk v1")));
        assert!(server.requests().is_empty());
        holder.kill().expect("is ours");
        holder.wait().expect("ends");
        waiting.join().expect("does not panic").expect("is prepared");
    });
}

#[test]
fn waiting_can_be_cancelled() {
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &["http://example.invalid/disk".to_owned()]);
    let mut holder = hold(&fixture.cache().lock("image-disk-v1"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.ensure(&image));
        fixture.events.wait_for(|event| matches!(event, Event::Waiting { .. }));
        fixture.context.cancel.cancel();
        let error = waiting.join().expect("does not panic").expect_err("is interrupted");
        assert_eq!(error.kind(), Kind::Interrupted);
    });
    holder.kill().expect("is ours");
    holder.wait().expect("ends");
}

/// Starts a process that holds a lock until it is killed.
fn hold(lock: &std::path::Path) -> Child {
    std::fs::create_dir_all(lock.parent().expect("a parent")).expect("a directory");
    let path = lock.to_str().expect("is UTF-8");
    let holder = Command::new(std::env::current_exe().expect("has a path"))
        .args(["--exact", "images::locks::holder", "--ignored", "--quiet"])
        .env(LOCK, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    wait_until(|| std::path::Path::new(&format!("{path}.held")).exists());
    holder
}

#[test]
fn a_castra_that_is_killed_leaves_a_partial_that_is_resumed() {
    let content = payload(SIZE);
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, Some("\"x\"")).cut(SIZE / 2).then_silence(),
        _ => Reply::file(request, &content, Some("\"x\"")),
    });
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let mut fixture = Fixture::new();
    fixture.timeouts.stall = std::time::Duration::from_secs(60);
    let mut run = Run::of(&image).in_project("killed").start(&fixture);
    let length = || std::fs::metadata(fixture.partial(&image)).map_or(0, |metadata| metadata.len());
    wait_until(|| length() == SIZE as u64 / 2);
    run.kill();
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    assert_eq!(server.ranges().last(), Some(&Some(format!("bytes={}-", SIZE / 2))));
}
