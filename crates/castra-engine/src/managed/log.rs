//! `.castra/logs/image-manager.log`: one line per step, to be read after something went wrong.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use crate::files;
use crate::logs;

/// The log. If it cannot be opened or written to, lines are dropped: the work itself will report
/// what is wrong with the disk.
pub(super) struct ImageLog(Option<File>);

impl ImageLog {
    /// Opens the log for appending.
    pub(super) fn open(path: &Path) -> Self {
        if let Some(directory) = path.parent() {
            let _ = files::create_directory(directory);
        }
        Self(logs::open_to_append(path).ok())
    }

    /// Returns a log that drops every line.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Appends one line with the time in front, in one write, so that lines of several processes do
    /// not mix.
    pub(super) fn line(&self, text: &str) {
        if let Some(mut file) = self.0.as_ref() {
            let line = format!("{:.3} {}\n", jiff::Timestamp::now(), text.replace('\n', " / "));
            let _ = file.write_all(line.as_bytes());
        }
    }
}
