//! Attacks on the promises of `SECURITY.md` that take a real VM: `tests/faults/attacks/` has the
//! others.

#![cfg(target_os = "linux")]

mod confinement;
mod copying;
mod isolation;
mod logs;
mod residents;
