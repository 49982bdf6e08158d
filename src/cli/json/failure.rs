//! Errors in JSON.

use castra_engine::error::{Error, Kind};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::exit;

/// An error, as `--json` prints it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(in super::super) struct Failure {
    /// Kind of failure.
    kind: Kind,
    /// Exit code of this kind.
    exit_code: u8,
    /// Message.
    message: String,
    /// Causes, outermost first.
    causes: Vec<String>,
    /// A next step.
    hint: Option<String>,
}

impl Failure {
    /// Returns the message without causes.
    pub(in super::super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            exit_code: exit::code_of(error.kind()),
            message: error.to_string(),
            causes: error.causes().map(ToString::to_string).collect(),
            hint: error.hint(),
        }
    }
}
