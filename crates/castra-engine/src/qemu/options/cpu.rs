//! CPU models and flags.

use std::fmt;
use std::str::FromStr;

use super::{OptionError, is_name};

/// A CPU: the name of a model, and flags that are added or removed. QEMU sets a flag to true or
/// false, so no text of it can be a value. Kept as one text, which can be parsed from a stranger's
/// text only by [`FromStr`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel(String);

impl CpuModel {
    /// Regular expression for all CPUs, for the schema of `castra.toml`.
    pub const PATTERN: &str =
        "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(,[+-][A-Za-z0-9][A-Za-z0-9._-]{0,63})*$";

    /// Returns the host's own CPU, for hardware virtualization.
    pub fn host() -> Self {
        Self("host".to_owned())
    }

    /// Returns the CPU with everything that QEMU can emulate, AVX2 included.
    pub fn max() -> Self {
        Self("max".to_owned())
    }
}

/// CPU of an emulated VM whose definition and image name none: x86-64-v2, for which current
/// distributions and many prebuilt packages are compiled, and without whose instructions programs
/// die with SIGILL. Boots as fast as plain `qemu64`. `max` nearly doubles the boot time, guests
/// with AVX2 hang under QEMU 7.2 (*measured*), and without `rdrand` the guest waits for entropy
/// early in the boot.
impl Default for CpuModel {
    fn default() -> Self {
        Self("qemu64,+rdrand,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2".to_owned())
    }
}

impl FromStr for CpuModel {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default();
        // Given `help`, QEMU prints a list and exits.
        if !is_name(model) || model == "help" {
            return Err(OptionError::CpuModel(model.to_owned()));
        }
        match parts.find(|part| !is_flag(part)) {
            Some(part) => Err(OptionError::CpuFlag(part.to_owned())),
            None => Ok(Self(text.to_owned())),
        }
    }
}

fn is_flag(text: &str) -> bool {
    text.strip_prefix(['+', '-']).is_some_and(is_name)
}

/// Formats the CPU as QEMU's `-cpu` takes it.
impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
