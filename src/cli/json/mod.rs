//! `--json`: one document on stdout, and on stderr one JSON object a line for whatever happens meanwhile.
//!
//! docs/json.md tells of the fields, docs/json.schema.json holds them for programs.

mod failure;
mod reporter;
mod schema;
mod vm;

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use failure::Failure;
pub(super) use reporter::{JsonReporter, error_line, warning_line};
pub use schema::schema;
pub(super) use vm::{Outcomes, VmView, outcomes};

/// Version of all that is printed: one number for all commands. Fields may be added without a new one.
const VERSION: u32 = 1;

/// Whatever is printed says which version it is.
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
