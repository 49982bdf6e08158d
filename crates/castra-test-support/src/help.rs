//! The commands, as the help lists them.

use std::process::Command;

/// Returns the commands below this one, in the help's order.
pub fn subcommands(of: &[&str]) -> Vec<String> {
    let output = Command::new(crate::castra_program()).args(of).arg("-h").output();
    let help = String::from_utf8(output.expect("castra runs").stdout).expect("text");
    let list = help.lines().take_while(|line| !line.starts_with("Options"));
    let name = |line: &str| {
        let line = line
            .strip_prefix("  ")
            .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))?;
        line.split(' ').next().map(str::to_owned)
    };
    list.filter_map(name).filter(|name| name != "help").collect()
}
