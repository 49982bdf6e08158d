//! One log: its file, the filters that apply to it, and the form of its lines.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use castra_engine::layout::earlier_log;
use castra_engine::report::Event;
use castra_engine::sanitize::sanitize_log;
use castra_engine::trusted;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::plain;

/// Most bytes of a log that are shown, counted from its end: a guest may write as much as it likes
/// to its console.
const MOST_BYTES: u64 = 16 << 20;

/// Source of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Source {
    Console,
    Qemu,
    Castra,
    Images,
}

/// A line of a log.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Line {
    /// Source of the line.
    pub(super) source: Source,
    /// VM that the line is about, if it is about one.
    pub(super) vm: Option<String>,
    /// Time in milliseconds since 1970; console and QEMU logs have none.
    pub(super) at_unix_ms: Option<i64>,
    /// Text without its end of line, sanitised so that it cannot drive a terminal.
    pub(super) text: String,
}

/// A log that is read from its start, and followed.
pub(super) struct Stream {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    /// VM that the log belongs to.
    pub(super) vm: Option<String>,
    /// Label in front of each line if several logs are shown.
    pub(super) label: Option<String>,
    /// Earliest time of the lines to show.
    pub(super) since: Option<Timestamp>,
    /// VMs whose lines to show; all if empty.
    pub(super) wanted: Vec<String>,
    /// Bytes skipped at the start of a long log.
    pub(super) left_out_bytes: u64,
    position: u64,
    /// Set once the part from before the rotation was read.
    is_earlier_read: bool,
    /// Bytes that were read but not shown yet: an incomplete line or character.
    pending: Vec<u8>,
}

impl Stream {
    pub(super) fn new(path: PathBuf, source: Source, vm: Option<String>) -> Self {
        let (label, since, wanted) = (None, None, Vec::new());
        let (left_out_bytes, position, is_earlier_read, pending) = (0, 0, false, Vec::new());
        Self {
            path,
            source,
            vm,
            label,
            since,
            wanted,
            left_out_bytes,
            position,
            is_earlier_read,
            pending,
        }
    }

    /// Reads the lines added since the last call; with `is_last` also a line that has no end yet. A
    /// log that has become shorter was rotated, or begun by the next boot, and is read from its
    /// start. A missing log has no lines yet.
    pub(super) fn read(&mut self, is_last: bool) -> Result<Vec<Line>, CliError> {
        self.read_new().map_err(|source| CliError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        let end = match self.pending.iter().rposition(|byte| *byte == b'\n') {
            _ if is_last => self.pending.len(),
            Some(newline) => newline + 1,
            None => return Ok(Vec::new()),
        };
        let whole: Vec<u8> = self.pending.drain(..end).collect();
        let text = String::from_utf8_lossy(&whole).into_owned();
        Ok(text.lines().filter_map(|line| self.line(line)).collect())
    }

    /// Reads the bytes added since the last call, sanitised but not cut into lines, for a console
    /// that is shown alone: a prompt has no end of line.
    pub(super) fn read_raw(&mut self) -> Result<String, CliError> {
        self.read_new().map_err(|source| CliError::File {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        // A character that is cut off is shown once the rest of it arrives.
        let whole = match std::str::from_utf8(&self.pending) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.pending.len(),
        };
        let bytes: Vec<u8> = self.pending.drain(..whole).collect();
        Ok(sanitize_log(&String::from_utf8_lossy(&bytes)))
    }

    fn read_new(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_earlier_read, true) {
            self.read_earlier()?;
        }
        let mut file = match trusted::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let length = file.metadata()?.len();
        if length < self.position {
            self.position = 0;
        }
        let left_out = (length - self.position).saturating_sub(MOST_BYTES);
        if left_out > 0 {
            // The rest of the pending line is among the bytes left out.
            self.pending.clear();
            self.left_out_bytes += left_out;
            self.position += left_out;
        }
        file.seek(SeekFrom::Start(self.position))?;
        self.position += file.take(MOST_BYTES).read_to_end(&mut self.pending)? as u64;
        Ok(())
    }

    fn read_earlier(&mut self) -> io::Result<()> {
        match trusted::open(&earlier_log(&self.path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.take(MOST_BYTES).read_to_end(&mut self.pending).map(drop),
        }
    }

    fn line(&self, line: &str) -> Option<Line> {
        let (source, vm) = (self.source, self.vm.clone());
        let timed = || -> Option<(Timestamp, &str)> {
            let (time, rest) = line.split_once(' ')?;
            Some((time.parse().ok()?, rest))
        };
        match source {
            Source::Console | Source::Qemu => {
                Some(Line { source, vm, at_unix_ms: None, text: sanitize_log(line) })
            }
            Source::Castra | Source::Images => {
                let (time, rest) = timed()?;
                let (vm, text) =
                    if source == Source::Castra { in_words(rest) } else { (None, rest.to_owned()) };
                let is_wanted =
                    self.wanted.is_empty() || vm.as_ref().is_none_or(|vm| self.wanted.contains(vm));
                let is_late_enough = self.since.is_none_or(|since| time >= since);
                let text = format!("{time:.3} {}", sanitize_log(&text));
                let at_unix_ms = Some(time.as_millisecond());
                (is_wanted && is_late_enough).then_some(Line { source, vm, at_unix_ms, text })
            }
        }
    }
}

/// Formats an event from castra's log, and returns the VM it is about. An unknown event, from a
/// newer castra, is shown as it is.
fn in_words(json: &str) -> (Option<String>, String) {
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let word = |name: &str| value[name].as_str().map(str::to_owned);
    let vm = word("vm");
    if let (Some("failed"), Some(doing), Some(error)) =
        (value["event"].as_str(), word("doing"), word("error"))
    {
        return (vm.clone(), format!("{}: {doing} failed: {error}", vm.unwrap_or_default()));
    }
    let event = serde_json::from_value::<Event>(value).ok();
    let text = event.and_then(|event| plain::line(&event)).map(|(text, _)| text);
    let text = text.map(|text| text.strip_prefix("→ ").unwrap_or(&text).replace('\n', " / "));
    (vm, text.unwrap_or_else(|| json.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shown_in_words_and_unknown_ones_as_they_are() {
        let stopped = r#"{"event":"vm-stopped","vm":"web","was_running":true}"#;
        assert_eq!(in_words(stopped), (Some("web".into()), "web: stopped".into()));
        let failed = r#"{"event":"failed","vm":"web","doing":"up","error":"no QEMU"}"#;
        assert_eq!(in_words(failed), (Some("web".into()), "web: up failed: no QEMU".into()));
        let newer = r#"{"event":"vm-teleported","vm":"web"}"#;
        assert_eq!(in_words(newer), (Some("web".into()), newer.into()));
    }

    #[test]
    fn a_line_is_whole_and_a_new_boot_starts_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web-console.log");
        let mut stream = Stream::new(path.clone(), Source::Console, Some("web".into()));
        let texts = |stream: &mut Stream, is_last| -> Vec<String> {
            stream.read(is_last).expect("read").into_iter().map(|line| line.text).collect()
        };
        // The log does not exist before the first boot.
        assert_eq!(texts(&mut stream, false), Vec::<String>::new());
        std::fs::write(&path, "one\ntw").expect("written");
        assert_eq!(texts(&mut stream, false), ["one"]);
        std::fs::write(&path, "one\ntwo\n").expect("written");
        assert_eq!(texts(&mut stream, false), ["two"]);
        std::fs::write(&path, "new").expect("written");
        assert_eq!(texts(&mut stream, true), ["new"]);
    }

    #[test]
    fn what_a_log_held_before_it_was_rotated_is_part_of_it_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web-console.log");
        std::fs::write(earlier_log(&path), "one\ntw").expect("written");
        std::fs::write(&path, "o\nthree\n").expect("written");
        let mut stream = Stream::new(path.clone(), Source::Console, None);
        assert_eq!(stream.read_raw().expect("read"), "one\ntwo\nthree\n");
        std::fs::write(earlier_log(&path), "two\nthree\n").expect("written");
        std::fs::write(&path, "four\n").expect("written");
        assert_eq!(stream.read_raw().expect("read"), "four\n");
    }

    #[test]
    fn of_an_endless_log_the_end_is_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web-console.log");
        let file = std::fs::File::create(&path).expect("made");
        let (length, end) = (1 << 40, b"\nlast words\n");
        file.set_len(length).expect("sparse");
        std::os::unix::fs::FileExt::write_all_at(&file, end, length).expect("written");
        let mut stream = Stream::new(path, Source::Console, Some("web".into()));
        let lines = stream.read(true).expect("read");
        assert_eq!(lines.last().map(|line| line.text.as_str()), Some("last words"));
        assert_eq!(stream.left_out_bytes, length + end.len() as u64 - MOST_BYTES);
    }
}
