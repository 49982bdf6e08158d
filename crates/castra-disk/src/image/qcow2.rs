//! Content of a qcow2: where each byte of the disk is.
//!
//! This reads, and has no way to write: crates that could do both would need unsafe code for
//! vectored I/O, and the promise that nothing calls their other half.

use std::fs::File;
use std::io::{self, Read};

use super::cache::Cache;
use super::header::{Compression, Header, MAX_BYTES, OFFSET_MASK};
use super::{ImageError, read_or_zero};

/// Bit of a level-2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit of a standard level-2 entry: the cluster reads as zeros.
const ZERO: u64 = 1;
/// Number of subclusters of a cluster with an extended level-2 entry.
const SUBCLUSTERS: u64 = 32;
/// Memory for level-2 tables, and for inflated clusters, in bytes.
const CACHE_BYTES: usize = 8 << 20;

/// An opened qcow2.
pub(super) struct Qcow2 {
    file: File,
    header: Header,
    l1: Vec<u64>,
    l2: Cache<u64>,
    inflated: Cache<u8>,
}

/// Place of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Not in this file: they are in the backing file.
    Below,
    /// Zeros.
    Zero,
    /// Bytes of the file from this offset on.
    Data(u64),
    /// Bytes from `skip` on of the cluster that `length` bytes at `offset` inflate to.
    Compressed { offset: u64, length: u64, skip: usize },
}

impl Qcow2 {
    /// Opens a layer. Returns also `true` if it has a backing file.
    pub(super) fn open(file: File, layer: usize) -> Result<(Self, bool), ImageError> {
        let unreadable = |source| ImageError::Read { layer, source };
        let mut beginning = [0; MAX_BYTES];
        // A file that is shorter has zeros there, which no valid header has.
        read_or_zero(&file, 0, &mut beginning).map_err(unreadable)?;
        let header =
            Header::parse(&beginning).map_err(|source| ImageError::Header { layer, source })?;
        let mut l1 = vec![0; header.l1_entries * 8];
        read_or_zero(&file, header.l1_offset, &mut l1).map_err(unreadable)?;
        let cluster = 1 << header.cluster_bits;
        let has_backing = header.has_backing;
        let qcow2 = Self {
            file,
            l1: numbers(&l1),
            l2: Cache::new(CACHE_BYTES / cluster),
            inflated: Cache::new(CACHE_BYTES / cluster),
            header,
        };
        Ok((qcow2, has_backing))
    }

    pub(super) fn length(&self) -> u64 {
        self.header.virtual_bytes
    }

    /// Returns where the byte at `offset` is, and for how many bytes that holds.
    pub(super) fn extent(&self, offset: u64) -> io::Result<(Extent, u64)> {
        let cluster = 1_u64 << self.header.cluster_bits;
        let within = offset % cluster;
        let words = if self.header.extended_l2 { 2 } else { 1 };
        let entries = cluster / 8 / words;
        let index = offset / cluster;
        let rest = cluster - within;
        let l2_offset = self.l1.get((index / entries) as usize).map_or(0, |l1| l1 & OFFSET_MASK);
        if l2_offset == 0 {
            return Ok((Extent::Below, rest));
        }
        let table = self.table(l2_offset, cluster)?;
        let at = (index % entries * words) as usize;
        let entry = table[at];
        if entry & COMPRESSED != 0 {
            return Ok((self.compressed(entry, within), rest));
        }
        let host = entry & OFFSET_MASK;
        if !host.is_multiple_of(cluster) {
            return Err(invalid("a cluster is at an invalid offset"));
        }
        if self.header.extended_l2 {
            let length = cluster / SUBCLUSTERS;
            let extent = subcluster(table[at + 1], within / length, host + within)?;
            return Ok((extent, length - within % length));
        }
        let extent = match (entry & ZERO, host) {
            (ZERO, _) => Extent::Zero,
            (_, 0) => Extent::Below,
            (_, host) => Extent::Data(host + within),
        };
        Ok((extent, rest))
    }

    /// Reads bytes that are in this file.
    pub(super) fn read(&self, extent: Extent, buffer: &mut [u8]) -> io::Result<()> {
        match extent {
            Extent::Data(offset) => read_or_zero(&self.file, offset, buffer),
            Extent::Compressed { offset, length, skip } => {
                let cluster = self.inflated.get(offset, || self.inflate(offset, length))?;
                let bytes = cluster.get(skip..).and_then(|bytes| bytes.get(..buffer.len()));
                let bytes = bytes.ok_or_else(|| invalid("a compressed cluster is too short"))?;
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            Extent::Zero | Extent::Below => Err(invalid("these bytes are not in the file")),
        }
    }

    fn table(&self, offset: u64, cluster: u64) -> io::Result<std::sync::Arc<[u64]>> {
        if !offset.is_multiple_of(cluster) {
            return Err(invalid("a level-2 table is at an invalid offset"));
        }
        self.l2.get(offset, || {
            let mut bytes = vec![0; cluster as usize];
            read_or_zero(&self.file, offset, &mut bytes)?;
            Ok(numbers(&bytes))
        })
    }

    fn compressed(&self, entry: u64, within: u64) -> Extent {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
        let length = (sectors + 1) * 512 - offset % 512;
        Extent::Compressed { offset, length, skip: within as usize }
    }

    fn inflate(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let cluster = 1_usize << self.header.cluster_bits;
        // At most two clusters, since the number of sectors has that many bits.
        let mut compressed = vec![0; length as usize];
        read_or_zero(&self.file, offset, &mut compressed)?;
        let damaged = || invalid("a compressed cluster is damaged");
        match self.header.compression {
            Compression::Deflate => {
                miniz_oxide::inflate::decompress_to_vec_with_limit(&compressed, cluster)
                    .map_err(|_| damaged())
            }
            Compression::Zstd => {
                let mut bytes = vec![0; cluster];
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(&compressed[..])
                    .map_err(|_| damaged())?;
                decoder.read_exact(&mut bytes).map_err(|_| damaged())?;
                Ok(bytes)
            }
        }
    }
}

/// Returns where a subcluster is, by the bitmap of its cluster's extended level-2 entry.
fn subcluster(bitmap: u64, index: u64, host: u64) -> io::Result<Extent> {
    let is_allocated = bitmap >> index & 1 != 0;
    let is_zero = bitmap >> (index + SUBCLUSTERS) & 1 != 0;
    match (is_allocated, is_zero) {
        (true, true) => Err(invalid("a subcluster is both data and zeros")),
        (true, false) => Ok(Extent::Data(host)),
        (false, true) => Ok(Extent::Zero),
        (false, false) => Ok(Extent::Below),
    }
}

fn numbers(bytes: &[u8]) -> Vec<u64> {
    let (numbers, _) = bytes.as_chunks::<8>();
    numbers.iter().map(|number| u64::from_be_bytes(*number)).collect()
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
