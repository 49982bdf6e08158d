//! `kill -9` at the named points that take a real QEMU: `tests/faults/kill/` has the others.

mod disk;
mod warm;
