//! `castra logs`: shows and follows logs of consoles, of QEMU, of the image manager and of castra
//! itself.
//!
//! Each log is a [`Stream`]. Those with times are merged as lines; a console or QEMU log alone is
//! shown raw, since a prompt has no end of line.

pub(super) mod since;
mod stream;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use castra_engine::cancel::Cancel;
use castra_engine::error::Result;
use castra_engine::layout::ProjectLayout;
use castra_engine::size::ByteSize;
use castra_engine::vm::{self, Record, RecordError, VmError};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use stream::{Line, Source, Stream};

use super::args::{LogSource, LogsArgs};
use super::context::CommandContext;
use super::error::CliError;
use super::printer::Printer;

/// Interval at which followed logs are read.
const POLL: Duration = Duration::from_millis(200);

/// Lines of logs.
#[derive(Serialize, JsonSchema)]
pub(super) struct LogLines {
    /// Lines, log by log.
    lines: Vec<Line>,
}

/// Shows logs. Text from the guest is sanitised first, since it may hold anything, escape sequences
/// included.
pub(super) fn run(logs: &LogsArgs, context: &CommandContext) -> Result<ExitCode> {
    if logs.follow && context.printer.is_json() {
        return Err(CliError::NoJson { what: "a log that is followed" }.into());
    }
    let layout = context.layout()?;
    let mut streams = streams(logs, layout, context)?;
    if streams.is_empty() {
        return Err(RecordError::NoneYet.into());
    }
    let is_there = |stream: &Stream| stream.path.exists();
    if !logs.follow && !streams.iter().any(is_there) {
        let first = streams.swap_remove(streams.len() - 1);
        return Err(CliError::NoLog { path: first.path, vm: first.vm }.into());
    }
    if let Some(since) = logs.since {
        streams.retain_mut(|stream| is_since(stream, since, layout, context.printer));
    }
    // A console alone is shown byte by byte, since a prompt has no end of line.
    let is_plain =
        streams.len() == 1 && matches!(streams[0].source, Source::Console | Source::Qemu);
    if is_plain && !context.printer.is_json() {
        return show_plain(&mut streams[0], logs, context);
    }
    let lines = read_all(&mut streams, logs)?;
    streams.iter().for_each(|stream| warn_of_left_out(stream, context.printer));
    let text = text(&lines, &streams);
    let is_read = context.printer.show(&LogLines { lines }, &text)?;
    if logs.follow && is_read {
        follow(&mut streams, &context.runtime.cancel, context.printer)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the logs to show, each with its label if there are several.
fn streams(
    logs: &LogsArgs,
    layout: &ProjectLayout,
    context: &CommandContext,
) -> Result<Vec<Stream>> {
    let vms = names(logs, layout, context)?;
    let mut streams = Vec::new();
    let mut add =
        |source, vm: Option<&String>, path| streams.push(Stream::new(path, source, vm.cloned()));
    let is_wanted = |source| logs.source == source || logs.source == LogSource::All;
    if is_wanted(LogSource::Castra) {
        add(Source::Castra, None, layout.castra_log());
    }
    if is_wanted(LogSource::Images) {
        add(Source::Images, None, layout.image_manager_log());
    }
    for vm in &vms {
        if is_wanted(LogSource::Qemu) {
            add(Source::Qemu, Some(vm), layout.vm(vm).qemu_log());
        }
        if is_wanted(LogSource::Console) {
            add(Source::Console, Some(vm), layout.vm(vm).console_log());
        }
    }
    for stream in &mut streams {
        stream.wanted.clone_from(&logs.vms);
        stream.label = label(stream, vms.len() > 1, logs.source == LogSource::All);
    }
    Ok(streams)
}

/// Returns the VMs whose logs to show: the named ones, or all that are recorded or declared.
fn names(
    logs: &LogsArgs,
    layout: &ProjectLayout,
    context: &CommandContext,
) -> Result<Vec<String>, VmError> {
    let mut known: BTreeSet<String> = Record::names(layout).into_iter().collect();
    // Without a readable configuration, only recorded VMs are known.
    let config = context.silent_config().ok();
    known.extend(config.into_iter().flat_map(|config| &config.vms).map(|vm| vm.name.clone()));
    let known: Vec<String> = known.into_iter().collect();
    match logs.vms.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(RecordError::unknown(name, &known).into()),
        None if logs.vms.is_empty() => Ok(known),
        None => Ok(logs.vms.clone()),
    }
}

fn label(stream: &Stream, several_vms: bool, several_sources: bool) -> Option<String> {
    let source = match stream.source {
        Source::Console => "console",
        Source::Qemu => "qemu",
        Source::Castra => "castra",
        Source::Images => "images",
    };
    let vm = stream.vm.as_deref().filter(|_| several_vms);
    match (vm, several_sources) {
        (Some(vm), true) => Some(format!("{vm} {source}")),
        (Some(vm), false) => Some(vm.to_owned()),
        (None, true) => Some(source.to_owned()),
        (None, false) => None,
    }
}

/// Returns `true` if the log may hold lines since that time. Console and QEMU logs have no times:
/// they are shown whole if they were written to since, with a warning if they begin earlier.
fn is_since(
    stream: &mut Stream,
    since: Timestamp,
    layout: &ProjectLayout,
    printer: &Printer,
) -> bool {
    stream.since = Some(since);
    let Some(vm) = stream.vm.clone() else { return true };
    let written = fs::metadata(&stream.path).and_then(|metadata| metadata.modified());
    if written.is_ok_and(|written| written < SystemTime::from(since)) {
        return false;
    }
    let boot = vm::recorded_vm(Some(&vm), layout).ok().and_then(|record| record.boot);
    let began = boot.and_then(|boot| i64::try_from(boot.started_unix_ms).ok());
    if began.is_none_or(|began| began < since.as_millisecond()) && stream.path.exists() {
        let path = stream.path.display();
        printer.warning(&format!(
            "{path} has no timestamps; showing all of it, including older lines"
        ));
    }
    true
}

/// Reads the last lines that each log has by now.
fn read_all(streams: &mut [Stream], logs: &LogsArgs) -> Result<Vec<Line>, CliError> {
    let mut lines: Vec<Line> = Vec::new();
    for stream in streams {
        lines.append(&mut stream.read(!logs.follow)?);
    }
    let Some(tail) = logs.tail else { return Ok(lines) };
    // Castra's own log has lines about every VM, so it counts as one log.
    let log_of =
        |line: &Line| (line.source, line.vm.clone().filter(|_| line.source != Source::Castra));
    let mut kept: Vec<Line> = Vec::new();
    // From the end, so that the last lines of each log are the ones that are kept.
    for line in lines.into_iter().rev() {
        if kept.iter().filter(|kept| log_of(kept) == log_of(&line)).count() < tail {
            kept.push(line);
        }
    }
    kept.reverse();
    Ok(kept)
}

/// Shows one log without labels, as it is.
fn show_plain(stream: &mut Stream, logs: &LogsArgs, context: &CommandContext) -> Result<ExitCode> {
    let text = stream.read_raw()?;
    warn_of_left_out(stream, context.printer);
    let mut is_read =
        context.printer.result(last_lines(&text, logs.tail)).map_err(CliError::from)?;
    // Ends with Ctrl-C, which is the usual end and no failure, or when the reader of stdout is
    // gone.
    while logs.follow && is_read && !context.runtime.cancel.is_cancelled() {
        thread::sleep(POLL);
        let text = stream.read_raw()?;
        is_read = text.is_empty() || context.printer.result(&text).map_err(CliError::from)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn warn_of_left_out(stream: &Stream, printer: &Printer) {
    if stream.left_out_bytes > 0 {
        let (size, path) = (ByteSize(stream.left_out_bytes), stream.path.display());
        printer.warning(&format!("skipping the first {size} of {path}"));
    }
}

fn follow(streams: &mut [Stream], cancel: &Cancel, printer: &Printer) -> Result<()> {
    while !cancel.is_cancelled() {
        thread::sleep(POLL);
        let mut lines = Vec::new();
        for stream in streams.iter_mut() {
            lines.append(&mut stream.read(false)?);
        }
        if !lines.is_empty() && !printer.result(&text(&lines, streams)).map_err(CliError::from)? {
            break;
        }
    }
    Ok(())
}

/// Formats the lines, each with its label in front.
fn text(lines: &[Line], streams: &[Stream]) -> String {
    let label_of = |line: &Line| {
        let is_its = |stream: &&Stream| {
            stream.source == line.source && (stream.vm.is_none() || stream.vm == line.vm)
        };
        streams.iter().find(is_its).and_then(|stream| stream.label.as_deref())
    };
    let one = |line: &Line| match label_of(line) {
        Some(label) => format!("{label} | {}\n", line.text),
        None => format!("{}\n", line.text),
    };
    lines.iter().map(one).collect()
}

fn last_lines(text: &str, count: Option<usize>) -> &str {
    let Some(count) = count else { return text };
    let body = text.strip_suffix('\n').unwrap_or(text);
    match count.checked_sub(1).map(|skip| body.rmatch_indices('\n').nth(skip)) {
        None => "",
        Some(None) => text,
        Some(Some((newline, _))) => &text[newline + 1..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_has_whole_lines() {
        let text = "one\ntwo\nthree\n";
        assert_eq!(last_lines(text, Some(2)), "two\nthree\n");
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines(text, Some(0)), "");
        assert_eq!(last_lines(text, None), text);
    }
}
