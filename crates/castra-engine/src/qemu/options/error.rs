//! Errors of parsing an option.

use crate::similar::closest;

use super::{Board, DeviceModel, Property, Switch, UserArguments};

/// Maximum number of characters of a refused text that a message repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// Error for a text that stands for no value that QEMU may be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A device that is not in the list.
    #[error("{} is not a device that castra supports", shown(.0))]
    Device(String),
    /// A property that is not in the device's list.
    #[error("the device `{}` has no property {} that can be set", .model.name(), shown(.found))]
    Property {
        /// The device.
        model: DeviceModel,
        /// The name that was found.
        found: String,
    },
    /// A value of another kind.
    #[error("`{}` must be {}, not {}", .property.name(), .property.wanted(), shown(.found))]
    Value {
        /// The property.
        property: Property,
        /// The text that was found.
        found: String,
    },
    /// A property or switch that occurs twice.
    #[error("`{0}` is set twice")]
    Twice(&'static str),
    /// A machine that is not in the list.
    #[error("{} is not a machine that castra supports", shown(.0))]
    Board(String),
    /// A switch of the machine that is not in the list.
    #[error("the machine has no switch {} that can be set", shown(.0))]
    Switch(String),
    /// A value of a switch that is neither `on` nor `off`.
    #[error("the machine's switch `{}` must be on or off, not {}", .switch.name(), shown(.found))]
    SwitchValue {
        /// The switch.
        switch: Switch,
        /// The text that was found.
        found: String,
    },
    /// A text that cannot be the name of a CPU model.
    #[error("{} is not the name of a CPU model", shown(.0))]
    CpuModel(String),
    /// A text that cannot be a flag of a CPU.
    #[error("{} is not a flag of a CPU", shown(.0))]
    CpuFlag(String),
    /// A kernel command line that is empty or contains a control character.
    #[error("a kernel's command line is one line of text, not {}", shown(.0))]
    CommandLine(String),
    /// A format of disks that is not in the list.
    #[error("{} is not a disk format", shown(.0))]
    Format(String),
}

impl OptionError {
    /// Returns the next step, as complete sentences.
    pub fn help(&self) -> String {
        match self {
            Self::Device(found) => match closest(found, DeviceModel::ALL.map(DeviceModel::name)) {
                Some(near) => or_the_users(&format!("Did you mean `{near}`?")),
                None => or_the_users(&format!(
                    "Devices are {}.",
                    listed(&DeviceModel::ALL.map(DeviceModel::name))
                )),
            },
            Self::Property { model, found } => {
                let names: Vec<&str> = model.properties().iter().map(|one| one.name()).collect();
                match closest(found, names.iter().copied()) {
                    Some(near) => or_the_users(&format!("Did you mean `{near}`?")),
                    None => or_the_users(&format!("It has {}.", listed(&names))),
                }
            }
            Self::Board(_) => or_the_users(&format!("Machines are {}.", Board::FORMS)),
            Self::Switch(found) => {
                let names = Switch::ALL.map(Switch::name);
                match closest(found, names) {
                    Some(near) => or_the_users(&format!("Did you mean `{near}`?")),
                    None => or_the_users(&format!("Switches are {}.", listed(&names))),
                }
            }
            Self::CpuModel(_) | Self::CpuFlag(_) => {
                or_the_users("Write a model and flags, each with `+` or `-`: `\"max,-svm\"`.")
            }
            Self::Value { property, .. } => format!("Write for instance `{}`.", property.example()),
            Self::Twice(_) => "Remove one.".to_owned(),
            Self::SwitchValue { switch, .. } => format!("Write `{}=off`.", switch.name()),
            Self::CommandLine(_) => {
                "Remove tabs, line breaks and other control characters.".to_owned()
            }
            Self::Format(_) => {
                "Formats are `qcow2`, `raw`, `vdi`, `vhdx`, `vmdk` and `vpc`.".to_owned()
            }
        }
    }
}

/// Appends the only way to give QEMU options that are not in the lists.
fn or_the_users(help: &str) -> String {
    format!(
        "{help} Only you can give QEMU any other option, in the environment variable `{}`; no file \
        can.",
        UserArguments::VARIABLE
    )
}

fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => "none".to_owned(),
    }
}

/// Quotes a piece of a stranger's text, without characters that could control a terminal.
fn shown(text: &str) -> String {
    let escaped = text.escape_debug().to_string();
    match escaped.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("`{}…`", &escaped[..end]),
        None => format!("`{escaped}`"),
    }
}
