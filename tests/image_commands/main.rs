//! `castra image`, as people and scripts run it: real processes against a real server.

mod carry;
mod fixture;
mod json;
mod prune;
mod pull;
mod verify;

#[allow(dead_code, reason = "made for the tests of images; these use a part")]
#[path = "../support/http.rs"]
mod http;
#[path = "../support/mod.rs"]
mod support;
