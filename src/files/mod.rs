//! Files and directories that a crash, another user or a symbolic link cannot turn into something else: opening, hashing,
//! copying, replacing and publishing them.

mod atomic;
mod digest;
mod open;
mod publish;
mod space;
mod sparse;
mod stamp;

pub(crate) use atomic::tag_as_cache;
pub use atomic::{
    TEMPORARY, create_private, create_private_directory, normalise, open_regular, part_from_other_names,
    remove_leftovers, write_atomically, write_lazily,
};
pub use digest::Digest;
pub(crate) use digest::{HashError, Hasher, both as both_digests, feed, sha256_hex};
pub(crate) use open::{
    copy, copy_sparse, create_directory, create_new, digest, fresh_directory, is_trusted, open,
    open_followed, open_if_there, open_or_create, open_own_or_create, open_users, remove_directory,
    remove_file, sha256, sha256_watched,
};
pub(crate) use publish::{
    Shared, publish, publish_locked, remove_unpublished, share, write_privately, write_published,
};
pub(crate) use space::is_shared;
pub use space::{OVERLAY_BYTES, Peak, require_space};
pub(crate) use sparse::SparseWriter;
pub use stamp::Stamp;
