//! Journal of a project, `.castra/logs/castra.log`: what castra did to its VMs, one event per line
//! with its time. Nothing waits for it and nothing fails because of it: it is not synced to disk,
//! and is left out if it cannot be written.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::context::RuntimeContext;
use crate::files;
use crate::layout::ProjectLayout;
use crate::logs;
use crate::report::{Event, Reporter};

use super::error::VmError;
use super::parallel::PerVm;
use super::project::ProjectRef;

/// Does `work` on the project with a context whose events are also written to the journal, and
/// writes its failures. `doing` is the command.
pub(super) fn record<T>(
    doing: &str,
    project: ProjectRef<'_>,
    work: impl FnOnce(ProjectRef<'_>) -> PerVm<T>,
) -> PerVm<T> {
    let (journal, context) = open_journal(project);
    let done = work(ProjectRef::new(project.layout, &context));
    for (vm, outcome) in &done {
        if let Err(error) = outcome {
            journal.write(&failure(doing, vm, error));
        }
    }
    done
}

/// Does `work` on one VM as [`record`] does on several.
pub(super) fn record_one<T>(
    doing: &str,
    vm: &str,
    project: ProjectRef<'_>,
    work: impl FnOnce(ProjectRef<'_>) -> Result<T, VmError>,
) -> Result<T, VmError> {
    let (journal, context) = open_journal(project);
    work(ProjectRef::new(project.layout, &context))
        .inspect_err(|error| journal.write(&failure(doing, vm, error)))
}

fn open_journal(project: ProjectRef<'_>) -> (Arc<Journal>, RuntimeContext) {
    let inner = Arc::clone(&project.context.reporter);
    let journal =
        Arc::new(Journal { inner, layout: project.layout.clone(), file: Mutex::default() });
    let reporter = Arc::clone(&journal) as Arc<dyn Reporter>;
    (journal, RuntimeContext { reporter, ..project.context.clone() })
}

/// Formats a failure for the log. It is not an [`Event`], since the caller gets it as an error.
fn failure(doing: &str, vm: &str, error: &VmError) -> Value {
    json!({ "event": "failed", "vm": vm, "doing": doing, "error": crate::error::one_line(error) })
}

struct Journal {
    inner: Arc<dyn Reporter>,
    layout: ProjectLayout,
    /// The log; `None` until there is something to write and a directory for it.
    file: Mutex<Option<File>>,
}

impl Reporter for Journal {
    fn report(&self, event: &Event) {
        self.inner.report(event);
        // Steps of images have a log of their own, and progress has no lasting value. The output
        // of a program may be endless; that of a step that fails is in its error.
        let is_worth_it = !matches!(
            event,
            Event::Hashing { .. }
                | Event::Download { .. }
                | Event::DownloadStarted { .. }
                | Event::DownloadRetry { .. }
                | Event::DownloadFinished { .. }
                | Event::ArtifactStep { .. }
                | Event::ImageCacheHit { .. }
                | Event::ImageReady { .. }
                | Event::Copy { .. }
                | Event::CopyFinished { .. }
                | Event::ProvisionOutput { .. }
        );
        if is_worth_it && let Ok(value) = serde_json::to_value(event) {
            self.write(&value);
        }
    }
}

impl Journal {
    /// Writes one line in one write, so that lines of several castras do not mix.
    fn write(&self, value: &Value) {
        let Ok(mut file) = self.file.lock() else { return };
        if file.is_none() {
            *file = open(&self.layout).ok();
        }
        if let Some(file) = file.as_mut() {
            let _ = file.write_all(format!("{:.3} {value}\n", jiff::Timestamp::now()).as_bytes());
        }
    }
}

fn open(layout: &ProjectLayout) -> io::Result<File> {
    // Logging does not create the state of a project.
    if !layout.is_made() {
        return Err(io::ErrorKind::NotFound.into());
    }
    files::create_private_directory(&layout.logs())?;
    logs::open_to_append(&layout.castra_log())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;
    use crate::vm::record::RecordError;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn context() -> RuntimeContext {
        let environment = Environment::of([("HOME", "/nowhere")]);
        RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a context")
    }

    fn stop(layout: &ProjectLayout) {
        record("down", ProjectRef::new(layout, &context()), |project| {
            project.report(&Event::ProvisionOutput { vm: "web".into(), step: 1, line: "y".into() });
            project.report(&Event::VmStopped { vm: "web".into(), was_running: true });
            vec![("db".to_owned(), Err::<(), _>(VmError::from(RecordError::NoneYet)))]
        });
    }

    #[test]
    fn events_and_failures_are_kept_with_their_times() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().to_owned());
        fs::write(layout.mark(), "").expect("written");
        stop(&layout);
        let text = fs::read_to_string(layout.castra_log()).expect("written");
        let lines: Vec<(&str, Value)> = text
            .lines()
            .map(|line| line.split_once(' ').expect("a time"))
            .map(|(time, value)| (time, serde_json::from_str(value).expect("JSON")))
            .collect();
        assert!(lines.iter().all(|(time, _)| time.parse::<jiff::Timestamp>().is_ok()), "{text}");
        let event: Event = serde_json::from_value(lines[0].1.clone()).expect("an event");
        assert_eq!(event, Event::VmStopped { vm: "web".into(), was_running: true });
        assert_eq!((&lines[1].1["event"], &lines[1].1["vm"]), (&json!("failed"), &json!("db")));
        let mode = fs::metadata(layout.castra_log()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn it_does_not_grow_for_good_and_makes_no_project() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().join("none"));
        stop(&layout);
        assert!(!layout.state_root().exists());
        let layout = ProjectLayout::unchecked(directory.path().to_owned());
        fs::write(layout.mark(), "").expect("written");
        files::create_private_directory(&layout.logs()).expect("made");
        fs::write(layout.castra_log(), vec![b'x'; logs::CASTRA_BYTES as usize]).expect("written");
        stop(&layout);
        assert!(fs::metadata(layout.castra_log()).expect("there").len() < logs::CASTRA_BYTES);
        let earlier =
            fs::metadata(crate::layout::earlier_log(&layout.castra_log())).expect("there");
        assert_eq!(earlier.len(), logs::CASTRA_BYTES);
    }
}
