//! Usage errors of clap, with a next step where clap has none.

use castra_engine::config::SizeError;
use castra_engine::error::Explain as _;
use clap::Error;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Words of other tools, and the command of castra for each.
const SAID_ELSEWHERE: [(&[&str], &str); 12] = [
    (&["start", "launch", "create", "boot", "resume", "play"], "castra up"),
    (&["stop", "halt", "shutdown", "poweroff", "kill"], "castra down"),
    (&["pause", "save", "hibernate"], "castra suspend"),
    (&["delete", "destroy", "rm", "remove", "purge"], "castra clean --disks"),
    (&["ls", "ps", "info", "show"], "castra list` or `castra status"),
    (&["reload", "reboot"], "castra restart"),
    (&["grow", "extend", "expand"], "castra resize"),
    (&["enter", "login", "attach", "connect"], "castra shell"),
    (&["copy", "scp", "transfer", "push", "mount"], "castra cp"),
    (&["images", "find", "pull", "fetch", "box"], "castra image"),
    (&["port", "forward"], "castra ports"),
    (&["validate", "lint", "schema", "env"], "castra config"),
];

/// Returns the error with tips that lead to a next step.
pub(super) fn with_next_step(error: Error) -> Error {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    with_next_step_for(error, &words)
}

fn with_next_step_for(mut error: Error, words: &[String]) -> Error {
    // clap's own tip for an unknown option is to write `--` in front of it, which helps nothing
    // here.
    if error.kind() == ErrorKind::UnknownArgument {
        error.remove(ContextKind::Suggested);
    }
    if let Some(tip) = tip(&mut error, words) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
}

fn tip(error: &mut Error, words: &[String]) -> Option<String> {
    match error.kind() {
        ErrorKind::InvalidSubcommand => match error.get(ContextKind::InvalidSubcommand).cloned() {
            Some(ContextValue::String(word)) => Some(for_command(&word, error)),
            _ => None,
        },
        ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument => for_dashes(words),
        ErrorKind::ValueValidation => {
            let source = std::error::Error::source(error)?;
            source.downcast_ref::<SizeError>()?.hint()
        }
        _ => None,
    }
}

fn for_command(word: &str, error: &mut Error) -> String {
    match SAID_ELSEWHERE.iter().find(|(words, _)| words.contains(&word)) {
        Some((_, castra)) => {
            // The meaning of the word is known, so similar names would mislead.
            error.remove(ContextKind::SuggestedSubcommand);
            format!("in Castra this is `{castra}`")
        }
        None => "`castra --help` lists all commands".into(),
    }
}

/// Returns the tip for `castra exec ls -l`: the command comes after `--`.
fn for_dashes(words: &[String]) -> Option<String> {
    let command = ["exec", "run"].into_iter().find(|name| words.iter().any(|word| word == name))?;
    if words.iter().any(|word| word == "--") {
        return None;
    }
    Some(match command {
        "run" => "the command comes after `--`, as in `castra run -- uname -a`".into(),
        _ => {
            "the command comes after `--`, as in `castra exec -- uname -a`, or `castra exec VM -- \
            uname -a`"
                .into()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::grammar::grammar;
    use super::*;

    fn message(words: &[&str]) -> String {
        let error =
            grammar().try_get_matches_from([&["castra"], words].concat()).expect_err("a mistake");
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        with_next_step_for(error, &words).render().to_string()
    }

    #[test]
    fn every_mistake_has_a_next_step() {
        for (words, step) in [
            (&["start"][..], "`castra up`"),
            (&["stats"], "similar subcommand exists: 'status'"),
            (&["frobnicate"], "`castra --help`"),
            (&["exec", "ls"], "`castra exec -- uname -a`"),
            (&["exec", "ls", "-la"], "comes after `--`"),
            (&["run", "ls"], "`castra run -- uname -a`"),
            (&["up", "--cpus", "2"], "try '--help'"),
            (&["run", "--memory", "1.5GiB", "--", "x"], "`1536MiB`"),
            (&["run", "--memory", "10", "--", "x"], "Write `10MiB` or `10GiB`."),
            (&["run", "--cpus", "x", "--", "x"], "a number from 1 to 255"),
            (&["run", "--cpus", "0", "--", "x"], "a number from 1 to 255"),
            (&["timeline", "--boots", "x"], "a number from 2 to 20"),
            (&["logs", "--tail", "x"], "give a number of lines"),
            (&["logs", "--tail=-1"], "give a number of lines"),
            (&["up", "--boot-timeout", "0"], "above 0, at most 86400"),
            (&["down", "--timeout", "0"], "above 0, at most 86400"),
            (&["restart", "--timeout", "0.0"], "above 0, at most 86400"),
            (&["run", "--timeout", "0", "--", "x"], "above 0, at most 86400"),
            (&["run", "--timeout", "86401", "--", "x"], "above 0, at most 86400"),
            (&["console", "--linger=-1"], "between 0 and 86400"),
            (&["logs", "--source", "kernel"], "console, qemu, images"),
            (&["up", "--boot-timeout", "soon"], "a number of seconds"),
            (&["clone", "web"], "<NEW>"),
        ] {
            let text = message(words);
            assert!(text.contains(step), "{words:?}: {text}");
            assert!(!text.contains("as a value"), "{words:?}: {text}");
        }
        assert!(!message(&["start"]).contains("'status'"));
    }

    #[test]
    fn what_other_tools_say_is_no_command_of_castras_and_leads_to_one() {
        let command = grammar();
        for (_, castra) in SAID_ELSEWHERE {
            let name = castra.split(['`', ' ']).nth(1).expect("a command");
            assert!(command.get_subcommands().any(|sub| sub.get_name() == name), "{castra}");
        }
    }
}
