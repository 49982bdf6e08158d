use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{Error, Kind};

use super::super::exit;

/// An error, as `--json` tells it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(in super::super) struct Failure {
    /// The sort of failure.
    kind: Kind,
    /// The exit code that goes with it.
    exit_code: u8,
    /// What happened.
    message: String,
    /// Why, outermost first.
    causes: Vec<String>,
    /// A next step.
    hint: Option<String>,
}

impl Failure {
    /// What happened.
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
