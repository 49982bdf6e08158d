//! `castra completions`, and the answers to the scripts that it prints.
//!
//! A script contains no word of the grammar. Each time it calls this castra with [`ASKED_BY`] set,
//! which walks the grammar and reads the project. So scripts never go stale, and names of VMs
//! complete. An answer takes milliseconds and never waits for a VM. After an error it is empty: a
//! user who presses Tab has not asked for an error message.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use castra_engine::cancel::Cancel;
use castra_engine::config::{ConfigOptions, ProjectConfig, is_vm_name};
use castra_engine::context::{Environment, RuntimeContext, working_directory};
use castra_engine::error::Result;
use castra_engine::managed::{Catalog, is_updatable};
use castra_engine::report::Silent;
use castra_engine::state_root::StateRoot;
use castra_engine::vm::{self, Record};
use clap::{Arg, Command};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{CompletedShell, CompletionsArgs};
use super::error::CliError;
use super::grammar::{grammar, is_of_all};
use super::output;
use super::printer::Printer;
use super::project;

/// Variable that a script sets to the name of its shell when it asks for completions.
pub(super) const ASKED_BY: &str = "CASTRA_COMPLETE";

const PROGRAM: &str = "castra";

/// The result of `castra completions`.
#[derive(Serialize, JsonSchema)]
pub(super) struct CompletionScript {
    /// Shell that the script is for.
    shell: CompletedShell,
    /// Script for the shell to read.
    script: String,
}

/// Prints the script for a shell.
pub(super) fn run(completions: &CompletionsArgs, printer: &Printer) -> Result<ExitCode> {
    let mut script = Vec::new();
    let completer = completer(completions.shell);
    completer
        .write_registration(ASKED_BY, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(CliError::from)?;
    let script = String::from_utf8_lossy(&script).into_owned();
    printer
        .show(&CompletionScript { shell: completions.shell, script: script.clone() }, &script)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a script, if one has called.
pub(super) fn answer(environment: &Environment) -> Option<ExitCode> {
    let shell =
        <CompletedShell as clap::ValueEnum>::from_str(environment.text(ASKED_BY)?, false).ok();
    let words: Vec<OsString> =
        std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let written = shell.ok_or(io::ErrorKind::Unsupported.into()).and_then(|shell| {
        let mut answer = Vec::new();
        let directory = std::env::current_dir().ok();
        let mut command = completable(&words, environment);
        completer(shell).write_complete(&mut command, words, directory.as_deref(), &mut answer)?;
        output::answer(&answer)
    });
    // The script treats any failure as "no candidates".
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn completer(shell: CompletedShell) -> &'static dyn EnvCompleter {
    match shell {
        CompletedShell::Bash => &Bash,
        CompletedShell::Zsh => &Zsh,
        CompletedShell::Fish => &Fish,
    }
}

/// Returns the grammar with completers, chosen by the value name of each argument, so that
/// arguments of new commands get theirs without a change here.
fn completable(words: &[OsString], environment: &Environment) -> Command {
    let is_option = |word: &OsString| word.as_encoded_bytes().starts_with(b"-");
    let asks_for_option = typed(words, environment).is_some_and(is_option);
    let project = Arc::new(Project { words: words.to_vec(), environment: environment.clone() });
    walk(grammar(), &|argument| {
        // The engine shows hidden arguments where there is nothing else, so options do not bury the
        // names of VMs.
        let is_buried = !argument.is_positional() && !asks_for_option;
        let argument =
            if is_buried || is_of_all(&argument) { argument.hide(is_buried) } else { argument };
        let value =
            argument.get_value_names().and_then(|names| names.first()).map(|name| name.to_string());
        let project = Arc::clone(&project);
        match value.as_deref() {
            Some("VM") => {
                argument.add(ArgValueCompleter::new(move |typed: &OsStr| project.vms("", typed)))
            }
            Some("NAME[@VERSION]" | "NAME[@VERSION]|FILE") => {
                argument.add(ArgValueCompleter::new(move |typed: &OsStr| project.images(typed)))
            }
            Some("NAME") => argument
                .add(ArgValueCompleter::new(move |typed: &OsStr| project.distributions(typed))),
            Some("SRC") => argument
                .add(ArgValueCompleter::new(move |typed: &OsStr| project.ends_of_copy(typed))),
            _ => argument,
        }
    })
}

/// Returns the word in which Tab was pressed. fish sends nothing after it; the other shells send
/// its index.
fn typed<'w>(words: &'w [OsString], environment: &Environment) -> Option<&'w OsString> {
    let number =
        environment.text("_CLAP_COMPLETE_INDEX").and_then(|number| number.parse::<usize>().ok());
    words.get(number.unwrap_or(words.len().saturating_sub(1)))
}

fn walk(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|sub| walk(sub, change))
}

/// Source of candidates: the project that the words on the command line select.
struct Project {
    words: Vec<OsString>,
    environment: Environment,
}

impl Project {
    fn context(&self) -> Option<RuntimeContext> {
        RuntimeContext::new(self.environment.clone(), Arc::new(Silent), Cancel::new()).ok()
    }

    fn config(&self, context: &RuntimeContext) -> Option<ProjectConfig> {
        project::try_load(&self.options(), context).ok()?.ok()
    }

    /// Parses `--config` and `--skip-discovery`, as far as they are typed.
    fn options(&self) -> ConfigOptions {
        let mut options = ConfigOptions::default();
        let mut words = self.words.iter().map(|word| word.to_string_lossy());
        while let Some(word) = words.next() {
            match &*word {
                "--" => break,
                "--config" => options.explicit = words.next().map(|path| PathBuf::from(&*path)),
                "--skip-discovery" => options.skip_discovery = true,
                word => {
                    let path = word.strip_prefix("--config=").map(PathBuf::from);
                    options.explicit = path.or(options.explicit);
                }
            }
        }
        options
    }

    /// Returns names of VMs, declared and recorded, with their states.
    fn vms(&self, suffix: &str, typed: &OsStr) -> Vec<CompletionCandidate> {
        let context = self.context();
        let config = context.as_ref().and_then(|context| self.config(context));
        let root = match &config {
            Some(config) => Some(config.state_root.clone()),
            None => working_directory().ok().map(|root| StateRoot::of_project(&root)),
        };
        let layout = root.zip(context).and_then(|(root, context)| root.open(&context).ok());
        let recorded = layout.as_ref().map(Record::names).unwrap_or_default();
        let declared = config.into_iter().flat_map(|config| config.vms).map(|vm| vm.name);
        // A file in the state directory may have any name.
        let names: BTreeSet<String> =
            declared.chain(recorded).filter(|name| is_vm_name(name)).collect();
        let state = |name: &str| {
            let layout = layout.as_ref()?;
            let record = Record::load(layout, name).ok()??;
            Some(vm::state_of(&record, layout).name())
        };
        let candidate = |name: String| {
            let state = state(&name).unwrap_or("not created");
            CompletionCandidate::new(format!("{name}{suffix}")).help(Some(state.into()))
        };
        matching(names.into_iter().map(candidate), typed)
    }

    /// Returns names of images of the project and of the catalog.
    fn images(&self, typed: &OsStr) -> Vec<CompletionCandidate> {
        let own = self
            .context()
            .and_then(|context| self.config(&context))
            .map(|config| config.images)
            .unwrap_or_default();
        // Without versions, pinned builds add nothing.
        let catalog = Catalog::builtin();
        let candidate = |id: &str, description: &str| {
            let help = Some(description.to_owned()).filter(|text| !text.is_empty());
            CompletionCandidate::new(id).help(help.map(Into::into))
        };
        let images = catalog.images().iter().chain(own.values());
        matching(images.map(|image| candidate(&image.id, &image.description)), typed)
    }

    /// Returns names of images of distributions.
    fn distributions(&self, typed: &OsStr) -> Vec<CompletionCandidate> {
        let mut images = self.images(typed);
        images.retain(|image| image.get_value().to_str().is_some_and(is_updatable));
        images
    }

    /// Returns the possible ends of a copy: `VM:`, or a path on this machine.
    fn ends_of_copy(&self, typed: &OsStr) -> Vec<CompletionCandidate> {
        let mut found = self.vms(":", typed);
        found.extend(PathCompleter::any().complete(typed));
        found
    }
}

fn matching(
    candidates: impl Iterator<Item = CompletionCandidate>,
    typed: &OsStr,
) -> Vec<CompletionCandidate> {
    let typed = typed.as_encoded_bytes();
    candidates
        .filter(|candidate| candidate.get_value().as_encoded_bytes().starts_with(typed))
        .collect()
}
