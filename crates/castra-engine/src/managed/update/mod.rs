//! `castra image update`: asks publishers for the newest builds of images, and pins them in
//! `castra.lock`.
//!
//! ```text
//! checksum file of the newest build ─► digest ─► dated build of this digest ─► addresses ─► pin
//!                                        └► the pinned one: nothing is new
//! ```
//!
//! The newest build is announced under a name that moves on with the next one, so its dated name
//! has to be found, too: in the same file, or among the dated builds beside it.

mod checksums;
mod error;
mod signature;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use self::checksums::MAX_BYTES;
use super::catalog::{Dated, Distribution, Signing, numbers_of};
use super::error::ImageError;
use super::fetch::download::{fetch_small, length_of, looks_like_html};
use super::job::Job;
use super::lock::{LockFile, Pin};
use super::manager::ImageManager;
use super::spec::ManagedImageSpec;
use crate::context::RuntimeContext;
use crate::files::{self, At as _, Digest};
use crate::report::ImageLabel;

pub use checksums::{Checksums, Contradiction};
pub use error::UpdateError;
pub use signature::{Keyring, SignatureProblem};

/// Start of a text that is signed inside of its file.
const INLINE: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";
/// Longest listing of a directory, in bytes.
const MAX_LISTING_BYTES: usize = 4 << 20;
/// Number of dated builds that are looked at, the newest ones.
const MAX_BUILDS: usize = 5;

/// Request to pin the newest builds of images.
#[derive(Debug, Clone, Copy)]
pub struct PinRequest<'a> {
    /// The `castra.lock`, which need not exist.
    pub lock_file: &'a Path,
    /// Names of the images.
    pub names: &'a [String],
    /// Images on which disks of VMs are based.
    pub in_use: &'a [ImageLabel],
    /// Files of the keys by which publishers sign, by the publishers' names.
    pub keys: &'a BTreeMap<String, PathBuf>,
}

/// Result of an update for one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// Version that new VMs got before.
    pub before: Option<String>,
    /// Build that new VMs get now.
    pub pin: Pin,
    /// Difference between them.
    pub change: Change,
}

/// Difference that an update made for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// None: the pinned build is the newest.
    None,
    /// The build that is built in is the newest, and is pinned now.
    Pinned,
    /// The pinned build is the newest, and now its signature is verified, too.
    Signed,
    /// A newer build is pinned.
    Newer,
}

/// Build that an image had before an update.
struct Known {
    version: String,
    digest: Digest,
    pin: Option<Pin>,
}

/// Announcement of the newest build.
struct Announced {
    /// Address of the checksum file.
    from: String,
    checksums: Checksums,
    /// Name of the image in it.
    name: String,
    digest: Digest,
    /// Fingerprint of the key by which the file is signed.
    signed_by: Option<String>,
}

impl ImageManager {
    /// Asks the publishers for the newest builds of these images, and pins them in a `castra.lock`.
    /// If anything fails, nothing is changed.
    ///
    /// # Errors
    /// [`UpdateError`], errors of the network, and those of reading and writing the file.
    pub fn update(
        &self,
        request: &PinRequest,
        context: &RuntimeContext,
    ) -> Result<Vec<Updated>, ImageError> {
        let distributions: Vec<&Distribution> =
            request.names.iter().map(|name| distribution(name)).collect::<Result<_, _>>()?;
        let path = request.lock_file;
        let guard = context.cache.lock_of_lock_file(path);
        files::create_directory(guard.parent().unwrap_or(context.cache.root()))?;
        let label = ImageLabel { id: "update".to_owned(), version: String::new() };
        let _lock =
            self.job_beside(label, context).lock(&guard, "another `castra image update`")?;
        let mut lock_file = LockFile::read(path)?.unwrap_or_default();
        let is_needed = |pin: &Pin| {
            request.in_use.iter().any(|image| image.id == pin.name && image.version == pin.version)
        };
        let mut done = Vec::new();
        for distribution in distributions {
            let label = ImageLabel { id: distribution.id.to_owned(), version: String::new() };
            let job = self.job_beside(label, context);
            let known = Known::of(distribution, &lock_file);
            let keys = request.keys.get(distribution.channel.publisher);
            let keys = keys.map(|file| keyring(distribution, file)).transpose()?;
            let updated =
                update(&job, distribution, keys.as_ref(), known).map_err(|error| match error {
                    ImageError::Download(source) => {
                        UpdateError::Unanswered { image: distribution.id.to_owned(), source }.into()
                    }
                    error => error,
                })?;
            if updated.change != Change::None {
                lock_file.pin(updated.pin.clone(), is_needed);
            }
            done.push(updated);
        }
        if done.iter().any(|updated| updated.change != Change::None) {
            lock_file.write(path)?;
        }
        Ok(done)
    }
}

/// Returns `true` if newer builds of the image of this name can be found.
pub fn is_updatable(name: &str) -> bool {
    Distribution::named(name).is_some()
}

/// Returns the names of publishers that sign, under which `castra.toml` names their keys.
pub fn signing_publishers() -> Vec<&'static str> {
    let signing = Distribution::all().filter(|one| one.channel.signing != Signing::None);
    let mut publishers: Vec<&str> = signing.map(|one| one.channel.publisher).collect();
    publishers.dedup();
    publishers
}

fn distribution(name: &str) -> Result<&'static Distribution, UpdateError> {
    Distribution::named(name).ok_or_else(|| UpdateError::NoChannel { image: name.to_owned() })
}

impl Known {
    fn of(distribution: &Distribution, lock_file: &LockFile) -> Option<Self> {
        if let Some(pin) = lock_file.current(distribution.id).cloned() {
            let (version, digest) = (pin.version.clone(), pin.digest.clone());
            return Some(Self { version, digest, pin: Some(pin) });
        }
        let ManagedImageSpec { version, mut artifacts, .. } = distribution.images().next()?;
        Some(Self { version, digest: artifacts.pop()?.digest, pin: None })
    }
}

/// Finds the newest build of an image.
fn update(
    job: &Job,
    distribution: &Distribution,
    keys: Option<&Keyring>,
    known: Option<Known>,
) -> Result<Updated, ImageError> {
    let announced = ask(job, distribution, keys)?;
    if let Some(Known { pin: Some(pin), .. }) = &known
        && let (Some(signed_by), None) = (&pin.signed_by, &announced.signed_by)
    {
        let (image, signed_by) = (pin.name.clone(), signed_by.clone());
        let publisher = distribution.channel.publisher;
        return Err(UpdateError::SignatureLost { image, signed_by, publisher }.into());
    }
    let before = known.as_ref().map(|known| known.version.clone());
    if let Some(Known { pin: Some(pin), .. }) = &known
        && pin.digest == announced.digest
    {
        let change = match pin.signed_by == announced.signed_by {
            true => Change::None,
            false => Change::Signed,
        };
        let pin = Pin { signed_by: announced.signed_by, ..pin.clone() };
        return Ok(Updated { before, pin, change });
    }
    let version = match known.as_ref().filter(|known| known.digest == announced.digest) {
        Some(known) => known.version.clone(),
        None => version_of(job, distribution, &announced)?,
    };
    let change = compare(distribution, known.as_ref(), &version, &announced)?;
    let urls = distribution.addresses_of(&version);
    let size_bytes = match announced.checksums.size_of(&announced.name) {
        Some(size) => Some(size),
        None => first_of(&urls, |url| length_of(job, url))?.1,
    };
    let (name, digest, signed_by) =
        (distribution.id.to_owned(), announced.digest, announced.signed_by);
    let pin = Pin { name, version, urls, digest, size_bytes, signed_by };
    Ok(Updated { before, pin, change })
}

/// Reads the checksum file of the newest build, and verifies its signature if there are keys.
fn ask(
    job: &Job,
    distribution: &Distribution,
    keys: Option<&Keyring>,
) -> Result<Announced, ImageError> {
    let (from, (checksums, signed_by)) = first_of(distribution.channel.lists, |address| {
        let bytes = fetch_list(job, address)?;
        let Some(keys) = keys else { return Ok((checksums_in(address, &bytes)?, None)) };
        let (text, key) = signed(job, distribution, keys, address, bytes)?;
        Ok((checksums_in(address, &text)?, Some(key)))
    })?;
    let dated = |(name, digest): (&str, &Digest)| {
        let version = distribution.version_in(name)?;
        Some((numbers_of(version), name.to_owned(), digest.clone()))
    };
    let newest = || checksums.files().filter_map(dated).max();
    let alias = distribution.channel.alias;
    // An alias is of use only if the dated build of the same bytes can be found.
    let has_version = |digest: &Digest| {
        let among = version_among(distribution, &checksums, digest);
        among.is_some() || distribution.channel.dated.is_some()
    };
    let by_alias = alias
        .and_then(|alias| Some((alias.to_owned(), checksums.digest_of(alias)?.clone())))
        .filter(|(_, digest)| has_version(digest));
    let found = by_alias.or_else(|| newest().map(|(_, name, digest)| (name, digest)));
    let Some((name, digest)) = found else {
        let (from, image) = (from.to_owned(), distribution.id.to_owned());
        return Err(UpdateError::NotNamed { from, image }.into());
    };
    Ok(Announced { from: from.to_owned(), checksums, name, digest, signed_by })
}

/// Reads the keys of a publisher.
fn keyring(distribution: &Distribution, file: &Path) -> Result<Keyring, ImageError> {
    let publisher = distribution.channel.publisher;
    let opened = files::open_followed(file).map_err(|source| {
        let file = file.to_owned();
        UpdateError::NoKeys { file, publisher, source: Box::new(source) }
    })?;
    let mut text = Vec::new();
    opened.take(signature::MAX_KEY_BYTES + 1).read_to_end(&mut text).at("read", file)?;
    Ok(Keyring::parse(&text).map_err(|problem| {
        let file = file.to_owned();
        UpdateError::Keys { file, publisher, problem }
    })?)
}

/// Returns the signed text of a checksum file, with the fingerprint of the key.
fn signed(
    job: &Job,
    distribution: &Distribution,
    keys: &Keyring,
    address: &str,
    bytes: Vec<u8>,
) -> Result<(Vec<u8>, String), ImageError> {
    let failed = |problem| {
        let (from, publisher) = (address.to_owned(), distribution.channel.publisher);
        UpdateError::Signature { from, publisher, problem }
    };
    let end = match distribution.channel.signing {
        // Some publishers have changed between the two.
        _ if bytes.starts_with(INLINE) => None,
        Signing::Detached(end) => Some(end),
        Signing::Inline | Signing::None => None,
    };
    let Some(end) = end else {
        let (text, key) = keys.verify_inline(&bytes).map_err(failed)?;
        return Ok((text.into_bytes(), key));
    };
    let beside = format!("{address}{end}");
    let signature = fetch_small(job, &beside, signature::MAX_SIGNATURE_BYTES);
    let signature = signature.map_err(|error| match error.is_missing() {
        true => {
            let publisher = distribution.channel.publisher;
            UpdateError::Unsigned { from: beside.clone(), publisher }.into()
        }
        false => error,
    })?;
    let key = keys.verify_detached(&bytes, &signature).map_err(failed)?;
    Ok((bytes, key))
}

/// Finds the version of the announced build: by a dated name of the same bytes.
fn version_of(
    job: &Job,
    distribution: &Distribution,
    announced: &Announced,
) -> Result<String, ImageError> {
    if let Some(version) = version_among(distribution, &announced.checksums, &announced.digest) {
        return Ok(version.to_owned());
    }
    let Some(dated) = &distribution.channel.dated else {
        let (from, image) = (announced.from.clone(), distribution.id.to_owned());
        return Err(UpdateError::NotNamed { from, image }.into());
    };
    for version in dated_builds(job, dated)? {
        let checksums = match checksums_at(job, &dated.list_of(&version)) {
            Ok(checksums) => checksums,
            // A directory without the file is one that is not ready, or no longer.
            Err(error) if error.is_missing() => continue,
            Err(error) => return Err(error),
        };
        let alias = distribution.channel.alias;
        let names = checksums.files().filter(|(_, digest)| **digest == announced.digest);
        let mut names = names.map(|(name, _)| name);
        if names.any(|name| {
            alias == Some(name) || distribution.version_in(name) == Some(version.as_str())
        }) {
            return Ok(version);
        }
    }
    let (listing, image) = (dated.listing.to_owned(), distribution.id.to_owned());
    Err(UpdateError::NoBuild { listing, image }.into())
}

/// Returns the newest version among the dated names of these bytes.
fn version_among<'a>(
    distribution: &Distribution,
    checksums: &'a Checksums,
    digest: &Digest,
) -> Option<&'a str> {
    let same = checksums.files().filter(|(_, other)| *other == digest);
    same.filter_map(|(name, _)| distribution.version_in(name)).max_by_key(|one| numbers_of(one))
}

/// Returns the versions of the newest dated builds, newest first.
fn dated_builds(job: &Job, dated: &Dated) -> Result<Vec<String>, ImageError> {
    let page = fetch_small(job, dated.listing, MAX_LISTING_BYTES)?;
    Ok(dated_builds_in(&String::from_utf8_lossy(&page), dated))
}

/// Finds the names of dated builds in a listing, which is a web page for people: every word
/// of it that is such a name counts.
fn dated_builds_in(page: &str, dated: &Dated) -> Vec<String> {
    let is_end = |one: char| !one.is_ascii_alphanumeric() && !"._-".contains(one);
    let mut versions: Vec<&str> =
        page.split(is_end).filter_map(|word| dated.version_in(word)).collect();
    versions.sort_by_cached_key(|version| std::cmp::Reverse(numbers_of(version)));
    versions.dedup();
    versions.into_iter().take(MAX_BUILDS).map(str::to_owned).collect()
}

/// Compares the announced build with the known one, and refuses to go back.
fn compare(
    distribution: &Distribution,
    known: Option<&Known>,
    version: &str,
    announced: &Announced,
) -> Result<Change, UpdateError> {
    let (image, from) = (distribution.id.to_owned(), announced.from.clone());
    let version = version.to_owned();
    let is_other = |image: ManagedImageSpec| {
        image.version == version && image.artifacts.iter().all(|one| one.digest != announced.digest)
    };
    if distribution.images().any(is_other) {
        return Err(UpdateError::Replaced { image, from, version });
    }
    let Some(known) = known else { return Ok(Change::Newer) };
    if known.version == version {
        return match known.digest == announced.digest {
            true => Ok(Change::Pinned),
            false => Err(UpdateError::Replaced { image, from, version }),
        };
    }
    if numbers_of(&version) < numbers_of(&known.version) {
        let (found, known) = (version, known.version.clone());
        return Err(UpdateError::Older { image, from, found, known });
    }
    Ok(Change::Newer)
}

fn checksums_at(job: &Job, address: &str) -> Result<Checksums, ImageError> {
    checksums_in(address, &fetch_list(job, address)?)
}

fn fetch_list(job: &Job, address: &str) -> Result<Vec<u8>, ImageError> {
    let bytes = fetch_small(job, address, MAX_BYTES)?;
    match looks_like_html(&bytes) {
        true => Err(UpdateError::WebPage { from: address.to_owned() }.into()),
        false => Ok(bytes),
    }
}

fn checksums_in(address: &str, bytes: &[u8]) -> Result<Checksums, ImageError> {
    let parsed = Checksums::parse(&String::from_utf8_lossy(bytes));
    parsed
        .map_err(|problem| UpdateError::Contradiction { from: address.to_owned(), problem }.into())
}

/// Asks one address after the other, and returns the first that has an answer, with the answer.
fn first_of<T, A: AsRef<str>>(
    addresses: &[A],
    ask: impl Fn(&str) -> Result<T, ImageError>,
) -> Result<(&str, T), ImageError> {
    let mut last = None;
    for address in addresses {
        match ask(address.as_ref()) {
            Ok(answer) => return Ok((address.as_ref(), answer)),
            Err(error) if error.is_about_one_address() => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| ImageError::Offline { what: String::new() }))
}
