//! The maps of sparse files.

use super::{BLOCK_BYTES, Extent, MAX_HEADER_BYTES, block::parse_number};

/// Bytes of an offset and a length in GNU's old format.
const PAIR_BYTES: usize = 24;

/// Parts of a file: offset and length of each.
pub(super) type Parts = Vec<(u64, u64)>;

/// A map of GNU's old format: four parts in the header, more in blocks that follow it.
pub(super) struct OldMap {
    /// Bytes of the file; 0 if the header does not say.
    pub(super) size: u64,
    parts: Parts,
    is_extended: bool,
    wrong: Option<&'static str>,
}

impl OldMap {
    /// The map of a file of `size` bytes, which is `None` if that cannot be read.
    pub(super) fn new(size: Option<u64>) -> Self {
        let wrong = if size.is_none() { Some("its size is no number") } else { None };
        Self { size: size.unwrap_or(0), parts: Vec::new(), is_extended: false, wrong }
    }

    /// Whether a block with more of it follows.
    pub(super) fn is_extended(&self) -> bool {
        self.is_extended
    }

    pub(super) fn push(&mut self, pairs: &[u8], is_extended: u8) {
        self.is_extended = is_extended != 0;
        let number = |field| parse_number(field).and_then(|number| u64::try_from(number).ok());
        for pair in pairs.chunks_exact(PAIR_BYTES) {
            let (start, length) = pair.split_at(PAIR_BYTES / 2);
            // As in Go: what is not used is zeros; a length may be blank.
            if start[0] == 0 || self.wrong.is_some() {
                break;
            }
            match (number(start), number(length)) {
                (Some(start), Some(length)) => self.parts.push((start, length)),
                _ => self.wrong = Some("it is not made of numbers"),
            }
        }
    }

    /// Takes the block that follows; says whether it is the last one.
    pub(super) fn push_extension(&mut self, block: &[u8; BLOCK_BYTES]) -> bool {
        self.push(&block[..504], block[504]);
        if (self.parts.len() * PAIR_BYTES) as u64 > MAX_HEADER_BYTES {
            self.wrong = Some("it has more than 1 MiB");
            self.parts = Vec::new();
        }
        !self.is_extended
    }

    /// The extents of the file, whose data takes `stored` bytes from `data_offset` on.
    pub(super) fn finish(self, data_offset: u64, stored: u64) -> Result<Vec<Extent>, &'static str> {
        match self.wrong {
            Some(what) => Err(what),
            None => place(self.parts, data_offset, stored, self.size),
        }
    }
}

/// A map of PAX format 1.0: decimal numbers in lines, before the data, padded to blocks.
pub(super) struct MapText {
    /// Bytes of map and data.
    stored: u64,
    read: u64,
    number: u64,
    has_digits: bool,
    /// How many numbers there are, once that is known.
    expected: Option<u64>,
    numbers: Vec<u64>,
    wrong: Option<&'static str>,
}

impl MapText {
    pub(super) fn new(stored: u64) -> Self {
        Self {
            stored,
            read: 0,
            number: 0,
            has_digits: false,
            expected: None,
            numbers: Vec::new(),
            wrong: None,
        }
    }

    /// Takes the next block; says whether the map ends in it.
    pub(super) fn push(&mut self, block: &[u8]) -> bool {
        self.read += block.len() as u64;
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let next = self.number.checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.has_digits = true;
                    match next {
                        Some(next) => self.number = next,
                        None => self.wrong = Some("a number is too large"),
                    }
                }
                b'\n' if self.has_digits => {
                    let number = std::mem::take(&mut self.number);
                    self.has_digits = false;
                    match self.expected {
                        // A line is at least two bytes.
                        None if number > MAX_HEADER_BYTES / 4 => {
                            self.wrong = Some("it has too many parts");
                        }
                        None => self.expected = Some(number * 2),
                        Some(_) => self.numbers.push(number),
                    }
                }
                _ => self.wrong = Some("it is not made of numbers"),
            }
            if self.wrong.is_some() || self.expected == Some(self.numbers.len() as u64) {
                return true;
            }
        }
        false
    }

    /// The extents of a file of `size` bytes whose data begins at `data_offset` and takes `left`
    /// bytes with its padding.
    pub(super) fn finish(
        self,
        data_offset: u64,
        left: u64,
        size: u64,
    ) -> Result<Vec<Extent>, &'static str> {
        if let Some(what) = self.wrong {
            return Err(what);
        }
        if self.expected != Some(self.numbers.len() as u64) {
            return Err("it is not complete");
        }
        let parts = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let data = self.stored.saturating_sub(self.read).min(left);
        place(parts, data_offset, data, size)
    }
}

/// The extents of a file of `size` bytes that has these `parts` of it stored one after the other
/// in the `stored` bytes at `data_offset`.
pub(super) fn place(
    parts: Parts,
    data_offset: u64,
    stored: u64,
    size: u64,
) -> Result<Vec<Extent>, &'static str> {
    // No file system has files that large, and offsets are added up.
    if size > 1 << 62 {
        return Err("the file is too large");
    }
    let mut extents = Vec::with_capacity(parts.len());
    let (mut file_end, mut used) = (0, 0_u64);
    for (file_offset, length) in parts {
        let end = file_offset.checked_add(length).ok_or("a number is too large")?;
        if file_offset < file_end {
            return Err("its parts overlap");
        }
        if end > size {
            return Err("a part is behind the end of the file");
        }
        file_end = end;
        if length > 0 {
            extents.push(Extent { file_offset, stream_offset: data_offset + used, length });
        }
        // No more than `size` in all, since they do not overlap.
        used += length;
        if used > stored {
            return Err("its parts have more bytes than are stored");
        }
    }
    if used < stored { Err("its parts have fewer bytes than are stored") } else { Ok(extents) }
}
