//! `cargo xtask docs`: checks the links of all pages, and builds the book.

mod links;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{root, run_command};
use crate::tools;

/// Pages of the repository that are not part of the book.
const OUTSIDE_THE_BOOK: [&str; 8] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
    "crates/castra-engine/packaging/README.md",
];

/// Checks links and builds the book into `target/book`.
#[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
pub(crate) fn build_book() -> Result<(), String> {
    check_links()?;
    tools::ensure_mdbook()?;
    run_command(Command::new("mdbook").arg("build").arg("docs").current_dir(root()))?;
    eprintln!("{}", root().join("target/book/index.html").display());
    Ok(())
}

/// Checks every link between pages, and that the book's summary names every page of it.
pub(crate) fn check_links() -> Result<(), String> {
    let root = root();
    let mut pages = OUTSIDE_THE_BOOK.map(PathBuf::from).to_vec();
    collect_pages(&root, Path::new("docs"), &mut pages)?;
    let mut faults = Vec::new();
    for page in &pages {
        let text = read(&root.join(page))?;
        for target in links::targets(&text) {
            if let Some(fault) = links::fault(&root, page, &target)? {
                faults.push(format!("{}: {target}: {fault}", page.display()));
            }
        }
    }
    let summary: Vec<String> = links::targets(&read(&root.join("docs/SUMMARY.md"))?);
    for page in pages.iter().filter_map(|page| page.strip_prefix("docs").ok()) {
        if page != Path::new("SUMMARY.md")
            && !summary.iter().any(|target| Path::new(target) == page)
        {
            faults.push(format!("docs/SUMMARY.md does not name {}", page.display()));
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
}

/// Adds all Markdown files below `directory`, as seen from `root`.
fn collect_pages(root: &Path, directory: &Path, pages: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", directory.display());
    for entry in fs::read_dir(root.join(directory)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = directory.join(entry.file_name());
        if entry.path().is_dir() {
            collect_pages(root, &path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
