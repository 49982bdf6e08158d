//! Record of what this user's castra has made, kept where no project can write.
//!
//! A manifest lies beside the files it describes, so an attacker who plants the files can plant the
//! manifest too. It says which digest a file had; that the pinned download becomes a file with this
//! digest is believed only
//!
//! - if the description pins the digest of the finished file, or
//! - if a castra of this user made such a file from the pinned download, and noted so here.
//!
//! A note is an empty file. Its name joins the digest of the description and the digest of the
//! file, so that it proves nothing about another description's file, whatever id and version that
//! has.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use super::manifest::{self, ManifestArtifact};
use crate::context::RuntimeContext;
use crate::files::{self, Digest, FileError};
use crate::managed::check;
use crate::managed::spec::{ManagedArtifactSpec, TransformStep};

/// Notes of one user.
pub(crate) struct Witness {
    /// Directories of notes: in the cache, and beside it in case the cache is removed.
    directories: Vec<PathBuf>,
    /// Notes of this process, which count even if they cannot be written.
    own: Mutex<BTreeSet<String>>,
}

impl Witness {
    /// Returns the notes of the user whose context this is.
    pub(crate) fn of(context: &RuntimeContext) -> Self {
        let beside = context.user_state.as_ref().map(|state| state.products());
        let directories = std::iter::once(context.cache.products()).chain(beside).collect();
        Self { directories, own: Mutex::default() }
    }

    /// Returns `true` if the artifact's pinned download is known to become a file with this
    /// SHA-256.
    pub(crate) fn vouches_for(&self, artifact: &ManagedArtifactSpec, sha256: &str) -> bool {
        match pinned(artifact) {
            Some(pinned) => pinned == sha256,
            None => self.has_note(&manifest::artifact_digest(artifact), sha256),
        }
    }

    /// Returns `true` if the file of an entry is known to be made from the download of the
    /// description it names.
    pub(crate) fn vouches_for_entry(
        &self,
        artifact: Option<&ManagedArtifactSpec>,
        entry: &ManifestArtifact,
    ) -> bool {
        let described = artifact.filter(|one| manifest::artifact_digest(one) == entry.spec_digest);
        match described {
            Some(artifact) => self.vouches_for(artifact, &entry.sha256),
            None => self.has_note(&entry.spec_digest, &entry.sha256),
        }
    }

    /// Records that this castra has just made a file with this SHA-256 from the artifact's pinned
    /// download.
    ///
    /// # Errors
    /// Fails if the note cannot be written anywhere; this process remembers it all the same.
    pub(crate) fn note(
        &self,
        artifact: &ManagedArtifactSpec,
        sha256: &str,
    ) -> Result<(), FileError> {
        if pinned(artifact).is_some() {
            return Ok(());
        }
        let name = name(&manifest::artifact_digest(artifact), sha256);
        self.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.clone());
        let write = |directory: &PathBuf| {
            files::create_directory(directory)?;
            files::open_or_create(&directory.join(&name)).map(drop)
        };
        let written: Vec<_> = self.directories.iter().map(write).collect();
        match written.iter().any(Result::is_ok) {
            true => Ok(()),
            false => written.into_iter().collect(),
        }
    }

    fn has_note(&self, spec_digest: &str, sha256: &str) -> bool {
        // Both come from a manifest, and become the name of a file.
        let is_digest = |hex: &str| check::is_digest(&Digest::Sha256(hex.to_owned()));
        if !is_digest(spec_digest) || !is_digest(sha256) {
            return false;
        }
        let name = name(spec_digest, sha256);
        let is_written = |directory: &PathBuf| {
            fs::symlink_metadata(directory.join(&name))
                .is_ok_and(|metadata| metadata.is_file() && files::is_trusted(&metadata))
        };
        self.own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&name)
            || self.directories.iter().any(is_written)
    }
}

fn name(spec_digest: &str, sha256: &str) -> String {
    format!("{spec_digest}-{sha256}")
}

/// Returns the SHA-256 of an artifact's finished file, if the description pins it: by itself, or by
/// the digest of a download that is used as it is.
pub(crate) fn pinned(artifact: &ManagedArtifactSpec) -> Option<&str> {
    let is_used_as_it_is =
        artifact.pipeline.iter().all(|step| matches!(step, TransformStep::Rename { .. }));
    match (&artifact.product_digest, &artifact.digest) {
        (Some(Digest::Sha256(product)), _) => Some(product),
        (None, Digest::Sha256(download)) if is_used_as_it_is => Some(download),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::managed::Catalog;
    use crate::report::Silent;

    fn context(home: &Path) -> RuntimeContext {
        RuntimeContext::new(Environment::of([("HOME", home)]), Arc::new(Silent), Cancel::new())
            .expect("a home")
    }

    /// Returns a disk whose finished file is not pinned.
    fn disk() -> ManagedArtifactSpec {
        Catalog::builtin().images()[0].artifacts[0].clone()
    }

    #[test]
    fn a_note_outlives_the_process_and_the_cache_and_is_for_one_description() {
        let home = tempfile::tempdir().expect("a directory");
        let context = context(home.path());
        let (one, sha256) = (disk(), "ab".repeat(32));
        assert!(!Witness::of(&context).vouches_for(&one, &sha256));
        Witness::of(&context).note(&one, &sha256).expect("noted");
        let witness = Witness::of(&context);
        assert!(witness.vouches_for(&one, &sha256));
        assert!(!witness.vouches_for(&one, &"cd".repeat(32)));
        let mut other = disk();
        other.digest = Digest::Sha256("00".repeat(32));
        assert!(!witness.vouches_for(&other, &sha256));
        fs::remove_dir_all(context.cache.root()).expect("removed");
        assert!(Witness::of(&context).vouches_for(&one, &sha256));
    }

    #[test]
    fn a_pin_needs_no_note_and_none_outweighs_it() {
        let home = tempfile::tempdir().expect("a directory");
        let context = context(home.path());
        let (pinned, other) = ("ab".repeat(32), "cd".repeat(32));
        let mut disk = disk();
        Witness::of(&context).note(&disk, &other).expect("noted");
        disk.product_digest = Some(Digest::Sha256(pinned.clone()));
        Witness::of(&context).note(&disk, &other).expect("nothing to note");
        let witness = Witness::of(&context);
        assert!(witness.vouches_for(&disk, &pinned) && !witness.vouches_for(&disk, &other));
    }

    #[test]
    fn only_a_file_of_this_users_is_a_note() {
        let home = tempfile::tempdir().expect("a directory");
        let context = context(home.path());
        let (disk, sha256) = (disk(), "ab".repeat(32));
        Witness::of(&context).note(&disk, &sha256).expect("noted");
        fs::remove_dir_all(context.user_state.as_ref().expect("a home").products())
            .expect("removed");
        let note = context.cache.products().join(name(&manifest::artifact_digest(&disk), &sha256));
        let vouches = || Witness::of(&context).vouches_for(&disk, &sha256);
        assert!(vouches());
        fs::rename(&note, home.path().join("note")).expect("moved");
        std::os::unix::fs::symlink(home.path().join("note"), &note).expect("linked");
        assert!(!vouches(), "a link");
        fs::remove_file(&note).expect("removed");
        fs::create_dir(&note).expect("made");
        assert!(!vouches(), "a directory");
        fs::remove_dir(&note).expect("removed");
        fs::rename(home.path().join("note"), &note).expect("moved back");
        assert!(vouches());
        if !rustix::process::geteuid().is_root() {
            return castra_test_support::skip("only root can give a file away");
        }
        std::os::unix::fs::chown(&note, Some(12_345), None).expect("given away");
        assert!(!vouches(), "another user's");
    }

    #[test]
    fn an_entry_of_another_description_is_not_vouched_for_by_this_ones_pin() {
        let home = tempfile::tempdir().expect("a directory");
        let witness = Witness::of(&context(home.path()));
        let sha256 = "ab".repeat(32);
        let mut disk = disk();
        disk.product_digest = Some(Digest::Sha256(sha256.clone()));
        let entry = |spec_digest: String| ManifestArtifact {
            role: disk.role,
            name: "rootfs".to_owned(),
            spec_digest,
            source: String::new(),
            sha256: sha256.clone(),
            size_bytes: 0,
            made_at: String::new(),
            stamp: crate::files::Stamp::of(&fs::metadata(home.path()).expect("there")),
        };
        assert!(witness.vouches_for_entry(Some(&disk), &entry(manifest::artifact_digest(&disk))));
        assert!(!witness.vouches_for_entry(Some(&disk), &entry("cd".repeat(32))));
        assert!(!witness.vouches_for_entry(None, &entry(manifest::artifact_digest(&disk))));
    }

    #[test]
    fn a_name_from_a_manifest_leads_nowhere_else() {
        let home = tempfile::tempdir().expect("a directory");
        let context = context(home.path());
        let products = context.cache.products();
        fs::create_dir_all(&products).expect("a directory");
        fs::write(products.join("x-y"), "").expect("written");
        let witness = Witness::of(&context);
        for (spec_digest, sha256) in [("x", "y"), ("../products/x", "y"), ("", "")] {
            assert!(!witness.has_note(spec_digest, sha256), "{spec_digest} {sha256}");
        }
    }
}
