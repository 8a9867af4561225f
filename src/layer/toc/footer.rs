//! The end of an eStargz: an empty gzip member that says where the table is.

/// What the last bytes of a blob say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    /// Bytes of the footer.
    pub(super) bytes: u64,
    /// Where in the blob the table begins.
    pub(super) toc_offset: u64,
}

const MAGIC: &[u8] = b"STARGZ";

/// Digits of the offset.
const DIGITS: usize = 16;

/// The fixed fields of a gzip header, the deflate block with nothing in it, and the trailer.
const HEADER_BYTES: usize = 10;
const EMPTY_BLOCK: &[u8] = &[1, 0, 0, 0xff, 0xff];
const TRAILER_BYTES: usize = 8;

/// Reads the footer at the end of `tail`: the one of eStargz, whose extra field is made of subfields
/// as RFC 1952 (section 2.3.1.1) has them, or the older one of stargz, which is not.
pub(super) fn parse(tail: &[u8]) -> Option<Footer> {
    // The length of the extra field; in it the name of the subfield and its length.
    let forms: [&[u8]; 2] = [&[26, 0, b'S', b'G', 22, 0], &[22, 0]];
    forms.into_iter().find_map(|form| {
        let bytes =
            HEADER_BYTES + form.len() + DIGITS + MAGIC.len() + EMPTY_BLOCK.len() + TRAILER_BYTES;
        let footer = &tail[tail.len().checked_sub(bytes)?..];
        let (header, rest) = footer.split_at(HEADER_BYTES);
        // Magic, deflate, and that there is an extra field and nothing else.
        if header[..4] != [0x1f, 0x8b, 8, 4] {
            return None;
        }
        let (digits, rest) = rest.strip_prefix(form)?.split_at(DIGITS);
        if rest.strip_prefix(MAGIC)?.strip_prefix(EMPTY_BLOCK)? != [0; TRAILER_BYTES] {
            return None;
        }
        let mut offset = [0; DIGITS / 2];
        hex::decode_to_slice(digits, &mut offset).ok()?;
        Some(Footer { bytes: bytes as u64, toc_offset: u64::from_be_bytes(offset) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn footers() {
        let header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff";
        let end = [b"STARGZ\x01\0\0\xff\xff", &[0; 8][..]].concat();
        let new = |digits: &str| [&header[..], b"\x1a\0SG\x16\0", digits.as_bytes(), &end].concat();
        let old = |digits: &str| [&header[..], b"\x16\0", digits.as_bytes(), &end].concat();
        let digits = "00000000000a4f01";
        let toc_offset = 0xa4f01;
        assert_eq!(new(digits).len(), 51);
        let parsed = parse(&[b"whatever", &new(digits)[..]].concat());
        assert_eq!(parsed, Some(Footer { bytes: 51, toc_offset }));
        assert_eq!(parse(&old(digits)), Some(Footer { bytes: 47, toc_offset }));
        assert_eq!(parse(&new("ffffffffffffffff")).unwrap().toc_offset, u64::MAX);
        let mut wrong = vec![
            Vec::new(),
            b"STARGZ".to_vec(),
            new("+0000000000a4f01"),
            new("00000000000a4f0g"),
            new(digits)[1..].to_vec(),
            [&new(digits)[..], b"\0"].concat(),
        ];
        for at in [0, 1, 2, 3, 10, 12, 13, 14, 32, 38, 50] {
            let mut bad = new(digits);
            bad[at] ^= 0x40;
            wrong.push(bad);
        }
        for footer in wrong {
            assert_eq!(parse(&footer), None, "{}", footer.escape_ascii());
        }
    }
}
