//! The fields of a header block.

use super::{OldMap, TarError};

/// Everything in an archive begins at a multiple of this.
pub(in crate::layer) const BLOCK_BYTES: usize = 512;

/// A header block and its offset in the stream.
pub(super) struct Block<'a> {
    bytes: &'a [u8; BLOCK_BYTES],
    pub(super) offset: u64,
}

/// Who made the header, as its magic bytes say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Block<'a> {
    pub(super) fn new(bytes: &'a [u8; BLOCK_BYTES], offset: u64) -> Self {
        Self { bytes, offset }
    }

    pub(super) fn is_zero(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0)
    }

    /// Checks the checksum, of unsigned bytes as it should be or of signed ones as some made it.
    pub(super) fn check(&self) -> Result<(), TarError> {
        let wrong = TarError::Checksum { offset: self.offset };
        let stored = match parse_number(&self.bytes[148..156]) {
            Some(stored) => stored,
            None => return Err(wrong),
        };
        let mut unsigned = 0;
        let mut signed = 0;
        for (at, byte) in self.bytes.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i128::from(byte);
            signed += i128::from(byte as i8);
        }
        if stored == unsigned || stored == signed { Ok(()) } else { Err(wrong) }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.bytes[156]
    }

    fn format(&self) -> Format {
        match &self.bytes[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if &self.bytes[508..512] == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        }
    }

    /// The name with its prefix, if the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match self.format() {
            Format::Ustar => self.text(345..500),
            Format::Star => self.text(345..476),
            Format::V7 | Format::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn target(&self) -> Vec<u8> {
        self.text(157..257).to_vec()
    }

    /// Bytes that follow.
    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.number(124..136, "size")
    }

    /// Permissions; `None` if they cannot be read.
    pub(super) fn mode(&self) -> Option<u16> {
        // Some put the type of the file into the bits above.
        self.signed(100..108).map(|mode| (mode & 0o7777) as u16)
    }

    /// The owner, which may be negative; `None` if it cannot be read.
    pub(super) fn uid(&self) -> Option<i64> {
        self.signed(108..116)
    }

    /// The group, which may be negative; `None` if it cannot be read.
    pub(super) fn gid(&self) -> Option<i64> {
        self.signed(116..124)
    }

    /// Seconds since 1970; `None` if they cannot be read.
    pub(super) fn mtime(&self) -> Option<i64> {
        self.signed(136..148)
    }

    /// Major and minor number; `None` if they cannot be read.
    pub(super) fn device(&self) -> Option<(u64, u64)> {
        if self.format() == Format::V7 {
            return Some((0, 0));
        }
        Some((self.unsigned(329..337)?, self.unsigned(337..345)?))
    }

    /// What the header itself has of a sparse map.
    pub(super) fn old_sparse(&self) -> OldMap {
        let mut map = OldMap::new(self.unsigned(483..495));
        map.push(&self.bytes[386..482], self.bytes[482]);
        map
    }

    fn text(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        let field = &self.bytes[range];
        &field[..field.iter().position(|b| *b == 0).unwrap_or(field.len())]
    }

    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarError> {
        self.unsigned(range).ok_or(TarError::Number { offset: self.offset, field })
    }

    fn unsigned(&self, range: std::ops::Range<usize>) -> Option<u64> {
        parse_number(&self.bytes[range]).and_then(|number| u64::try_from(number).ok())
    }

    fn signed(&self, range: std::ops::Range<usize>) -> Option<i64> {
        parse_number(&self.bytes[range]).and_then(|number| i64::try_from(number).ok())
    }
}

/// A number in octal digits, or in GNU's base 256 if its first bit is set. `None` if it is
/// neither, or does not fit 64 bits. Blank is 0.
pub(super) fn parse_number(field: &[u8]) -> Option<i128> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => {
            // Two's complement without its sign bit, which is the second bit.
            let is_negative = first & 0x40 != 0;
            let mut number: i128 = if is_negative { -1 } else { 0 };
            for (at, byte) in field.iter().enumerate() {
                let byte = if at == 0 && !is_negative { byte & 0x7f } else { *byte };
                if !(-(1 << 64)..1 << 64).contains(&number) {
                    return None;
                }
                number = number << 8 | i128::from(byte);
            }
            (-(1 << 64)..1 << 64).contains(&number).then_some(number)
        }
        _ => {
            let is_blank = |b: &u8| *b == b' ' || *b == 0;
            let start = field.iter().position(|b| !is_blank(b)).unwrap_or(field.len());
            let digits = &field[start..];
            let end = digits.iter().position(is_blank).unwrap_or(digits.len());
            digits[..end].iter().try_fold(0, |number, digit| {
                // Twelve digits at most: no overflow.
                matches!(digit, b'0'..=b'7').then(|| number << 3 | i128::from(digit - b'0'))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let table: [(&[u8], Option<i128>); 14] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"77777777", Some(0o77777777)),
            (b"644 junk", Some(0o644)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\x02\0\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\x02\0\0\0\0\0\0\0", Some(2 << 56)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", Some(-256)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in table {
            assert_eq!(parse_number(field), expected, "{field:?}");
        }
    }
}
