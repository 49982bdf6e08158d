//! Images for machines without a network: written into an archive on one, and read on another.

mod archive;
mod export;
pub(super) mod import;
