//! Images on disk, in the cache and in projects: directories, manifests, references and locks.

pub(super) mod directory;
pub(super) mod finding;
pub(super) mod manifest;
pub(super) mod prune;
pub(super) mod quarantine;
pub(super) mod references;
pub(super) mod witness;
pub(super) mod workspace;
