//! Base of a VM's disk: `base_image` or `managed_image`.

use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::super::diagnostics::{Problem, Problems, listed, quoted};
use super::super::project::{BaseImageSource, ImageVersion, ManagedImageSelection};
use super::super::schema::{self, Fields, Key, Value, key, wrong_type};
use super::{Scope, path};
use crate::managed::ManagedDiskKind;
use crate::similar::closest;

const BASE_IMAGE: Key = key("base_image", "\"images/debian.qcow2\"");
const ALLOW_BACKING_FILE: Key = key("allow_backing_file", "true");
const MANAGED_IMAGE: Key = key("managed_image", "\"alpine-minimal\"");
const NAME: Key = key("name", "\"alpine-minimal\"");
const VERSION: Key = key("version", "\"v1\"");
const DISK: Key = key("disk", "\"rootfs\"");
const DISKS: [(&str, ManagedDiskKind); 1] = [("rootfs", ManagedDiskKind::Rootfs)];

/// Error for a base that cannot be used.
#[derive(Debug, thiserror::Error)]
enum BaseProblem {
    #[error("{vm} has neither `managed_image` nor `base_image`")]
    Neither { vm: String },
    #[error("{vm} has both `managed_image` and `base_image`")]
    Both { vm: String },
    #[error("{vm} has `allow_backing_file` but no `base_image`")]
    NothingToAllow { vm: String },
    #[error("there is no managed image {}", quoted(.name))]
    UnknownImage { name: String, near: Option<String>, known: Vec<String> },
    #[error("the managed image {} has no version {}", quoted(.name), quoted(.version))]
    UnknownVersion { name: String, version: String, known: Vec<String> },
}

impl Problem for BaseProblem {
    fn label(&self) -> String {
        match self {
            Self::Neither { .. } => "what should its disk be based on?".to_owned(),
            Self::Both { .. } => "a disk is based on one of them".to_owned(),
            Self::NothingToAllow { .. } => "applies only to `base_image`".to_owned(),
            Self::UnknownImage { .. } | Self::UnknownVersion { .. } => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Neither { .. } => {
                format!(
                    "Add {MANAGED_IMAGE}, which Castra fetches, or {BASE_IMAGE} for a disk of your \
                    own."
                )
            }
            Self::Both { .. } => "Remove one of them.".to_owned(),
            Self::NothingToAllow { .. } => "Remove it.".to_owned(),
            Self::UnknownImage { near: Some(near), .. } => format!("Did you mean `{near}`?"),
            Self::UnknownImage { name, known, .. } => format!(
                "Known images: {}. Describe an image of your own in `[images.{}]`.",
                listed(known.iter().map(String::as_str), "and"),
                name.escape_debug()
            ),
            Self::UnknownVersion { known, .. } => match known.as_slice() {
                [only] => format!("The only version is {}.", quoted(only)),
                _ => {
                    format!("Its versions are {}.", listed(known.iter().map(String::as_str), "and"))
                }
            },
        }
    }
}

/// Base of a VM's disk.
#[derive(Debug)]
pub(super) struct Base {
    /// Source, as it is in the project.
    pub(super) source: BaseImageSource,
    /// Name of the image, if it is described in this file's `[images]`.
    pub(super) user_image: Option<String>,
    /// Set if a disk of the user's own may have backing files.
    pub(super) allow_backing_file: bool,
    /// Span in the file.
    pub(super) span: Range<usize>,
}

impl Base {
    /// Returns a placeholder for a base that could not be read.
    fn unknown(span: Range<usize>) -> Self {
        let source = BaseImageSource::Managed(ManagedImageSelection::Default);
        Self { source, user_image: None, allow_backing_file: false, span }
    }

    fn own_disk(path: Spanned<PathBuf>) -> Self {
        let span = path.span();
        let source = BaseImageSource::Path(path.into_inner());
        Self { source, user_image: None, allow_backing_file: false, span }
    }
}

/// Reads both keys of the VM `title`, of which exactly one must be set.
pub(super) fn read_base(
    fields: &mut Fields<'_>,
    title: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Base {
    let vm = title.to_owned();
    // In this order, so that `image` is suggested to mean `managed_image`.
    let managed = fields.value(MANAGED_IMAGE);
    let path = read_path(fields, scope, problems);
    let allow = fields.boolean(ALLOW_BACKING_FILE, problems);
    if let Some(allow) = allow.as_ref().filter(|_| !fields.has(BASE_IMAGE)) {
        problems.error(allow.span(), &BaseProblem::NothingToAllow { vm: vm.clone() });
    }
    let unknown = || Base::unknown(fields.span());
    match (fields.key_span(BASE_IMAGE), managed) {
        (None, None) => {
            problems.error(fields.span(), &BaseProblem::Neither { vm });
            unknown()
        }
        (Some(there), Some(_)) => {
            let here = fields.key_span(MANAGED_IMAGE).unwrap_or_else(|| fields.span());
            problems.error_because_of(here, &BaseProblem::Both { vm }, there, "the other");
            unknown()
        }
        (Some(_), None) => Base {
            allow_backing_file: allow.is_some_and(|allow| *allow.get_ref()),
            ..path.map_or_else(unknown, Base::own_disk)
        },
        (None, Some(value)) => read_managed(value, title, scope, problems).unwrap_or_else(unknown),
    }
}

fn read_path(
    fields: &mut Fields<'_>,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<Spanned<PathBuf>> {
    let text = fields.string(BASE_IMAGE, problems)?;
    path::resolve_file(text.get_ref(), scope.root, scope.home)
        .map(|path| Spanned::new(text.span(), path))
        .map_err(|problem| problems.error(text.span(), &problem))
        .ok()
}

fn read_managed(
    value: &Value<'_>,
    title: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<Base> {
    match value.get_ref() {
        DeValue::String(text) => {
            let (name, version) = match text.split_once('@') {
                Some((name, version)) => (name, Some(Spanned::new(value.span(), version))),
                None => (text.as_ref(), None),
            };
            let name = schema::line(Spanned::new(value.span(), name), MANAGED_IMAGE, problems)?;
            resolve(&name, version.as_ref(), ManagedDiskKind::default(), scope, problems)
        }
        DeValue::Table(table) => {
            let place = format!("`managed_image` of {title}");
            let mut fields = Fields::new(table, value.span(), place);
            if !fields.has(NAME) {
                fields.missing(NAME, problems);
            }
            let name = fields.line(NAME, problems);
            let version = fields.line(VERSION, problems);
            let disk =
                fields.word(DISK, &DISKS, problems).map(|disk| *disk.get_ref()).unwrap_or_default();
            fields.warn_unknown(problems);
            resolve(&name?, version.as_ref(), disk, scope, problems)
        }
        other => {
            problems.error(value.span(), &wrong_type(MANAGED_IMAGE, "a string or a table", other));
            None
        }
    }
}

/// Finds the image among those of this file and of the catalog. Without a version, it is the first
/// known one, because the catalog lists the newest first.
fn resolve(
    name: &Spanned<&str>,
    version: Option<&Spanned<&str>>,
    disk: ManagedDiskKind,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<Base> {
    let id = *name.get_ref();
    let described = scope.images.names.contains(id);
    let spec = scope.images.specs.get(id);
    // The problems of its description are reported there.
    if described && spec.is_none() {
        return None;
    }
    let catalog =
        scope.known_images.iter().filter(|(known, _)| *known == id).map(|(_, version)| *version);
    let versions: Vec<&str> =
        spec.map(|spec| spec.version.as_str()).into_iter().chain(catalog).collect();
    let Some(newest) = versions.first() else {
        problems.error(name.span(), &unknown_image(id, scope));
        return None;
    };
    let wanted = match version {
        None => ImageVersion::Newest((*newest).to_owned()),
        Some(version) => ImageVersion::Named((*version.get_ref()).to_owned()),
    };
    if let Some(version) = version.filter(|_| !versions.contains(&wanted.as_str())) {
        let known = versions.iter().map(|known| (*known).to_owned()).collect();
        let (name, wanted) = (id.to_owned(), wanted.as_str().to_owned());
        let problem = BaseProblem::UnknownVersion { name, version: wanted, known };
        problems.error(version.span(), &problem);
        return None;
    }
    let selection = ManagedImageSelection::Exact { name: id.to_owned(), version: wanted, disk };
    Some(Base {
        source: BaseImageSource::Managed(selection),
        user_image: spec.map(|spec| spec.id.clone()),
        span: name.span(),
        allow_backing_file: false,
    })
}

fn unknown_image(name: &str, scope: &Scope<'_>) -> BaseProblem {
    let mut known: Vec<String> = scope.images.names.iter().cloned().collect();
    for (catalog, _) in scope.known_images {
        if !known.iter().any(|known| known == catalog) {
            known.push((*catalog).to_owned());
        }
    }
    let near = closest(name, known.iter().map(String::as_str)).map(str::to_owned);
    BaseProblem::UnknownImage { name: name.to_owned(), near, known }
}
