//! Files and directories that a crash, another user or a symbolic link cannot turn into something
//! else.
//!
//! | Module | Purpose |
//! | --- | --- |
//! | `open`, `directory` | opening and creating, without following links or blocking on a FIFO |
//! | `digest`, `hash`, `stamp` | checking that bytes are the expected ones |
//! | `sparse` | copying without writing zeros |
//! | `atomic`, `publish` | replacing a small file, and publishing a large one, never halfway |
//! | `lock` | one process at a time, by locks that the kernel frees |
//! | `space` | checking for space before the work begins |
//! | `error` | the error of all of these |

mod atomic;
mod digest;
mod directory;
mod error;
mod hash;
mod lock;
mod open;
mod publish;
mod space;
mod sparse;
mod stamp;

pub(crate) use atomic::new_temporary;
pub use atomic::{TEMPORARY, remove_leftovers, write_atomically, write_lazily};
pub(crate) use atomic::{tag_as_cache, write_locked};
pub use digest::{Digest, DigestMismatch};
pub(crate) use digest::{HashError, Hasher, both as both_digests, feed, sha256_hex};
pub(crate) use directory::{
    create_directory, entries, fresh_directory, readable_entries, remove_directory, remove_file,
};
pub use directory::{create_private_directory, gone, normalise, part_from_other_names};
pub(crate) use error::At;
pub use error::FileError;
pub(crate) use hash::{digest, sha256, sha256_watched};
pub use lock::{Lock, LockError};
pub(crate) use open::{
    create_new, is_trusted, open, open_followed, open_if_there, open_or_create, open_own_or_create,
};
pub use open::{create_private, open_regular, read_regular};
pub(crate) use publish::{READ_ONLY, Shared, publish, publish_locked, share};
pub use space::{OVERLAY_BYTES, Peak, require_space};
pub(crate) use space::{allocated_bytes, is_shared};
pub(crate) use sparse::{SparseWriter, copy, copy_sparse};
pub use stamp::Stamp;
