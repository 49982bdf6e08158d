//! The companion of a running VM, a process of castra's: its start, and the end of one that has
//! outlived its QEMU.

mod fault;
mod outlived;
mod start;

pub use fault::{CompanionFault, CompanionWork};
pub(super) use outlived::end_leftover;
pub use outlived::{OutlivedCompanion, end_companion, outlived_companions};
pub(super) use start::{StartingCompanion, start_companion};
