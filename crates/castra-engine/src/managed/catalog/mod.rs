//! Built-in catalog of images. Data, and the origin of each number.

mod alpine;
mod builds;
mod distributions;

use crate::similar::closest;

use super::error::ImageError;
use super::spec::ManagedImageSpec;

pub(super) use distributions::{Dated, Distribution, Signing, numbers_of};

/// Images that can be used by name, without a description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    images: Vec<ManagedImageSpec>,
    /// Number of those, from the first, that the default project may use.
    defaults: usize,
}

impl Catalog {
    /// Returns the images that this version of Castra ships with.
    pub fn builtin() -> Self {
        let default = [alpine::minimal(), alpine::pypi()];
        let defaults = default.len();
        Self { images: default.into_iter().chain(distributions::images()).collect(), defaults }
    }

    /// Returns the images that this version of Castra ships with, and before them those that a
    /// project pins, the current one of each name first.
    pub fn with_pinned(pinned: &[ManagedImageSpec]) -> Self {
        let mut catalog = Self::builtin();
        let is_pinned =
            |image: &ManagedImageSpec| pinned.iter().any(|pin| pin.label() == image.label());
        let builtin = catalog.images.split_off(catalog.defaults);
        catalog.images.extend(pinned.iter().cloned());
        catalog.images.extend(builtin.into_iter().filter(|image| !is_pinned(image)));
        catalog
    }

    /// Returns all images: those that the default project tries, in that order, and those of
    /// distributions, of which the newest build is the first of its name.
    pub fn images(&self) -> &[ManagedImageSpec] {
        &self.images
    }

    /// Returns the images that the default project may use, best first.
    pub fn default_candidates(&self) -> &[ManagedImageSpec] {
        &self.images[..self.defaults]
    }

    /// Returns the image of this id and version.
    ///
    /// # Errors
    /// Returns [`ImageError::Unknown`], which names the most similar image.
    pub fn find(&self, id: &str, version: &str) -> Result<&ManagedImageSpec, ImageError> {
        let wanted = |image: &&ManagedImageSpec| image.id == id && image.version == version;
        self.images.iter().find(wanted).ok_or_else(|| ImageError::Unknown {
            id: id.to_owned(),
            version: version.to_owned(),
            similar: self.most_similar(id).map(ManagedImageSpec::label),
        })
    }

    fn most_similar(&self, id: &str) -> Option<&ManagedImageSpec> {
        let similar = closest(id, self.images.iter().map(|image| image.id.as_str()))?;
        self.images.iter().find(|image| image.id == similar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::managed::check;

    #[test]
    fn every_builtin_image_is_well_formed() {
        for image in Catalog::builtin().images() {
            check::spec(image).expect("valid");
        }
    }

    #[test]
    fn the_default_project_uses_no_distribution() {
        let catalog = Catalog::builtin();
        let ids: Vec<&str> = catalog.default_candidates().iter().map(|one| &*one.id).collect();
        assert_eq!(ids, ["alpine-minimal", "alpine-pypi"]);
        assert!(catalog.images().len() > 10);
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised() {
        let error = Catalog::builtin().find("alpine-minmal", "v1").expect_err("unknown");
        assert!(matches!(
            error,
            ImageError::Unknown { similar: Some(image), .. } if image.id == "alpine-minimal"
        ));
    }

    #[test]
    fn a_wrong_version_names_the_right_one() {
        let error = Catalog::builtin().find("alpine-minimal", "v9").expect_err("unknown");
        assert!(error.to_string().contains("v9"), "{error}");
        let hint = crate::error::Explain::hint(&error).expect("a hint");
        assert!(hint.contains("alpine-minimal v1"), "{hint}");
    }

    #[test]
    fn nothing_is_suggested_for_something_else() {
        let error = Catalog::builtin().find("windows-xp", "v1").expect_err("unknown");
        assert!(matches!(error, ImageError::Unknown { similar: None, .. }));
    }
}
