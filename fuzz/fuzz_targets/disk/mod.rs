//! Targets that read a disk. Each is a program of its own, since libFuzzer keeps a corpus for each.

#[path = "../../../crates/castra-disk/tests/it/fuzz/sparse.rs"]
mod sparse;
#[allow(dead_code, reason = "each program runs one of them")]
#[path = "../../../crates/castra-disk/tests/it/fuzz/targets.rs"]
pub mod targets;

/// Runs a target. A panic that the disk reader survives is none: libFuzzer's own hook would end the
/// process.
macro_rules! fuzz_disk {
    ($target:ident) => {
        libfuzzer_sys::fuzz_target!(
            init: std::panic::set_hook(Box::new(|_| {})),
            |data: &[u8]| disk::targets::$target(data)
        );
    };
}
