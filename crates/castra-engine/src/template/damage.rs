//! Damage to a template on disk.

/// Damage of a template; displays as the end of a sentence about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The manifest is unusable.
    #[error("has an unreadable manifest ({0})")]
    Manifest(String),
    /// A file is missing or was changed.
    #[error("has a missing or changed file ({0})")]
    File(&'static str),
    /// The stamps of its files differ: they are copies, for instance in a cache that was copied or
    /// restored. Hashing them decides; see [`Template::recognise`](super::Template::recognise).
    #[error("has an unverified file ({0}) that may be a copy")]
    Unverified(&'static str),
}
