//! Typed access to the tables of a TOML document, with spans.
//!
//! The only schema is the set of keys that a reader asks [`Fields`] for. A key that was not asked
//! for when [`Fields::warn_unknown`] is called is unknown, and those asked for are the suggestions.
//! Reading continues after a wrong type, so that one run shows every problem; deserialising into
//! structs would stop at the first.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::diagnostics::{Problem, Problems, listed, quoted};
use crate::similar::closest;

/// A value of the document with its span.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A key, with an example for help lines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// Name of the key.
    pub(super) name: &'static str,
    /// Example of a value, as TOML.
    pub(super) example: &'static str,
}

/// Declares a [`Key`].
pub(super) const fn key(name: &'static str, example: &'static str) -> Key {
    Key { name, example }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{} = {}`", self.name, self.example)
    }
}

/// Error for a value that has the wrong shape, or is missing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShapeProblem {
    #[error("`{}` must be {wanted}, not {found}", key.name)]
    WrongType { key: Key, wanted: &'static str, found: &'static str },
    #[error("an element of `{}` must be {wanted}, not {found}", key.name)]
    WrongElement { key: Key, wanted: &'static str, found: &'static str },
    #[error("{place} has no `{}`", key.name)]
    Missing { place: String, key: Key },
    #[error("unknown key {} in {place}", quoted(key))]
    Unknown { place: String, key: String, known: Vec<&'static str> },
    #[error("`{}` cannot be {}", key.name, quoted(found))]
    NotOneOf { key: Key, found: String, allowed: Vec<&'static str> },
    #[error("`{}` is empty", key.name)]
    Empty { key: Key },
    #[error("`{}` contains a control character", key.name)]
    ControlCharacter { key: Key },
}

impl Problem for ShapeProblem {
    fn label(&self) -> String {
        match self {
            Self::WrongType { wanted, .. } | Self::WrongElement { wanted, .. } => {
                format!("should be {wanted}")
            }
            Self::Missing { key, .. } => format!("`{}` is missing", key.name),
            Self::Unknown { .. } => "ignored".to_owned(),
            Self::NotOneOf { .. } | Self::Empty { .. } | Self::ControlCharacter { .. } => {
                String::new()
            }
        }
    }

    fn help(&self) -> String {
        match self {
            Self::WrongType { key, .. } | Self::WrongElement { key, .. } | Self::Empty { key } => {
                format!("Write for instance {key}.")
            }
            Self::Missing { key, .. } => format!("Add it, for instance {key}."),
            Self::Unknown { place, key, known } => match closest(key, known.iter().copied()) {
                Some(near) => format!("Did you mean `{near}`?"),
                None => {
                    format!("The keys of {place} are {}.", listed(known.iter().copied(), "and"))
                }
            },
            Self::NotOneOf { found, allowed, .. } => {
                match closest(found, allowed.iter().copied()) {
                    Some(near) => format!("Did you mean `{near}`?"),
                    None => format!("It can be {}.", listed(allowed.iter().copied(), "or")),
                }
            }
            Self::ControlCharacter { .. } => "Remove it; tabs and newlines count too.".to_owned(),
        }
    }
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Fields<'t> {
    table: &'t DeTable<'t>,
    span: Range<usize>,
    place: String,
    asked: Vec<&'static str>,
}

impl<'t> Fields<'t> {
    /// Starts reading `table`, which is at `span` and is called `place` in messages.
    pub(super) fn new(
        table: &'t DeTable<'t>,
        span: Range<usize>,
        place: impl Into<String>,
    ) -> Self {
        Self { table, span, place: place.into(), asked: Vec::new() }
    }

    /// Starts reading `value`, which must be a table.
    pub(super) fn of(
        value: &'t Value<'t>,
        key: Key,
        place: String,
        problems: &mut Problems,
    ) -> Option<Self> {
        match value.get_ref() {
            DeValue::Table(table) => Some(Self::new(table, value.span(), place)),
            other => {
                problems.error(value.span(), &wrong_type(key, "a table", other));
                None
            }
        }
    }

    /// Returns the table's name in messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Starts reading an element of the list at `key`, which must be a table.
    pub(super) fn of_element(
        element: &'t Value<'t>,
        key: Key,
        place: String,
        problems: &mut Problems,
    ) -> Option<Self> {
        match element.get_ref() {
            DeValue::Table(table) => Some(Self::new(table, element.span(), place)),
            other => {
                problems.error(element.span(), &wrong_element(key, "a table", other));
                None
            }
        }
    }

    /// Returns the table's span.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Changes the table's name in messages.
    pub(super) fn rename(&mut self, place: String) {
        self.place = place;
    }

    /// Returns `true` if the table has this key, of whatever type.
    pub(super) fn has(&self, key: Key) -> bool {
        self.table.contains_key(key.name)
    }

    /// Returns the span of a key's name, for problems with its presence.
    pub(super) fn key_span(&self, key: Key) -> Option<Range<usize>> {
        self.table.get_key_value(key.name).map(|(key, _)| key.span())
    }

    /// Returns a value of any type.
    pub(super) fn value(&mut self, key: Key) -> Option<&'t Value<'t>> {
        if !self.asked.contains(&key.name) {
            self.asked.push(key.name);
        }
        self.table.get(key.name)
    }

    /// Reads a string; reports another type.
    pub(super) fn string(&mut self, key: Key, problems: &mut Problems) -> Option<Spanned<&'t str>> {
        self.value(key).and_then(|value| string(value, key, problems))
    }

    /// Reads a non-empty string without control characters.
    pub(super) fn line(&mut self, key: Key, problems: &mut Problems) -> Option<Spanned<&'t str>> {
        self.string(key, problems).and_then(|text| line(text, key, problems))
    }

    /// Reads an integer of any size that a machine word holds.
    pub(super) fn integer(&mut self, key: Key, problems: &mut Problems) -> Option<Spanned<i128>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Integer(integer) => Some(Spanned::new(value.span(), to_i128(integer))),
            other => {
                problems.error(value.span(), &wrong_type(key, "an integer", other));
                None
            }
        }
    }

    /// Reads a boolean.
    pub(super) fn boolean(&mut self, key: Key, problems: &mut Problems) -> Option<Spanned<bool>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(Spanned::new(value.span(), *boolean)),
            other => {
                problems.error(value.span(), &wrong_type(key, "true or false", other));
                None
            }
        }
    }

    /// Reads one of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: Key,
        words: &[(&'static str, T)],
        problems: &mut Problems,
    ) -> Option<Spanned<T>> {
        let text = self.string(key, problems)?;
        one_of(&text, key, words, problems).map(|word| Spanned::new(text.span(), word))
    }

    /// Reads the elements of a list.
    pub(super) fn array(&mut self, key: Key, problems: &mut Problems) -> Option<&'t [Value<'t>]> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Array(array) => Some(array),
            other => {
                problems.error(value.span(), &wrong_type(key, "a list", other));
                None
            }
        }
    }

    /// Reads a list of non-empty strings.
    pub(super) fn lines(
        &mut self,
        key: Key,
        problems: &mut Problems,
    ) -> Option<Vec<Spanned<&'t str>>> {
        let elements = self.array(key, problems)?;
        let mut texts = Vec::new();
        for element in elements {
            match element.get_ref() {
                DeValue::String(text) => {
                    texts.extend(line(Spanned::new(element.span(), text.as_ref()), key, problems));
                }
                other => problems.error(element.span(), &wrong_element(key, "a string", other)),
            }
        }
        Some(texts)
    }

    /// Reports that a required key is missing.
    pub(super) fn missing(&self, key: Key, problems: &mut Problems) {
        problems.error(self.span(), &ShapeProblem::Missing { place: self.place.clone(), key });
    }

    /// Returns the keys that were not asked for, with their values: names chosen by the user.
    pub(super) fn others(&self) -> impl Iterator<Item = (Spanned<&'t str>, &'t Value<'t>)> {
        self.table
            .iter()
            .filter(|(key, _)| !self.asked.contains(&key.get_ref().as_ref()))
            .map(|(key, value)| (Spanned::new(key.span(), key.get_ref().as_ref()), value))
    }

    /// Warns of the keys that were not asked for.
    pub(super) fn warn_unknown(self, problems: &mut Problems) {
        for (key, _) in self.others() {
            let (place, known) = (self.place.clone(), self.asked.clone());
            let problem = ShapeProblem::Unknown { place, key: (*key.get_ref()).to_owned(), known };
            problems.warning(key.span(), &problem);
        }
    }
}

/// Returns `value` as a string; reports another type.
fn string<'t>(value: &'t Value<'t>, key: Key, problems: &mut Problems) -> Option<Spanned<&'t str>> {
    match value.get_ref() {
        DeValue::String(text) => Some(Spanned::new(value.span(), text)),
        other => {
            problems.error(value.span(), &wrong_type(key, "a string", other));
            None
        }
    }
}

/// Returns the value that a word stands for.
pub(super) fn one_of<T: Copy>(
    text: &Spanned<&str>,
    key: Key,
    words: &[(&'static str, T)],
    problems: &mut Problems,
) -> Option<T> {
    let found = words.iter().find(|(word, _)| word == text.get_ref()).map(|(_, value)| *value);
    if found.is_none() {
        let allowed = words.iter().map(|(word, _)| *word).collect();
        let problem = ShapeProblem::NotOneOf { key, found: (*text.get_ref()).to_owned(), allowed };
        problems.error(text.span(), &problem);
    }
    found
}

/// Returns the problem of a value of another type.
pub(super) fn wrong_type(key: Key, wanted: &'static str, found: &DeValue<'_>) -> ShapeProblem {
    ShapeProblem::WrongType { key, wanted, found: type_name(found) }
}

/// Returns the problem of an element of another type.
pub(super) fn wrong_element(key: Key, wanted: &'static str, found: &DeValue<'_>) -> ShapeProblem {
    ShapeProblem::WrongElement { key, wanted, found: type_name(found) }
}

/// Returns `text` if it is not empty and has no control character.
pub(super) fn line<'t>(
    text: Spanned<&'t str>,
    key: Key,
    problems: &mut Problems,
) -> Option<Spanned<&'t str>> {
    let problem = if text.get_ref().is_empty() {
        ShapeProblem::Empty { key }
    } else if text.get_ref().contains(char::is_control) {
        ShapeProblem::ControlCharacter { key }
    } else {
        return Some(text);
    };
    problems.error(text.span(), &problem);
    None
}

/// Converts an integer. One that is too large even for 128 bits becomes the largest one: every
/// range check refuses both alike.
pub(super) fn to_i128(integer: &DeInteger<'_>) -> i128 {
    let saturated = if integer.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
    i128::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(saturated)
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
