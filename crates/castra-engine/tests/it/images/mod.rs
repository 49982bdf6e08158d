//! Images from a source to a verified directory: real sockets, real files, real qemu-img and pip,
//! and every common fault of a network or a disk.

mod clock;
mod downloads;
mod faults;
mod fixture;
mod hostile;
#[cfg(feature = "fail-points")]
mod kills;
mod locks;
mod pipelines;
mod processes;
mod projects;
mod python;
mod space;
mod tls;
#[cfg(feature = "fail-points")]
mod tree;
mod vhd;
mod wheels;
