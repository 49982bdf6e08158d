//! Turns the text of a `castra.toml` into a [`ProjectConfig`], one module per resource.

mod artifact;
mod base;
mod cloud_init;
mod digest;
mod disk;
mod image;
mod mount;
pub(super) mod name;
pub(super) mod path;
mod pipeline;
mod port;
mod provision;
pub(super) mod size;
mod syntax;
mod url;
mod vm;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use self::image::Images;
use super::bounds::Bounds;
use super::defaults::FORMAT;
use super::diagnostics::{Problem, Problems, quoted};
use super::error::ConfigError;
use super::machine::Machine;
use super::project::ProjectConfig;
use super::schema::{Fields, Key, key, to_i128, wrong_type};
use crate::managed::ManagedImageSpec;

const VERSION: Key = key("version", "\"1\"");
const PROJECT: Key = key("project", "{ name = \"demo\" }");
const NAME: Key = key("name", "\"demo\"");
const STATE_DIR: Key = key("state_dir", "\".castra\"");

/// Inputs of a file's meaning besides its text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// Expansion of `~`: the `HOME` of the environment, absolute.
    pub home: Option<&'a Path>,
    /// ID and version of each image of the catalog. The newest version comes first: a VM that names
    /// none gets it.
    pub known_images: &'a [(&'a str, &'a str)],
    /// Directories outside the project in which the user permits disks and state, absolute.
    pub allowed_outside: &'a [PathBuf],
}

impl Surroundings<'_> {
    /// Runs `work` with these images in addition, before those of their names that are known.
    pub(super) fn with_pinned<T>(
        &self,
        pinned: &[ManagedImageSpec],
        work: impl FnOnce(&Surroundings<'_>) -> T,
    ) -> T {
        let mut known: Vec<(&str, &str)> =
            pinned.iter().map(|image| (image.id.as_str(), image.version.as_str())).collect();
        let others = self.known_images.iter().filter(|image| !known.contains(image));
        let others: Vec<_> = others.copied().collect();
        known.extend(others);
        work(&Surroundings { known_images: &known, ..*self })
    }
}

/// Directory to which the paths of a file are relative.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    root: &'a Path,
    home: Option<&'a Path>,
    allowed_outside: &'a [PathBuf],
}

/// Context for reading a VM: the parts of the file that it may refer to.
#[derive(Debug)]
struct Scope<'a> {
    file: &'a Path,
    root: &'a Path,
    home: Option<&'a Path>,
    bounds: &'a Arc<Bounds>,
    known_images: &'a [(&'a str, &'a str)],
    images: &'a Images,
}

/// Error for the file as a whole.
#[derive(Debug, thiserror::Error)]
enum DocumentProblem {
    #[error("{} is not a known format version", quoted(.0))]
    Version(String),
    #[error("the file declares no VM")]
    NoVms,
    #[error("`vms` is one table, not a list of them")]
    VmsIsTable,
    #[error("the state directory {} holds the project itself", quoted(&.0.to_string_lossy()))]
    StateHoldsProject(PathBuf),
}

impl Problem for DocumentProblem {
    fn label(&self) -> String {
        match self {
            Self::NoVms => "no `[[vms]]`".to_owned(),
            Self::VmsIsTable => "needs double brackets".to_owned(),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Version(_) => format!("Write {VERSION}, or remove it."),
            Self::NoVms => "Add `[[vms]]`, and below it `name = \"dev\"` and `managed_image = \
                            \"alpine-minimal\"`. Without any castra.toml you get such a VM too."
                .to_owned(),
            Self::VmsIsTable => {
                "Write `[[vms]]`, and the VM's name below it: `name = \"dev\"`.".to_owned()
            }
            Self::StateHoldsProject(_) => {
                "Name a directory for Castra alone, for instance `.castra`.".to_owned()
            }
        }
    }
}

/// Validates the text of the file `file` (absolute and normalised). Looks at the filesystem only
/// for symbolic links, for existing files at the paths of disks, and for the missing digest of an
/// artifact's local file.
///
/// # Errors
/// [`ConfigError::TooNew`], else [`ConfigError::Invalid`] with every problem.
pub fn parse(
    text: &str,
    file: &Path,
    surroundings: &Surroundings<'_>,
) -> Result<ProjectConfig, ConfigError> {
    examine(text, file, surroundings, None)
}

/// Validates like [`parse`]; with a machine, also checks that it has what the VMs need.
pub(super) fn examine(
    text: &str,
    file: &Path,
    surroundings: &Surroundings<'_>,
    machine: Option<&dyn Machine>,
) -> Result<ProjectConfig, ConfigError> {
    let mut problems = Problems::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        syntax::report(text, &errors, &mut problems);
        return Err(ConfigError::Invalid(Box::new(problems.finish(file, text))));
    }
    // The document has no header to point at, so its problems are shown on the first line.
    let first_line = 0..text.len();
    let mut fields = Fields::new(document.get_ref(), first_line, "castra.toml");
    if let Some(found) = read_version(&mut fields, &mut problems) {
        return Err(ConfigError::TooNew { path: file.to_owned(), found });
    }
    let draft = read_document(fields, file, surroundings, machine, &mut problems);
    let has_errors = problems.has_errors();
    let diagnostics = problems.finish(file, text);
    if has_errors {
        return Err(ConfigError::Invalid(Box::new(diagnostics)));
    }
    // A state root set in the file was checked there; this is the default, which may be a link.
    draft.bounds.check_state_root().map_err(ConfigError::State)?;
    Ok(ProjectConfig { warnings: diagnostics, ..draft })
}

fn read_document(
    mut fields: Fields<'_>,
    file: &Path,
    surroundings: &Surroundings<'_>,
    machine: Option<&dyn Machine>,
    problems: &mut Problems,
) -> ProjectConfig {
    let root = file.parent().unwrap_or(file);
    let place =
        Place { root, home: surroundings.home, allowed_outside: surroundings.allowed_outside };
    let (name, bounds) = read_project(&mut fields, &place, problems);
    let state_root = bounds.state_root();
    let files = provision::ProjectFiles { root, state_root: state_root.path() };
    let images = fields
        .value(image::IMAGES)
        .map(|value| image::read_images(value, &place, files, surroundings.known_images, problems))
        .unwrap_or_default();
    let scope = Scope {
        file,
        root,
        home: surroundings.home,
        bounds: &bounds,
        known_images: surroundings.known_images,
        images: &images,
    };
    let drafts = read_vms(&mut fields, &scope, problems);
    vm::check_together(&drafts, &images, problems);
    if let Some(machine) = machine {
        let state_root = bounds.state_root();
        drafts.iter().for_each(|draft| draft.check_against(machine, state_root.names(), problems));
    }
    fields.warn_unknown(problems);
    ProjectConfig {
        file: Some(file.to_owned()),
        root: root.to_owned(),
        name,
        vms: drafts.into_iter().map(vm::VmDraft::into_definition).collect(),
        images: images.specs,
        image_steps: images.steps,
        pinned: Vec::new(),
        keys: images.keys,
        mirrors: images.mirrors,
        state_root: bounds.state_root(),
        bounds,
        warnings: super::Diagnostics::default(),
    }
}

/// Returns the file's format if it is newer than this Castra; the meaning of other keys may then
/// differ.
fn read_version(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<String> {
    let value = fields.value(VERSION)?;
    let (text, major) = match value.get_ref() {
        DeValue::Integer(integer) => (to_i128(integer).to_string(), Some(to_i128(integer))),
        DeValue::String(text) => (text.clone().into_owned(), major_of(text)),
        other => {
            problems.error(value.span(), &wrong_type(VERSION, "a string or an integer", other));
            return None;
        }
    };
    match major {
        Some(major) if major > FORMAT => return Some(text),
        Some(0..) => {}
        _ => problems.error(value.span(), &DocumentProblem::Version(text)),
    }
    None
}

/// Returns the first number of `1`, `1.2` or `1.2.3`.
fn major_of(text: &str) -> Option<i128> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = text.trim_start_matches('v').split('.').collect();
    let plain = parts.len() <= 3 && parts.iter().all(|part| is_number(part));
    plain.then(|| parts[0].parse().unwrap_or(i128::MAX))
}

fn read_project(
    document: &mut Fields<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> (String, Arc<Bounds>) {
    let default_name = name::project_name_of(place.root);
    let default_bounds = Arc::new(Bounds::new(place.root, place.allowed_outside));
    let Some(value) = document.value(PROJECT) else { return (default_name, default_bounds) };
    let Some(mut fields) = Fields::of(value, PROJECT, "[project]".to_owned(), problems) else {
        return (default_name, default_bounds);
    };
    let name = fields.string(NAME, problems).map_or(default_name, |text| {
        if let Err(problem) = name::check_project_name(text.get_ref()) {
            problems.error(text.span(), &problem);
        }
        (*text.get_ref()).to_owned()
    });
    let bounds = read_state_dir(&mut fields, place, problems).map_or(default_bounds, Arc::new);
    fields.warn_unknown(problems);
    (name, bounds)
}

fn read_state_dir(
    fields: &mut Fields<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Bounds> {
    let text = fields.string(STATE_DIR, problems)?;
    match path::resolve(text.get_ref(), place.root, place.home) {
        Ok(path) if place.root.starts_with(&path) => {
            problems.error(text.span(), &DocumentProblem::StateHoldsProject(path));
            None
        }
        Ok(path) => Bounds::new(place.root, place.allowed_outside)
            .with_state_root(path)
            .map_err(|problem| problems.error(text.span(), &problem))
            .ok(),
        Err(problem) => {
            problems.error(text.span(), &problem);
            None
        }
    }
}

fn read_vms(
    document: &mut Fields<'_>,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Vec<vm::VmDraft> {
    let value = document.value(vm::VMS);
    let list = match value.map(|value| (value, value.get_ref())) {
        None => {
            problems.error(document.span(), &DocumentProblem::NoVms);
            return Vec::new();
        }
        Some((value, DeValue::Table(_))) => {
            problems.error(value.span(), &DocumentProblem::VmsIsTable);
            return Vec::new();
        }
        Some((value, DeValue::Array(list))) if list.is_empty() => {
            problems.error(value.span(), &DocumentProblem::NoVms);
            return Vec::new();
        }
        Some((_, DeValue::Array(list))) => list,
        Some((value, other)) => {
            problems.error(value.span(), &wrong_type(vm::VMS, "a list of tables", other));
            return Vec::new();
        }
    };
    list.iter()
        .enumerate()
        .filter_map(|(index, value)| vm::read_vm(value, index + 1, scope, problems))
        .collect()
}
