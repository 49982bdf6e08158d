#![no_main]

#[macro_use]
#[path = "disk/mod.rs"]
mod disk;

fuzz_disk!(qcow2);
