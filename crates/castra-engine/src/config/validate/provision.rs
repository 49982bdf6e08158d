//! `provision`: steps that prepare a VM's disk.

use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use toml::de::DeValue;

use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::project::BootProfile;
use super::super::provision::{MAX_COMMAND_BYTES, MAX_STEPS, ProjectPath, ProvisionStep};
use super::super::schema::{Fields, Key, Value, key, wrong_element};
use super::Scope;
use crate::layout::STATE_DIRECTORY;

const PROVISION: Key = key("provision", "[\"apk add nginx\"]");
const SCRIPT: Key = key("script", "\"setup.sh\"");
const COPY: Key = key("copy", "{ from = \"app\", to = \"/srv/app\" }");
const FROM: Key = key("from", "\"app\"");
const TO: Key = key("to", "\"/srv/app\"");

/// A step that cannot be taken.
#[derive(Debug, thiserror::Error)]
enum StepProblem {
    #[error("{0} has more than {MAX_STEPS} steps")]
    TooMany(String),
    #[error("a step of {0} has no command")]
    NoCommand(String),
    #[error("the command of a step of {0} contains a control character")]
    ControlCharacter(String),
    #[error("the command of a step of {0} is longer than 32 KiB")]
    TooLong(String),
    #[error("a step of {0} must be either a `script` or a `copy`")]
    Unclear(String),
    #[error("{} is not inside the project's directory", quoted(.0))]
    Outside(String),
    #[error("{} is Castra's own directory", quoted(.0))]
    StateRoot(String),
    #[error("{} names no file", quoted(.0))]
    NotAFile(String),
    #[error("{} is not an absolute path without `..`", quoted(.0))]
    Destination(String),
    #[error("{0} boots natively, without Castra's agent, which runs the steps")]
    Native(String),
    #[error("{0} has both `provision` and `cloud_init`")]
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
            Self::TooMany(_) => "Put several commands into one step, or into a script.".to_owned(),
            Self::NoCommand(_) | Self::Unclear(_) => format!(
                "Write a command, for instance {PROVISION}, a table {{ {} }}, or {{ {} }}.",
                plain(SCRIPT),
                plain(COPY)
            ),
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
            Self::Native(_) => "Remove `provision`, or `boot_profile = \"native\"`.".to_owned(),
            Self::CloudInit(_) => {
                "Remove one of them; steps can do what the user data do.".to_owned()
            }
        }
    }
}

/// Returns a key and its example, without the quotes of a message.
fn plain(key: Key) -> String {
    format!("{} = {}", key.name, key.example)
}

/// Reads a VM's steps.
pub(super) fn read(
    of_vm: &mut Fields<'_>,
    vm: &str,
    boot_profile: Option<BootProfile>,
    has_cloud_init: bool,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Vec<ProvisionStep> {
    let values = of_vm.array(PROVISION, problems).unwrap_or_default();
    if let Some(value) = values.get(MAX_STEPS) {
        problems.error(value.span(), &StepProblem::TooMany(vm.to_owned()));
    }
    let span = of_vm.key_span(PROVISION).filter(|_| !values.is_empty());
    if let Some(span) = &span {
        if boot_profile == Some(BootProfile::Native) {
            problems.error(span.clone(), &StepProblem::Native(vm.to_owned()));
        }
        if has_cloud_init {
            problems.error(span.clone(), &StepProblem::CloudInit(vm.to_owned()));
        }
    }
    values.iter().filter_map(|value| read_step(value, vm, scope, problems)).collect()
}

fn read_step(
    value: &Value<'_>,
    vm: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<ProvisionStep> {
    match value.get_ref() {
        DeValue::String(command) => match check_command(command, vm) {
            Ok(()) => return Some(ProvisionStep::Run(command.as_ref().to_owned())),
            Err(problem) => problems.error(value.span(), &problem),
        },
        DeValue::Table(_) => {
            let mut fields =
                Fields::of_element(value, PROVISION, format!("a step of {vm}"), problems)?;
            let script = fields.line(SCRIPT, problems);
            let copy = read_copy(&mut fields, vm, scope, problems);
            let is_clear = fields.has(SCRIPT) != fields.has(COPY);
            fields.warn_unknown(problems);
            if !is_clear {
                problems.error(value.span(), &StepProblem::Unclear(vm.to_owned()));
                return None;
            }
            if copy.is_some() {
                return copy;
            }
            let script = script?;
            match project_path(script.get_ref(), scope) {
                Ok(path) if path.below.as_os_str().is_empty() => {
                    let problem = StepProblem::NotAFile((*script.get_ref()).to_owned());
                    problems.error(script.span(), &problem);
                }
                Ok(path) => return Some(ProvisionStep::Script(path)),
                Err(problem) => problems.error(script.span(), &problem),
            }
        }
        other => {
            let wanted = "a command or a table";
            problems.error(value.span(), &wrong_element(PROVISION, wanted, other));
        }
    }
    None
}

fn read_copy(
    of_step: &mut Fields<'_>,
    vm: &str,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> Option<ProvisionStep> {
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
    let path = project_path(from.get_ref(), scope).map_err(|problem| refuse(from.span(), problem));
    let is_plain = Path::new(to.get_ref()).components().all(|part| part != Component::ParentDir);
    if !to.get_ref().starts_with('/') || !is_plain {
        refuse(to.span(), StepProblem::Destination((*to.get_ref()).to_owned()));
        return None;
    }
    Some(ProvisionStep::Copy { from: path.ok()?, to: (*to.get_ref()).to_owned() })
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
fn project_path(text: &str, scope: &Scope<'_>) -> Result<ProjectPath, StepProblem> {
    let mut below = PathBuf::new();
    for part in Path::new(text).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) if !text.starts_with('~') => below.push(name),
            _ => return Err(StepProblem::Outside(text.to_owned())),
        }
    }
    let state_root = scope.bounds.state_root().path().to_owned();
    if below.starts_with(STATE_DIRECTORY) || scope.root.join(&below).starts_with(&state_root) {
        return Err(StepProblem::StateRoot(text.to_owned()));
    }
    Ok(ProjectPath { root: scope.root.to_owned(), below, state_root })
}
