//! What clap says of a command line that makes no sense, with a next step where it has none.

use clap::Error;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::SizeError;
use crate::error::Explain as _;

/// Words of other tools, and castra's.
const SAID_ELSEWHERE: [(&[&str], &str); 11] = [
    (&["start", "launch", "create", "boot", "resume", "play"], "castra up"),
    (&["stop", "halt", "shutdown", "poweroff", "kill"], "castra down"),
    (&["pause", "save", "hibernate"], "castra suspend"),
    (&["delete", "destroy", "rm", "remove", "purge"], "castra down` and delete `.castra/"),
    (&["ls", "list", "ps", "info", "show"], "castra status"),
    (&["reload", "reboot", "restart"], "castra down` and `castra up"),
    (&["enter", "login", "attach", "console", "connect"], "castra shell"),
    (&["copy", "scp", "transfer", "push", "mount"], "castra cp"),
    (&["images", "find", "pull", "fetch", "box"], "castra image"),
    (&["port", "forward"], "castra ports"),
    (&["validate", "lint", "schema", "env"], "castra config"),
];

/// The same error; its tips lead on.
pub(super) fn with_next_step(mut error: Error) -> Error {
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(tip) = tip(&error, &words) {
        // clap's own tip to a missing `--` puts it in front of the wrong word.
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    }
    error
}

fn tip(error: &Error, words: &[String]) -> Option<String> {
    match error.kind() {
        ErrorKind::InvalidSubcommand => match error.get(ContextKind::InvalidSubcommand) {
            Some(ContextValue::String(word)) => Some(for_command(word, error)),
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

fn for_command(word: &str, error: &Error) -> String {
    let is_near = error.get(ContextKind::SuggestedSubcommand).is_some();
    let elsewhere = SAID_ELSEWHERE.iter().find(|(words, _)| words.contains(&word));
    match elsewhere {
        Some((_, castra)) => format!("in Castra this is `{castra}`"),
        None if is_near => "`castra --help` lists all commands".into(),
        None => "`castra --help` lists the commands".into(),
    }
}

/// `castra exec ls -l`: the command belongs behind `--`.
fn for_dashes(words: &[String]) -> Option<String> {
    let command = ["exec", "run"].into_iter().find(|name| words.iter().any(|word| word == name))?;
    if words.iter().any(|word| word == "--") {
        return None;
    }
    Some(match command {
        "run" => "the command comes after `--`, as in `castra run -- uname -a`".into(),
        _ => "the command comes after `--`, as in `castra exec -- uname -a`, or `castra exec VM -- uname -a`".into(),
    })
}
