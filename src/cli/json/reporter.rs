//! Events in JSON, one object per line on stderr.

use castra_engine::error::Error;
use castra_engine::host::unix_time_ms;
use castra_engine::report::{Event, Reporter};
use schemars::JsonSchema;
use serde::Serialize;

use super::super::output::{Verbosity, write_json_line};
use super::{Failure, VERSION};

/// Prints each event as a line of JSON on stderr.
pub(in super::super) struct JsonReporter {
    verbosity: Verbosity,
}

impl JsonReporter {
    pub(in super::super) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }
}

impl Reporter for JsonReporter {
    fn report(&self, event: &Event) {
        if self.verbosity > Verbosity::Quiet {
            write_json_line(&line(event));
        }
    }
}

/// Events that end a failed command, in addition to the library's own.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Ending {
    /// An operation failed.
    Error {
        /// The error, its causes and a hint.
        error: Failure,
    },
}

/// Returns an error as a line.
pub(in super::super) fn error_line(error: &Error) -> String {
    line(&Ending::Error { error: error.into() })
}

/// Returns a warning as a line.
pub(in super::super) fn warning_line(message: &str) -> String {
    line(&Event::Warning { message: message.to_owned() })
}

/// A line on stderr, with its time.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Line<T> {
    /// Version of this format.
    version: u32,
    /// Time of the event, in milliseconds since 1970.
    time_unix_ms: u64,
    #[serde(flatten)]
    content: T,
}

fn line(content: &impl Serialize) -> String {
    let time_unix_ms = unix_time_ms();
    // Strings, numbers and paths. A path that is not UTF-8 has no JSON form, and its event is left
    // out.
    serde_json::to_string(&Line { version: VERSION, time_unix_ms, content }).unwrap_or_default()
}
