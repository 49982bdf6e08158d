//! Values of an image that become options of QEMU: its devices, machine, CPU, kernel command line
//! and format.
//!
//! A `castra.toml`, a record or an image may come from a stranger, and QEMU opens the files that
//! its options name, with all the rights of this user: `loader,file=…` puts a file of the host into
//! the guest's memory, `usb-mtp,rootdir=…` shares a directory with it, `pcap=…` writes one. So none
//! of these values is a string here. Each type holds names and values from a closed list or a
//! checked alphabet, is parsed from text in one place ([`std::str::FromStr`]), and writes the text
//! for QEMU ([`std::fmt::Display`]). Records and manifests keep that text, and reading them uses
//! the same parser.

mod announcement;
mod command_line;
mod cpu;
mod device;
mod error;
mod format;
mod machine;
mod property;
mod stream_ports;
mod user;

pub use announcement::Announcement;
pub use command_line::CommandLine;
pub use cpu::CpuModel;
pub use device::{Device, DeviceModel};
pub use error::OptionError;
pub use format::DiskFormat;
pub use machine::{Board, MachineType, Switch};
pub use property::{Property, Value};
pub use stream_ports::StreamPortCount;
pub use user::UserArguments;

/// Serialises types as the text that they stand for.
macro_rules! as_text {
    ($($name:ty),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                <String as schemars::JsonSchema>::schema_name()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                <String as schemars::JsonSchema>::json_schema(generator)
            }
        }
    )+};
}

as_text!(CommandLine, CpuModel, Device, MachineType);

/// Returns `true` for letters, digits, `.`, `_` and `-` that start with a letter or digit: text
/// that QEMU cannot interpret as anything but a name.
fn is_name(text: &str) -> bool {
    const MAX_BYTES: usize = 64;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    text.len() <= MAX_BYTES
        && text.bytes().all(is_plain)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Parses `on` or `off`, the only two spellings of switches.
fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

/// Returns the text of a switch: `on` or `off`.
fn on_or_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

#[cfg(test)]
mod tests;
