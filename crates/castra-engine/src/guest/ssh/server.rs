//! SSH server of a guest, and the host key that it has to show.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use russh::keys::{Algorithm, PublicKey};
use russh::{Preferred, cipher, kex, mac};

use crate::files;
use crate::trusted;

/// Largest file with a public key, in bytes; one of RSA has less than a KiB.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Key exchanges that are cheap on an emulated CPU without AES instructions, and nothing else: we
/// know the agent.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];
const CIPHERS: &[cipher::Name] = &[cipher::CHACHA20_POLY1305];
/// Required although ChaCha20-Poly1305 authenticates by itself: the list must not be empty.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM];

/// SSH server of a guest.
#[derive(Debug, Clone)]
pub enum Server {
    /// Castra's agent, with the host key that castra has given it.
    Agent(PublicKey),
    /// The system's own, whose host key is known from its first use.
    Own(Pin),
}

/// Host key of a guest's own server: trusted at its first use, and pinned in a file.
#[derive(Debug, Clone)]
pub struct Pin {
    path: PathBuf,
    key: Option<PublicKey>,
}

impl Pin {
    /// Reads the pinned key; a missing file is the first use.
    ///
    /// # Errors
    /// Those of reading it, [`io::ErrorKind::InvalidData`] for what is no public key.
    pub fn read(path: PathBuf) -> io::Result<Self> {
        let key = match trusted::read(&path, MAX_KEY_BYTES) {
            Ok(bytes) => Some(parse(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path, key })
    }

    /// Returns the pinned key.
    pub fn key(&self) -> Option<&PublicKey> {
        self.key.as_ref()
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pins the key that the server has shown, if this was the first use.
    pub(super) fn keep(&self, shown: &PublicKey) -> io::Result<()> {
        if self.key.is_some() {
            return Ok(());
        }
        let mut shown = shown.clone();
        shown.set_comment("");
        let line = shown.to_openssh().map_err(io::Error::other)?;
        files::write_atomically(&self.path, format!("{line}\n").as_bytes(), 0o600)
    }
}

fn parse(bytes: &[u8]) -> io::Result<PublicKey> {
    let text = String::from_utf8_lossy(bytes);
    PublicKey::from_openssh(text.trim())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl Server {
    /// Returns the key that the server must show; `None` if any will do.
    pub(super) fn expected(&self) -> Option<&PublicKey> {
        match self {
            Self::Agent(key) => Some(key),
            Self::Own(pin) => pin.key(),
        }
    }

    /// Returns `true` for a server that knows nothing of castra's own requests.
    pub(super) fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// Returns what is offered to the server.
    pub(super) fn preferred(&self) -> Preferred {
        match self {
            Self::Agent(_) => Preferred {
                kex: Cow::Borrowed(KEX),
                key: Cow::Borrowed(&[Algorithm::Ed25519]),
                cipher: Cow::Borrowed(CIPHERS),
                mac: Cow::Borrowed(MACS),
                ..Preferred::DEFAULT
            },
            Self::Own(pin) => {
                let usual = Preferred::DEFAULT;
                Preferred {
                    kex: first(KEX, &usual.kex),
                    key: Cow::Owned(algorithms(pin.key(), &usual.key)),
                    cipher: first(CIPHERS, &usual.cipher),
                    ..usual
                }
            }
        }
    }
}

/// Returns the usual names, those that are cheap under emulation first.
fn first<T: Copy + PartialEq>(cheap: &'static [T], usual: &[T]) -> Cow<'static, [T]> {
    let others = usual.iter().filter(|name| !cheap.contains(name));
    Cow::Owned(cheap.iter().chain(others).copied().collect())
}

/// Returns the algorithms of the pinned key, or all: a server has keys of several.
fn algorithms(pinned: Option<&PublicKey>, usual: &[Algorithm]) -> Vec<Algorithm> {
    let Some(pinned) = pinned else { return usual.to_vec() };
    let own = pinned.algorithm();
    let is_own = |other: &&Algorithm| match (&own, other) {
        (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
        (own, other) => own == *other,
    };
    usual.iter().filter(is_own).cloned().collect()
}

/// Writes the name of the server in a sentence.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent(_) => "the VM",
            Self::Own(_) => "the VM's own SSH server",
        })
    }
}
