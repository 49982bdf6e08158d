#![no_main]

#[path = "../../crates/castra-fuse/tests/it/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::requests(data));
