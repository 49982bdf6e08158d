//! Sizes: `"512 MiB"`, `"2G"`, `"2 GB"`, and plain integers of MiB.
//!
//! Every unit is a power of 1024, with or without the `i`: memory and disks are made in such units,
//! and `2 GB` of memory would otherwise not even be a whole number of pages.

use toml::Spanned;
use toml::de::DeValue;

use super::super::defaults;
use super::super::diagnostics::{Problem, Problems, quoted};
use super::super::schema::{Fields, Key, key, to_i128, wrong_type};

const MEMORY: Key = key("memory", "\"1 GiB\"");
const MIN_MEMORY: Key = key("min_memory", "\"256 MiB\"");
const DISK: Key = key("disk", "\"10 GiB\"");

/// Number of bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// Largest virtual disk, in bytes: a qcow2 with QEMU's default clusters of 64 KiB ends at 2 PiB
/// (*measured* with qemu-img 7.2).
const MAX_DISK_BYTES: u64 = 2 << 50;

/// Units by their first letter, as a power of two. Descending, for [`format_size`].
const UNITS: [(&str, u32); 5] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

/// Error for a size that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text does not start with a number.
    #[error("{} is not a size", quoted(.text))]
    NoNumber {
        /// Text as it was written.
        text: String,
    },
    /// The number has no unit.
    #[error("the size {} has no unit", quoted(.text))]
    NoUnit {
        /// Text as it was written.
        text: String,
    },
    /// The unit is unknown.
    #[error("{} is not a unit of size", quoted(.unit))]
    UnknownUnit {
        /// Letters after the number.
        unit: String,
    },
    /// The number has decimals.
    #[error("the size {} has a fraction", quoted(.text))]
    Fraction {
        /// Text as it was written.
        text: String,
        /// Equal size without decimals, if it can be written briefly.
        whole: Option<String>,
    },
    /// The size is negative.
    #[error("the size {} is negative", quoted(.text))]
    Negative {
        /// Text as it was written.
        text: String,
    },
    /// The size is zero.
    #[error("the size is zero")]
    Zero,
    /// The size does not fit into 64 bits.
    #[error("the size {} is too large for any machine", quoted(.text))]
    Overflow {
        /// Text as it was written.
        text: String,
    },
    /// Memory must be a multiple of 1 MiB.
    #[error("memory of {} is not a whole number of MiB", format_size(*.bytes))]
    NotWholeMib {
        /// Size in bytes.
        bytes: u64,
    },
    /// The memory is too small for any Linux.
    #[error(
        "memory of {} is too small: a VM needs at least {} MiB",
        format_size(*.bytes), defaults::MIN_MEMORY_MIB
    )]
    MemoryTooSmall {
        /// Size in bytes.
        bytes: u64,
    },
    /// The disk is too large for a qcow2.
    #[error(
        "a disk of {} is too large: qcow2 is limited to {}",
        format_size(*.bytes), format_size(MAX_DISK_BYTES)
    )]
    DiskTooLarge {
        /// Size in bytes.
        bytes: u64,
    },
}

impl Problem for SizeError {
    fn label(&self) -> String {
        match self {
            Self::NoUnit { .. } => "MiB? GiB?".to_owned(),
            _ => String::new(),
        }
    }

    fn help(&self) -> String {
        self.advice(|size| format!("`\"{size}\"`"))
    }
}

impl SizeError {
    /// Returns the way out, with sizes written by `write`.
    fn advice(&self, write: impl Fn(&str) -> String) -> String {
        match self {
            Self::Fraction { whole: Some(whole), .. } => {
                format!("Write it as a whole number: {}.", write(whole))
            }
            Self::NoUnit { text } => {
                let with = |unit: &str| write(&format!("{text} {unit}"));
                format!("Write {} or {}.", with("MiB"), with("GiB"))
            }
            Self::NotWholeMib { bytes } => {
                format!("The next whole one is {}.", write(&format!("{} MiB", bytes.div_ceil(MIB))))
            }
            Self::MemoryTooSmall { .. } => {
                format!("Alpine runs well with {}.", write(&format_size(defaults::MEMORY_BYTES)))
            }
            Self::DiskTooLarge { .. } => format!(
                "Remove some digits; the default is {}.",
                write(&format_size(defaults::DISK_BYTES))
            ),
            Self::UnknownUnit { .. } => {
                "Units are B, KiB, MiB, GiB and TiB, all powers of 1024.".to_owned()
            }
            Self::NoNumber { .. }
            | Self::Fraction { whole: None, .. }
            | Self::Negative { .. }
            | Self::Zero
            | Self::Overflow { .. } => format!(
                "Write a whole number with a unit, for instance {} or {}.",
                write("512 MiB"),
                write("2 GiB")
            ),
        }
    }
}

impl crate::error::Explain for SizeError {
    fn kind(&self) -> crate::error::Kind {
        crate::error::Kind::Usage
    }

    fn hint(&self) -> Option<String> {
        // As one word of a command line.
        Some(self.advice(|size| format!("`{}`", size.replace(' ', ""))))
    }
}

/// Parses the memory of a VM. Returns bytes, a multiple of 1 MiB.
///
/// # Errors
/// [`SizeError`], also for less than [`defaults::MIN_MEMORY_MIB`].
pub fn parse_memory(text: &str) -> Result<u64, SizeError> {
    check_memory(parse_size(text)?)
}

/// Parses the virtual size of a disk. Returns bytes.
///
/// # Errors
/// [`SizeError`], also for more than a qcow2 holds.
pub fn parse_disk(text: &str) -> Result<u64, SizeError> {
    let bytes = parse_size(text)?;
    if bytes > MAX_DISK_BYTES { Err(SizeError::DiskTooLarge { bytes }) } else { Ok(bytes) }
}

/// Formats a size so that [`parse_memory`] and [`parse_disk`] read it back exactly: `1536 MiB`.
pub fn format_size(bytes: u64) -> String {
    let fits = |shift: u32| bytes >> shift << shift == bytes;
    let (unit, shift) =
        UNITS.into_iter().find(|(_, shift)| bytes > 0 && fits(*shift)).unwrap_or(("B", 0));
    format!("{} {unit}", bytes >> shift)
}

/// Reads the `memory` of a VM, in bytes.
pub(super) fn read_memory(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<Spanned<u64>> {
    read_memory_key(fields, MEMORY, problems)
}

/// Reads the `min_memory` of an image, in bytes.
pub(super) fn read_min_memory(
    fields: &mut Fields<'_>,
    problems: &mut Problems,
) -> Option<Spanned<u64>> {
    read_memory_key(fields, MIN_MEMORY, problems)
}

/// Reads the `disk` of a VM, in bytes.
pub(super) fn read_disk(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<u64> {
    read_disk_key(fields, DISK, problems).map(Spanned::into_inner)
}

/// Reads the size of a disk, in bytes.
pub(super) fn read_disk_key(
    fields: &mut Fields<'_>,
    key: Key,
    problems: &mut Problems,
) -> Option<Spanned<u64>> {
    let value = fields.value(key)?;
    let size = match value.get_ref() {
        DeValue::String(text) => parse_disk(text),
        DeValue::Integer(integer) => parse_size(&to_i128(integer).to_string()),
        DeValue::Float(float) => Err(fraction(float.as_str(), "")),
        other => {
            problems.error(value.span(), &wrong_type(key, "a size", other));
            return None;
        }
    };
    size.map(|bytes| Spanned::new(value.span(), bytes))
        .map_err(|error| problems.error(value.span(), &error))
        .ok()
}

fn read_memory_key(
    fields: &mut Fields<'_>,
    key: Key,
    problems: &mut Problems,
) -> Option<Spanned<u64>> {
    let value = fields.value(key)?;
    let size = match value.get_ref() {
        DeValue::String(text) => parse_memory(text),
        // An integer means MiB, like QEMU's own `-m`.
        DeValue::Integer(integer) => parse_memory(&format!("{} MiB", to_i128(integer))),
        DeValue::Float(float) => Err(fraction(float.as_str(), "")),
        other => {
            problems.error(value.span(), &wrong_type(key, "a size", other));
            return None;
        }
    };
    size.map(|bytes| Spanned::new(value.span(), bytes))
        .map_err(|error| problems.error(value.span(), &error))
        .ok()
}

fn check_memory(bytes: u64) -> Result<u64, SizeError> {
    if !bytes.is_multiple_of(MIB) {
        Err(SizeError::NotWholeMib { bytes })
    } else if bytes < defaults::MIN_MEMORY_MIB * MIB {
        Err(SizeError::MemoryTooSmall { bytes })
    } else {
        Ok(bytes)
    }
}

fn parse_size(text: &str) -> Result<u64, SizeError> {
    let owned = || text.to_owned();
    let trimmed = text.trim();
    if let Some(positive) = trimmed.strip_prefix('-')
        && positive.starts_with(|first: char| first.is_ascii_digit())
    {
        return Err(SizeError::Negative { text: owned() });
    }
    let number_end = trimmed
        .find(|character: char| {
            !character.is_ascii_digit() && !matches!(character, '.' | ',' | '_')
        })
        .unwrap_or(trimmed.len());
    let (number, unit) = (&trimmed[..number_end], trimmed[number_end..].trim_start());
    if !number.starts_with(|first: char| first.is_ascii_digit()) {
        return Err(SizeError::NoNumber { text: owned() });
    }
    if number.contains(['.', ',']) {
        return Err(fraction(number, unit));
    }
    let shift = shift_of(unit).ok_or_else(|| match unit {
        "" => SizeError::NoUnit { text: number.to_owned() },
        _ => SizeError::UnknownUnit { unit: unit.to_owned() },
    })?;
    // Only digits and `_` are left, so it can only fail by being too large.
    let count: u64 =
        number.replace('_', "").parse().map_err(|_| SizeError::Overflow { text: owned() })?;
    match count.checked_mul(1 << shift) {
        Some(0) => Err(SizeError::Zero),
        Some(bytes) => Ok(bytes),
        None => Err(SizeError::Overflow { text: owned() }),
    }
}

/// Returns the exponent of two of a unit: `G`, `GB`, `GiB`, in any case.
fn shift_of(unit: &str) -> Option<u32> {
    let lower = unit.to_ascii_lowercase();
    UNITS.into_iter().find_map(|(name, shift)| {
        let full = name.to_ascii_lowercase();
        let letter = &full[..1];
        (lower == full || lower == letter || lower == format!("{letter}b") && shift > 0)
            .then_some(shift)
    })
}

/// Returns the error for decimals, with the equal size in whole MiB or KiB if there is one.
fn fraction(number: &str, unit: &str) -> SizeError {
    let text = format!("{number} {unit}").trim_end().to_owned();
    let whole = number.replace(',', ".").parse::<f64>().ok().zip(shift_of(unit)).and_then(
        |(count, shift)| {
            let bytes = count * f64::from(shift).exp2();
            // Exact: below 2^53 every whole number is a float of its own.
            let exact = bytes.fract() == 0.0 && bytes >= 1.0 && bytes < 53_f64.exp2();
            exact.then(|| format_size(bytes as u64))
        },
    );
    SizeError::Fraction { text, whole }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_in_all_their_spellings() {
        for text in
            ["2 GiB", "2GiB", "2G", "2 g", "2GB", "2 gb", " 2048 MiB ", "2097152K", "2147483648 B"]
        {
            assert_eq!(parse_size(text), Ok(2 << 30), "{text}");
        }
        assert_eq!(parse_size("1_024 KiB"), Ok(1 << 20));
    }

    #[test]
    fn what_is_no_size() {
        for (text, error) in [
            ("", SizeError::NoNumber { text: String::new() }),
            ("big", SizeError::NoNumber { text: "big".into() }),
            (".5 GiB", SizeError::NoNumber { text: ".5 GiB".into() }),
            ("512", SizeError::NoUnit { text: "512".into() }),
            ("5 apples", SizeError::UnknownUnit { unit: "apples".into() }),
            ("5 iB", SizeError::UnknownUnit { unit: "iB".into() }),
            ("-1 GiB", SizeError::Negative { text: "-1 GiB".into() }),
            ("0 GiB", SizeError::Zero),
            (
                "18446744073709551616 B",
                SizeError::Overflow { text: "18446744073709551616 B".into() },
            ),
            ("16777216 TiB", SizeError::Overflow { text: "16777216 TiB".into() }),
        ] {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_fraction_is_answered_with_the_whole_number() {
        let whole = |text| match parse_size(text) {
            Err(SizeError::Fraction { whole, .. }) => whole,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(whole("1.5 GiB").as_deref(), Some("1536 MiB"));
        assert_eq!(whole("0,5 T").as_deref(), Some("512 GiB"));
        assert_eq!(whole("1.1 GiB"), None);
        assert_eq!(whole("1.2.3 GiB"), None);
    }

    #[test]
    fn memory_is_whole_mib_and_enough() {
        assert_eq!(parse_memory("64 MiB"), Ok(64 << 20));
        assert_eq!(parse_memory("63 MiB"), Err(SizeError::MemoryTooSmall { bytes: 63 << 20 }));
        assert_eq!(parse_memory("65537 KiB"), Err(SizeError::NotWholeMib { bytes: 65537 << 10 }));
    }

    #[test]
    fn a_disk_is_what_a_qcow2_holds() {
        assert_eq!(parse_disk("2048 TiB"), Ok(2 << 50));
        assert_eq!(parse_disk("2049 TiB"), Err(SizeError::DiskTooLarge { bytes: 2049 << 40 }));
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes in 1_u64..) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn whole_units_round_trip(
            count in 1_u64..1 << 20,
            shift in (0_u32..5).prop_map(|unit| unit * 10),
        ) {
            prop_assert_eq!(parse_size(&format_size(count << shift)), Ok(count << shift));
        }

        #[test]
        fn any_text_is_a_size_or_an_error(text in "\\PC*") {
            let _ = parse_size(&text);
        }

        #[test]
        fn near_sizes_never_panic(text in "[-+]?[0-9.,_]{0,24} ?[kKmMgGtTiIbBµ]{0,4}") {
            if let Ok(bytes) = parse_size(&text) {
                prop_assert!(bytes > 0);
            }
        }
    }
}
