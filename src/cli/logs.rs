use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::harmless::harmless_log;
use crate::vm;

use super::args::{Args, LogSource, Logs};
use super::error::CliError;
use super::printer::Printer;
use super::project;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Shows a log. What the guest wrote is made harmless first: it may hold anything, escape sequences too.
pub(super) fn run(logs: &Logs, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    let (path, vm) = match logs.source {
        LogSource::Images => (layout.image_manager_log(), None),
        source => {
            let vm = vm::recorded_vm(logs.vm.as_deref(), &layout)?.name;
            let files = layout.vm(&vm);
            let path = if source == LogSource::Qemu { files.qemu_log() } else { files.console_log() };
            (path, Some(vm))
        }
    };
    let mut log = Log::open(&path, vm)?;
    let text = log.read_new()?;
    let is_read = printer.result(last_lines(&text, logs.tail)).map_err(CliError::from)?;
    if logs.follow && is_read {
        follow(&mut log, &context.cancel, printer)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Goes on until Ctrl-C, which is the usual way out and no failure, or until nobody reads.
fn follow(log: &mut Log, cancel: &Cancel, printer: &Printer) -> Result<()> {
    while !cancel.is_cancelled() {
        thread::sleep(POLL);
        let text = log.read_new()?;
        if !text.is_empty() && !printer.result(&text).map_err(CliError::from)? {
            break;
        }
    }
    Ok(())
}

struct Log {
    path: PathBuf,
    position: u64,
}

impl Log {
    fn open(path: &Path, vm: Option<String>) -> Result<Self> {
        match path.try_exists() {
            Ok(true) => Ok(Self { path: path.to_owned(), position: 0 }),
            Ok(false) => Err(CliError::NoLog { path: path.to_owned(), vm }.into()),
            Err(source) => Err(CliError::File { action: "read", path: path.to_owned(), source }.into()),
        }
    }

    /// What was added since the last call. A log that has become shorter was begun anew by the next boot.
    fn read_new(&mut self) -> Result<String> {
        let path = self.path.clone();
        let failed = move |source: io::Error| CliError::File { action: "read", path, source };
        let mut read = || {
            let mut file = File::open(&self.path)?;
            if file.metadata()?.len() < self.position {
                self.position = 0;
            }
            file.seek(SeekFrom::Start(self.position))?;
            let mut bytes = Vec::new();
            self.position += file.read_to_end(&mut bytes)? as u64;
            Ok(harmless_log(&String::from_utf8_lossy(&bytes)))
        };
        Ok(read().map_err(failed)?)
    }
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
