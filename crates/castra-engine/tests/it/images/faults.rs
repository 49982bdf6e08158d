//! Servers and disks that lie.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use castra_engine::error::{Explain, Kind};
use castra_engine::files::{Digest, FileError};
use castra_engine::managed::{DownloadError, ImageError};
use castra_test_support::http::{Reply, Request, Server};

use crate::images::fixture::{Fixture, disk_image, payload, raw_of, sha256, shown, unpinned};

const SIZE: usize = 64 * 1024;

/// Starts a server of `payload(SIZE)` whose first answer to a range is spoilt; the whole file is
/// served properly.
fn spoilt_range(spoil: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let content = payload(SIZE);
    Server::start(move |request| {
        let reply = Reply::file(request, &content, None);
        if request.range_start().is_some() { spoil(request, reply) } else { reply }
    })
}

/// Checks that the second half is requested, the answer does not fit, and the whole file is fetched
/// instead.
fn is_fetched_whole(server: &Server) {
    let fixture = Fixture::new();
    let bytes = payload(SIZE);
    let image = disk_image(&bytes, &[server.url("/disk")]);
    fixture.leave_partial(&image, &bytes[..SIZE / 2]);
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), bytes);
    assert_eq!(server.ranges(), [Some(format!("bytes={}-", SIZE / 2)), None]);
}

#[test]
fn a_206_that_starts_elsewhere() {
    let range = format!("bytes 0-{}/{SIZE}", SIZE - 1);
    is_fetched_whole(&spoilt_range(move |_, reply| reply.header("Content-Range", &range)));
}

#[test]
fn a_206_of_another_total() {
    let range = format!("bytes {}-{}/{}", SIZE / 2, SIZE - 1, SIZE + 1);
    is_fetched_whole(&spoilt_range(move |_, reply| reply.header("Content-Range", &range)));
}

#[test]
fn a_206_without_a_range() {
    is_fetched_whole(&spoilt_range(|_, reply| reply.without("Content-Range")));
}

#[test]
fn a_206_in_several_parts() {
    is_fetched_whole(&spoilt_range(|_, reply| {
        reply.header("Content-Type", "multipart/byteranges; boundary=x")
    }));
}

#[test]
fn a_416_while_bytes_are_missing() {
    is_fetched_whole(&spoilt_range(|_, _| {
        Reply::new(416, b"").header("Content-Range", "bytes */5")
    }));
}

#[test]
fn a_206_with_wrong_bytes() {
    is_fetched_whole(&spoilt_range(|_, reply| reply.flip_bit(7)));
}

#[test]
fn a_200_for_a_range_starts_again() {
    let content = payload(SIZE);
    let server = Server::start(move |_| Reply::new(200, &content));
    let fixture = Fixture::new();
    let bytes = payload(SIZE);
    let image = disk_image(&bytes, &[server.url("/disk")]);
    fixture.leave_partial(&image, &bytes[..SIZE / 2]);
    fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.bytes_sent(), SIZE as u64);
}

#[test]
fn a_partial_that_is_complete_needs_no_server() {
    let fixture = Fixture::new();
    let bytes = payload(SIZE);
    let image = disk_image(&bytes, &["http://example.invalid/disk".to_owned()]);
    fixture.leave_partial(&image, &bytes);
    fixture.ensure(&image).expect("is prepared");
}

#[test]
fn a_partial_that_is_too_long_is_thrown_away() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    fixture.leave_partial(&image, &payload(SIZE + 512));
    fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn a_partial_that_is_complete_and_wrong_is_thrown_away() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let fixture = Fixture::new();
    let bytes = payload(SIZE);
    for pinned in [true, false] {
        let mut image = disk_image(&bytes, &[server.url("/disk")]);
        if !pinned {
            image = unpinned(image);
            std::fs::remove_file(fixture.blob(&image)).expect("there is one");
            image.id = "unpinned".to_owned();
        }
        let mut left = bytes.clone();
        left[SIZE / 3] ^= 1;
        fixture.leave_partial(&image, &left);
        fixture.ensure(&image).expect("is prepared");
    }
    // A complete but wrong partial is known immediately if the size is pinned; otherwise by the
    // server's 416.
    assert_eq!(server.ranges(), [None, Some(format!("bytes={SIZE}-")), None]);
}

/// Returns the second request after the first broke off under one ETag and the server now has
/// another.
fn after_a_change(
    before: Option<&'static str>,
    now: Option<&'static str>,
) -> (Vec<Request>, Fixture) {
    let content = payload(SIZE);
    let server = Server::start(move |request| match request.number {
        0 => Reply::file(request, &content, before).cut(SIZE / 2),
        _ => Reply::file(request, &content, now),
    });
    let fixture = Fixture::new();
    let paths =
        fixture.ensure(&disk_image(&payload(SIZE), &[server.url("/disk")])).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
    (server.requests(), fixture)
}

#[test]
fn a_changed_strong_etag_starts_again_in_one_request() {
    let (requests, _) = after_a_change(Some("\"one\""), Some("\"two\""));
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].headers["if-range"], "\"one\"");
}

#[test]
fn a_weak_etag_is_never_used_as_if_range() {
    let (requests, _) = after_a_change(Some("W/\"one\""), Some("W/\"one\""));
    assert_eq!((requests.len(), requests[1].headers.get("if-range")), (2, None));
    assert!(requests[1].range_start().is_some());
}

#[test]
fn a_changed_weak_etag_starts_again() {
    let (requests, _) = after_a_change(Some("W/\"one\""), Some("W/\"two\""));
    let starts: Vec<_> = requests.iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(SIZE / 2), None]);
}

#[test]
fn no_etag_at_all_is_resumed_without_if_range() {
    let (requests, _) = after_a_change(None, None);
    assert_eq!((requests.len(), requests[1].headers.get("if-range")), (2, None));
}

#[test]
fn a_wrong_digest_is_not_asked_for_twice() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None).flip_bit(1000));
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let error = fixture.ensure(&image).expect_err("is refused");
    let ImageError::DigestMismatch(mismatch) = &error else { panic!("{error}") };
    assert_eq!((mismatch.expected.clone(), error.kind()), (sha256(&payload(SIZE)), Kind::Data));
    assert_eq!((mismatch.from.clone(), server.requests().len()), (server.url("/disk"), 1));
    assert!(
        !fixture.partial(&image).exists() && !fixture.blob(&image).exists(),
        "nothing is kept of it"
    );
}

#[test]
fn a_wrong_digest_after_resuming_is_followed_by_one_full_download() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None).flip_bit(1000));
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    fixture.leave_partial(&image, &payload(SIZE)[..SIZE / 2]);
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(matches!(error, ImageError::DigestMismatch(_)), "{error}");
    assert_eq!(server.ranges(), [Some(format!("bytes={}-", SIZE / 2)), None]);
}

#[test]
fn a_second_address_makes_up_for_a_tampered_first() {
    let content = payload(SIZE);
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &content, None);
        if request.path == "/bad" { reply.flip_bit(0) } else { reply }
    });
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/bad"), server.url("/good")]);
    fixture.ensure(&image).expect("is prepared");
    assert!(fixture.events.warnings().contains("/bad has digest"), "{}", fixture.events.warnings());
}

#[test]
fn a_tampered_file_is_worse_news_than_a_server_that_is_down() {
    let content = payload(SIZE);
    let server = Server::start(move |request| match request.path.as_str() {
        "/bad" => Reply::file(request, &content, None).flip_bit(0),
        _ => Reply::new(404, b""),
    });
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/bad"), server.url("/none")]);
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(matches!(error, ImageError::DigestMismatch(_)), "{error}");
}

#[test]
fn lengths_other_than_the_pinned_one_are_refused_before_a_byte_is_written() {
    for length in [SIZE - 1, SIZE + 1] {
        let server = Server::start(move |_| Reply::new(200, &vec![1; length]));
        let fixture = Fixture::new();
        let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
        fixture.leave_partial(&image, &payload(SIZE)[..10]);
        let error = fixture.ensure(&image).expect_err("is refused");
        let found = matches!(&error, ImageError::Download(DownloadError::Length { found, .. })
            if *found == length as u64);
        assert!(found, "{error}");
        assert_eq!(std::fs::read(fixture.partial(&image)).expect("is kept"), payload(SIZE)[..10]);
    }
}

#[test]
fn a_body_that_does_not_end_is_ended() {
    for chunked in [true, false] {
        let server = Server::start(move |_| {
            let reply = Reply::new(200, &payload(SIZE)).endless();
            if chunked { reply.chunked() } else { reply.without("content-length") }
        });
        let fixture = Fixture::new();
        let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
        let error = fixture.ensure(&image).expect_err("is refused");
        assert!(matches!(error, ImageError::Download(DownloadError::Endless { .. })), "{error}");
        assert!(!fixture.partial(&image).exists());
    }
}

#[test]
fn a_web_page_is_recognised() {
    let page = b"\n<!DOCTYPE html><html><body>Please log in</body></html>";
    let server = Server::start(|_| Reply::new(200, page));
    for pinned in [true, false] {
        let fixture = Fixture::new();
        let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
        let image = if pinned { image } else { unpinned(image) };
        let text = shown(fixture.ensure(&image).expect_err("is refused"));
        assert!(
            text.contains("looks like a web page") && text.contains("captive portal"),
            "{text}"
        );
    }
}

#[test]
fn an_encoding_that_was_not_asked_for_is_named() {
    let server =
        Server::start(|_| Reply::new(200, &[0x1f, 0x8b, 8, 0]).header("Content-Encoding", "gzip"));
    let fixture = Fixture::new();
    let text = shown(
        fixture
            .ensure(&disk_image(&payload(SIZE), &[server.url("/disk")]))
            .expect_err("is refused"),
    );
    assert!(text.contains("encoded as gzip"), "{text}");
}

/// A bit that flips in a published file is found by its stamp at the next use, or by hashing
/// everything.
#[test]
fn a_flipped_bit_in_a_published_file_is_mended_from_the_cache() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let mut fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let paths = fixture.ensure(&image).expect("is prepared");
    flip_a_bit(&paths.disk);
    let is_right =
        || sha256(&std::fs::read(&paths.disk).expect("reads")).hex() == paths.disk_sha256;
    assert!(!is_right());
    // Project and cache share the file, so both are damaged; the download in the cache is not.
    fixture.context.offline = true;
    fixture.ensure(&image).expect("is mended");
    assert!(fixture.events.warnings().contains("is damaged"), "{}", fixture.events.warnings());
    assert!(is_right());
    assert_eq!(raw_of(&paths.disk), payload(SIZE));
}

#[test]
fn a_damaged_blob_is_fetched_again() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let fixture = Fixture::new();
    let mut image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    fixture.ensure(&image).expect("is prepared");
    flip_a_bit(&fixture.blob(&image));
    image.id = "another".to_owned();
    fixture.ensure(&image).expect("is prepared");
    assert_eq!(server.requests().len(), 2);
    assert!(fixture.events.warnings().contains("is damaged"));
}

fn flip_a_bit(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let before = std::fs::metadata(path).expect("is there").ino();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("is ours");
    std::fs::write(path, bytes).expect("writes");
    assert_eq!(std::fs::metadata(path).expect("is there").ino(), before);
}

#[test]
fn links_in_the_way_are_not_followed() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let Digest::Sha256(hex) = &image.artifacts[0].digest else { panic!("is SHA-256") };
    for place in ["partial", "sidecar", "blob", "lock"] {
        let fixture = Fixture::new();
        let victim = fixture.path("victim");
        std::fs::write(&victim, b"precious").expect("writes");
        let link = match place {
            "partial" => fixture.partial(&image),
            "sidecar" => fixture.cache().partial_sidecar("sha256", hex),
            "blob" => fixture.blob(&image),
            _ => fixture.cache().lock("image-disk-v1"),
        };
        std::fs::create_dir_all(link.parent().expect("a parent")).expect("a directory");
        symlink(&victim, &link).expect("links");
        let error = fixture.ensure(&image).expect_err("is refused");
        assert!(
            matches!(&error, ImageError::File(FileError::SymbolicLink { path }) if *path == link),
            "{place}: {error}"
        );
        assert_eq!(std::fs::read(&victim).expect("reads"), b"precious", "{place}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn a_link_in_the_place_of_a_final_file_is_replaced() {
    let content = payload(SIZE);
    let server = Server::start(move |request| Reply::file(request, &content, None));
    let fixture = Fixture::new();
    let image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    let victim = fixture.path("victim");
    std::fs::write(&victim, b"precious").expect("writes");
    let paths = fixture.ensure(&image).expect("is prepared");
    std::fs::remove_file(&paths.disk).expect("is ours");
    symlink(&victim, &paths.disk).expect("links");
    fixture.ensure(&image).expect("is mended");
    assert!(std::fs::symlink_metadata(&paths.disk).expect("is there").is_file());
    assert_eq!(std::fs::read(&victim).expect("reads"), b"precious");
}

#[test]
fn an_image_that_cannot_fit_is_refused_before_the_first_byte() {
    let server = Server::start(|_| Reply::new(200, b""));
    let fixture = Fixture::new();
    let mut image = disk_image(&payload(SIZE), &[server.url("/disk")]);
    image.artifacts[0].size_bytes = Some(1 << 60);
    let error = fixture.ensure(&image).expect_err("does not fit");
    assert!(matches!(error, ImageError::File(FileError::NoSpace { .. })), "{error}");
    assert!(error.to_string().contains("iB needed"), "{error}");
    assert!(server.requests().is_empty());
}
