//! Tests of the command line and of the library that need neither a VM nor a QEMU that fails.

mod completions;
mod config_command;
mod config_reference;
mod config_schema;
mod doctor;
mod fuzz;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/http.rs"]
mod http;
mod image_commands;
mod images;
mod json;
mod manual;
#[cfg(feature = "fail-points")]
#[path = "../support/parked.rs"]
mod parked;
mod readme;
mod ssh;
#[path = "../support/mod.rs"]
mod support;
