//! `castra man`: manual pages from the grammar, with the environment, files and exit codes that the
//! grammar does not know.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::layout::{CONFIG_FILE, STATE_DIRECTORY};
use clap::Command;
use clap_mangen::Man as Page;
use clap_mangen::roff::{Roff, bold, italic, roman};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::ManArgs;
use super::error::CliError;
use super::exit;
use super::grammar::{grammar, groups};
use super::printer::Printer;

/// Environment variables and their effects.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("CASTRA_QEMU", "QEMU binary to use instead of qemu-system-x86_64 from PATH."),
    (
        "CASTRA_ACCELERATOR",
        "kvm, hvf or tcg: the accelerator to use, instead of the fastest that works.",
    ),
    (
        "CASTRA_UEFI_CODE",
        "Code of the UEFI firmware for native boots, instead of an installed OVMF.",
    ),
    ("CASTRA_UEFI_VARS", "Template of that firmware's variables, copied for each VM."),
    (
        "CASTRA_UNSAFE_QEMU_ARGS",
        "Extra arguments for QEMU, separated by spaces. Castra does not check them: they can \
        expose all of your files to the guest.",
    ),
    (
        "CASTRA_ALLOW_OUTSIDE",
        "Directories outside a project, separated by colons, in which its castra.toml may keep \
        disks and state.",
    ),
    ("CASTRA_MIRROR", "Base URL to try first for every download."),
    (
        "CASTRA_ALLOW_PRIVATE_SOURCES",
        "Non-public addresses that images may come from, separated by commas, such as \
        127.0.0.1:8000,10.0.0.5; 1 allows all.",
    ),
    ("CASTRA_OFFLINE", "Any value but 0 and false: never use the network, like --offline."),
    ("XDG_CACHE_HOME", "Directory that holds the cache, in castra/; ~/.cache if unset."),
    (
        "XDG_STATE_HOME",
        "Directory that holds the key that signs state directories, in castra/; ~/.local/state if \
        unset.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "Directory that holds sockets, in castra/; /tmp/castra-UID if unset or accessible to \
        other users.",
    ),
    (
        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
        "Proxies for downloads; lower-case names work too.",
    ),
    (
        "CASTRA_LOG",
        "debug: what castra does inside, as lines on stderr: processes, QMP commands, messages \
        of the guest agent, and the reasons for its decisions.",
    ),
    ("NO_COLOR", "Any value: no colours."),
    ("TERM", "dumb: plain lines instead of progress bars."),
];

/// The result of `castra man`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Manual {
    /// The requested page, or all pages that were written.
    pages: Vec<ManualPage>,
}

/// One page.
#[derive(Serialize, JsonSchema)]
pub(super) struct ManualPage {
    /// Name of its file.
    name: String,
    /// File that the page was written to; `null` if it was only printed.
    path: Option<PathBuf>,
    /// The page in the format that `man` reads.
    roff: String,
}

/// Prints castra(1), or writes all pages into a directory.
pub(super) fn run(man: &ManArgs, printer: &Printer) -> Result<ExitCode> {
    let mut pages = pages()?;
    let text = match &man.directory {
        None => {
            pages.truncate(1);
            pages.iter().map(|page| page.roff.as_str()).collect()
        }
        Some(directory) => {
            write(&mut pages, directory)?;
            let lines = pages.iter().filter_map(|page| page.path.as_ref());
            lines.map(|path| format!("{}\n", path.display())).collect::<String>()
        }
    };
    printer.show(&Manual { pages }, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn write(pages: &mut [ManualPage], directory: &Path) -> Result<(), CliError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| CliError::File { action: "create", path, source }
    };
    let directory = std::path::absolute(directory).map_err(failed(directory))?;
    fs::create_dir_all(&directory).map_err(failed(&directory))?;
    for page in pages {
        let path = directory.join(&page.name);
        fs::write(&path, &page.roff).map_err(failed(&path))?;
        page.path = Some(path);
    }
    Ok(())
}

/// Returns all pages, castra(1) first.
fn pages() -> Result<Vec<ManualPage>, CliError> {
    let command = grammar();
    let mut pages = vec![page(&command, &command)?];
    collect(&command, &command, &mut pages)?;
    Ok(pages)
}

fn collect(parent: &Command, all: &Command, pages: &mut Vec<ManualPage>) -> Result<(), CliError> {
    for sub in visible(parent) {
        pages.push(page(sub, all)?);
        collect(sub, all, pages)?;
    }
    Ok(())
}

fn page(command: &Command, all: &Command) -> Result<ManualPage, CliError> {
    let is_main = command.get_name() == all.get_name();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let shown = command.clone().override_usage(usage);
    let source = format!("{} {}", all.get_name(), all.get_version().unwrap_or_default());
    let page = Page::new(shown).source(source).manual("Castra manual");
    let name = page.get_filename();
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    if is_main {
        commands(command).to_writer(&mut text)?;
    } else if command.has_subcommands() {
        below(command).to_writer(&mut text)?;
    }
    page.render_options_section(&mut text)?;
    notes(command).to_writer(&mut text)?;
    if is_main {
        surroundings().to_writer(&mut text)?;
    }
    exit_codes(is_main).to_writer(&mut text)?;
    see_also(command, all, is_main).to_writer(&mut text)?;
    Ok(ManualPage { name, path: None, roff: String::from_utf8_lossy(&text).into_owned() })
}

/// Lists the commands of castra(1), in the groups of its help.
fn commands(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for (heading, commands) in groups(command) {
        roff.control("SS", [heading]);
        for sub in commands {
            let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
            entry(&mut roff, &format!("castra-{}(1)", sub.get_name()), &about);
        }
    }
    roff
}

/// Lists the subcommands of a command.
fn below(command: &Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for sub in visible(command) {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        entry(&mut roff, &format!("{}(1)", page_of(sub)), &about);
    }
    roff
}

/// Returns the end of the help, line by line.
fn notes(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let Some(text) = command.get_after_long_help().or_else(|| command.get_after_help()) else {
        return roff;
    };
    roff.control("SH", ["NOTES"]);
    roff.control("nf", []);
    for line in text.to_string().lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

fn surroundings() -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in ENVIRONMENT {
        entry(&mut roff, name, meaning);
    }
    roff.control("SH", ["FILES"]);
    let state = format!("{STATE_DIRECTORY}/");
    for (path, meaning) in [
        (
            CONFIG_FILE,
            "Declares the VMs of a project. Castra looks for it in the working directory and \
            above; without one there is one default VM.",
        ),
        (
            &state,
            "Everything a project's VMs consist of, besides castra.toml. Deleting it deletes \
            them.",
        ),
        (
            "~/.cache/castra/",
            "Images and warm templates, shared between projects. Safe to delete at any time.",
        ),
        ("$XDG_RUNTIME_DIR/castra/", "Sockets of running VMs."),
    ] {
        entry(&mut roff, path, meaning);
    }
    roff
}

fn exit_codes(is_main: bool) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    if is_main {
        for (code, meaning) in exit::MEANINGS {
            entry(&mut roff, &code.to_string(), meaning);
        }
    } else {
        roff.text([roman("0 on success; "), bold("castra"), roman("(1) lists the others.")]);
    }
    roff
}

fn see_also(command: &Command, all: &Command, is_main: bool) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let others: Vec<String> = if is_main {
        visible(all).map(page_of).collect()
    } else {
        let below = visible(command).map(page_of);
        std::iter::once("castra".to_owned()).chain(below).collect()
    };
    let mut line = Vec::new();
    for (number, name) in others.into_iter().enumerate() {
        line.push(roman(if number == 0 { "" } else { ", " }));
        line.extend([bold(name), roman("(1)")]);
    }
    roff.text(line);
    roff.control("PP", []);
    roff.text([italic(env!("CARGO_PKG_REPOSITORY"))]);
    roff
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn page_of(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn entry(roff: &mut Roff, what: &str, meaning: &str) {
    roff.control("TP", []);
    roff.text([bold(what)]);
    roff.text([roman(meaning)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_all_sections() {
        let pages = pages().expect("pages");
        assert_eq!(pages[0].name, "castra.1");
        for name in ["castra-up.1", "castra-image-pull.1", "castra-config-check.1"] {
            assert!(pages.iter().any(|page| page.name == name), "{name}");
        }
        for page in &pages {
            for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"]
            {
                let quoted = format!("\n.SH \"{section}\"\n");
                let has = page.roff.contains(&format!("\n.SH {section}\n"))
                    || page.roff.contains(&quoted);
                assert!(has, "{} has no {section}:\n{}", page.name, page.roff);
            }
        }
        for section in ["COMMANDS", "ENVIRONMENT", "FILES"] {
            assert!(pages[0].roff.contains(&format!(".SH {section}\n")), "{section}");
        }
    }
}
