//! Large disks in small inputs: the blocks that are not zero, each with its number.

use std::collections::BTreeMap;
use std::io;

use castra_disk::Source;

/// Length of a block.
pub(super) const BLOCK: usize = 4096;
/// Length of the number before each block, and of the number of blocks before all of them.
const NUMBER: usize = 4;
/// Largest disk, in blocks: 1 GiB.
const MAX_BLOCKS: u32 = 1 << 18;

/// A disk, most of which is zero.
#[derive(Clone)]
pub(super) struct Sparse {
    blocks: BTreeMap<u64, Vec<u8>>,
    length: u64,
}

impl Sparse {
    /// Interprets any bytes as a disk.
    pub(super) fn decode(input: &[u8]) -> Self {
        let (length, mut rest) = number(input);
        let mut blocks = BTreeMap::new();
        while !rest.is_empty() {
            let (index, bytes) = number(rest);
            let (block, after) = bytes.split_at(bytes.len().min(BLOCK));
            let mut block = block.to_vec();
            block.resize(BLOCK, 0);
            blocks.insert(u64::from(index), block);
            rest = after;
        }
        Self { blocks, length: u64::from(length) * BLOCK as u64 }
    }

    /// Returns the blocks.
    pub(super) fn blocks(&mut self) -> impl Iterator<Item = (&u64, &mut Vec<u8>)> {
        self.blocks.iter_mut()
    }
}

/// Takes a number, modulo the largest disk.
fn number(bytes: &[u8]) -> (u32, &[u8]) {
    let (number, rest) = bytes.split_at(bytes.len().min(NUMBER));
    let mut padded = [0; NUMBER];
    padded[..number.len()].copy_from_slice(number);
    (u32::from_le_bytes(padded) % MAX_BLOCKS, rest)
}

impl Source for Sparse {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.fill(0);
        let first = offset / BLOCK as u64;
        let last = (offset + buffer.len() as u64).div_ceil(BLOCK as u64);
        for (index, block) in self.blocks.range(first..last) {
            let start = index * BLOCK as u64;
            let from = offset.saturating_sub(start) as usize;
            let to = start.saturating_sub(offset) as usize;
            let count = (BLOCK - from).min(buffer.len() - to);
            buffer[to..to + count].copy_from_slice(&block[from..from + count]);
        }
        Ok(())
    }
}
