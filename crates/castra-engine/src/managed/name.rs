//! Images by the names that users give them: `NAME` or `NAME@VERSION`.

use crate::similar::closest;

use super::error::ImageError;
use super::spec::ManagedImageSpec;

/// Returns the image that `NAME[@VERSION]` names. Without a version this is the newest, which is
/// the first of its name.
///
/// # Errors
/// [`ImageError::Unknown`], which names the most similar image.
pub fn image_named<'a>(
    text: &str,
    images: impl IntoIterator<Item = &'a ManagedImageSpec>,
) -> Result<&'a ManagedImageSpec, ImageError> {
    let images: Vec<_> = images.into_iter().collect();
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let is_meant = |spec: &&ManagedImageSpec| {
        spec.id == name && version.is_none_or(|version| spec.version == version)
    };
    images.iter().copied().find(is_meant).ok_or_else(|| unknown(name, version, &images))
}

fn unknown(name: &str, version: Option<&str>, images: &[&ManagedImageSpec]) -> ImageError {
    let similar = closest(name, images.iter().map(|spec| spec.id.as_str()));
    let similar = similar.and_then(|id| images.iter().find(|spec| spec.id == id));
    ImageError::Unknown {
        id: name.to_owned(),
        version: version.unwrap_or_default().to_owned(),
        similar: similar.map(|spec| spec.label()),
    }
}
