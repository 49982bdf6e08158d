#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| castra_disk::fuzz::extlinux_config(data));
