//! Digests: pinned ones, and the computation of actual ones.

use std::fmt;
use std::io::{self, Read};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::cancel::{Cancel, Interrupted};
use crate::hex::hex;

/// Bytes read and hashed at a time, enough that the loop around it costs nothing.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

/// A pinned digest in lower-case hexadecimal.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Digest {
    /// SHA-256, 64 digits.
    Sha256(String),
    /// SHA-512, 128 digits.
    Sha512(String),
}

impl Digest {
    /// Returns `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// Returns the digits alone.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Sha512(hex) => hex,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

/// Bytes with another digest than expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from} has digest {found}, but {expected} was expected{}", if *html { "; it looks like a \
    web page" } else { "" })]
pub struct DigestMismatch {
    /// URL, Python requirement or path.
    pub from: String,
    /// The pinned digest.
    pub expected: Digest,
    /// Digest of the bytes received.
    pub found: Digest,
    /// True if the bytes start like a web page: captive portals and error pages answer in a
    /// download's place.
    pub html: bool,
}

impl DigestMismatch {
    pub(crate) fn hint(&self) -> String {
        if self.html {
            "A captive portal or a proxy probably responded instead of the server. Open the \
            address in a browser, or try another network."
                .to_owned()
        } else {
            "The file was changed in transit or at its source; castra did not use it and kept no \
            copy. Try again, or name a mirror in CASTRA_MIRROR."
                .to_owned()
        }
    }
}

/// A digest being computed.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Starts a SHA-256, the algorithm of manifests.
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Starts a digest by the algorithm of `digest`.
    pub(crate) fn like(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(_) => Self::sha256(),
            Digest::Sha512(_) => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex(&hasher.finalize())),
            Self::Sha512(hasher) => Digest::Sha512(hex(&hasher.finalize())),
        }
    }

    /// Returns the digest of the bytes so far.
    pub(crate) fn so_far(&self) -> Digest {
        self.clone().finish()
    }
}

/// Failure to hash a stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HashError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Feeds the rest of `reader` to `hasher`, and returns the number of bytes.
pub(crate) fn feed(
    hasher: &mut Hasher,
    mut reader: impl Read,
    cancel: &Cancel,
) -> Result<u64, HashError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        cancel.check()?;
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                hasher.update(&chunk[..count]);
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Computes both digests that may be pinned, in one pass.
pub(crate) fn both(mut reader: impl Read, cancel: &Cancel) -> Result<[Digest; 2], HashError> {
    let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        cancel.check()?;
        match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                sha256.update(&chunk[..count]);
                sha512.update(&chunk[..count]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok([Digest::Sha256(hex(&sha256.finalize())), Digest::Sha512(hex(&sha512.finalize()))])
}

/// Returns the SHA-256 of these bytes, in hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First example of FIPS 180-2, for both algorithms.
    #[test]
    fn known_digests() {
        let of_abc = |mut hasher: Hasher| {
            hasher.update(b"abc");
            hasher.finish().to_string()
        };
        assert_eq!(
            of_abc(Hasher::sha256()),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = of_abc(Hasher::like(&Digest::Sha512(String::new())));
        assert!(long.starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{long}");
    }

    #[test]
    fn cancelled_hashing_stops() {
        let cancel = Cancel::new();
        cancel.cancel();
        let ended = feed(&mut Hasher::sha256(), io::repeat(0), &cancel);
        assert!(matches!(ended, Err(HashError::Interrupted(_))));
    }
}
