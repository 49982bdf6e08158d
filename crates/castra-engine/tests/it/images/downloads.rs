//! Downloads that are interrupted, resumed and retried.

use std::time::{Duration, Instant};

use castra_engine::cancel::Cancel;
use castra_engine::error::{Explain, Kind};
use castra_engine::managed::{DownloadError, ImageError, NetworkFailure};
use castra_engine::report::Event;
use castra_test_support::http::{Reply, Server};
use proptest::prelude::*;

use crate::images::fixture::{Fixture, disk_image, payload, raw_of, shown, unpinned, wait_until};

const SIZE: usize = 192 * 1024;
const STRONG: Option<&str> = Some("\"v1\"");

#[test]
fn a_download_becomes_an_image() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| Reply::file(request, &content, STRONG));
    let fixture = Fixture::new();
    let paths =
        fixture.ensure(&disk_image(&bytes, &[server.url("/disk.raw")])).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), bytes);
    let request = &server.requests()[0];
    assert_eq!(request.headers["accept-encoding"], "identity");
    assert!(!request.headers.contains_key("range"));
    let events = fixture.events.all();
    let position =
        |wanted: fn(&Event) -> bool| events.iter().position(wanted).expect("is reported");
    let started =
        position(|event| matches!(event, Event::DownloadStarted { resumed_bytes: 0, .. }));
    let finished = position(|event| matches!(event, Event::DownloadFinished { .. }));
    assert!(started < finished && finished < events.len() - 1);
    assert!(matches!(events.last(), Some(Event::ImageReady { .. })));
}

/// Cuts the connection after `cut` bytes, and checks that the second attempt asks for the rest and
/// gets no byte twice.
fn cut_then_resumed(cut: usize) {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(cut),
        _ => Reply::file(request, &content, STRONG),
    });
    let fixture = Fixture::new();
    let paths = fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), bytes);
    let range = (cut > 0).then(|| format!("bytes={cut}-"));
    assert_eq!(server.ranges(), [None, range.clone()]);
    assert_eq!(server.requests()[1].headers.contains_key("if-range"), range.is_some());
    assert_eq!(server.bytes_sent(), SIZE as u64);
    assert_eq!(fixture.events.count(|event| matches!(event, Event::DownloadRetry { .. })), 1);
}

#[test]
fn cut_before_the_first_byte() {
    cut_then_resumed(0);
}

#[test]
fn cut_after_the_first_byte() {
    cut_then_resumed(1);
}

#[test]
fn cut_in_the_middle() {
    cut_then_resumed(SIZE / 2);
}

#[test]
fn cut_before_the_last_byte() {
    cut_then_resumed(SIZE - 1);
}

#[test]
fn a_chunked_body_that_breaks_off_is_resumed() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(SIZE / 2).chunked(),
        _ => Reply::file(request, &content, STRONG).chunked(),
    });
    let fixture = Fixture::new();
    let paths = fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), bytes);
    assert_eq!(server.bytes_sent(), SIZE as u64);
}

#[test]
fn a_body_without_a_length_that_ends_early_is_resumed() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(SIZE / 3).without("content-length"),
        _ => Reply::file(request, &content, STRONG).without("content-length"),
    });
    let fixture = Fixture::new();
    fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!(server.ranges()[1], Some(format!("bytes={}-", SIZE / 3)));
}

#[test]
fn a_size_that_is_not_pinned_is_learned() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(SIZE / 2),
        _ => Reply::file(request, &content, STRONG),
    });
    let fixture = Fixture::new();
    fixture.ensure(&unpinned(disk_image(&bytes, &[server.url("/disk")]))).expect("is prepared");
    assert_eq!(server.bytes_sent(), SIZE as u64);
}

#[test]
fn a_failure_keeps_what_came_and_the_next_run_resumes() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(SIZE / 2),
        1..=3 => Reply::new(503, b"busy"),
        _ => Reply::file(request, &content, STRONG),
    });
    let fixture = Fixture::new();
    let image = disk_image(&bytes, &[server.url("/disk")]);
    let error = fixture.ensure(&image).expect_err("gives up");
    assert!(
        matches!(error, ImageError::Download(DownloadError::Status { status: 503, .. })),
        "{error}"
    );
    assert_eq!(std::fs::read(fixture.partial(&image)).expect("is kept"), bytes[..SIZE / 2]);
    fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.ranges()[4], Some(format!("bytes={}-", SIZE / 2)));
    assert_eq!(server.requests()[4].headers["if-range"], "\"v1\"");
    assert!(!fixture.partial(&image).exists(), "the partial has become the blob");
}

#[test]
fn ctrl_c_keeps_what_came() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).slowly(SIZE / 64),
        _ => Reply::file(request, &content, STRONG),
    });
    let mut fixture = Fixture::new();
    let image = disk_image(&bytes, &[server.url("/disk")]);
    let cancel = fixture.context.cancel.clone();
    *fixture.events.cancel_at.lock().expect("not poisoned") = Some((SIZE as u64 / 8, cancel));
    let error = fixture.ensure(&image).expect_err("is interrupted");
    assert_eq!(error.kind(), Kind::Interrupted);
    let kept = std::fs::metadata(fixture.partial(&image)).expect("is kept").len();
    assert!((SIZE as u64 / 8..SIZE as u64).contains(&kept), "{kept}");
    *fixture.events.cancel_at.lock().expect("not poisoned") = None;
    fixture.context.cancel = Cancel::new();
    fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.ranges()[1], Some(format!("bytes={kept}-")));
}

#[test]
fn ctrl_c_does_not_wait_for_a_silent_server() {
    let server =
        Server::start(|_| Reply::new(200, b"").header("Content-Length", "4096").then_silence());
    let mut fixture = Fixture::new();
    fixture.timeouts.stall = Duration::from_secs(600);
    let image = disk_image(&payload(4096), &[server.url("/disk")]);
    let cancel = fixture.context.cancel.clone();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until(|| !server.requests().is_empty());
            cancel.cancel();
        });
        assert_eq!(fixture.ensure(&image).expect_err("is interrupted").kind(), Kind::Interrupted);
    });
    assert!(started.elapsed() < fixture.timeouts.stall / 2);
}

#[test]
fn silence_after_the_header_is_a_failure_that_is_tried_again() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(0).then_silence(),
        _ => Reply::file(request, &content, STRONG),
    });
    let mut fixture = Fixture::new();
    fixture.timeouts.stall = Duration::from_secs(1);
    fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!(server.requests().len(), 2);
}

/// The limit is on silence, not on the whole download: a slow line is not a dead one.
#[test]
fn a_byte_now_and_then_is_no_silence() {
    const BYTES: usize = 512;
    let content = payload(BYTES);
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, STRONG).cut(BYTES - 8),
        _ => Reply::file(request, &content, STRONG).paced(1, Duration::from_millis(400)),
    });
    let mut fixture = Fixture::new();
    fixture.timeouts.stall = Duration::from_secs(2);
    let started = Instant::now();
    fixture.ensure(&disk_image(&payload(BYTES), &[server.url("/disk")])).expect("is prepared");
    assert!(started.elapsed() > fixture.timeouts.stall, "it took longer than the limit in all");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.number {
        0 => Reply::new(429, b"").header("Retry-After", "1"),
        _ => Reply::file(request, &content, STRONG),
    });
    let fixture = Fixture::new();
    fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!(
        fixture.events.count(|event| matches!(event, Event::DownloadRetry { wait_ms: 1000, .. })),
        1
    );
}

#[test]
fn a_server_that_asks_for_too_much_time_is_unavailable() {
    let server = Server::start(|_| Reply::new(429, b"").header("Retry-After", "86400"));
    let fixture = Fixture::new();
    let error =
        fixture.ensure(&disk_image(&payload(4096), &[server.url("/disk")])).expect_err("gives up");
    assert_eq!((error.kind(), server.requests().len()), (Kind::Unavailable, 1));
    assert!(shown(error).contains("retry in 86400 s"));
}

#[test]
fn other_refusals_are_not_repeated() {
    let server = Server::start(|_| Reply::new(404, b"gone"));
    let fixture = Fixture::new();
    let image = disk_image(&payload(4096), &[server.url("/disk")]);
    let error = fixture.ensure(&image).expect_err("gives up");
    assert!(
        matches!(error, ImageError::Download(DownloadError::Status { status: 404, .. })),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
    assert!(!fixture.partial(&image).exists(), "an empty partial is not kept");
}

#[test]
fn a_redirect_is_followed_and_a_loop_is_not() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| match request.path.as_str() {
        "/loop" => Reply::new(302, b"").header("Location", "/loop"),
        "/moved" => Reply::new(302, b"").header("Location", "/disk"),
        _ => Reply::file(request, &content, STRONG),
    });
    let fixture = Fixture::new();
    let error = fixture.ensure(&disk_image(&bytes, &[server.url("/loop")])).expect_err("gives up");
    let failure = NetworkFailure::Redirects.to_string();
    assert!(shown(error).contains(&failure));
    assert_eq!(server.requests().len(), 6);
    fixture.ensure(&disk_image(&bytes, &[server.url("/moved")])).expect("is prepared");
}

#[test]
fn a_proxy_that_refuses_is_named_without_its_password() {
    let closed = closed_port();
    let proxy = format!("http://user:secret@127.0.0.1:{closed}");
    let fixture = Fixture::with([("http_proxy", proxy.as_str())]);
    let error =
        fixture.ensure(&disk_image(&payload(4096), &["http://example.invalid/disk".to_owned()]));
    let text = shown(error.expect_err("cannot connect"));
    assert!(text.contains(&format!("through the proxy 127.0.0.1:{closed}")), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_proxy_that_answers_no_is_named() {
    let proxy = Server::start(|_| Reply::new(403, b"not here"));
    let address = proxy.url("").trim_start_matches("http://").to_owned();
    let fixture = Fixture::with([("all_proxy", proxy.url("").as_str())]);
    for scheme in ["http", "https"] {
        let image = disk_image(&payload(4096), &[format!("{scheme}://example.invalid/disk")]);
        let text = shown(fixture.ensure(&image).expect_err("is refused"));
        assert!(text.contains(&format!("through the proxy {address}")), "{text}");
    }
    assert_eq!(proxy.requests().len(), 2, "a refusal is not tried again");
}

#[test]
fn a_proxy_of_another_kind_is_refused_by_name() {
    let fixture = Fixture::with([("all_proxy", "socks5://user:secret@127.0.0.1:1080")]);
    let error =
        fixture.ensure(&disk_image(&payload(4096), &["http://example.invalid/disk".to_owned()]));
    let text = shown(error.expect_err("cannot be used"));
    assert!(text.contains("`socks5://127.0.0.1:1080` in all_proxy"), "{text}");
}

#[test]
fn hosts_without_proxy_are_asked_directly() {
    let bytes = payload(4096);
    let content = bytes.clone();
    let server = Server::start(move |request| Reply::file(request, &content, STRONG));
    let proxy = format!("http://127.0.0.1:{}", closed_port());
    let fixture =
        Fixture::with([("http_proxy", proxy.as_str()), ("no_proxy", "example.org, 127.0.0.1")]);
    fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
}

#[test]
fn a_mirror_is_asked_first_and_trusted_no_more_than_others() {
    let bytes = payload(4096);
    let content = bytes.clone();
    let mirror = Server::start(move |request| Reply::file(request, &content, STRONG).flip_bit(99));
    let content = bytes.clone();
    let origin = Server::start(move |request| Reply::file(request, &content, STRONG));
    let base = mirror.url("/alpine/");
    let fixture = Fixture::with([("CASTRA_MIRROR", base.as_str())]);
    fixture.ensure(&disk_image(&bytes, &[origin.url("/v1/disk.raw?x=1")])).expect("is prepared");
    assert_eq!(mirror.requests()[0].path, "/alpine/disk.raw");
    assert_eq!(origin.requests().len(), 1);
    assert!(fixture.events.warnings().contains("expected"), "the mirror's wrong bytes are named");
}

#[test]
fn a_mirror_that_has_the_file_is_enough() {
    let bytes = payload(4096);
    let content = bytes.clone();
    let mirror = Server::start(move |request| Reply::file(request, &content, STRONG));
    let base = mirror.url("");
    let fixture = Fixture::with([("CASTRA_MIRROR", base.as_str())]);
    fixture
        .ensure(&disk_image(&bytes, &["http://example.invalid/disk".to_owned()]))
        .expect("is prepared");
}

/// Returns a port of this machine on which nothing listens.
pub(crate) fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    listener.local_addr().expect("an address").port()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever an earlier attempt left, right or wrong, the same bytes come out in the end.
    #[test]
    fn any_partial_ends_in_the_same_bytes(
        kept in 0..=SIZE,
        spoilt in proptest::option::of(0..SIZE),
    ) {
        let bytes = payload(SIZE);
        let content = bytes.clone();
        let server = Server::start(move |request| Reply::file(request, &content, None));
        let fixture = Fixture::new();
        let image = disk_image(&bytes, &[server.url("/disk")]);
        let mut left = bytes[..kept].to_vec();
        let spoilt = spoilt.filter(|at| *at < kept);
        if let Some(at) = spoilt {
            left[at] ^= 1;
        }
        fixture.leave_partial(&image, &left);
        let paths = fixture.ensure(&image).expect("is prepared");
        prop_assert_eq!(raw_of(&paths.disk), bytes);
        if spoilt.is_none() {
            prop_assert_eq!(server.bytes_sent(), (SIZE - kept) as u64);
        }
    }
}

/// A drip keeps a connection alive forever: no limit between two bytes notices it.
#[test]
fn a_drip_is_left_for_the_next_address_which_resumes_after_it() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let drip = Server::start(move |request| Reply::file(request, &content, STRONG).slowly(1));
    let content = bytes.clone();
    let honest = Server::start(move |request| Reply::file(request, &content, STRONG));
    let mut fixture = Fixture::new();
    (fixture.timeouts.slowest, fixture.timeouts.pace) = (100_000, Duration::from_millis(500));
    let image = disk_image(&bytes, &[drip.url("/disk"), honest.url("/disk")]);
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), bytes);
    assert_eq!(
        drip.requests().len(),
        1,
        "a drip is not tried again while there is another address"
    );
    assert!(honest.requests()[0].range_start().expect("a range") > 0, "what came is kept");
    assert!(fixture.events.warnings().contains("received in"), "{}", fixture.events.warnings());
}

#[test]
fn a_line_that_is_slow_but_not_too_slow_is_enough() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| Reply::file(request, &content, STRONG).slowly(4096));
    let mut fixture = Fixture::new();
    (fixture.timeouts.slowest, fixture.timeouts.pace) = (1024, Duration::from_millis(50));
    let paths = fixture.ensure(&disk_image(&bytes, &[server.url("/disk")])).expect("is prepared");
    assert_eq!((raw_of(&paths.disk), server.requests().len()), (bytes, 1));
}

#[test]
fn a_single_source_that_drips_ends_with_what_came_kept() {
    let bytes = payload(SIZE);
    let content = bytes.clone();
    let server = Server::start(move |request| Reply::file(request, &content, STRONG).slowly(1));
    let mut fixture = Fixture::new();
    (fixture.timeouts.slowest, fixture.timeouts.pace) = (100_000, Duration::from_millis(200));
    let image = disk_image(&bytes, &[server.url("/disk")]);
    let error = fixture.ensure(&image).expect_err("is too slow");
    let ImageError::Download(DownloadError::Network { failure, kept_bytes, .. }) = &error else {
        panic!("{error}");
    };
    assert!(matches!(failure, NetworkFailure::TooSlow { .. }) && *kept_bytes > 0, "{error}");
    assert_eq!(server.requests().len(), 4, "as often as any other failure");
    assert!(fixture.partial(&image).metadata().expect("is kept").len() >= *kept_bytes);
}
