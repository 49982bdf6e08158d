//! Tests that boot real VMs, two at a time: `.config/nextest.toml`.

mod agent;
mod attacks;
mod cache;
mod commands;
mod copies;
mod cpu;
mod full_disk;
mod guest_health;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/http.rs"]
mod http;
mod json;
mod kill;
mod lifecycle;
mod manage;
mod modules;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/parked.rs"]
mod parked;
mod pipeline;
mod ports;
mod readme;
mod run;
mod security;
mod sshd;
#[path = "../support/mod.rs"]
mod support;
mod suspend;
mod timeline;
mod warm;
