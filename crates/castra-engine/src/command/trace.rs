//! Debug lines about processes, without secrets.

use std::borrow::Cow;
use std::ffi::OsStr;

use super::Invocation;

/// Replacement for an argument that may hold a secret.
const HIDDEN: &str = "(hidden)";

/// Writes a debug line about a process that is about to be started.
pub(super) fn start(invocation: &Invocation) {
    tracing::debug!(
        program = %invocation.program.display(),
        arguments = ?invocation.arguments.iter().map(|text| shown(text)).collect::<Vec<_>>(),
        "starting a process"
    );
}

/// Returns an argument as text, unless it looks like a secret: a password, a secret object of
/// QEMU's, or a URL with a user.
fn shown(argument: &OsStr) -> Cow<'_, str> {
    let text = argument.to_string_lossy();
    let has_user = text.split("://").skip(1).any(|rest| {
        rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@'))
    });
    let is_secret = has_user || text.starts_with("secret,") || text.contains("password");
    if is_secret { HIDDEN.into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else_is() {
        for secret in ["https://me:pw@index.example/simple", "secret,id=s,data=x", "a,password=b"] {
            assert_eq!(shown(OsStr::new(secret)), HIDDEN, "{secret}");
        }
        for plain in ["-m", "https://a.example/b@c", "user,id=net,restrict=on", "-nodefaults"] {
            assert_eq!(shown(OsStr::new(plain)), plain);
        }
    }
}
