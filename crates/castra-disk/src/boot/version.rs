//! Order of kernel versions.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::str::Bytes;

/// Compares versions as `systemd-boot` and packages do: runs of digits by their value, everything
/// else by its bytes, and `~` before the end.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.bytes().peekable(), right.bytes().peekable());
    loop {
        let digits = (digits(&mut left), digits(&mut right));
        let by_number = digits.0.len().cmp(&digits.1.len()).then(digits.0.cmp(&digits.1));
        if by_number.is_ne() {
            return by_number;
        }
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (left, right) if left != right => return rank(left).cmp(&rank(right)),
            _ => {}
        }
    }
}

/// Takes the digits that follow, without leading zeros.
fn digits(bytes: &mut Peekable<Bytes<'_>>) -> Vec<u8> {
    let mut digits = Vec::new();
    while let Some(digit) = bytes.next_if(u8::is_ascii_digit) {
        if digit != b'0' || !digits.is_empty() {
            digits.push(digit);
        }
    }
    digits
}

/// Order of what is no digit: `~`, the end, a separator, letters.
fn rank(byte: Option<u8>) -> (u8, Option<u8>) {
    let class = match byte {
        Some(b'~') => 0,
        None => 1,
        Some(byte) if byte.is_ascii_alphabetic() => 3,
        Some(_) => 2,
    };
    (class, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        let ordered = [
            "5.10.0-9-amd64",
            "5.10.0-28-amd64",
            "6.1.0~rc2",
            "6.1.0",
            "6.1.0-13-amd64",
            "6.1.0-013-cloud-amd64",
            "6.11.10-200.fc40.x86_64",
            "6.11.10-300.fc41.x86_64",
        ];
        for (index, left) in ordered.iter().enumerate() {
            for (other, right) in ordered.iter().enumerate() {
                assert_eq!(compare(left, right), index.cmp(&other), "{left} and {right}");
            }
        }
    }
}
