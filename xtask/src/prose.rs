//! Checks the prose of code and documents: how docs begin, how long lines are, and turns of phrase
//! that readers of English stumble over. Each has a limit, so that none creeps back.

use std::fs;
use std::path::{Path, PathBuf};

use crate::run::root;

/// Longest line, in columns.
const COLUMNS: usize = 100;

/// Directories and files that are read.
const PLACES: [&str; 11] = [
    "src",
    "crates",
    "xtask",
    "tests",
    "docs",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
];

/// First words of a doc that name nothing.
const EMPTY_OPENINGS: [&str; 19] = [
    "What", "How", "Whether", "Where", "Who", "Whose", "Which", "Why", "When", "It", "Its", "They",
    "Their", "This", "That", "These", "Those", "He", "Itself",
];

/// Consecutive words, each with its alternatives.
type Turn = &'static [&'static [&'static str]];

/// A habit and the number of places that may have it.
struct Habit {
    name: &'static str,
    limit: usize,
    turns: &'static [Turn],
}

const TURNS: [Habit; 7] = [
    Habit {
        name: "go on",
        limit: 2,
        turns: &[&[&["go", "goes", "going", "went", "gone"], &["on"]]],
    },
    Habit { name: "tell", limit: 6, turns: &[&[&["tell", "tells", "told", "telling"]]] },
    Habit {
        name: "stand on",
        limit: 0,
        turns: &[&[&["stand", "stands", "stood", "standing"], &["on"]]],
    },
    Habit {
        name: "somebody",
        limit: 4,
        turns: &[&[&[
            "whoever",
            "somebody",
            "nobody",
            "anybody",
            "everybody",
            "somebody's",
            "nobody's",
        ]]],
    },
    Habit { name: "anew", limit: 0, turns: &[&[&["anew"]]] },
    Habit { name: "aside", limit: 4, turns: &[&[&["aside"]]] },
    Habit {
        name: "hand back",
        limit: 2,
        turns: &[
            &[&["hand", "hands", "handed", "handing"], &["back"]],
            &[&["see", "sees", "saw"], &["to"], &["it"]],
            &[&["of"], &["use"]],
            &[&["for"], &["want"], &["of"]],
        ],
    },
];

/// Number of docs in a thousand that may begin with an empty word.
const EMPTY_OPENINGS_OF_1000: usize = 2;
/// Number of lines that may be longer: strings that cannot be broken.
const LONG_LINES: usize = 20;

/// One place that has a habit.
struct Finding {
    habit: &'static str,
    place: String,
    text: String,
}

/// Counts the habits, prints each that is above its limit with its places, and fails if there is
/// one.
#[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
pub(crate) fn check() -> Result<(), String> {
    let (findings, docs) = read_all()?;
    let openings = docs * EMPTY_OPENINGS_OF_1000 / 1000;
    let fixed = [("opening", openings), ("columns", LONG_LINES)];
    let mut above = Vec::new();
    for (habit, limit) in
        fixed.into_iter().chain(TURNS.iter().map(|habit| (habit.name, habit.limit)))
    {
        let places: Vec<_> = findings.iter().filter(|finding| finding.habit == habit).collect();
        if places.len() > limit {
            places.iter().for_each(|found| eprintln!("{}: {habit}: {}", found.place, found.text));
            above.push(format!("{habit} {} (limit {limit})", places.len()));
        }
    }
    if above.is_empty() {
        Ok(())
    } else {
        Err(format!("the prose has too many of: {}", above.join(", ")))
    }
}

/// Prints every finding in files whose path begins with `place`.
#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
pub(crate) fn list(place: &str) -> Result<(), String> {
    let (findings, _) = read_all()?;
    for found in findings.iter().filter(|found| found.place.starts_with(place)) {
        println!("{}: {}: {}", found.place, found.habit, found.text);
    }
    Ok(())
}

/// Returns all findings, and the number of docs.
fn read_all() -> Result<(Vec<Finding>, usize), String> {
    let mut files = Vec::new();
    for place in PLACES {
        add_files(&root().join(place), &mut files);
    }
    let (mut findings, mut docs) = (Vec::new(), 0);
    for file in files {
        let text =
            fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        docs += read_file(&name, &text, &mut findings);
    }
    Ok((findings, docs))
}

/// Adds the sources and documents at `path`, except this file, which names the turns it looks for.
fn add_files(path: &Path, files: &mut Vec<PathBuf>) {
    // A package shows the sources of others by links.
    if path.is_symlink() {
        return;
    }
    if let Ok(entries) = fs::read_dir(path) {
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| add_files(entry, files));
    } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md")
        && path.exists()
        && !path.ends_with("xtask/src/prose.rs")
    {
        files.push(path.to_owned());
    }
}

/// Adds the findings of one file and returns the number of its docs.
fn read_file(name: &str, text: &str, findings: &mut Vec<Finding>) -> usize {
    let is_code = name.ends_with(".rs");
    let (mut docs, mut is_inside) = (0, false);
    for (index, line) in text.lines().enumerate() {
        let mut add = |habit| {
            findings.push(Finding {
                habit,
                place: format!("{name}:{}", index + 1),
                text: line.trim().to_owned(),
            });
        };
        let doc = doc_text(line).filter(|_| is_code);
        if let Some(doc) = doc.filter(|_| !is_inside) {
            docs += 1;
            if is_empty_opening(doc) {
                add("opening");
            }
        }
        is_inside = doc.is_some();
        if is_code && line.chars().count() > COLUMNS {
            add("columns");
        }
        let words = words(line);
        for habit in &TURNS {
            (0..count(habit, &words)).for_each(|_| add(habit.name));
        }
    }
    docs
}

fn doc_text(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim)
}

fn is_empty_opening(doc: &str) -> bool {
    let mut words = doc.split([' ', ',', '.', ':', ';', '\'', '’']);
    let first = words.next().unwrap_or_default();
    EMPTY_OPENINGS.contains(&first) || (first == "The" && words.next() == Some("same"))
}

fn words(line: &str) -> Vec<String> {
    let parts = line.split(|character: char| !character.is_alphanumeric() && character != '\'');
    parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

fn count(habit: &Habit, words: &[String]) -> usize {
    let begins = |words: &[String], turn: Turn| {
        words.len() >= turn.len()
            && turn.iter().zip(words).all(|(any, word)| any.contains(&word.as_str()))
    };
    let at = |start: usize| habit.turns.iter().filter(|turn| begins(&words[start..], turn)).count();
    (0..words.len()).map(at).sum()
}

#[cfg(test)]
mod tests {
    use super::{Finding, read_file};

    fn habits(text: &str) -> Vec<(&'static str, String)> {
        let mut findings: Vec<Finding> = Vec::new();
        read_file("a.rs", text, &mut findings);
        findings.into_iter().map(|found| (found.habit, found.place)).collect()
    }

    #[test]
    fn the_first_line_of_a_doc_is_looked_at_and_no_other() {
        let found = habits(
            "/// Whether it runs.\n/// It may.\nfn a() {}\n//! The same of b.\n// What for?\n",
        );
        assert_eq!(found, [("opening", "a.rs:1".to_owned()), ("opening", "a.rs:4".to_owned())]);
    }

    #[test]
    fn turns_are_whole_words_one_after_another() {
        assert_eq!(habits("// It goes on, is told and stands  on it.").len(), 3);
        assert_eq!(habits("// Egos on; retold; understands on; ongoing.").len(), 0);
        assert_eq!(habits("\"seen to for want of use: sees to it\"").len(), 3);
    }

    #[test]
    fn long_lines_are_counted_in_columns() {
        assert_eq!(habits(&format!("// {}", "é".repeat(97))).len(), 0);
        assert_eq!(habits(&format!("// {}", "é".repeat(98))).len(), 1);
    }
}
