//! The two key pairs of a VM: the host key of its SSH server, and the key that may log in.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::ssh_key::private::{Ed25519Keypair, Ed25519PrivateKey, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use russh::keys::{PrivateKey, PublicKey};
use sha2::{Digest as _, Sha256};

use crate::error::{Explain, Kind, kind_of_io};
use crate::files;
use crate::guest::ssh::{Pin, Server, Target};
use crate::hex::hex;
use crate::host::random_bytes;
use crate::layout::VmLayout;
use crate::trusted;

/// Reason why a VM's keys cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file is not an unencrypted OpenSSH private key.
    #[error("{} is not a private key in OpenSSH's format", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: ssh_key::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system provided no random bytes, or no key could be made from them.
    #[error("cannot generate a new key")]
    Generate {
        /// The reason.
        source: io::Error,
    },
}

impl Explain for KeyError {
    fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::Data,
            Self::Read { source, .. } => kind_of_io(source),
            Self::Write { source, .. } => match kind_of_io(source) {
                Kind::Io => Kind::CannotCreate,
                other => other,
            },
            Self::Generate { .. } => Kind::Other,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { path, .. } => Some(format!(
                "Delete {} to get a new key. A running VM keeps the old one until it is restarted.",
                path.display()
            )),
            Self::Read { path, source } => {
                trusted::Distrust::of(source).map(|distrust| distrust.way_out(path))
            }
            Self::Write { .. } | Self::Generate { .. } => None,
        }
    }
}

/// Largest key file that is read. A key in OpenSSH's format has some 400 bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// A VM's keys.
#[derive(Clone)]
pub struct VmKeys {
    host: Arc<PrivateKey>,
    client: Arc<PrivateKey>,
}

/// Reads the pinned key of the SSH server of a VM's own system.
///
/// # Errors
/// [`KeyError::Read`].
pub fn server_pin(layout: &VmLayout) -> Result<Pin, KeyError> {
    let path = layout.server_key();
    Pin::read(path.clone()).map_err(|source| KeyError::Read { path, source })
}

impl VmKeys {
    /// Creates keys of which no file is written, for a guest that lets no key in.
    ///
    /// # Errors
    /// [`KeyError::Generate`].
    pub fn unsaved() -> Result<Self, KeyError> {
        Ok(Self { host: Arc::new(generate("")?), client: Arc::new(generate("")?) })
    }

    /// Reads a VM's keys; creates those that do not exist. The caller holds the VM's lock.
    ///
    /// # Errors
    /// Every variant of [`KeyError`].
    pub fn load_or_create(layout: &VmLayout) -> Result<Self, KeyError> {
        Ok(Self {
            host: one(&layout.host_key(), "castra host")?,
            client: one(&layout.client_key(), "castra")?,
        })
    }

    /// Returns the SSH server's private key as OpenSSH PEM, to be sent to the guest.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the key cannot be encoded.
    pub fn host_private_pem(&self) -> Result<Vec<u8>, KeyError> {
        pem(&self.host)
    }

    /// Returns the public key that may log in, as a line of `authorized_keys`.
    pub fn client_public_line(&self) -> String {
        line(self.client.public_key())
    }

    /// Returns the guest's `/etc/machine-id`, derived from the VM's keys: as lasting as they are,
    /// and as different from other VMs'.
    pub fn machine_id(&self) -> String {
        let digest = Sha256::digest(format!("machine-id of {}", line(self.host.public_key())));
        hex(&digest[..16])
    }

    /// Returns the target for a connection to the VM.
    pub fn target(&self, address: SocketAddr, user: &str) -> Target {
        Target {
            address,
            user: user.to_owned(),
            client_key: Arc::clone(&self.client),
            server: Server::Agent(self.host.public_key().clone()),
            agent: None,
            streams: None,
            mounts: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// Returns the target for a connection to the SSH server of the VM's own system.
    ///
    /// # Errors
    /// [`KeyError::Read`] if the server's pinned key cannot be read.
    pub fn target_of_own_server(
        &self,
        layout: &VmLayout,
        address: SocketAddr,
        user: &str,
    ) -> Result<Target, KeyError> {
        Ok(Target { server: Server::Own(server_pin(layout)?), ..self.target(address, user) })
    }

    /// Writes `known_hosts` for other SSH clients: the server at 127.0.0.1 and this port, and at
    /// any address under this alias. `server` is the key of the system's own server, if that may
    /// be the one.
    ///
    /// # Errors
    /// [`KeyError::Write`].
    pub fn write_known_hosts(
        &self,
        layout: &VmLayout,
        alias: &str,
        port: u16,
        server: Option<&PublicKey>,
    ) -> Result<(), KeyError> {
        let mut text = String::new();
        for key in [Some(self.host.public_key()), server].into_iter().flatten() {
            let mut key = key.clone();
            key.set_comment("");
            text.push_str(&format!("{alias},[127.0.0.1]:{port} {}\n", line(&key)));
        }
        publish(&layout.known_hosts(), text.as_bytes())
    }
}

fn one(path: &Path, comment: &str) -> Result<Arc<PrivateKey>, KeyError> {
    match trusted::read(path, MAX_KEY_BYTES) {
        Ok(pem) => PrivateKey::from_openssh(pem)
            .map(Arc::new)
            .map_err(|source| KeyError::Invalid { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = generate(comment)?;
            publish(path, &pem(&key)?)?;
            Ok(Arc::new(key))
        }
        Err(source) => Err(KeyError::Read { path: path.to_owned(), source }),
    }
}

fn generate(comment: &str) -> Result<PrivateKey, KeyError> {
    let seed = random_bytes::<{ Ed25519PrivateKey::BYTE_SIZE }>()
        .map_err(|source| KeyError::Generate { source })?;
    PrivateKey::new(KeypairData::Ed25519(Ed25519Keypair::from_seed(&seed)), comment)
        .map_err(|error| KeyError::Generate { source: io::Error::other(error) })
}

fn pem(key: &PrivateKey) -> Result<Vec<u8>, KeyError> {
    match key.to_openssh(LineEnding::LF) {
        Ok(pem) => Ok(pem.as_bytes().to_vec()),
        Err(error) => Err(KeyError::Generate { source: io::Error::other(error) }),
    }
}

fn line(key: &PublicKey) -> String {
    // Encoding an existing Ed25519 key cannot fail.
    key.to_openssh().unwrap_or_default()
}

fn publish(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    files::write_atomically(path, bytes, 0o600)
        .map_err(|source| KeyError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::layout::ProjectLayout;

    fn layout() -> (tempfile::TempDir, VmLayout) {
        let directory = tempfile::tempdir().expect("makes a directory");
        let layout = ProjectLayout::unchecked(directory.path().join(".castra")).vm("box");
        (directory, layout)
    }

    #[test]
    fn keys_are_made_once_and_for_the_owner_only() {
        let (_directory, layout) = layout();
        let made = VmKeys::load_or_create(&layout).expect("makes keys");
        let read = VmKeys::load_or_create(&layout).expect("reads keys");
        assert_eq!(made.client_public_line(), read.client_public_line());
        assert_eq!(
            made.host_private_pem().expect("encodes"),
            read.host_private_pem().expect("encodes")
        );
        assert_ne!(made.host.public_key().key_data(), made.client.public_key().key_data());
        for path in [layout.host_key(), layout.client_key()] {
            assert_eq!(fs::metadata(path).expect("exists").permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn known_hosts_names_alias_address_and_key() {
        let (_directory, layout) = layout();
        let keys = VmKeys::load_or_create(&layout).expect("makes keys");
        keys.write_known_hosts(&layout, "castra-box", 40022, None).expect("writes");
        let line = fs::read_to_string(layout.known_hosts()).expect("exists");
        assert!(line.starts_with("castra-box,[127.0.0.1]:40022 ssh-ed25519 AAAA"), "{line}");
        assert_eq!(line.split_whitespace().count(), 3);
    }

    /// Opening a FIFO for reading would wait for a writer.
    #[test]
    fn a_fifo_and_a_link_are_no_keys_and_are_not_waited_for() {
        let (directory, layout) = layout();
        fs::create_dir_all(layout.directory()).expect("makes a directory");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            layout.client_key(),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .expect("makes a FIFO");
        let refused = VmKeys::load_or_create(&layout).err().expect("is refused");
        assert_eq!(refused.kind(), Kind::Permission);
        fs::remove_file(layout.client_key()).expect("removes");
        fs::write(directory.path().join("other"), "a stranger's").expect("writes");
        std::os::unix::fs::symlink(directory.path().join("other"), layout.client_key())
            .expect("links");
        assert!(matches!(VmKeys::load_or_create(&layout), Err(KeyError::Read { .. })));
    }

    #[test]
    fn a_broken_key_is_not_replaced() {
        let (_directory, layout) = layout();
        fs::create_dir_all(layout.directory()).expect("makes a directory");
        fs::write(layout.host_key(), "not a key").expect("writes");
        assert!(matches!(VmKeys::load_or_create(&layout), Err(KeyError::Invalid { .. })));
        assert_eq!(fs::read(layout.host_key()).expect("exists"), b"not a key");
    }
}
