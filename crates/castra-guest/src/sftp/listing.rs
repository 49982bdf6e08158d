//! Attributes of files, and lines as `ls -l` prints them.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use bytes::Bytes;
use castra_sftp::{Attributes, Entry};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Returns the attributes of a file. Owners are numeric: clients use nothing else.
pub(super) fn attributes(metadata: &Metadata) -> Attributes {
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(metadata.len()),
        owner: Some((metadata.uid(), metadata.gid())),
        mode: Some(metadata.mode()),
        times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
    }
}

/// Returns an entry of a directory listing.
pub(super) fn entry(name: &[u8], metadata: &Metadata) -> Entry {
    let mut line = format!(
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        permissions(metadata.mode()),
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.len(),
        date(metadata.mtime())
    )
    .into_bytes();
    line.extend_from_slice(name);
    Entry {
        name: Bytes::copy_from_slice(name),
        line: line.into(),
        attributes: attributes(metadata),
    }
}

/// Returns the entry that answers a request for a path.
pub(super) fn path(path: Vec<u8>) -> Entry {
    let path = Bytes::from(path);
    Entry { name: path.clone(), line: path, attributes: Attributes::default() }
}

fn permissions(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o060_000 => 'b',
        0o020_000 => 'c',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let bits =
        (0..9).map(|bit| if mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] });
    let mut text: Vec<char> = std::iter::once(kind).chain(bits).collect();
    for (flag, place, letter) in [(0o4000, 3, 's'), (0o2000, 6, 's'), (0o1000, 9, 't')] {
        if mode & flag != 0 {
            text[place] = if text[place] == 'x' { letter } else { letter.to_ascii_uppercase() };
        }
    }
    text.into_iter().collect()
}

/// Returns a date in UTC, such as `Jan  1  1970`.
fn date(seconds: i64) -> String {
    // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = year_of_era + era * 400 + i64::from(month >= 10);
    let name = usize::try_from((month + 2) % 12)
        .ok()
        .and_then(|month| MONTHS.get(month))
        .unwrap_or(&"???");
    format!("{name} {day:>2}  {year}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_those_of_ls() {
        assert_eq!(permissions(0o100_644), "-rw-r--r--");
        assert_eq!(permissions(0o041_777), "drwxrwxrwt");
        assert_eq!(permissions(0o104_700), "-rws------");
        assert_eq!(permissions(0o102_600), "-rw---S---");
        assert_eq!(date(0), "Jan  1  1970");
        assert_eq!(date(951_782_400), "Feb 29  2000");
        assert_eq!(date(1_735_689_599), "Dec 31  2024");
    }
}
