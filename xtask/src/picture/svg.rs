//! Draws a recorded session as an animated SVG. Where nothing is animated, all of it is visible.

use std::fmt::Write as _;
use std::time::Duration;

use super::Step;

/// Colours of one variant.
pub(super) struct Theme {
    pub(super) name: &'static str,
    background: &'static str,
    border: &'static str,
    text: &'static str,
    dim: &'static str,
    prompt: &'static str,
}

/// Both variants.
pub(super) const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        background: "#ffffff",
        border: "#d0d7de",
        text: "#1f2328",
        dim: "#656d76",
        prompt: "#1a7f37",
    },
    Theme {
        name: "dark",
        background: "#0d1117",
        border: "#30363d",
        text: "#e6edf3",
        dim: "#8b949e",
        prompt: "#3fb950",
    },
];

/// Columns at which a line is cut, with an ellipsis.
const COLUMNS: usize = 100;
/// Pause before a line is typed, and between its typing and its output.
const PAUSE: Duration = Duration::from_millis(700);
const WIDTH: usize = 840;
const MARGIN: usize = 20;
const LINE_HEIGHT: usize = 19;

/// One drawn line.
struct Row {
    /// Time at which the line appears.
    at: Duration,
    text: String,
    kind: Kind,
}

enum Kind {
    /// A line that was typed, and how long its command took, which appears when that has ended.
    Typed {
        took: Duration,
        ended: Duration,
    },
    Output,
}

/// Returns the SVG of a session in these colours.
pub(super) fn draw(steps: &[Step], theme: &Theme) -> String {
    let rows = rows(steps);
    let height = 2 * MARGIN + rows.len() * LINE_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
        viewBox=\"0 0 {WIDTH} {height}\" xml:space=\"preserve\" role=\"img\" aria-label=\"A \
        terminal session with castra\">\n\
        <style>\n\
        text {{ font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: {text}; \
        white-space: pre }}\n\
        .dim {{ fill: {dim} }}\n.prompt {{ fill: {prompt} }}\n\
        @media (prefers-reduced-motion: no-preference) {{ .row {{ animation: show 0.01s both }} \
        }}\n\
        @keyframes show {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}\n\
        </style>\n\
        <rect x=\"0.5\" y=\"0.5\" width=\"{inner_width}\" height=\"{inner_height}\" rx=\"8\" \
        fill=\"{background}\" stroke=\"{border}\"/>\n",
        text = theme.text,
        dim = theme.dim,
        prompt = theme.prompt,
        inner_width = WIDTH - 1,
        inner_height = height - 1,
        background = theme.background,
        border = theme.border,
    );
    for (index, row) in rows.iter().enumerate() {
        let y = MARGIN + index * LINE_HEIGHT + 13;
        draw_row(&mut svg, row, y);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_row(svg: &mut String, row: &Row, y: usize) {
    let text = escaped(&row.text);
    let delay = |at: Duration| format!("animation-delay:{:.2}s", at.as_secs_f64());
    // Writing to a string cannot fail.
    let _ = match row.kind {
        Kind::Typed { took, ended } => writeln!(
            svg,
            "<text class=\"row\" style=\"{}\" x=\"{MARGIN}\" y=\"{y}\"><tspan class=\"prompt\">$ \
            </tspan>{text}</text>\n\
            <text class=\"row dim\" style=\"{}\" x=\"{}\" y=\"{y}\" text-anchor=\"end\">{:.1} \
            s</text>",
            delay(row.at),
            delay(ended),
            WIDTH - MARGIN,
            took.as_secs_f64(),
        ),
        Kind::Output => writeln!(
            svg,
            "<text class=\"row dim\" style=\"{}\" x=\"{MARGIN}\" y=\"{y}\">{text}</text>",
            delay(row.at)
        ),
    };
}

/// Lays the steps out on one clock: typed lines after a pause, output at its recorded time.
fn rows(steps: &[Step]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut clock = Duration::ZERO;
    for step in steps {
        let begun = clock + PAUSE;
        let ended = begun + step.took;
        rows.push(Row {
            at: clock,
            text: step.typed.clone(),
            kind: Kind::Typed { took: step.took, ended },
        });
        for (at, text) in &step.output {
            rows.push(Row { at: begun + *at, text: cut(text), kind: Kind::Output });
        }
        clock = ended + PAUSE;
    }
    rows
}

/// Cuts a line to [`COLUMNS`].
fn cut(text: &str) -> String {
    if text.chars().count() <= COLUMNS {
        return text.to_owned();
    }
    text.chars().take(COLUMNS - 1).chain(['…']).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_when_it_came() {
        let steps = [Step {
            typed: "echo '<a>'".to_owned(),
            output: vec![(Duration::from_millis(50), "x".repeat(COLUMNS + 1))],
            took: Duration::from_millis(100),
        }];
        let rows = rows(&steps);
        assert_eq!(
            rows.iter().map(|row| row.text.chars().count()).collect::<Vec<_>>(),
            [10, COLUMNS]
        );
        assert_eq!(rows[1].at, PAUSE + Duration::from_millis(50));
        let svg = draw(&steps, &THEMES[0]);
        assert!(svg.contains("echo '&lt;a&gt;'") && svg.contains(">0.1 s<"), "{svg}");
    }
}
