//! Seed of cloud-init's data source NoCloud, which the agent puts where cloud-init looks for it.

use sha2::{Digest as _, Sha256};

use super::cpio::Archive;
use crate::hex::hex;

/// Directory of the seed in the initramfs, from which the agent copies it.
const DIRECTORY: &str = "castra/seed";

/// Name of the machine that a template is made from. Each VM of it has its own.
pub const TEMPLATE_HOSTNAME: &str = "castra";

/// Digits of the digest that are the instance's ID: cloud-init applies the data once to each.
const ID_DIGITS: usize = 32;

/// Data of the user's for cloud-init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    user_data: Vec<u8>,
    network_config: Option<Vec<u8>>,
}

impl Seed {
    /// Returns a seed of these texts.
    pub fn new(user_data: Vec<u8>, network_config: Option<Vec<u8>>) -> Self {
        Self { user_data, network_config }
    }

    /// Returns the user data.
    pub(super) fn user_data(&self) -> &[u8] {
        &self.user_data
    }

    /// Returns the network configuration, if there is one.
    pub(super) fn network_config(&self) -> Option<&[u8]> {
        self.network_config.as_deref()
    }

    /// Returns the digest of the whole data, SHA-256.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        for part in [Some(&self.user_data), self.network_config.as_ref()] {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hasher.update(length.to_be_bytes());
            hasher.update(part.map_or(&[][..], Vec::as_slice));
        }
        hex(&hasher.finalize())
    }

    /// Returns the archive for the initramfs of the machine with this host name.
    pub fn archive(&self, hostname: &str) -> Vec<u8> {
        let meta_data = meta_data(&self.digest(), hostname);
        let mut archive = Archive::default();
        archive.directory("castra", 0o755);
        archive.directory(DIRECTORY, 0o700);
        archive.file(&format!("{DIRECTORY}/meta-data"), 0o600, meta_data.as_bytes());
        archive.file(&format!("{DIRECTORY}/user-data"), 0o600, &self.user_data);
        if let Some(network_config) = &self.network_config {
            archive.file(&format!("{DIRECTORY}/network-config"), 0o600, network_config);
        }
        archive.finish()
    }
}

/// Returns the `meta-data` of the instance with this digest, on the machine with this host name.
pub(super) fn meta_data(digest: &str, hostname: &str) -> String {
    let id = &digest[..ID_DIGITS];
    format!("instance-id: castra-{id}\nlocal-hostname: {hostname}\n")
}

#[cfg(test)]
mod tests {
    use super::super::cpio::tests::read;
    use super::*;

    fn seed(user_data: &str, network_config: Option<&str>) -> Seed {
        Seed::new(user_data.into(), network_config.map(Into::into))
    }

    #[test]
    fn the_digest_is_of_both_texts_and_of_where_they_end() {
        let seeds =
            [seed("ab", None), seed("a", Some("b")), seed("ab", Some("")), seed("", Some("ab"))];
        let digests: std::collections::BTreeSet<_> = seeds.iter().map(Seed::digest).collect();
        assert_eq!(digests.len(), seeds.len());
    }

    #[test]
    fn the_archive_has_what_no_cloud_reads() {
        let bytes = seed("#cloud-config\n", Some("version: 2\n")).archive("web");
        let (entries, rest) = read(&bytes);
        assert!(rest.is_empty());
        let found: Vec<_> = entries.iter().map(|it| (it.name.as_str(), it.mode & 0o777)).collect();
        let names = ["meta-data", "user-data", "network-config"];
        let files = names.map(|name| (format!("castra/seed/{name}"), 0o600));
        assert_eq!(found[..2], [("castra", 0o755), ("castra/seed", 0o700)]);
        for ((name, mode), found) in files.iter().zip(&found[2..]) {
            assert_eq!(&(name.as_str(), *mode), found);
        }
        let meta_data = String::from_utf8_lossy(&entries[2].contents);
        assert!(meta_data.ends_with("local-hostname: web\n"), "{meta_data}");
        assert_eq!(entries[3].contents, b"#cloud-config\n");
    }
}
