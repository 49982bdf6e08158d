//! `sha256` and `sha512`: the digest that pins a download.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::super::diagnostics::{Problem, Problems, UnpinnedArtifact, quoted};
use super::super::schema::{Fields, Key, key};
use crate::files::Digest;
use crate::hex::hex;
use crate::managed::ArtifactSource;

/// Key of a SHA-256 digest.
pub(super) const SHA256: Key = key("sha256", "\"8f58945c…\"");
/// Key of a SHA-512 digest.
pub(super) const SHA512: Key = key("sha512", "\"0c1f93…\"");

/// Placeholder for a digest that the author does not know yet.
const PLACEHOLDER: &str = "?";

/// Number of bytes hashed at a time.
const READ_BYTES: usize = 1 << 16;

/// Error for a digest that pins nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum DigestProblem {
    #[error("{place} has no digest, so a change would go unnoticed")]
    Missing { place: String, advice: Advice },
    #[error("{place} has both `sha256` and `sha512`")]
    Both { place: String },
    #[error("the `{algorithm}` has {found} hexadecimal digits, not {wanted}")]
    Length { algorithm: &'static str, found: usize, wanted: usize },
    #[error(
        "the `{algorithm}` contains {}, which is not a hexadecimal digit",
        quoted(&.character.to_string())
    )]
    NotHexadecimal { algorithm: &'static str, character: char },
}

/// Advice on obtaining the digest of a source.
#[derive(Debug)]
pub(super) enum Advice {
    /// The source is a local file, and this is its SHA-256.
    Is(String),
    /// The source is a local file that cannot be read.
    Unreadable(String),
    /// The source must be fetched first.
    FetchFirst,
}

impl Problem for DigestProblem {
    fn label(&self) -> String {
        match self {
            Self::Missing { .. } => "a digest is missing".to_owned(),
            Self::Both { .. } => "one is enough".to_owned(),
            Self::Length { wanted, .. } => format!("{wanted} digits are needed"),
            Self::NotHexadecimal { .. } => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Missing { advice: Advice::Is(digest), .. } => {
                format!("If you trust the file as it is now, pin it: `sha256 = \"{digest}\"`.")
            }
            Self::Missing { advice: Advice::Unreadable(why), .. } => {
                format!("`sha256sum FILE` prints it, but {why}.")
            }
            Self::Missing { advice: Advice::FetchFirst, .. } => {
                "Take it from the publisher, or run `castra image pull`, which fetches the file \
                and prints its digest; then add `sha256 = \"…\"`."
                    .to_owned()
            }
            Self::Both { .. } => "Remove one of them.".to_owned(),
            Self::Length { found: 128, .. } => "That is a SHA-512: write `sha512 = …`.".to_owned(),
            Self::Length { found: 64, .. } => "That is a SHA-256: write `sha256 = …`.".to_owned(),
            Self::Length { .. } => {
                "Copy all that `sha256sum FILE` prints before the file's name.".to_owned()
            }
            Self::NotHexadecimal { .. } => {
                "Write only the digits, 0-9 and a-f, as `sha256sum FILE` prints them.".to_owned()
            }
        }
    }
}

/// Reads the digest of `source`, which belongs to `place`; `None` after a problem. A missing digest
/// of a local file is computed, so that it can be pinned: the one case in which validation reads
/// more than the configuration.
pub(super) fn read_digest(
    fields: &mut Fields<'_>,
    place: &str,
    source: Option<&ArtifactSource>,
    problems: &mut Problems,
) -> Option<Digest> {
    let sha256 = fields.string(SHA256, problems);
    let sha512 = fields.string(SHA512, problems);
    let place = || place.to_owned();
    let span = match (fields.key_span(SHA256), fields.key_span(SHA512)) {
        (Some(there), Some(here)) => {
            problems.error_because_of(
                here,
                &DigestProblem::Both { place: place() },
                there,
                "the other",
            );
            return None;
        }
        (None, None) => fields.span(),
        _ => {
            let text = sha256.as_ref().or(sha512.as_ref())?;
            if *text.get_ref() != PLACEHOLDER {
                let checked = match &sha256 {
                    Some(text) => check_hex("sha256", text.get_ref(), 64).map(Digest::Sha256),
                    None => check_hex("sha512", text.get_ref(), 128).map(Digest::Sha512),
                };
                return checked.map_err(|problem| problems.error(text.span(), &problem)).ok();
            }
            text.span()
        }
    };
    // Without a source there is no digest; a missing source is a problem of its own.
    let source = source?;
    let problem = DigestProblem::Missing { place: place(), advice: advice_for(source) };
    let artifact = UnpinnedArtifact { place: place(), source: source.clone() };
    problems.unpinned(span, &problem, artifact);
    None
}

fn check_hex(algorithm: &'static str, text: &str, wanted: usize) -> Result<String, DigestProblem> {
    if let Some(character) = text.chars().find(|character| !character.is_ascii_hexdigit()) {
        return Err(DigestProblem::NotHexadecimal { algorithm, character });
    }
    if text.len() != wanted {
        return Err(DigestProblem::Length { algorithm, found: text.len(), wanted });
    }
    Ok(text.to_ascii_lowercase())
}

fn advice_for(source: &ArtifactSource) -> Advice {
    match source {
        ArtifactSource::Path(path) => match sha256_of(path) {
            Ok(digest) => Advice::Is(digest),
            Err(error) => Advice::Unreadable(format!("{} cannot be read: {error}", path.display())),
        },
        ArtifactSource::Url(_) | ArtifactSource::PythonPackage { .. } => Advice::FetchFirst,
    }
}

fn sha256_of(path: &Path) -> io::Result<String> {
    // A FIFO or a device would be read for ever.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut hasher = Sha256::new();
    // A FIFO would block its reader for ever.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hex(&hasher.finalize()))
}
