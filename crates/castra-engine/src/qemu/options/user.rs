//! The user's own QEMU arguments, from `CASTRA_UNSAFE_QEMU_ARGS`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::context::Environment;

/// Arguments for QEMU from the user's environment, the only source: they cannot be read from a
/// file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserArguments(Vec<OsString>);

impl UserArguments {
    /// Name of the variable that holds them, separated by spaces.
    pub const VARIABLE: &str = "CASTRA_UNSAFE_QEMU_ARGS";

    /// Reads them from the environment.
    pub fn of(environment: &Environment) -> Self {
        let text = environment.get(Self::VARIABLE).map(|text| text.as_bytes()).unwrap_or_default();
        let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        Self(words.map(|word| OsString::from_vec(word.to_vec())).collect())
    }

    /// Returns the arguments, which follow all others on QEMU's command line.
    pub fn words(&self) -> &[OsString] {
        &self.0
    }

    /// Returns all arguments as one text that distinguishes this machine from others; `None` if
    /// there are none.
    pub fn identity(&self) -> Option<String> {
        let text = self.0.join(OsStr::new(" "));
        (!text.is_empty()).then(|| text.to_string_lossy().into_owned())
    }
}
