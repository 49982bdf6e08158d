//! Grammar as shown in help, completions and manual pages: commands grouped by purpose.

use std::fmt::Write as _;

use clap::builder::StyledStr;
use clap::{Arg, Command, CommandFactory as _, FromArgMatches as _, Parser as _};

use super::args::{Args, FOR_ALL};

/// Headings and their commands, in this order. A command that is missing here is listed last rather
/// than hidden.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Start and stop", &["up", "down", "restart", "suspend", "clone", "resize"]),
    (
        "Work inside",
        &["shell", "exec", "run", "cp", "mount", "umount", "port", "open", "console", "ssh-config"],
    ),
    ("Programs", &["serve", "mcp"]),
    ("Inspect", &["status", "list", "logs", "ports", "timeline", "doctor"]),
    ("Images and space", &["image", "template", "clean", "adopt"]),
    ("Set up", &["init", "config", "completions", "man"]),
];
const UNGROUPED: &str = "Other commands";

/// Parses the words that this process was started with.
///
/// # Errors
/// Returns an error with the message for the user, which may be a page of help.
pub(super) fn parse() -> Result<Args, clap::Error> {
    // Only help and errors need the grammar as shown, and building it takes milliseconds.
    Args::try_parse().or_else(|_undecorated| {
        grammar().try_get_matches().and_then(|words| Args::from_arg_matches(&words))
    })
}

/// Returns the whole command line.
pub(super) fn grammar() -> Command {
    let mut command = Args::command();
    // Propagates the global options to every subcommand.
    command.build();
    let template = template_of_all(&command);
    let below = template_of_one(&command);
    command.mut_subcommands(|sub| brief(sub, &below)).help_template(template)
}

/// Returns a command without the global options in its help, where they would be most of each page.
fn brief(command: Command, template: &StyledStr) -> Command {
    command
        .help_template(template.clone())
        .mut_args(|argument| if is_of_all(&argument) { argument.hide(true) } else { argument })
        .mut_subcommands(|sub| brief(sub, template))
}

/// Returns `true` for a global option.
pub(super) fn is_of_all(argument: &Arg) -> bool {
    argument.get_help_heading() == Some(FOR_ALL)
}

/// Returns the template of the first page: commands in groups, and the global options. Writing to a
/// string cannot fail.
fn template_of_all(command: &Command) -> StyledStr {
    let (bold, plain) = heading_style(command);
    let mut template = StyledStr::new();
    let _ = write!(template, "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n");
    for (heading, commands) in &groups(command) {
        let _ = writeln!(template, "{bold}{heading}:{plain}\n{}", list(commands, command));
    }
    let _ = write!(template, "{bold}{FOR_ALL}:{plain}\n{{options}}{{after-help}}");
    template
}

/// Returns the template of every other page, which only names the global options.
fn template_of_one(command: &Command) -> StyledStr {
    let (bold, plain) = heading_style(command);
    let name = |argument: &Arg| match (argument.get_short(), argument.get_long()) {
        (Some(short), _) => format!("-{short}"),
        (None, long) => format!("--{}", long.unwrap_or_default()),
    };
    let names: Vec<String> =
        command.get_arguments().filter(|argument| is_of_all(argument)).map(name).collect();
    let mut template = StyledStr::new();
    let _ = write!(
        template,
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{{all-args}}{{after-help}}\n\n\
         {bold}{FOR_ALL}{plain} (`castra --help` explains them):\n  {}",
        names.join(", ")
    );
    template
}

/// Returns the visible commands under their headings, without headings that have none.
pub(super) fn groups(command: &Command) -> Vec<(&'static str, Vec<Command>)> {
    let is_grouped = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let visible =
        || command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help");
    let mut groups: Vec<(&'static str, Vec<Command>)> = GROUPS
        .iter()
        .map(|(heading, names)| {
            let found =
                names.iter().filter_map(|name| visible().find(|sub| sub.get_name() == *name));
            (*heading, found.cloned().collect())
        })
        .collect();
    groups
        .push((UNGROUPED, visible().filter(|sub| !is_grouped(sub.get_name())).cloned().collect()));
    groups.retain(|(_, commands)| !commands.is_empty());
    groups
}

/// Formats one line per command: name, description and aliases.
fn list(commands: &[Command], all: &Command) -> String {
    let width = all.get_subcommands().map(|sub| sub.get_name().len()).max().unwrap_or(0);
    let (bold, plain) =
        (all.get_styles().get_literal().render(), all.get_styles().get_literal().render_reset());
    let mut text = String::new();
    for command in commands {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let aliases: Vec<&str> = command.get_visible_aliases().collect();
        let also = if aliases.is_empty() {
            String::new()
        } else {
            format!(" (also `{}`)", aliases.join("`, `"))
        };
        let (name, space) = (command.get_name(), " ".repeat(width - command.get_name().len()));
        let _ = writeln!(text, "  {bold}{name}{plain}{space}  {about}{also}");
    }
    text
}

fn heading_style(command: &Command) -> (String, String) {
    let style = command.get_styles().get_header();
    (style.render().to_string(), style.render_reset().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Narrowest terminal that every page must fit: the width that terminals open with.
    const COLUMNS: usize = 80;

    /// Returns every command of the tree.
    fn paths(command: &Command, path: &[String]) -> Vec<Vec<String>> {
        let mut found = vec![path.to_vec()];
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            found.extend(paths(sub, &[path, &[sub.get_name().to_owned()]].concat()));
        }
        found
    }

    /// Returns the output of `castra COMMAND --help` for every command.
    fn pages() -> Vec<(String, String)> {
        let page = |path: Vec<String>| {
            let words =
                std::iter::once("castra").chain(path.iter().map(String::as_str)).chain(["--help"]);
            let help = built().try_get_matches_from(words).expect_err("help");
            let text = help.render().to_string();
            let name = std::iter::once("castra".to_owned())
                .chain(path.clone())
                .collect::<Vec<_>>()
                .join("-");
            (name, text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
        };
        paths(&built(), &[]).into_iter().map(page).collect()
    }

    /// Returns the grammar with a fixed width, whatever the terminal.
    fn built() -> Command {
        fn narrow(command: Command) -> Command {
            command.term_width(COLUMNS).mut_subcommands(narrow)
        }
        narrow(grammar())
    }

    #[test]
    fn every_page_is_as_it_was_looked_at() {
        // One snapshot per command: `INSTA_UPDATE=always` writes that of a new one, to be reviewed
        // before it is committed.
        for (path, page) in pages() {
            insta::with_settings!({
                omit_expression => true,
                prepend_module_to_snapshot => false,
                snapshot_path => "snapshots/help",
            }, {
                insta::assert_snapshot!(path, page);
            });
        }
    }

    #[test]
    fn every_page_fits_a_terminal() {
        for (path, page) in pages() {
            for line in page.lines() {
                assert!(line.chars().count() <= COLUMNS, "{path}: {line}");
            }
        }
    }

    #[test]
    fn every_command_is_listed_once() {
        let command = built();
        let groups = groups(&command);
        let listed: Vec<&str> =
            groups.iter().flat_map(|(_, commands)| commands).map(|sub| sub.get_name()).collect();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let times = listed.iter().filter(|name| **name == sub.get_name()).count();
            assert_eq!(times, usize::from(!sub.is_hide_set()), "{}", sub.get_name());
        }
        assert!(
            groups.iter().all(|(heading, _)| *heading != UNGROUPED),
            "{groups:?}: put it into `GROUPS`"
        );
    }

    #[test]
    fn every_command_and_every_argument_says_what_it_is() {
        fn check(command: &Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} does not say what it does");
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                check(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        check(&built(), "castra");
    }
}
