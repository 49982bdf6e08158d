//! `CASTRA_LOG`: the library's spans and debug events, as lines on stderr.

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use castra_engine::context::Environment;
use castra_engine::sanitize::sanitize_lines;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::printer::Printer;

/// Variable that names the least important level to be shown.
const VARIABLE: &str = "CASTRA_LOG";

thread_local! {
    /// Spans that this thread is in, outermost first.
    static OPEN: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
}

/// Shows spans and events from now on, if the environment asks for it.
pub(super) fn install(environment: &Environment, printer: &Printer) {
    let Some(wanted) = environment.get(VARIABLE) else { return };
    let Some(level) = wanted.to_str().and_then(|wanted| wanted.parse::<Level>().ok()) else {
        let wanted = wanted.to_string_lossy();
        return printer.warning(&format!(
            "{VARIABLE} is `{wanted}`, which is none of error, warn, info, debug and trace"
        ));
    };
    let (started, spans) = (Instant::now(), Mutex::default());
    let lines = Lines { level, started, spans, write: Box::new(printer.liner()) };
    // Fails if there is a subscriber already, and this process sets one only here.
    let _ = tracing::subscriber::set_global_default(lines);
}

/// Subscriber that writes one line per event, after the names of the spans around it.
struct Lines {
    level: Level,
    started: Instant,
    /// Spans by number, from 1. A command has few of them.
    spans: Mutex<Vec<String>>,
    write: Box<dyn Fn(&str) + Send + Sync>,
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with("castra")
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut text = Text(span.metadata().name().to_owned());
        span.record(&mut text);
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(text.0);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let secs = self.started.elapsed().as_secs_f64();
        let mut text = Text(format!("{secs:8.3} {:<5}", event.metadata().level()));
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |id: &Id| spans.get(id.into_u64() as usize - 1).cloned().unwrap_or_default();
        for name in OPEN.with_borrow(|open| open.iter().map(name).collect::<Vec<_>>()) {
            let _ = write!(text.0, " {name}:");
        }
        drop(spans);
        event.record(&mut text);
        (self.write)(&sanitize_lines(&text.0));
    }

    fn enter(&self, span: &Id) {
        OPEN.with_borrow_mut(|open| open.push(span.clone()));
    }

    fn exit(&self, _: &Id) {
        OPEN.with_borrow_mut(|open| open.pop());
    }
}

/// Fields as text: the message as it is, others as `name=value`.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
