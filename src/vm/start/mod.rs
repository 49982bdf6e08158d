//! Starting a VM: QEMU is launched, the guest boots or a template is restored, and commands can run.

mod account;
mod boot;
pub(super) mod copied;
mod limits;
mod machine;
pub(super) mod ports;
pub(super) mod predecessor;
mod warm;
mod watch;

pub(super) use account::keep_timeline;
pub(super) use boot::{BootRequest, PORT_ATTEMPTS, accelerator, boot_record, ssh_port, start};
pub(super) use machine::{machine, tcg_cpu};
pub use ports::{check_port, port_owner};
pub(super) use warm::Warming;
pub(super) use watch::{BootWatch, hear_times};
