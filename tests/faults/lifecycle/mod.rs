//! The life of VMs, by real `castra` processes and a QEMU that misbehaves on demand: whatever happens, `status` tells the
//! truth, `up` reaches a VM that runs, and `down` ends it.

mod copies;
mod ends;
mod network;
mod ports;
mod property;
mod qmp;
mod records;
mod recovery;
