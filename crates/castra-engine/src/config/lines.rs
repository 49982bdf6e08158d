//! Line numbers of a VM's keys in the file, which show why a VM is as it is.

use std::collections::BTreeMap;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::discovery::read;

/// Keys of one VM that are in the file, each with its line, counted from 1.
pub type KeyLines = BTreeMap<String, usize>;

/// Returns the keys of each VM of a file, in the file's order.
///
/// # Errors
/// [`ConfigError`] if the file cannot be read.
pub fn key_lines(file: &Path) -> Result<Vec<KeyLines>, ConfigError> {
    Ok(key_lines_of(&read(file)?))
}

fn key_lines_of(text: &str) -> Vec<KeyLines> {
    let (document, _) = DeTable::parse_recoverable(text);
    let Some(DeValue::Array(vms)) = document.get_ref().get("vms").map(|value| value.get_ref())
    else {
        return Vec::new();
    };
    let lines = |value: &DeValue<'_>| match value {
        DeValue::Table(table) => {
            let line = |start: usize| text[..start].matches('\n').count() + 1;
            table.keys().map(|key| (key.get_ref().to_string(), line(key.span().start))).collect()
        }
        _ => KeyLines::new(),
    };
    vms.iter().map(|value| lines(value.get_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_line() {
        let text = "[[vms]]\nname = \"a\"\n\n[[vms]]\nname = \"b\"\n# é\ncpus = 2\n\
            [[vms.port_forwards]]\nhost = 1\n";
        let lines = key_lines_of(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], KeyLines::from([("name".into(), 2)]));
        assert_eq!(lines[1].get("cpus"), Some(&7));
        assert_eq!(lines[1].get("port_forwards"), Some(&8));
    }
}
