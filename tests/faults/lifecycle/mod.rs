//! Lives of VMs, with real `castra` processes and a QEMU that misbehaves on demand: whatever
//! happens, `status` is right, `up` reaches a running VM, and `down` ends it.

mod chosen_images;
mod copies;
mod data_disks;
mod ends;
mod kernels;
mod log;
mod native;
mod network;
mod ports;
mod property;
mod qmp;
mod records;
mod recovery;
