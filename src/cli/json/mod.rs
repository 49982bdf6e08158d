//! `--json`: one document on stdout, and on stderr one JSON object per line for every event
//! meanwhile.
//!
//! docs/json.md explains the fields; docs/json.schema.json describes them for programs.

mod failure;
mod reporter;
mod schema;
mod vm;

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use failure::Failure;
pub(super) use reporter::{JsonReporter, error_line, warning_line};
pub use schema::schema;
pub(super) use vm::{MountView, Outcomes, VmView, outcomes};

/// Version of all JSON output, one number for all commands. Adding fields does not change it.
const VERSION: u32 = 1;

/// A document with the version of its format.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Document<T> {
    /// Version of this format.
    version: u32,
    #[serde(flatten)]
    content: T,
}

impl<T> Document<T> {
    pub(super) fn new(content: T) -> Self {
        Self { version: VERSION, content }
    }
}
