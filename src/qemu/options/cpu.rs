use std::fmt;
use std::str::FromStr;

use super::{OptionError, is_name};

/// A CPU: the name of a model, and flags that are added or taken away. QEMU sets what a flag names to true or false, so no
/// text of it can be a value. It is kept as one text, which only [`FromStr`] makes of a stranger's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuModel(String);

impl CpuModel {
    /// A regular expression of all of them, for the schema of `castra.toml`.
    pub const PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(,[+-][A-Za-z0-9][A-Za-z0-9._-]{0,63})*$";

    /// The host's own CPU, for hardware virtualisation.
    pub fn host() -> Self {
        Self("host".to_owned())
    }
}

/// The CPU of a VM whose definition and image name none, where it is emulated: x86-64-v2, for which current distributions and
/// many prebuilt packages are compiled, and whose instructions end programs with SIGILL elsewhere. It boots as fast as plain
/// `qemu64`. `max` nearly doubles the boot time, guests with AVX2 hang under QEMU 7.2 (measured), and without `rdrand` the guest
/// waits for entropy early in the boot.
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
        // With `help` QEMU prints a list and ends.
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

/// As QEMU's `-cpu` takes it.
impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
