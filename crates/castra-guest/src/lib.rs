//! Castra's guest agent.
//!
//! The kernel starts it as PID 1 (`rdinit=/castra/agent`). The agent starts itself once more as an
//! ordinary process, and PID 1 then becomes the image's own `/init`, so that the image boots as if
//! the agent were not there:
//!
//! ```text
//! PID 1:  agent ──spawn──► exec /init ──► switch_root ──► /sbin/init ──► services
//! supervisor:      └► fork, wait
//! agent:               └► initramfs ───────► root ────────► ready ─────► services
//!                         control port, network  chroot, grow   SSH
//! ```
//!
//! Nothing the agent does may stop that boot: failures are reported on the control port and in the
//! kernel's log, and the VM keeps running.

mod adjust;
mod agent;
mod boot;
mod clock;
mod cloud_init;
mod connect;
mod control;
mod disks;
mod dns;
mod early;
mod emulation;
mod events;
mod file_events;
mod grow;
mod hosts;
mod identity;
mod journal;
mod kernel_fs;
mod legacy;
mod listeners;
mod log;
mod modules;
mod mounts;
mod netlink;
mod network;
mod personality;
mod port;
mod power;
mod process;
mod programs;
mod relay;
mod residents;
mod resolve;
mod root;
mod run_directory;
mod secrets;
mod services;
mod settle;
mod sftp;
pub mod ssh;
pub mod streams;
mod supervisor;
mod systemd;
mod users;
mod watch;

pub use boot::run;
