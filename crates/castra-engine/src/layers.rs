//! Holds the layers that ARCHITECTURE.md draws: each top-level module imports from
//! the lines below its own only.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const ARCHITECTURE: &str = include_str!("../../../ARCHITECTURE.md");

/// Returns the lines of the drawing, from the top, each with the modules on it.
fn layers() -> Vec<Vec<&'static str>> {
    let section = ARCHITECTURE.split("\n## Layers\n").nth(1).expect("a section");
    let drawing = section.split("```text\n").nth(1).and_then(|rest| rest.split("```").next());
    drawing.expect("a drawing").lines().map(|line| line.split_whitespace().collect()).collect()
}

/// Returns every source file that is no test's, as its path below `src` and its code
/// without comments and tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut open, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(directory) = open.pop() {
        for path in
            fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path())
        {
            let name = path.strip_prefix(&root).expect("below").to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if name.ends_with(".rs") && !name.contains("tests") {
                let text = fs::read_to_string(&path).expect("read");
                let code = text.split("mod tests {").next().unwrap_or_default();
                let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                sources.push((name, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    sources.retain(|(name, _)| !["lib.rs", "layers.rs"].contains(&name.as_str()));
    sources
}

/// Returns the names that follow `crate::`; an import of several in braces yields an
/// empty one, which is on no layer.
fn imports(code: &str) -> BTreeSet<&str> {
    let name = |rest: &'_ str| rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
    code.split("crate::").skip(1).map(|rest| &rest[..name(rest).unwrap_or(rest.len())]).collect()
}

#[test]
fn imports_lead_downwards() {
    let layers = layers();
    let layer_of = |module: &str| layers.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let module = path.split(['/', '.']).next().unwrap_or_default();
        for imported in imports(&code).into_iter().filter(|imported| *imported != module) {
            match (layer_of(module), layer_of(imported)) {
                (Some(own), Some(other)) if own < other => {}
                _ => wrong.push(format!("src/{path} imports `{imported}`")),
            }
        }
    }
    assert!(wrong.is_empty(), "not as ARCHITECTURE.md draws the layers:\n{}", wrong.join("\n"));
}
