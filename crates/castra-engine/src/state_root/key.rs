//! The key that distinguishes this user's state roots from all others: 32 random bytes outside
//! every project.

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use super::error::StateRootError;
use crate::context::RuntimeContext;
use crate::files::{self, create_private_directory};
use crate::host::random_bytes;
use crate::trusted;

const BYTES: usize = 32;
/// Mode bits that let other users read, write or execute.
const OPEN_TO_OTHERS: u32 = 0o077;

/// A user's key.
pub(super) struct Key([u8; BYTES]);

impl Key {
    /// Reads the key; returns `None` if this user has none yet.
    pub(super) fn load(context: &RuntimeContext) -> Result<Option<Self>, StateRootError> {
        let path = &context.user_state()?.key();
        match read(path) {
            Ok(key) => Ok(Some(key)),
            Err(error) if trusted::is_absence(&error) => Ok(None),
            Err(source) => Err(StateRootError::Key { action: "read", path: path.clone(), source }),
        }
    }

    /// Reads the key, or creates one. If several castras create one at once, all get the first.
    pub(super) fn load_or_create(context: &RuntimeContext) -> Result<Self, StateRootError> {
        if let Some(key) = Self::load(context)? {
            return Ok(key);
        }
        let path = &context.user_state()?.key();
        let made = create(path).and_then(|()| read(path));
        made.map_err(|source| StateRootError::Key { action: "create", path: path.clone(), source })
    }

    /// Returns the HMAC-SHA256 of a text under this key.
    pub(super) fn sign(&self, text: &[u8]) -> [u8; 32] {
        self.mac(text).finalize().into_bytes().into()
    }

    /// Checks an HMAC in constant time.
    pub(super) fn verifies(&self, text: &[u8], mac: &[u8]) -> bool {
        self.mac(text).verify_slice(mac).is_ok()
    }

    fn mac(&self, text: &[u8]) -> Hmac<Sha256> {
        // HMAC accepts keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| unreachable!());
        mac.update(text);
        mac
    }
}

fn read(path: &Path) -> io::Result<Key> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if let Some(directory) = path.parent() {
        trusted::directory(directory)?;
    }
    let bytes = trusted::read(path, BYTES as u64)?;
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.mode() & OPEN_TO_OTHERS != 0 {
        return Err(invalid("other users can read it; it must have mode 0600"));
    }
    bytes.try_into().map(Key).map_err(|_| invalid("it is not 32 bytes long"))
}

/// Writes a key under another name and links it into place, unless one exists by then.
fn create(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    create_private_directory(directory)?;
    trusted::directory(directory)?;
    let mut temporary = files::new_temporary(files::TEMPORARY.as_ref(), directory)?;
    temporary.as_file_mut().write_all(&random_bytes::<BYTES>()?)?;
    temporary.as_file().sync_all()?;
    match temporary.persist_noclobber(path) {
        Err(failed) if failed.error.kind() != io::ErrorKind::AlreadyExists => Err(failed.error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    fn context(state_home: &Path) -> RuntimeContext {
        let environment =
            Environment::of([("XDG_STATE_HOME", state_home), ("XDG_CACHE_HOME", state_home)]);
        RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home")
    }

    #[test]
    fn castras_that_make_it_at_once_agree() {
        let home = tempfile::tempdir().expect("a directory");
        let context = &context(home.path());
        assert!(Key::load(context).expect("looks").is_none(), "looking makes none");
        let keys: Vec<[u8; BYTES]> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Key::load_or_create(context).expect("made").0))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("joined")).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        let path = home.path().join("castra/key");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(home.path().join("castra")).expect("there").mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(home.path().join("castra")).expect("listed").count(), 1);
    }

    #[test]
    fn one_that_cannot_be_relied_on_is_named_and_stays() {
        let home = tempfile::tempdir().expect("a directory");
        let context = &context(home.path());
        let path = home.path().join("castra/key");
        Key::load_or_create(context).expect("made");
        for (content, mode) in [(&b"short"[..], 0o600), (&[7; 32], 0o640), (&[7; 33], 0o600)] {
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            let refused = Key::load_or_create(context).err().expect("refused");
            assert!(refused.to_string().contains(path.to_str().expect("UTF-8")), "{refused}");
            assert_eq!(fs::read(&path).expect("read"), content);
        }
        fs::write(&path, [7; 32]).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        Key::load_or_create(context).expect("one as it should be");
        let directory = home.path().join("castra");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("changed");
        assert!(Key::load(context).is_err(), "others could put another in its place");
    }

    /// RFC 4231, test case 2, with the key padded by zeros as HMAC does itself.
    #[test]
    fn it_signs_as_the_standard_says() {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(b"Jefe");
        let key = Key(bytes);
        let mac = key.sign(b"what do ya want for nothing?");
        assert_eq!(crate::hex::hex(&mac[..8]), "5bdcc146bf60754e");
        assert!(
            key.verifies(b"what do ya want for nothing?", &mac) && !key.verifies(b"what", &mac)
        );
    }
}
