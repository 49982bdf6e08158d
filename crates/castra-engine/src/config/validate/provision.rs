//! `provision`: steps that prepare a VM's disk.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::project::BootProfile;
use super::super::provision::{
    MAX_COMMAND_BYTES, MAX_STEPS, ProjectPath, ProvisionStep, StepAction, StepSecret, secret_name,
};
use super::super::schema::{Fields, Key, Value, key, wrong_element};
use super::Scope;
use crate::layout::STATE_DIRECTORY;
use crate::qemu::Network;

pub(super) const PROVISION: Key = key("provision", "[\"apk add nginx\"]");
const RUN: Key = key("run", "\"apk add nginx\"");
const SCRIPT: Key = key("script", "\"setup.sh\"");
const COPY: Key = key("copy", "{ from = \"app\", to = \"/srv/app\" }");
const FROM: Key = key("from", "\"app\"");
const TO: Key = key("to", "\"/srv/app\"");
const SECRETS: Key = key("secrets", "[\"env:TOKEN\"]");
const SECRET: Key = key("secret", "\"env:TOKEN\"");
const NETWORK: Key = key("network", "\"isolated\"");
const NETWORKS: [(&str, Network); 2] = [("full", Network::Full), ("isolated", Network::Isolated)];

/// A step that cannot be taken.
#[derive(Debug, thiserror::Error)]
enum StepProblem {
    #[error("{0} has more than {MAX_STEPS} steps")]
    TooMany(String),
    #[error("{0} has more than {MAX_STEPS} steps, with those of its image")]
    TooManyWithImage(String),
    #[error("a step of {0} has no command")]
    NoCommand(String),
    #[error("the command of a step of {0} contains a control character")]
    ControlCharacter(String),
    #[error("the command of a step of {0} is longer than 32 KiB")]
    TooLong(String),
    #[error("a step of {0} must be one of `run`, `script` and `copy`")]
    Unclear(String),
    #[error("{} is not a secret of a step", quoted(.0))]
    Secret(String),
    #[error("the step has the secret {} twice", quoted(.0))]
    SecretTwice(String),
    #[error("a step of {0} has both `secret` and `secrets`")]
    BothSecrets(String),
    #[error("a step of {0} copies files, and sees no secrets")]
    SecretOfCopy(String),
    #[error("{} is not inside the project's directory", quoted(.0))]
    Outside(String),
    #[error("{} is Castra's own directory", quoted(.0))]
    StateRoot(String),
    #[error("{} names no file", quoted(.0))]
    NotAFile(String),
    #[error("{} is not an absolute path without `..`", quoted(.0))]
    Destination(String),
    #[error("{0} has steps, but boots natively, without Castra's agent, which runs the steps")]
    Native(String),
    #[error("{0} has both steps and `cloud_init`")]
    CloudInit(String),
}

impl Problem for StepProblem {
    fn label(&self) -> String {
        match self {
            Self::TooMany(_) => "one too many".to_owned(),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::TooMany(_) | Self::TooManyWithImage(_) => {
                "Put several commands into one step, or into a script.".to_owned()
            }
            Self::NoCommand(_) | Self::Unclear(_) => format!(
                "Write a command, for instance {PROVISION}, a table {{ {} }}, or {{ {} }}.",
                plain(SCRIPT),
                plain(COPY)
            ),
            Self::Secret(_) => format!(
                "Write for instance {SECRETS}: a variable of castra's environment, named by \
                letters, digits and `_`. Its value is never in this file."
            ),
            Self::SecretTwice(_) => "Remove one of them.".to_owned(),
            Self::BothSecrets(_) => format!("Put all of them into {SECRETS}."),
            Self::SecretOfCopy(_) => "Remove its secrets.".to_owned(),
            Self::ControlCharacter(_) => "Only tabs and line breaks are possible.".to_owned(),
            Self::TooLong(_) => format!("Put it into a script, and write {{ {} }}.", plain(SCRIPT)),
            Self::Outside(_) => {
                "Write a path relative to this file, without `..`: only the project's own files \
                can be copied."
                    .to_owned()
            }
            Self::StateRoot(_) => "Name another directory of the project.".to_owned(),
            Self::NotAFile(_) => format!("Write for instance {SCRIPT}."),
            Self::Destination(_) => format!("Write for instance {TO}."),
            Self::Native(_) => {
                "Remove `provision`, here or of its image, or `boot_profile = \"native\"`."
                    .to_owned()
            }
            Self::CloudInit(_) => {
                "Remove one of them; steps can do what the user data do.".to_owned()
            }
        }
    }
}

/// Files that steps may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProjectFiles<'a> {
    /// Directory of the project.
    pub(super) root: &'a Path,
    /// State root of the project, of which nothing is ever read.
    pub(super) state_root: &'a Path,
}

/// Steps of a VM that come before its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct OfImage<'a> {
    pub(super) steps: &'a [ProvisionStep],
    /// Place of the image's name.
    pub(super) span: &'a Range<usize>,
}

/// Returns a key and its example, without the quotes of a message.
fn plain(key: Key) -> String {
    format!("{} = {}", key.name, key.example)
}

/// Reads a VM's steps, which follow those of its image.
pub(super) fn read_of_vm(
    of_vm: &mut Fields<'_>,
    vm: &str,
    image: OfImage<'_>,
    boot_profile: Option<BootProfile>,
    has_cloud_init: bool,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Vec<ProvisionStep> {
    let state_root = scope.bounds.state_root();
    let files = ProjectFiles { root: scope.root, state_root: state_root.path() };
    let own = read(of_vm, vm, files, problems);
    let span = of_vm.key_span(PROVISION).filter(|_| !own.is_empty());
    let span = span.or_else(|| Some(image.span.clone()).filter(|_| !image.steps.is_empty()));
    let steps = [image.steps, &own].concat();
    let Some(span) = span else { return steps };
    if boot_profile == Some(BootProfile::Native) {
        problems.error(span.clone(), &StepProblem::Native(vm.to_owned()));
    }
    if has_cloud_init {
        problems.error(span.clone(), &StepProblem::CloudInit(vm.to_owned()));
    }
    if own.len() <= MAX_STEPS && steps.len() > MAX_STEPS {
        problems.error(span, &StepProblem::TooManyWithImage(vm.to_owned()));
    }
    steps
}

/// Reads the steps of a VM or an image.
pub(super) fn read(
    of_owner: &mut Fields<'_>,
    owner: &str,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Vec<ProvisionStep> {
    let values = of_owner.array(PROVISION, problems).unwrap_or_default();
    if let Some(value) = values.get(MAX_STEPS) {
        problems.error(value.span(), &StepProblem::TooMany(owner.to_owned()));
    }
    values.iter().filter_map(|value| read_step(value, owner, files, problems)).collect()
}

fn read_step(
    value: &Value<'_>,
    vm: &str,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Option<ProvisionStep> {
    match value.get_ref() {
        DeValue::String(command) => {
            let command = Spanned::new(value.span(), command.as_ref());
            read_command(&command, vm, problems).map(StepAction::alone)
        }
        DeValue::Table(_) => {
            let mut fields =
                Fields::of_element(value, PROVISION, format!("a step of {vm}"), problems)?;
            let action = read_action(&mut fields, vm, files, problems);
            let secrets = read_secrets(&mut fields, vm, files, problems);
            let network = fields.word(NETWORK, &NETWORKS, problems);
            fields.warn_unknown(problems);
            let network = network.map_or(Network::Full, Spanned::into_inner);
            Some(ProvisionStep { action: action?, secrets, network })
        }
        other => {
            let wanted = "a command or a table";
            problems.error(value.span(), &wrong_element(PROVISION, wanted, other));
            None
        }
    }
}

fn read_action(
    of_step: &mut Fields<'_>,
    vm: &str,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Option<StepAction> {
    let command = of_step.string(RUN, problems);
    let command = command.and_then(|command| read_command(&command, vm, problems));
    let script = of_step.line(SCRIPT, problems);
    let copy = read_copy(of_step, vm, files, problems);
    if [RUN, SCRIPT, COPY].iter().filter(|key| of_step.has(**key)).count() != 1 {
        problems.error(of_step.span(), &StepProblem::Unclear(vm.to_owned()));
        return None;
    }
    command.or(copy).or_else(|| read_script(&script?, files, problems))
}

fn read_command(command: &Spanned<&str>, vm: &str, problems: &mut Problems) -> Option<StepAction> {
    match check_command(command.get_ref(), vm) {
        Ok(()) => Some(StepAction::Run((*command.get_ref()).to_owned())),
        Err(problem) => {
            problems.error(command.span(), &problem);
            None
        }
    }
}

fn read_script(
    script: &Spanned<&str>,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Option<StepAction> {
    let problem = match project_path(script.get_ref(), files) {
        Ok(path) if path.below.as_os_str().is_empty() => {
            StepProblem::NotAFile((*script.get_ref()).to_owned())
        }
        Ok(path) => return Some(StepAction::Script(path)),
        Err(problem) => problem,
    };
    problems.error(script.span(), &problem);
    None
}

/// Reads the names of a step's secrets.
fn read_secrets(
    of_step: &mut Fields<'_>,
    vm: &str,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Vec<StepSecret> {
    let several = of_step.lines(SECRETS, problems);
    let one = of_step.line(SECRET, problems);
    if of_step.has(SECRETS) && of_step.has(SECRET) {
        problems.error(of_step.span(), &StepProblem::BothSecrets(vm.to_owned()));
    }
    let mut names = BTreeSet::new();
    for text in several.into_iter().flatten().chain(one) {
        let problem = match secret_name(text.get_ref()) {
            _ if of_step.has(COPY) => StepProblem::SecretOfCopy(vm.to_owned()),
            Some(name) if names.insert(name) => continue,
            Some(name) => StepProblem::SecretTwice(name.to_owned()),
            None => StepProblem::Secret((*text.get_ref()).to_owned()),
        };
        problems.error(text.span(), &problem);
    }
    let secret = |name: &str| StepSecret { name: name.to_owned(), root: files.root.to_owned() };
    names.into_iter().map(secret).collect()
}

fn read_copy(
    of_step: &mut Fields<'_>,
    vm: &str,
    files: ProjectFiles<'_>,
    problems: &mut Problems,
) -> Option<StepAction> {
    let value = of_step.value(COPY)?;
    let mut fields = Fields::of(value, COPY, format!("`copy` of a step of {vm}"), problems)?;
    for key in [FROM, TO] {
        if !fields.has(key) {
            fields.missing(key, problems);
        }
    }
    let (from, to) = (fields.line(FROM, problems), fields.line(TO, problems));
    fields.warn_unknown(problems);
    let (from, to) = (from?, to?);
    let mut refuse = |span: Range<usize>, problem: StepProblem| problems.error(span, &problem);
    let path = project_path(from.get_ref(), files).map_err(|problem| refuse(from.span(), problem));
    let is_plain = Path::new(to.get_ref()).components().all(|part| part != Component::ParentDir);
    if !to.get_ref().starts_with('/') || !is_plain {
        refuse(to.span(), StepProblem::Destination((*to.get_ref()).to_owned()));
        return None;
    }
    Some(StepAction::Copy { from: path.ok()?, to: (*to.get_ref()).to_owned() })
}

fn check_command(command: &str, vm: &str) -> Result<(), StepProblem> {
    let is_unwanted = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if command.trim().is_empty() {
        Err(StepProblem::NoCommand(vm.to_owned()))
    } else if command.contains(is_unwanted) {
        Err(StepProblem::ControlCharacter(vm.to_owned()))
    } else if command.len() > MAX_COMMAND_BYTES {
        Err(StepProblem::TooLong(vm.to_owned()))
    } else {
        Ok(())
    }
}

/// Returns the path of a file of the project, as far as its text says.
fn project_path(text: &str, files: ProjectFiles<'_>) -> Result<ProjectPath, StepProblem> {
    let mut below = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if !text.starts_with('~') => below.push(name),
            _ => return Err(StepProblem::Outside(text.to_owned())),
        }
    }
    let state_root = files.state_root.to_owned();
    if below.starts_with(STATE_DIRECTORY) || files.root.join(&below).starts_with(&state_root) {
        return Err(StepProblem::StateRoot(text.to_owned()));
    }
    Ok(ProjectPath { root: files.root.to_owned(), below, state_root })
}
