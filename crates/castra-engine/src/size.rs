//! Sizes as users read them.

use std::fmt;

/// A number of bytes, displayed in powers of 1024 with at most one decimal: `512 B`, `9.2 MiB`,
/// `10 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        // Tenths of a unit: the largest one of which there is at least one, even after rounding.
        let tenths_of = |power: u32| {
            let unit = 1u128 << (10 * power);
            (u128::from(self.0) * 10 + unit / 2) / unit
        };
        let power = (1..5).find(|power| tenths_of(*power) < 10 * 1024).unwrap_or(5);
        let (tenths, unit) = (tenths_of(power), UNITS[power as usize - 1]);
        match (tenths / 10, tenths % 10) {
            (whole, 0) => write!(f, "{whole} {unit}"),
            (whole, decimal) => write!(f, "{whole}.{decimal} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (65_536, "64 KiB"),
            (197_652, "193 KiB"),
            (3 << 19, "1.5 MiB"),
            (9_646_899, "9.2 MiB"),
            ((1 << 20) - 1, "1 MiB"),
            (512 << 20, "512 MiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(ByteSize(bytes).to_string(), text, "{bytes}");
        }
    }
}
