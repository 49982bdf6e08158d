//! Variables of GRUB, and the file `grubenv` in which it keeps some of them.

use std::collections::BTreeMap;

/// First line of the file.
const SIGNATURE: &str = "# GRUB Environment Block";

/// Values by name. A variable without a value is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Variables {
    values: BTreeMap<String, String>,
}

impl Variables {
    /// Parses `grubenv`: a line for each variable, with backslashes before some characters.
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let mut variables = Self::default();
        if lines.next() != Some(SIGNATURE) {
            return variables;
        }
        for line in lines.filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once('=') {
                variables.values.insert(name.to_owned(), value.replace('\\', ""));
            }
        }
        // It is for one boot of GRUB's, which then removes it.
        variables.values.remove("next_entry");
        variables
    }

    /// Returns the value, or nothing.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Sets a variable that has no value yet.
    ///
    /// Conditions are not evaluated, so both branches of one are seen: defaults are set where there
    /// is no value, and what is saved in `grubenv` wins.
    pub(super) fn set_default(&mut self, name: String, value: String) {
        let current = self.values.entry(name).or_default();
        if current.is_empty() {
            *current = value;
        }
    }

    /// Replaces `$name` and `${name}` by their values.
    pub(super) fn expand(&self, text: &str) -> String {
        let mut pieces = text.split('$');
        let mut expanded = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (name, rest) = match piece.strip_prefix('{').and_then(|it| it.split_once('}')) {
                Some(parts) => parts,
                None => {
                    let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_';
                    piece.split_at(piece.find(|char| !is_part(char)).unwrap_or(piece.len()))
                }
            };
            expanded.push_str(self.get(name));
            expanded.push_str(rest);
        }
        expanded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_values_win_over_those_of_the_configuration() {
        let block = "# GRUB Environment Block\n# WARNING\nsaved_entry=id-6.1\n\
            kernelopts=root=/dev/a ro\nnext_entry=1\n####";
        let mut variables = Variables::parse(block);
        variables.set_default("kernelopts".to_owned(), "root=/dev/b".to_owned());
        variables.set_default("extra".to_owned(), "quiet".to_owned());
        let expanded = variables.expand("$kernelopts ${extra}, $none${next_entry}$");
        assert_eq!(expanded, "root=/dev/a ro quiet, ");
        assert_eq!(Variables::parse("saved_entry=1"), Variables::default());
    }
}
