//! Templates on disk: finds those that can be relied on, and remembers failures for a while.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::files;
use crate::hex::hex;
use crate::host::unix_time_ms;
use crate::layout::{TemplateLayout, TemplatesLayout};
use crate::qemu::Boot;
use crate::trusted;

use super::damage::Damage;
use super::error::TemplateError;
use super::manifest::{TemplateFile, TemplateManifest};
use super::memory;

/// Largest note of a failure that is read, in bytes.
const MAX_REFUSAL_BYTES: u64 = 64 * 1024;
/// Time for which a failure is remembered: software is updated, and a busy machine has quieter
/// days.
const REFUSED_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// A template from which a VM can be restored.
#[derive(Debug)]
pub struct Template {
    /// Paths of its files.
    pub layout: TemplateLayout,
    /// Description of the template.
    pub manifest: TemplateManifest,
    /// State of the devices: the very file that was hashed.
    device_state: File,
}

/// Reason why no template is made for a key for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Description of the failure.
    pub reason: String,
    /// Time of the failure, in milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
}

impl Template {
    /// Opens the template with this key, if there is one and it can be relied on: the state of the
    /// devices is hashed, the other files are checked by their stamps. Takes milliseconds.
    ///
    /// # Errors
    /// [`Damage`] of the template.
    pub fn open(templates: &TemplatesLayout, key: &str) -> Result<Option<Self>, Damage> {
        let layout = templates.template(key);
        let unreadable = |error: io::Error| Damage::Manifest(error.to_string());
        let Some(manifest) = TemplateManifest::load(&layout.manifest()).map_err(unreadable)? else {
            return Ok(None);
        };
        if manifest.key != key || manifest.ingredients.key() != key {
            return Err(Damage::Manifest("it describes another template".into()));
        }
        let mut files = vec![
            ("disk", &manifest.disk, layout.disk()),
            ("memory", &manifest.memory, layout.memory()),
            ("devices' state", &manifest.device_state, layout.device_state()),
            ("initramfs", &manifest.initramfs, layout.initramfs()),
        ];
        files.extend(manifest.kernel.as_ref().map(|kernel| ("kernel", kernel, layout.kernel())));
        if let Some((what, ..)) = files.iter().find(|(_, file, path)| !file.may_be_at(path)) {
            return Err(Damage::File(what));
        }
        if let Some((what, ..)) = files.iter().find(|(_, file, path)| !file.is_at(path)) {
            return Err(Damage::Unverified(what));
        }
        let device_state = open_hashed(&layout.device_state(), &manifest.device_state);
        let device_state = device_state.ok_or(Damage::File("devices' state"))?;
        Ok(Some(Self { layout, manifest, device_state }))
    }

    /// Opens the template with this key even if its files are copies: files with unknown stamps are
    /// hashed, once, and their stamps recorded. The caller holds the template's lock, if the cache
    /// can be written to.
    ///
    /// # Errors
    /// [`Damage`] of the template. An interruption is none, but leaves the template unverified.
    pub fn recognise(
        templates: &TemplatesLayout,
        key: &str,
        cancel: &Cancel,
    ) -> Result<Option<Self>, Damage> {
        let opened = Self::open(templates, key);
        if !matches!(opened, Err(Damage::Unverified(_))) {
            return opened;
        }
        let layout = templates.template(key);
        let unreadable = |error: io::Error| Damage::Manifest(error.to_string());
        let Some(mut manifest) = TemplateManifest::load(&layout.manifest()).map_err(unreadable)?
        else {
            return Ok(None);
        };
        let sha256 = |path: &Path| files::sha256(path, cancel).map_err(io::Error::other);
        let memory_digest = |path: &Path| memory::digest(path, cancel);
        let files = [
            ("disk", &mut manifest.disk, layout.disk()),
            ("devices' state", &mut manifest.device_state, layout.device_state()),
            ("initramfs", &mut manifest.initramfs, layout.initramfs()),
        ];
        let kernel = manifest.kernel.as_mut().map(|kernel| ("kernel", kernel, layout.kernel()));
        for (what, file, path) in files.into_iter().chain(kernel) {
            file.recognise(what, &path, sha256, cancel)?;
        }
        manifest.memory.recognise("memory", &layout.memory(), memory_digest, cancel)?;
        let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        // If it cannot be written, the files are hashed again next time: slower, but correct.
        let _ = files::write_atomically(&layout.manifest(), &text, 0o444);
        let device_state = open_hashed(&layout.device_state(), &manifest.device_state);
        let device_state = device_state.ok_or(Damage::File("devices' state"))?;
        Ok(Some(Self { layout, manifest, device_state }))
    }

    /// Hashes every file.
    ///
    /// # Errors
    /// [`Damage`] of the template. A cancelled check reports no damage.
    pub fn verify(&self, cancel: &Cancel) -> Result<(), Damage> {
        let (layout, manifest) = (&self.layout, &self.manifest);
        let whole = [
            ("disk", &manifest.disk, layout.disk()),
            ("initramfs", &manifest.initramfs, layout.initramfs()),
        ];
        let kernel = manifest.kernel.as_ref().map(|kernel| ("kernel", kernel, layout.kernel()));
        for (what, file, path) in whole.into_iter().chain(kernel) {
            open_hashed(&path, file).ok_or(Damage::File(what))?;
        }
        match memory::digest(&layout.memory(), cancel) {
            Ok(sha256) if sha256 == manifest.memory.sha256 => Ok(()),
            Err(_) if cancel.is_cancelled() => Ok(()),
            _ => Err(Damage::File("memory")),
        }
    }

    /// Returns what its machine boots when the guest reboots, with the template's own files.
    pub fn boot(&self, mut boot: Boot) -> Boot {
        if let Boot::Kernel { kernel, initramfs, .. } = &mut boot {
            *initramfs = self.layout.initramfs();
            if self.manifest.kernel.is_some() {
                *kernel = self.layout.kernel();
            }
        }
        boot
    }

    /// Returns the state of the devices, positioned at its start.
    ///
    /// # Errors
    /// The file cannot be duplicated or rewound.
    pub fn device_state(&self) -> Result<File, TemplateError> {
        let rewound =
            self.device_state.try_clone().and_then(|mut file| file.rewind().map(|()| file));
        rewound.map_err(|source| TemplateError::File {
            action: "read",
            path: self.layout.device_state(),
            source,
        })
    }
}

fn open_hashed(path: &Path, expected: &TemplateFile) -> Option<File> {
    let mut file = trusted::open(path).ok()?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut HashWriter(&mut hasher)).ok()?;
    let found = hex(&hasher.finalize());
    (found == expected.sha256).then_some(file)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the finished templates, by key. Leaves out those that cannot be read.
pub fn list(templates: &TemplatesLayout) -> Vec<TemplateManifest> {
    let entries = files::readable_entries(templates.root());
    let layouts = entries.map(|entry| TemplateLayout::new(entry.path()));
    let mut found: Vec<_> = layouts
        .filter_map(|layout| TemplateManifest::load(&layout.manifest()).ok().flatten())
        .collect();
    found.sort_by(|one, other| one.key.cmp(&other.key));
    found
}

/// Removes a template, its manifest first. VMs that run from it are unaffected, and disks based on
/// it have links of their own. The caller holds the template's lock.
///
/// # Errors
/// A file cannot be removed.
pub fn discard(templates: &TemplatesLayout, key: &str) -> Result<(), TemplateError> {
    let layout = templates.template(key);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| TemplateError::File { action: "remove", path, source }
    };
    files::gone(fs::remove_file(layout.manifest())).map_err(failed(&layout.manifest()))?;
    files::gone(fs::remove_dir_all(layout.directory())).map_err(failed(layout.directory()))
}

/// Remembers for a day that making this template is pointless.
pub fn refuse(templates: &TemplatesLayout, key: &str, reason: &str) {
    let refusal = Refusal { reason: reason.to_owned(), at_unix_ms: unix_time_ms() };
    let text = serde_json::to_vec_pretty(&refusal).unwrap_or_default();
    // If it cannot be remembered, it is tried again: slower, but correct.
    let _ = files::write_atomically(&templates.refusal(key), &text, 0o600);
}

/// Returns the reason why this key is not to be tried now.
pub fn refusal(templates: &TemplatesLayout, key: &str) -> Option<Refusal> {
    let text = trusted::read(&templates.refusal(key), MAX_REFUSAL_BYTES).ok()?;
    let refusal: Refusal = serde_json::from_slice(&text).ok()?;
    let age = unix_time_ms().checked_sub(refusal.at_unix_ms)?;
    (u128::from(age) < REFUSED_FOR.as_millis()).then_some(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_remembered_for_a_while() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        assert_eq!(refusal(&templates, "abc"), None);
        refuse(&templates, "abc", "cannot be saved");
        assert_eq!(refusal(&templates, "abc").expect("remembered").reason, "cannot be saved");
        let old = Refusal { reason: "old".into(), at_unix_ms: 0 };
        fs::write(templates.refusal("abc"), serde_json::to_vec(&old).expect("writes"))
            .expect("writes");
        assert_eq!(refusal(&templates, "abc"), None);
    }

    /// Creates a finished template of small files.
    fn template(templates: &TemplatesLayout) -> String {
        let ingredients = super::super::key::tests::sample();
        let key = ingredients.key();
        let layout = templates.template(&key);
        fs::create_dir_all(layout.directory()).expect("a directory");
        let file = |path: std::path::PathBuf| {
            fs::write(&path, path.display().to_string()).expect("writes");
            let sha256 = crate::files::sha256(&path, &Cancel::new()).expect("reads");
            TemplateFile::new(&path, sha256).expect("is there")
        };
        let mut manifest = TemplateManifest {
            key: key.clone(),
            ingredients,
            castra_version: "0".into(),
            made_unix_ms: 1,
            boot_ms: 1,
            disk: file(layout.disk()),
            memory: file(layout.memory()),
            device_state: file(layout.device_state()),
            initramfs: file(layout.initramfs()),
            kernel: Some(file(layout.kernel())),
        };
        manifest.memory.sha256 = memory::digest(&layout.memory(), &Cancel::new()).expect("reads");
        fs::write(layout.manifest(), serde_json::to_vec(&manifest).expect("JSON")).expect("writes");
        key
    }

    /// Changes bytes but not the stamp of a file.
    fn flip_unseen(path: &Path) {
        let before = fs::metadata(path).and_then(|metadata| metadata.modified()).expect("is there");
        let mut bytes = fs::read(path).expect("reads");
        bytes[3] ^= 1;
        fs::write(path, bytes).expect("writes");
        File::open(path).and_then(|file| file.set_modified(before)).expect("sets");
    }

    #[test]
    fn damage_is_found_by_stamp_or_by_digest() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        let open = |key: &str| Template::open(&templates, key).map(|template| template.is_some());
        let verified = |key: &str| {
            let template = Template::open(&templates, key).expect("opens").expect("is there");
            template.verify(&Cancel::new())
        };
        let key = template(&templates);
        assert_eq!((open(&key), verified(&key)), (Ok(true), Ok(())));
        let layout = templates.template(&key);

        // The state of the devices is hashed on every use.
        flip_unseen(&layout.device_state());
        assert_eq!(open(&key), Err(Damage::File("devices' state")));

        // The others are hashed on request.
        for (path, what) in [
            (layout.disk(), "disk"),
            (layout.memory(), "memory"),
            (layout.initramfs(), "initramfs"),
            (layout.kernel(), "kernel"),
        ] {
            template(&templates);
            flip_unseen(&path);
            assert_eq!((open(&key), verified(&key)), (Ok(true), Err(Damage::File(what))));
            template(&templates);
            File::open(&path)
                .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
                .expect("sets");
            assert_eq!(open(&key), Err(Damage::Unverified(what)), "touched");
            File::options().append(true).open(&path).and_then(|file| file.set_len(1)).expect("cut");
            assert_eq!(open(&key), Err(Damage::File(what)), "truncated");
            fs::remove_file(&path).expect("removed");
            assert_eq!(open(&key), Err(Damage::File(what)), "missing");
        }
    }

    #[test]
    fn copies_are_hashed_once_and_changed_ones_never_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        let recognise =
            |key: &str| Template::recognise(&templates, key, &Cancel::new()).map(|it| it.is_some());
        let key = template(&templates);
        let layout = templates.template(&key);
        let files = [
            (layout.disk(), "disk"),
            (layout.memory(), "memory"),
            (layout.device_state(), "devices' state"),
            (layout.initramfs(), "initramfs"),
            (layout.kernel(), "kernel"),
        ];
        // With new inodes and times.
        let copy = || {
            for (path, _) in &files {
                let bytes = fs::read(path).expect("reads");
                fs::remove_file(path).expect("removed");
                fs::write(path, bytes).expect("writes");
                File::open(path)
                    .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
                    .expect("sets");
            }
        };
        copy();
        assert!(matches!(Template::open(&templates, &key), Err(Damage::Unverified(_))));
        assert_eq!(recognise(&key), Ok(true));
        assert!(Template::open(&templates, &key).expect("known by now").is_some());
        for (path, what) in &files {
            template(&templates);
            copy();
            flip_unseen(path);
            assert_eq!(recognise(&key), Err(Damage::File(what)));
        }
    }

    #[test]
    fn an_interrupted_look_at_a_copy_is_no_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        let key = template(&templates);
        let disk = templates.template(&key).disk();
        File::open(disk).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)).expect("sets");
        let cancel = Cancel::new();
        cancel.cancel();
        assert!(matches!(
            Template::recognise(&templates, &key, &cancel),
            Err(Damage::Unverified(_))
        ));
    }

    #[test]
    fn a_template_under_another_ones_name_is_damage() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        let key = template(&templates);
        let other = "0".repeat(key.len());
        fs::rename(templates.template(&key).directory(), templates.template(&other).directory())
            .expect("renamed");
        assert!(matches!(Template::open(&templates, &other), Err(Damage::Manifest(_))));
    }

    #[test]
    fn a_manifest_that_makes_no_sense_is_damage_and_none_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let templates = TemplatesLayout::new(directory.path().to_owned());
        assert!(Template::open(&templates, "abc").expect("no damage").is_none());
        fs::create_dir_all(templates.template("abc").directory()).expect("a directory");
        fs::write(templates.template("abc").manifest(), "{").expect("writes");
        assert!(matches!(Template::open(&templates, "abc"), Err(Damage::Manifest(_))));
        assert!(list(&templates).is_empty());
        discard(&templates, "abc").expect("removes");
        assert!(Template::open(&templates, "abc").expect("no damage").is_none());
    }
}
