//! Damage to a template on disk.

/// What is wrong with a template; reads as the end of a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Its manifest is of no use.
    #[error("has a manifest that cannot be read ({0})")]
    Manifest(String),
    /// A file is missing or was changed.
    #[error("has a {0} that is missing or was changed")]
    File(&'static str),
    /// Its files are not those that were made, by what `stat` says: copies, as of a cache that was copied or restored. Hashing
    /// them decides; see [`Template::recognise`](super::Template::recognise).
    #[error("has a {0} that may be a copy and was not verified yet")]
    Unverified(&'static str),
}
