//! Random operations on one file, whose every byte is compared with a copy in memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Largest file, in bytes: several of the kernel's requests.
const LARGEST: usize = 2 << 20;

/// Longest read or write, in bytes.
const LONGEST: usize = 200_000;

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Steele and Vigna's SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit as u64 + 1)).expect("small")
    }
}

/// The file, its handles, and the bytes that it must have.
struct Exerciser<'a> {
    path: &'a Path,
    random: Random,
    handle: File,
    other: File,
    expected: Vec<u8>,
}

/// Exercises a new file, and returns its contents.
pub(super) fn run(path: &Path, seed: u64, operations: u64) -> Vec<u8> {
    File::create_new(path).expect("made");
    let (handle, other) = (open(path), open(path));
    let mut exerciser =
        Exerciser { path, random: Random(seed), handle, other, expected: Vec::new() };
    for number in 0..operations {
        exerciser.step(&format!("operation {number} of the seed {seed}"));
    }
    exerciser.compare_all("at the end");
    exerciser.handle.sync_all().expect("synced");
    exerciser.expected
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("opened")
}

impl Exerciser<'_> {
    fn step(&mut self, number: &str) {
        match self.random.below(99) {
            0..30 => self.write(),
            30..65 => self.read(number),
            65..75 => self.resize(),
            75..80 => self.append(),
            80..86 => self.allocate(),
            86..92 => self.reopen(),
            92..96 => self.handle.sync_data().expect("synced"),
            96..98 => std::mem::swap(&mut self.handle, &mut self.other),
            _ => self.compare_all(number),
        }
        let length = self.handle.metadata().expect("looked at").len();
        assert_eq!(length, self.expected.len() as u64, "{number}");
    }

    /// Returns a range that begins in the file or a bit behind its end.
    fn range(&mut self) -> (usize, usize) {
        let from = self.random.below((self.expected.len() + 50_000).min(LARGEST - 1));
        // Short ones, too, and edges of pages.
        let longest = [20, 5000, LONGEST][self.random.below(2)];
        let from = if self.random.below(3) == 0 { from & !4095 } else { from };
        (from, self.random.below(longest).min(LARGEST - from))
    }

    fn write(&mut self) {
        let (from, length) = self.range();
        let first = self.random.next();
        let bytes: Vec<u8> = (0..length).map(|at| (first >> (at % 57)) as u8 ^ at as u8).collect();
        self.handle.write_all_at(&bytes, from as u64).expect("written");
        if length > 0 {
            self.grow_to(from + length);
            self.expected[from..from + length].copy_from_slice(&bytes);
        }
    }

    fn append(&mut self) {
        let bytes = vec![self.random.next() as u8; self.random.below(9000)];
        if self.expected.len() + bytes.len() <= LARGEST {
            let mut log = OpenOptions::new().append(true).open(self.path).expect("opened");
            std::io::Write::write_all(&mut log, &bytes).expect("written");
            self.expected.extend(bytes);
        }
    }

    fn read(&mut self, number: &str) {
        let (from, length) = self.range();
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            let at = (from + filled) as u64;
            match self.other.read_at(&mut bytes[filled..], at).expect("read") {
                0 => break,
                more => filled += more,
            }
        }
        let end = (from + length).min(self.expected.len());
        let expected = self.expected.get(from..end).unwrap_or_default();
        assert!(bytes[..filled] == *expected, "{number}: {from} to {end}");
    }

    fn resize(&mut self) {
        let length = self.random.below((self.expected.len() + 100_000).min(LARGEST));
        self.handle.set_len(length as u64).expect("resized");
        self.expected.resize(length, 0);
    }

    fn allocate(&mut self) {
        let (from, length) = self.range();
        let end = from + length;
        let is_hole = self.random.below(1) == 0;
        let flags = match is_hole {
            true => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            false => FallocateFlags::empty(),
        };
        if length == 0 {
            return;
        }
        match fallocate(&self.handle, flags, from as u64, length as u64) {
            Ok(()) if is_hole => {
                let end = end.min(self.expected.len());
                self.expected.get_mut(from..end).unwrap_or_default().fill(0);
            }
            Ok(()) => self.grow_to(end),
            Err(error) => assert_eq!(error, Errno::OPNOTSUPP),
        }
    }

    fn reopen(&mut self) {
        self.handle = open(self.path);
    }

    fn grow_to(&mut self, length: usize) {
        if self.expected.len() < length {
            self.expected.resize(length, 0);
        }
    }

    fn compare_all(&mut self, number: &str) {
        let found = fs::read(self.path).expect("read");
        let differs = found.iter().zip(&self.expected).position(|(found, byte)| found != byte);
        assert!(found == self.expected, "{number}: differs first at {differs:?}");
    }
}
