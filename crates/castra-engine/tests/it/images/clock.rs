//! A machine whose clock is wrong, like one without a battery after every start.

use std::path::PathBuf;
use std::process::Command;

use castra_test_support::http::{Reply, Server};

use crate::images::fixture::{Fixture, disk_image, payload};
use crate::images::processes::Run;
use crate::images::tls::TlsServer;

const SIZE: usize = 64 * 1024;

/// Preloaded library that sets a process ten years back. Files keep the kernel's own time, so they
/// are from its future.
const BEHIND: &str = r"
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (result == 0 && id == CLOCK_REALTIME) time->tv_sec -= 10L * 366 * 24 * 3600;
    return result;
}
";

/// Returns that library, compiled by the C compiler that Rust links with.
fn behind(fixture: &Fixture) -> PathBuf {
    let (source, library) = (fixture.path("behind.c"), fixture.path("behind.so"));
    std::fs::write(&source, BEHIND).expect("writes");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .expect("Rust links with it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    library
}

#[test]
fn ten_years_back_nothing_is_fetched_twice() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let fixture = Fixture::new();
    let library = behind(&fixture);
    Run::of(&image).with("LD_PRELOAD", &library).end(&fixture).expect("is prepared ten years ago");
    Run::of(&image).end(&fixture).expect("is still there today");
    Run::of(&image).in_project("other").end(&fixture).expect("is shared");
    Run::of(&image)
        .in_project("third")
        .with("LD_PRELOAD", &library)
        .end(&fixture)
        .expect("is shared then, too");
    let manifest = std::fs::read_to_string(
        fixture.project("project").images().image("disk", "v1").join("manifest.json"),
    );
    let year = jiff::Timestamp::now().strftime("\"%Y-").to_string();
    assert!(!manifest.expect("is there").contains(&year), "the process believed in its clock");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_certificate_that_is_not_valid_yet_makes_one_look_at_the_clock() {
    let fixture = Fixture::new();
    let library = behind(&fixture);
    let server = TlsServer::start(&fixture, &[]);
    let image = disk_image(&payload(SIZE), &[server.url("disk")]);
    let run =
        Run::of(&image).with("LD_PRELOAD", &library).with("SSL_CERT_FILE", &server.certificate);
    let error = run.end(&fixture).expect_err("is refused");
    assert!(error.contains("This machine's clock says"), "{error}");
}
