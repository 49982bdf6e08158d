//! `castra image`, as people and scripts run it: real processes against a real server.

mod carry;
mod fixture;
mod json;
mod prune;
mod pull;
mod signed;
mod update;
mod verify;
