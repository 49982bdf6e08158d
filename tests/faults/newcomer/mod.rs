//! The first ten minutes with Castra: every error names the thing, what happened and a next step,
//! and ends with its own exit code.

mod below;
mod disks;
mod exits;
mod files;
mod limits;
mod programs;
mod transcript;
mod words;
