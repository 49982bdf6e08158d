//! Links of Markdown pages: which there are, and whether each leads somewhere.

use std::collections::HashSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Address of the repository's files, which pages of the book use for files outside of it.
const REPOSITORY_FILES: &str = "https://github.com/castra-vm/castra/blob/main/";

/// Returns the targets of all inline links, images and `src`/`srcset` attributes of a page; none of
/// those that stand in code.
pub(super) fn targets(text: &str) -> Vec<String> {
    let prose = without_code(text);
    let inline = prose.match_indices("](").map(|(at, begin)| (at + begin.len(), ')'));
    let attributes = ["src=\"", "srcset=\""]
        .iter()
        .flat_map(|name| prose.match_indices(name).map(|(at, begin)| (at + begin.len(), '"')));
    inline
        .chain(attributes)
        .filter_map(|(begin, end)| prose[begin..].split(end).next())
        .map(str::to_owned)
        .collect()
}

/// Returns what is wrong with a link of a page, if anything. Addresses of other sites are not
/// asked.
pub(super) fn fault(root: &Path, page: &Path, target: &str) -> Result<Option<String>, String> {
    let (address, fragment) = target.split_once('#').unwrap_or((target, ""));
    let file = if let Some(file) = address.strip_prefix(REPOSITORY_FILES) {
        PathBuf::from(file)
    } else if address.contains("://") || address.starts_with("mailto:") {
        return Ok(None);
    } else if address.is_empty() {
        page.to_owned()
    } else {
        let file = normalized(&page.parent().unwrap_or(Path::new("")).join(address));
        if page.starts_with("docs") && !file.starts_with("docs") {
            return Ok(Some(format!("leads out of the book: link to {REPOSITORY_FILES}…")));
        }
        file
    };
    let path = root.join(&file);
    if !path.exists() {
        return Ok(Some("there is no such file".to_owned()));
    }
    if fragment.is_empty() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let is_there = anchors(&text).contains(fragment);
    Ok((!is_there).then(|| format!("{} has no such heading", file.display())))
}

/// Returns the anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        }
        let heading = line.trim_start_matches('#');
        if !is_code && heading.len() < line.len() && heading.starts_with(' ') {
            let anchor = anchor(heading.trim());
            // Both number headings of one name.
            let numbered = (1..).map(|number| format!("{anchor}-{number}"));
            let free = std::iter::once(anchor.clone())
                .chain(numbered)
                .find(|name| !anchors.contains(name));
            anchors.extend(free);
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns a page without its code blocks and code spans.
fn without_code(text: &str) -> String {
    let mut prose = String::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

/// Returns a path without `.` and `..`.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normalized.pop();
            }
            Component::CurDir => {}
            other => normalized.push(other),
        }
    }
    normalized
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_code_are_none() {
        let text = "[a](b.md#c) `[d](e)` ![f](g.svg)\n```sh\n[h](i)\n```\n<img src=\"j.svg\">\n";
        assert_eq!(targets(text), ["b.md#c", "g.svg", "j.svg"]);
    }

    #[test]
    fn headings_have_the_anchors_that_readers_link_to() {
        let text = "# `[images.NAME]`\n## `exec`, `run`\n## A b\n## A b\n```\n# no heading\n```\n";
        let expected = ["imagesname", "exec-run", "a-b", "a-b-1"].map(str::to_owned);
        assert_eq!(anchors(text), expected.into());
    }

    #[test]
    fn a_link_to_nothing_is_a_fault() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path();
        fs::create_dir_all(root.join("docs/guides")).expect("made");
        fs::write(root.join("README.md"), "# Top\n").expect("written");
        fs::write(root.join("docs/page.md"), "# A page\n").expect("written");
        let page = Path::new("docs/guides/here.md");
        let of = |target: &str| fault(root, page, target).expect("readable");
        assert_eq!(of("../page.md#a-page"), None);
        assert_eq!(of("https://example.org/gone"), None);
        assert_eq!(of(&format!("{REPOSITORY_FILES}README.md#top")), None);
        for wrong in ["../page.md#other", "page.md", "../../README.md"] {
            assert!(of(wrong).is_some(), "{wrong}");
        }
        assert!(of(&format!("{REPOSITORY_FILES}GONE.md")).is_some());
    }
}
