//! Inputs made from others, the same on every run.

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

/// Generator of spoilt inputs.
pub(crate) struct Mutator {
    seeds: Vec<Vec<u8>>,
    state: u64,
}

impl Mutator {
    pub(crate) fn new(seeds: &[Vec<u8>]) -> Self {
        Self { seeds: seeds.to_vec(), state: 0x9e37_79b9_7f4a_7c15 }
    }

    /// Returns one of the seeds, changed in one to eight places.
    pub(crate) fn next_input(&mut self) -> Vec<u8> {
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
