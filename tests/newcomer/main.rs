//! What somebody meets in the first ten minutes with Castra: every error names the thing, what happened and a next step,
//! and ends with its own exit code.

mod disks;
mod exits;
#[allow(dead_code, reason = "made for the tests of lives; this one uses a part")]
#[path = "../support/fake.rs"]
mod fake;
mod files;
#[allow(dead_code, reason = "made for the tests of images; this one uses a part")]
#[path = "../support/http.rs"]
mod http;
mod programs;
#[path = "../support/mod.rs"]
mod support;
mod transcript;
mod words;
