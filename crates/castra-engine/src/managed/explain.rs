//! Exit code and hint of an [`ImageError`].

use crate::error::{Explain, Kind};

use super::error::{FoundUnpinned, ImageError};

impl Explain for ImageError {
    fn kind(&self) -> Kind {
        match self {
            Self::Interrupted(_) => Kind::Interrupted,
            Self::Unknown { .. }
            | Self::NotPresent { .. }
            | Self::SourceMissing { .. }
            | Self::NothingToImport { .. } => Kind::NotFound,
            Self::Spec(_)
            | Self::DigestMismatch(_)
            | Self::NotRepaired { .. }
            | Self::NotImportable { .. }
            | Self::WebPage { .. }
            | Self::NewerReference { .. }
            | Self::Unpinned { .. }
            | Self::Archive { .. } => Kind::Data,
            Self::Offline { .. } | Self::NoneReachable { .. } => Kind::Unavailable,
            Self::StateRoot(error) => error.kind(),
            Self::LockFile(error) => error.kind(),
            Self::Update(error) => error.kind(),
            Self::Download(error) => error.kind(),
            Self::Pip(error) => error.kind(),
            Self::Transform(error) => error.kind(),
            Self::Exists { .. } => Kind::CannotCreate,
            Self::File(error) => error.kind(),
            Self::SourceNotAFile { .. } => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted(_) | Self::Spec(_) | Self::SourceNotAFile { .. } => None,
            Self::Unknown { similar, .. } => {
                let meant = similar
                    .as_ref()
                    .map_or(String::new(), |image| format!("Did you mean {image}? "));
                Some(meant + "`castra image list --available` shows all images.")
            }
            Self::Offline { .. } => Some(
                "Run it once without --offline (or CASTRA_OFFLINE) to fill the cache.".to_owned(),
            ),
            Self::StateRoot(error) => error.hint(),
            Self::LockFile(error) => error.hint(),
            Self::Update(error) => error.hint(),
            Self::Download(error) => error.hint(),
            Self::Pip(error) => error.hint(),
            Self::File(error) => error.hint(),
            Self::Transform(error) => error.hint(),
            Self::DigestMismatch(mismatch) => Some(mismatch.hint()),
            Self::NoneReachable { tried } => tried.iter().find_map(|(_, error)| error.hint()),
            Self::NotPresent { image } => {
                Some(format!("`castra image pull {}@{}` fetches it.", image.id, image.version))
            }
            Self::SourceMissing { image, .. } => Some(format!(
                "Put the file there, or correct its `path` in [images.{}] of castra.toml.",
                image.id
            )),
            Self::WebPage { .. } => {
                Some("Open the address in a browser to see what it is.".to_owned())
            }
            Self::Unpinned { found } => {
                Some(found.iter().map(FoundUnpinned::advice).collect::<Vec<_>>().join("\n"))
            }
            Self::NewerReference { .. } => Some(
                "It is unknown what that project needs, so nothing was removed. Prune with the \
                newer castra."
                    .to_owned(),
            ),
            Self::NothingToImport { .. } => Some(
                "Name a file that an image is made from, or an archive that `castra image export` \
                wrote."
                    .to_owned(),
            ),
            Self::NotImportable { .. } => Some(
                "`castra image show NAME` prints the sources of an image. An image of your own is \
                known only in the project of its castra.toml."
                    .to_owned(),
            ),
            Self::Archive { .. } => Some("Export it again, or copy it here again.".to_owned()),
            Self::Exists { path } => {
                Some(format!("Move {} away, or choose another name.", path.display()))
            }
            Self::NotRepaired { image, source, .. } => Some(format!(
                "The damaged files are quarantined and not used. `castra image verify {}` tries \
                again.{}",
                image.id,
                source.hint().map(|hint| format!("\n{hint}")).unwrap_or_default()
            )),
        }
    }
}

impl FoundUnpinned {
    fn advice(&self) -> String {
        let Self { place, from, digest, size_bytes } = self;
        format!(
            "{from} is now {size_bytes} bytes long. If you trust it as it is, pin {place}:\n    \
            {} = \"{}\"",
            digest.algorithm(),
            digest.hex()
        )
    }
}
