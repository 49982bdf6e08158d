//! Images from a source to a verified directory: real sockets, real files, real qemu-img and pip, and every fault that
//! a network or a disk is known for.

mod clock;
mod downloads;
mod faults;
mod fixture;
mod hostile;
mod locks;
mod pipelines;
mod processes;
mod projects;
mod python;
#[path = "../support/skip.rs"]
mod skip;
mod space;
mod tls;
mod vhd;
mod wheels;

#[path = "../support/http.rs"]
mod http;
