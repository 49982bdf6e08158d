#![no_main]

#[path = "../../crates/castra-disk/tests/it/fuzz/sparse.rs"]
mod sparse;
#[allow(dead_code, reason = "each target is one of them")]
#[path = "../../crates/castra-disk/tests/it/fuzz/targets.rs"]
mod targets;

// A panic that the disk reader survives is none: libFuzzer's own hook would end the process.
libfuzzer_sys::fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |data: &[u8]| targets::qcow2(data)
);
