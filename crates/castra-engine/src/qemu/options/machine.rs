//! Machine types: boards and their switches.

use std::fmt;
use std::str::FromStr;

use super::{OptionError, on_or_off, switch};

/// A machine: a board from a closed list, and its switches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineType {
    board: Board,
    switches: Vec<(Switch, bool)>,
}

/// Board of a VM: the two PCs that QEMU has, in the newest or a particular version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// `q35`.
    Q35,
    /// `pc`.
    Pc,
    /// Particular version of `q35`, for instance `pc-q35-7.2`.
    Q35Of(u16, u16),
    /// Particular version of `pc`, for instance `pc-i440fx-7.2`.
    PcOf(u16, u16),
}

/// A part of a board that can be switched on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// ACPI tables of the firmware.
    Acpi,
    /// The guest's memory in core dumps of QEMU.
    DumpGuestCore,
    /// Graphics emulation.
    Graphics,
    /// High precision event timer.
    Hpet,
    /// Controller of keyboard and mouse.
    I8042,
    /// Sharing of equal pages with other guests.
    MemMerge,
    /// Legacy interrupt controller.
    Pic,
    /// Legacy timer.
    Pit,
    /// Disk controller.
    Sata,
    /// System management bus.
    Smbus,
    /// System management mode.
    Smm,
    /// A USB controller.
    Usb,
    /// VMware's port for mouse and time.
    Vmport,
}

impl Board {
    /// Forms of a board, for messages.
    pub(super) const FORMS: &str =
        "`q35`, `pc`, and those of one version: `pc-q35-7.2`, `pc-i440fx-7.2`";
    /// Regular expression for all boards, for the schema of `castra.toml`.
    pub const PATTERN: &str = r"(q35|pc|pc-(q35|i440fx)-(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2}))";
}

impl Switch {
    /// Every switch.
    pub const ALL: [Self; 13] = [
        Self::Acpi,
        Self::DumpGuestCore,
        Self::Graphics,
        Self::Hpet,
        Self::I8042,
        Self::MemMerge,
        Self::Pic,
        Self::Pit,
        Self::Sata,
        Self::Smbus,
        Self::Smm,
        Self::Usb,
        Self::Vmport,
    ];

    /// Returns QEMU's name for the switch.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acpi => "acpi",
            Self::DumpGuestCore => "dump-guest-core",
            Self::Graphics => "graphics",
            Self::Hpet => "hpet",
            Self::I8042 => "i8042",
            Self::MemMerge => "mem-merge",
            Self::Pic => "pic",
            Self::Pit => "pit",
            Self::Sata => "sata",
            Self::Smbus => "smbus",
            Self::Smm => "smm",
            Self::Usb => "usb",
            Self::Vmport => "vmport",
        }
    }
}

/// Machine of an image that names none: q35 without the devices that only cost boot time in a VM,
/// which any distribution's kernel supports.
impl Default for MachineType {
    fn default() -> Self {
        let switches =
            [Switch::Sata, Switch::Smbus, Switch::Vmport].map(|switch| (switch, false)).to_vec();
        Self { board: Board::Q35, switches }
    }
}

impl FromStr for Board {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let versioned = |prefix| text.strip_prefix(prefix).and_then(version);
        match text {
            "q35" => Some(Self::Q35),
            "pc" => Some(Self::Pc),
            _ => versioned("pc-q35-")
                .map(|(major, minor)| Self::Q35Of(major, minor))
                .or_else(|| versioned("pc-i440fx-").map(|(major, minor)| Self::PcOf(major, minor))),
        }
        .ok_or_else(|| OptionError::Board(text.to_owned()))
    }
}

impl fmt::Display for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Q35 => f.write_str("q35"),
            Self::Pc => f.write_str("pc"),
            Self::Q35Of(major, minor) => write!(f, "pc-q35-{major}.{minor}"),
            Self::PcOf(major, minor) => write!(f, "pc-i440fx-{major}.{minor}"),
        }
    }
}

impl FromStr for MachineType {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut parts = text.split(',');
        let board = parts.next().unwrap_or_default().parse()?;
        let mut switches: Vec<(Switch, bool)> = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let known = Switch::ALL.into_iter().find(|switch| switch.name() == name);
            let known = known.ok_or_else(|| OptionError::Switch(name.to_owned()))?;
            if switches.iter().any(|(other, _)| *other == known) {
                return Err(OptionError::Twice(known.name()));
            }
            let refused = || OptionError::SwitchValue { switch: known, found: value.to_owned() };
            switches.push((known, switch(value).ok_or_else(refused)?));
        }
        Ok(Self { board, switches })
    }
}

impl MachineType {
    /// Returns `true` for a board of the family `q35`.
    pub(in crate::qemu) fn is_q35(&self) -> bool {
        matches!(self.board, Board::Q35 | Board::Q35Of(..))
    }
}

/// Formats the machine as QEMU's `-machine` takes it.
impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.board)?;
        self.switches
            .iter()
            .try_for_each(|(switch, is_on)| write!(f, ",{}={}", switch.name(), on_or_off(*is_on)))
    }
}

/// Parses two numbers of at most three digits, in canonical form.
fn version(text: &str) -> Option<(u16, u16)> {
    let (major, minor) = text.split_once('.')?;
    let number = |text: &str| {
        let number: u16 = text.parse().ok().filter(|_| text.len() <= 3)?;
        (number.to_string() == text).then_some(number)
    };
    Some((number(major)?, number(minor)?))
}
