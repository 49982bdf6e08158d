//! Recorded starts as one HTML page: no script, nothing to fetch, readable in light and dark.

use std::fmt::Write as _;

use castra_engine::vm::{Phase, PhaseSpan, StartResult, Timeline};

use super::{cpus, kind, moment, outcome};
use crate::cli::units::brief;

/// Dimensions of the drawing, in its own units.
const WIDTH: u64 = 900;
const LABELS: u64 = 180;
const ROW: u64 = 26;
const BAR: u64 = 16;

const STYLE: &str = "
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --faint: #68707a; --line: #d8dde3;
  --host: #3b76c4; --guest: #2c9154; --services: #a8b0b9; --bad: #c93c37; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e4e7eb; --faint: #949ca6; --line: #343a41;
    --host: #6aa3ee; --guest: #55bd7e; --services: #69717b; --bad: #ee6b64; }
}
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; \
    max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 0; }
p.about { color: var(--faint); margin: 0 0 .6rem; } p.bad { color: var(--bad); }
svg { width: 100%; height: auto; } svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg .time { text-anchor: end; fill: var(--faint); } svg .axis { stroke: var(--line); }
.host { fill: var(--host); } .guest { fill: var(--guest); } .services { fill: var(--services); } \
    .bad { fill: var(--bad); }
.open { fill: none; stroke: var(--services); stroke-dasharray: 3 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .2rem .45rem; border-bottom: 1px solid var(--line); text-align: right; \
    white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--faint); \
    font-weight: normal; }
ul.key { list-style: none; padding: 0; display: flex; gap: 1.2rem; color: var(--faint); }
ul.key svg { width: .8rem; height: .8rem; margin-right: .3rem; vertical-align: -.08rem; }
";

/// Returns the page.
pub(super) fn page(vm: &str, starts: &[Timeline]) -> String {
    let vm = escape(vm);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
        <title>Starts of {vm}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
        <h1>Starts of {vm}</h1>\n"
    );
    if starts.is_empty() {
        html.push_str("<p>No start is recorded yet.</p>\n");
    } else {
        key(&mut html);
        all(&mut html, starts);
    }
    for start in starts {
        section(&mut html, start);
    }
    html.push_str("</body>\n</html>\n");
    html
}

fn key(html: &mut String) {
    html.push_str("<ul class=\"key\">");
    for (class, about) in [
        ("host", "this machine"),
        ("guest", "the guest"),
        ("services", "after ready"),
        ("bad", "failed"),
    ] {
        let _ = write!(
            html,
            "<li><svg viewBox=\"0 0 10 10\" aria-hidden=\"true\"><rect class=\"{class}\" \
            width=\"10\" height=\"10\"/></svg>{about}</li>"
        );
    }
    html.push_str("</ul>\n");
}

/// Writes a table with one row per start and one column per phase.
fn all(html: &mut String, starts: &[Timeline]) {
    let phases: Vec<Phase> = Phase::ALL
        .into_iter()
        .filter(|phase| starts.iter().any(|start| start.phase(*phase).is_some()))
        .collect();
    html.push_str("<div class=\"scroll\"><table>\n<tr><th>started</th><th>kind</th>");
    for phase in &phases {
        let _ = write!(html, "<th>{}</th>", phase.name());
    }
    html.push_str("<th>ready</th></tr>\n");
    for start in starts {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td>",
            moment(start.started_unix_ms),
            kind(start.kind)
        );
        for phase in &phases {
            let took = start.phase(*phase).map(|span| span.took_ms().map_or("?".into(), brief));
            let _ = write!(html, "<td>{}</td>", took.unwrap_or_default());
        }
        let ready = start.ready_ms().map_or("-".into(), brief);
        let _ = writeln!(html, "<td>{ready}</td></tr>");
    }
    html.push_str("</table></div>\n");
}

fn section(html: &mut String, start: &Timeline) {
    let _ = write!(
        html,
        "<section>\n<h2>{}</h2>\n<p class=\"about\">{}: {}, {}, {} {}, {} MiB, castra {}</p>\n",
        moment(start.started_unix_ms),
        escape(&outcome(start)),
        escape(&start.base.to_string()),
        start.accelerator.name(),
        start.cpus,
        cpus(start),
        start.memory_mib,
        escape(&start.castra_version),
    );
    if let StartResult::Failed { reason } = &start.result {
        let _ = writeln!(html, "<p class=\"bad\">{}</p>", escape(reason));
    }
    drawing(html, start);
    html.push_str("</section>\n");
}

fn drawing(html: &mut String, start: &Timeline) {
    let (total_ms, height) = (start.length_ms().max(1), ROW * (start.phases.len() as u64 + 1));
    let _ = writeln!(
        html,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
        escape(&outcome(start))
    );
    for (row, span) in start.phases.iter().enumerate() {
        let top = ROW * row as u64;
        let (name, took) = (span.phase.name(), span.took_ms().map_or("?".into(), brief));
        let base = top + BAR;
        let _ = write!(
            html,
            "<text x=\"0\" y=\"{base}\">{name}</text><text class=\"time\" x=\"{}\" \
            y=\"{base}\">{took}</text>",
            LABELS - 12
        );
        let x = |ms: u64| LABELS as f64 + (WIDTH - LABELS) as f64 * ms as f64 / total_ms as f64;
        let (left, right) = (x(span.start_ms), x(span.end_ms.unwrap_or(total_ms)));
        let _ = writeln!(
            html,
            "<rect class=\"{}\" x=\"{left:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{BAR}\" \
            rx=\"2\"><title>{name}: {took}, from {}</title></rect>",
            class(start, span),
            top + 4,
            (right - left).max(1.5).min(WIDTH as f64 - left.min(WIDTH as f64 - 1.5)),
            brief(span.start_ms),
        );
    }
    let (axis, base) = (height - ROW + 4, height - 6);
    let _ = writeln!(
        html,
        "<line class=\"axis\" x1=\"{LABELS}\" x2=\"{WIDTH}\" y1=\"{axis}\" y2=\"{axis}\"/><text \
        x=\"{LABELS}\" y=\"{base}\">0</text><text class=\"time\" x=\"{WIDTH}\" \
        y=\"{base}\">{}</text>\n</svg>",
        brief(total_ms)
    );
}

fn class(start: &Timeline, span: &PhaseSpan) -> &'static str {
    let is_failed = matches!(start.result, StartResult::Failed { .. });
    match span.phase {
        Phase::Attempt => "bad",
        _ if is_failed && start.phases.last() == Some(span) => "bad",
        _ if span.end_ms.is_none() => "open",
        Phase::Services => "services",
        Phase::Image | Phase::Accelerator | Phase::Template | Phase::Overlay | Phase::Qemu => {
            "host"
        }
        _ => "guest",
    }
}

/// Escapes text for use between tags and in attributes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::tests::boot;
    use super::*;

    #[test]
    fn nothing_breaks_out_of_its_place() {
        let mut start = boot([1, 2, 3, 4, 5, 4_000], None);
        let attack = "\"><script>alert('1')</script>&";
        start.result = StartResult::Failed { reason: attack.into() };
        start.castra_version = attack.into();
        start.base = castra_engine::vm::BaseKind::Path(attack.into());
        let html = page(attack, &[start]);
        assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
        assert!(html.contains("&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;"));
    }

    #[test]
    fn it_stands_by_itself_and_is_balanced() {
        let starts = [boot([1, 2, 3, 4, 5, 4_000], Some(9_000)), boot([0, 0, 0, 0, 0, 0], None)];
        let html = page("web", &starts);
        for outside in ["http", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!html.contains(outside), "{outside}");
        }
        for tag in [
            "html", "head", "body", "style", "section", "svg", "table", "tr", "td", "th", "text",
            "title", "p", "h2", "ul", "li",
        ] {
            let opened = html.matches(&format!("<{tag}>")).count()
                + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert_eq!(
            html.matches("<rect class=").count(),
            4 + 14,
            "one a phase, and those of the key"
        );
        assert!(html.contains("prefers-color-scheme: dark"));
        assert!(page("web", &[]).contains("No start is recorded yet"));
    }
}
