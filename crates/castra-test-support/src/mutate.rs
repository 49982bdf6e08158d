//! Parsers of foreign input, tried with spoilt input: for a bounded time each, on every run. The
//! inputs are made from others, the same on every run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for which each target is tried.
const LIMIT: Duration = Duration::from_secs(3);
/// Variable that sets another number of seconds.
const SECONDS: &str = "CASTRA_FUZZ_SECS";
/// Variable with a directory for seeds: `cargo xtask fuzz` has them written instead.
const SEEDS: &str = "CASTRA_FUZZ_SEEDS";

/// Longest input, in bytes.
const MAX_BYTES: usize = 256 * 1024;
/// Bytes and numbers at which parsers often fail.
const ODD: [&[u8]; 12] = [
    b"\0",
    b"\xff",
    b"\n",
    b"\"",
    b"[[",
    b"{",
    b"}",
    b"-1",
    b"1e999",
    b"\xe2\x80\xae",
    b"18446744073709551616",
    b"'''",
];

/// Tries a target with these inputs and with spoilt ones. Prints the input of a failure.
///
/// `name` is that of libFuzzer's target, which begins with the same inputs.
pub fn try_out(name: &str, target: fn(&[u8]), seeds: &[Vec<u8>]) {
    if let Some(directory) = std::env::var_os(SEEDS) {
        write_seeds(&Path::new(&directory).join(name), seeds);
        return;
    }
    let seconds =
        std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let end = Instant::now() + seconds.unwrap_or(LIMIT);
    let mut mutator = Mutator::new(seeds);
    seeds.iter().for_each(|seed| target(seed));
    while Instant::now() < end {
        let input = mutator.next_input();
        let outcome = std::panic::catch_unwind(|| target(&input));
        assert!(outcome.is_ok(), "this input: b\"{}\"", input.escape_ascii());
    }
}

fn write_seeds(directory: &Path, seeds: &[Vec<u8>]) {
    fs::create_dir_all(directory).expect("a directory");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(directory.join(format!("seed-{number}")), seed).expect("written");
    }
}

/// Generator of spoilt inputs.
struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    fn new(seeds: &[Vec<u8>]) -> Self {
        Self { seeds: seeds.to_vec(), state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Returns one of the seeds, changed in one to eight places.
    fn next_input(&mut self) -> Vec<u8> {
        let seed = self.below(self.seeds.len());
        let mut input = self.seeds[seed].clone();
        for _ in 0..=self.below(8) {
            self.spoil(&mut input);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn spoil(&mut self, input: &mut Vec<u8>) {
        let at = self.below(input.len() + 1);
        let length = self.below(32).min(input.len() - at);
        match self.below(7) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = self.below(256) as u8,
            2 => drop(input.drain(at..at + length)),
            3 => input.truncate(at),
            4 => {
                let piece = input[at..at + length].repeat(self.below(64));
                input.splice(at..at, piece);
            }
            5 => {
                let other = self.below(self.seeds.len());
                let from = self.below(self.seeds[other].len() + 1);
                let piece = self.seeds[other][from..].to_vec();
                input.splice(at..at, piece);
            }
            _ => {
                let odd = self.below(ODD.len());
                input.splice(at..at + length, ODD[odd].iter().copied());
            }
        }
    }

    /// Returns a number below `limit`, or 0.
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % limit.max(1) as u64) as usize
    }
}
