#![no_main]

#[allow(dead_code, reason = "each target is one of them")]
#[path = "../../crates/castra-engine/tests/it/fuzz/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::signatures(data));
