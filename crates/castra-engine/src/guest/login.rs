//! Login key of a guest without Castra's agent: for its systemd, and for its cloud-init.
//!
//! systemd reads credentials from the SMBIOS tables from version 252 on (systemd.exec(5),
//! systemd.system-credentials(7)). cloud-init reads a disk with its data (NoCloud).

use std::io::{self, Cursor, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use castra_disk::RootKeys;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use sha2::{Digest as _, Sha256};

use super::seed::{Seed, meta_data};
use crate::hex::hex;

/// Least version of systemd that reads credentials from SMBIOS tables.
pub const CREDENTIALS_SYSTEMD: u32 = 252;

/// Prefix of a credential in an OEM string, whose value is in base64.
const CREDENTIAL: &str = "io.systemd.credential.binary:";
/// Label by which cloud-init finds its data.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// Least size of a seed, and the room in it for what is no data, in bytes.
const SEED_BYTES: u64 = 1 << 20;

/// Returns the OEM strings by which systemd lets this key log in as root. There are none if it may
/// already. A file that exists is not replaced: the key is appended to it, and what the disk has
/// says at the next boot that it is there.
pub fn oem_strings(key: &str, root_keys: &RootKeys) -> Vec<Vec<u8>> {
    let credential = |name: &str, value: &str| {
        format!("{CREDENTIAL}{name}={}", BASE64.encode(value.as_bytes())).into_bytes()
    };
    let rule = |action: &str, content: &str| {
        format!(
            "{action} /root/.ssh/authorized_keys 0600 root root - {}\n",
            BASE64.encode(content.as_bytes())
        )
    };
    match root_keys {
        RootKeys::Known(content) if has_key(content, key) => Vec::new(),
        RootKeys::Known(content) => {
            let separator = if content.is_empty() || content.ends_with(b"\n") { "" } else { "\n" };
            vec![credential("tmpfiles.extra", &rule("w+~", &format!("{separator}{key}\n")))]
        }
        // Neither of the two replaces a file.
        RootKeys::Missing | RootKeys::Unreadable => {
            let directory = "d /root/.ssh 0700 root root -\n";
            vec![
                credential("ssh.authorized_keys.root", &format!("{key}\n")),
                credential(
                    "tmpfiles.extra",
                    &format!("{directory}{}", rule("f~", &format!("{key}\n"))),
                ),
            ]
        }
    }
}

/// Returns `true` if a file of keys has this one, whatever its options and its comment.
fn has_key(content: &[u8], key: &str) -> bool {
    let Some(body) = key.split_whitespace().nth(1) else { return false };
    let content = String::from_utf8_lossy(content);
    let lines = content.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).any(|word| word == body)
}

/// Returns the image of a disk with data for cloud-init: the user's, if there are any, and this key
/// for root. The same data make the same image.
///
/// # Errors
/// Those of making a filesystem in memory.
pub fn seed_disk(seed: Option<&Seed>, hostname: &str, key: &str) -> io::Result<Vec<u8>> {
    let user_data = seed.map_or(&b"#cloud-config\n{}\n"[..], Seed::user_data);
    let digest = seed.map(Seed::digest).unwrap_or_default();
    let id = hex(&Sha256::digest(format!("{digest} {key}")));
    let meta_data = meta_data(&id, hostname) + &format!("public-keys:\n- {key}\n");
    let network_config = seed.and_then(Seed::network_config);
    // The user's data go before those of a vendor.
    let vendor_data = "#cloud-config\ndisable_root: false\n";
    let files = [
        ("meta-data", Some(meta_data.as_bytes())),
        ("user-data", Some(user_data)),
        ("vendor-data", Some(vendor_data.as_bytes())),
        ("network-config", network_config),
    ];
    let content = files.iter().filter_map(|(_, content)| *content).map(<[u8]>::len).sum::<usize>();
    let bytes = (content as u64 + SEED_BYTES).next_multiple_of(SEED_BYTES);
    let mut disk = Cursor::new(vec![0; usize::try_from(bytes).map_err(io::Error::other)?]);
    format_volume(&mut disk, FormatVolumeOptions::new().volume_label(LABEL))?;
    {
        let filesystem = FileSystem::new(&mut disk, FsOptions::new())?;
        let root = filesystem.root_dir();
        for (name, content) in files {
            let Some(content) = content else { continue };
            let mut file = root.create_file(name)?;
            file.write_all(content)?;
            file.flush()?;
        }
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3Nza castra";

    fn strings(root_keys: RootKeys) -> Vec<String> {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        oem_strings(KEY, &root_keys).into_iter().map(text).collect()
    }

    fn known(content: &str) -> RootKeys {
        RootKeys::Known(content.into())
    }

    #[test]
    fn a_missing_file_of_keys_is_made_in_both_ways() {
        let expected = [
            format!(
                "{CREDENTIAL}ssh.authorized_keys.root={}",
                BASE64.encode(b"ssh-ed25519 AAAAC3Nza castra\n")
            ),
            format!(
                "{CREDENTIAL}tmpfiles.extra={}",
                BASE64.encode(
                    b"d /root/.ssh 0700 root root -\nf~ /root/.ssh/authorized_keys 0600 root root \
                    - c3NoLWVkMjU1MTkgQUFBQUMzTnphIGNhc3RyYQo=\n"
                )
            ),
        ];
        assert_eq!(strings(RootKeys::Missing), expected);
        assert_eq!(strings(RootKeys::Unreadable), expected);
    }

    #[test]
    fn a_file_of_keys_is_appended_to_once() {
        let appended = |content: &str, what: &str| {
            let rule = format!(
                "w+~ /root/.ssh/authorized_keys 0600 root root - {}\n",
                BASE64.encode(what.as_bytes())
            );
            let expected = format!("{CREDENTIAL}tmpfiles.extra={}", BASE64.encode(rule.as_bytes()));
            assert_eq!(strings(known(content)), [expected], "{content:?}");
        };
        appended("", "ssh-ed25519 AAAAC3Nza castra\n");
        appended("ssh-rsa AAAAB me\n", "ssh-ed25519 AAAAC3Nza castra\n");
        appended("ssh-rsa AAAAB me", "\nssh-ed25519 AAAAC3Nza castra\n");
        appended("# ssh-ed25519 AAAAC3Nza castra\n", "ssh-ed25519 AAAAC3Nza castra\n");
        for has in ["ssh-ed25519 AAAAC3Nza castra\n", "x\nno-pty ssh-ed25519 AAAAC3Nza\n"] {
            assert_eq!(strings(known(has)), [""; 0], "{has:?}");
        }
    }

    fn read(image: &[u8], name: &str) -> Option<String> {
        let filesystem = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new());
        let filesystem = filesystem.expect("a filesystem");
        assert_eq!(filesystem.volume_label(), "CIDATA");
        let mut text = String::new();
        let mut file = filesystem.root_dir().open_file(name).ok()?;
        file.read_to_string(&mut text).expect("read");
        Some(text)
    }

    #[test]
    fn a_seed_has_the_users_data_and_the_key() {
        let seed = Seed::new(b"#cloud-config\n".to_vec(), Some(b"version: 2\n".to_vec()));
        let image = seed_disk(Some(&seed), "web", KEY).expect("made");
        assert_eq!(image, seed_disk(Some(&seed), "web", KEY).expect("made"), "the same again");
        assert_eq!(read(&image, "user-data").as_deref(), Some("#cloud-config\n"));
        assert_eq!(read(&image, "network-config").as_deref(), Some("version: 2\n"));
        let meta_data = read(&image, "meta-data").expect("is there");
        assert!(meta_data.contains("local-hostname: web\n"), "{meta_data}");
        assert!(meta_data.ends_with("public-keys:\n- ssh-ed25519 AAAAC3Nza castra\n"));
        let id = |image: &[u8]| read(image, "meta-data").expect("is there")[..50].to_owned();
        let other = seed_disk(None, "web", KEY).expect("made");
        assert_ne!(id(&image), id(&other));
        assert_ne!(id(&other), id(&seed_disk(None, "web", "ssh-ed25519 B c").expect("made")));
        assert_eq!(read(&other, "network-config"), None);
        assert!(read(&other, "user-data").is_some_and(|text| text.starts_with("#cloud-config")));
        let large = Seed::new(vec![b'#'; 1 << 20], Some(vec![b'#'; 1 << 20]));
        let image = seed_disk(Some(&large), "web", KEY).expect("made");
        assert_eq!(read(&image, "user-data").map(|text| text.len()), Some(1 << 20));
    }
}
