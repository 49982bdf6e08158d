//! Faults and attacks, against the real `castra` and a stand-in for QEMU that fails on demand.

mod attacks;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/fake.rs"]
mod fake;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/http.rs"]
mod http;
mod kill;
mod lifecycle;
mod newcomer;
#[allow(dead_code, reason = "shared by all test binaries; each uses a part")]
#[path = "../support/parked.rs"]
mod parked;
#[path = "../support/mod.rs"]
mod support;
