//! Failures to find the newest build of an image, and what to do about them.

use std::path::PathBuf;

use crate::error::{Explain, Kind};
use crate::files::FileError;
use crate::managed::fetch::download::{DownloadError, NetworkFailure};

use super::checksums::Contradiction;
use super::signature::SignatureProblem;

/// Reason why no build is pinned.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// There is no `castra.toml`, and so no place for a `castra.lock`.
    #[error("there is no castra.toml here, and castra.lock lies beside it")]
    NoConfiguration,
    /// The image is not one of a distribution.
    #[error(
        "`{image}` is not the image of a distribution, so nothing announces newer builds of it"
    )]
    NoChannel {
        /// Name of the image.
        image: String,
    },
    /// The image is named with a version.
    #[error("`{image}` names a version, and an update finds the newest")]
    Versioned {
        /// The name.
        image: String,
    },
    /// The publisher's checksum file cannot be fetched.
    #[error("the publisher of `{image}` could not be asked")]
    Unanswered {
        /// Name of the image.
        image: String,
        /// The failure.
        source: DownloadError,
    },
    /// A file of keys cannot be used.
    #[error("{}, the key of `{publisher}`, cannot be used", file.display())]
    Keys {
        /// The file.
        file: PathBuf,
        /// Name of the publisher.
        publisher: &'static str,
        /// The problem.
        #[source]
        problem: SignatureProblem,
    },
    /// A file of keys cannot be opened.
    #[error("{}, the key of `{publisher}`, cannot be opened", file.display())]
    NoKeys {
        /// The file.
        file: PathBuf,
        /// Name of the publisher.
        publisher: &'static str,
        /// The reason.
        source: Box<FileError>,
    },
    /// There is no signature where the publisher has it.
    #[error("there is no signature at {from}")]
    Unsigned {
        /// Address of the signature.
        from: String,
        /// Name of the publisher.
        publisher: &'static str,
    },
    /// A signature cannot be verified.
    #[error("the signature of {from} cannot be verified")]
    Signature {
        /// Address of the signed file.
        from: String,
        /// Name of the publisher.
        publisher: &'static str,
        /// The problem.
        #[source]
        problem: SignatureProblem,
    },
    /// A web page was served in place of a checksum file.
    #[error("{from} returned a web page, not a checksum file")]
    WebPage {
        /// Address of the page.
        from: String,
    },
    /// A checksum file contradicts itself.
    #[error("the checksum file {from} cannot be used: {problem}")]
    Contradiction {
        /// Address of the file.
        from: String,
        /// The contradiction.
        problem: Contradiction,
    },
    /// A checksum file does not name the image.
    #[error("the checksum file {from} does not name `{image}`")]
    NotNamed {
        /// Address of the file.
        from: String,
        /// Name of the image.
        image: String,
    },
    /// No dated build has the announced digest.
    #[error("none of the newest dated builds below {listing} is the announced `{image}`")]
    NoBuild {
        /// Address of the listing.
        listing: String,
        /// Name of the image.
        image: String,
    },
    /// The announced build is older than the known one.
    #[error("the newest `{image}` at {from} is {found}, older than {known}, which is in use")]
    Older {
        /// Name of the image.
        image: String,
        /// Address of the checksum file.
        from: String,
        /// Announced version.
        found: String,
        /// Known version.
        known: String,
    },
    /// The publisher has other bytes for the known build.
    #[error("{from} has another digest for `{image}` {version} than the one that is in use")]
    Replaced {
        /// Name of the image.
        image: String,
        /// Address of the checksum file.
        from: String,
        /// The version.
        version: String,
    },
    /// The pinned build was signed, and no signature of the new one can be verified.
    #[error(
        "`{image}` is pinned as signed by {signed_by}, but castra.toml names no key of \
        `{publisher}` now"
    )]
    SignatureLost {
        /// Name of the image.
        image: String,
        /// Fingerprint of the key.
        signed_by: String,
        /// Name of the publisher.
        publisher: &'static str,
    },
}

impl Explain for UpdateError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoConfiguration => Kind::NotFound,
            Self::NoChannel { .. } | Self::Versioned { .. } => Kind::Usage,
            Self::Unanswered { source, .. } => source.kind(),
            Self::NoKeys { source, .. } => source.kind(),
            _ => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoConfiguration => "Run `castra init` where it should be.".to_owned(),
            Self::NoChannel { .. } => {
                "Castra's own images change with castra; those of your castra.toml are changed \
                there."
                    .to_owned()
            }
            Self::Versioned { .. } => "Name it without the version.".to_owned(),
            Self::Unanswered { source, .. } => match source {
                DownloadError::Proxy { .. }
                | DownloadError::Network {
                    failure: NetworkFailure::Tls(_) | NetworkFailure::Private(_),
                    ..
                } => return source.hint(),
                DownloadError::Network { .. } => {
                    "Check the network and the proxy settings (HTTPS_PROXY, NO_PROXY). Mirrors are \
                    not asked what is newest. The builds in use still work."
                        .to_owned()
                }
                _ => "Try again later. Nothing was changed, and the builds in use still work."
                    .to_owned(),
            },
            Self::WebPage { .. } => "Open the address in a browser to see what it is.".to_owned(),
            Self::Contradiction { .. } | Self::NoBuild { .. } => {
                "The publisher may be uploading it just now: try again later. Nothing was changed."
                    .to_owned()
            }
            Self::NotNamed { .. } => {
                "The publisher may have renamed its files, and a newer castra \
                may know the new names. Nothing was changed, and the builds in use still work."
                    .to_owned()
            }
            Self::Keys { publisher, .. } | Self::NoKeys { publisher, .. } => format!(
                "Save the public key of `{publisher}` there in ASCII armor, as `gpg --armor \
                --export` writes it."
            ),
            Self::Unsigned { publisher, .. } => format!(
                "castra.toml names a key of `{publisher}`, so its checksum files must be signed. \
                Nothing was changed. Try again later, or remove the key from [images.keys]."
            ),
            Self::Signature { publisher, problem, .. } => match problem {
                SignatureProblem::OtherKey { .. } => format!(
                    "If `{publisher}` announced a new key, verify its fingerprint in another way \
                    and add it to the file in [images.keys]. Nothing was changed."
                ),
                _ => {
                    "The file was changed in transit or at its source, or is just being replaced. \
                    Nothing was changed. Try again later."
                        .to_owned()
                }
            },
            Self::Older { image, .. } => format!(
                "A server may be behind: try again later. If the publisher withdrew the newer \
                build, name the older one in castra.toml, or remove the entries of `{image}` from \
                castra.lock."
            ),
            Self::Replaced { image, .. } => format!(
                "Nothing was changed. Published builds do not change, so find out why before you \
                remove the entry of `{image}` from castra.lock and update again."
            ),
            Self::SignatureLost { image, publisher, .. } => format!(
                "Name the key again (`{publisher}` in [images.keys] of castra.toml). To do without \
                signatures, remove the entries of `{image}` from castra.lock and update again."
            ),
        })
    }
}
