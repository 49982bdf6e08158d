//! The token by which clients are let in.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::ServeError;
use crate::random;

/// Beginning of a token, as the SDKs know it.
const PREFIX: &str = "e2b_";

/// File with the token.
const FILE: &str = "token";

/// A secret that is compared in constant time and never printed by accident.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// Loads the token in this directory, or makes one.
    ///
    /// # Errors
    /// The file cannot be read or written, or others may read it.
    pub(crate) fn load_or_create(directory: &Path) -> Result<Self, ServeError> {
        let path = directory.join(FILE);
        let failed = |source| ServeError::Token { path: path.clone(), source };
        match fs::symlink_metadata(&path) {
            Ok(metadata) => {
                let own = rustix::process::geteuid().as_raw();
                if !metadata.is_file() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
                    return Err(failed(io::Error::other(
                        "it is not a file that its owner alone can read",
                    )));
                }
                let text = fs::read_to_string(&path).map_err(failed)?;
                match text.trim() {
                    "" => Err(failed(io::Error::other("it is empty"))),
                    text => Ok(Self(text.to_owned())),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{PREFIX}{}", random::token().map_err(failed)?);
                let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
                writeln!(file, "{text}").map_err(failed)?;
                file.as_file()
                    .set_permissions(fs::Permissions::from_mode(0o600))
                    .map_err(failed)?;
                file.as_file().sync_all().map_err(failed)?;
                match file.persist_noclobber(&path) {
                    Ok(_) => Ok(Self(text)),
                    // Another server was faster.
                    Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                        Self::load_or_create(directory)
                    }
                    Err(error) => Err(failed(error.error)),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Returns the text.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Returns `true` for the same text, in a time that does not depend on it.
    pub(crate) fn is(&self, other: &str) -> bool {
        is_same(self.0.as_bytes(), other.as_bytes())
    }
}

/// Compares in a time that depends on the lengths alone.
pub(crate) fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |all, (one, other)| all | (one ^ other));
    one.len() == other.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_read_by_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Token::load_or_create(directory.path()).expect("a token");
        let again = Token::load_or_create(directory.path()).expect("a token");
        assert!(first.is(again.text()) && first.text().starts_with(PREFIX));
        assert!(!first.is("") && !first.is(&first.text()[1..]));
        let path = directory.path().join(FILE);
        let mode = fs::metadata(&path).expect("is there").mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("a mode");
        assert!(Token::load_or_create(directory.path()).is_err());
    }
}
