//! Version of a QEMU.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::cancel::Cancel;
use crate::command::{self, CommandError, Invocation};
use crate::layout::CacheLayout;

use super::binary::QemuBinary;
use super::remembered;

/// Time limit for `--version`, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Version of QEMU or of one of its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl QemuVersion {
    /// Asks a program of QEMU for its version. Returns `None` if its answer has none.
    ///
    /// # Errors
    /// Returns the error of running it.
    pub fn of_program(program: &Path, cancel: &Cancel) -> Result<Option<Self>, CommandError> {
        ask(&Invocation::new(program), cancel).map(|answer| Self::parse(&answer))
    }

    /// Returns the version of `qemu`, which is asked once and then remembered. Returns `None` if it
    /// cannot be known.
    pub(super) fn remembered(
        qemu: &QemuBinary,
        cache: &CacheLayout,
        cancel: &Cancel,
    ) -> Option<Self> {
        let path = cache.qemu_versions();
        let mut known = remembered::read::<String>(&path);
        if let Some(answer) = known.get(&qemu.identity) {
            return Self::parse(answer);
        }
        let answer = ask(&qemu.invocation(), cancel).ok()?;
        // A program of the same path replaced the one that was asked then.
        let same_path = format!("{} ", qemu.path.display());
        known.retain(|identity, _| !identity.starts_with(&same_path));
        known.insert(qemu.identity.clone(), answer.clone());
        remembered::write(&path, &known);
        Self::parse(&answer)
    }

    /// Parses `QEMU emulator version 7.2.22 (Debian …)` or `qemu-img version 9.0.0`.
    fn parse(answer: &str) -> Option<Self> {
        let mut numbers = answer.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Returns the first line that a program prints for `--version`.
fn ask(program: &Invocation, cancel: &Cancel) -> Result<String, CommandError> {
    let output = command::run(&program.clone().arg("--version"), LIMIT, cancel)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_compared() {
        let parse = |text: &str| QemuVersion::parse(text);
        let debian = parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)");
        assert_eq!(debian, Some(QemuVersion { major: 7, minor: 2 }));
        assert!(parse("QEMU emulator version 10.0.2") > debian);
        assert_eq!(parse("qemu-img version 9.1.0").expect("a version").to_string(), "9.1");
        for other in ["", "version ", "version x.1", "QEMU emulator", "version 9"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
