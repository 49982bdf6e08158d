//! Errors of tools, which are results that the client's model reads.

use std::fmt::Display;
use std::ops::RangeInclusive;

use rmcp::model::{ContentBlock, IntoContents};

use crate::envd::ConnectError;
use crate::sandboxes::SandboxError;

/// Error of a tool: a sentence that names the thing and the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure(String);

impl Failure {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Returns the error for a call that the end of the server interrupts.
    pub(super) fn ending() -> Self {
        Self::new("the server is ending")
    }

    pub(super) fn message(&self) -> &str {
        &self.0
    }
}

/// Checks that the argument of a tool is in its range.
///
/// # Errors
/// It is not.
pub(super) fn check_range<T: Display + PartialOrd>(
    name: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<(), Failure> {
    if range.contains(&value) {
        return Ok(());
    }
    let (from, to) = (range.start(), range.end());
    Err(Failure::new(format!("{name} is {value}; give a number from {from} to {to}")))
}

impl IntoContents for Failure {
    fn into_contents(self) -> Vec<ContentBlock> {
        vec![ContentBlock::text(self.0)]
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        let way_out = match &error {
            SandboxError::NotFound(_) => "list_sandboxes shows those that exist",
            SandboxError::Paused(_) => "resume_sandbox resumes it",
            SandboxError::Full(_) => "pause_sandbox and stop_sandbox make room",
            _ => return Self(error.to_string()),
        };
        Self(format!("{error}; {way_out}"))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self(error.message)
    }
}

impl From<castra_engine::session::SessionError> for Failure {
    fn from(error: castra_engine::session::SessionError) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_thing_and_the_way_out() {
        let missing = Failure::from(SandboxError::NotFound("abc".to_owned()));
        let expected = "the sandbox abc was not found; list_sandboxes shows those that exist";
        assert_eq!(missing.message(), expected);
        let paused = Failure::from(SandboxError::Paused("abc".to_owned()));
        assert_eq!(paused.message(), "the sandbox abc is paused; resume_sandbox resumes it");
    }
}
