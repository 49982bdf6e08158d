//! Images for machines without a network: exported to an archive on one machine, and imported on
//! another.

mod archive;
mod export;
pub(super) mod import;
