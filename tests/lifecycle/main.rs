//! The life of VMs, by real `castra` processes and a QEMU that misbehaves on demand: whatever happens, `status` tells the
//! truth, `up` reaches a VM that runs, and `down` ends it.

mod copies;
mod ends;
#[allow(dead_code, reason = "others use the rest")]
#[path = "../support/fake.rs"]
mod fake;
mod network;
mod ports;
mod property;
mod qmp;
mod records;
mod recovery;
#[path = "../support/mod.rs"]
mod support;
