//! Programs under test, and the directory for what tests keep.

use std::path::{Path, PathBuf};

/// Returns the `castra` under test, which cargo builds with the tests of its package.
pub fn castra_program() -> PathBuf {
    // The test runner names it; a test that is started by hand finds it in the directory above its
    // own, `deps`.
    let named = std::env::var_os("CARGO_BIN_EXE_castra").map(PathBuf::from);
    let program = named.unwrap_or_else(|| {
        let own = std::env::current_exe().expect("this test has a path");
        own.ancestors().nth(2).expect("a directory of a profile").join("castra")
    });
    let command = "`cargo build --features fail-points`";
    assert!(program.is_file(), "{} is missing: {command} builds it", program.display());
    program
}

/// Returns the stand-in for QEMU, which the build script of this crate has built.
pub fn fake_qemu_program() -> &'static Path {
    let program = Path::new(env!("CASTRA_FAKE_QEMU"));
    let command = "`touch crates/castra-test-support/build.rs` and the next build of the tests";
    assert!(program.is_file(), "{} is missing: {command} build it", program.display());
    program
}

/// Returns the directory below the target directory that outlives a run: cargo's
/// `CARGO_TARGET_TMPDIR`.
pub fn target_tmp() -> PathBuf {
    let castra = castra_program();
    let directory = castra.ancestors().nth(2).expect("a target directory").join("tmp");
    std::fs::create_dir_all(&directory).expect("a directory");
    directory
}
