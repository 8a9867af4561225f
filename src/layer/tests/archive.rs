//! A builder of archives in every format.

/// An archive that is being made.
#[derive(Clone, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
}

/// A header that is being made.
#[derive(Clone)]
pub(super) struct Header {
    block: [u8; 512],
}

impl Header {
    /// A ustar header of `name` (at most 100 bytes) and `flag`, of mode 644, root, time 0, no data.
    pub(super) fn new(name: &[u8], flag: u8) -> Self {
        let mut header = Self { block: [0; 512] };
        header.put(0, name);
        header.block[156] = flag;
        header.put(257, b"ustar\x0000");
        header.mode(if flag == b'5' { 0o755 } else { 0o644 });
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, 0);
        header.octal(136, 12, 0);
        header
    }

    pub(super) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn octal(&mut self, at: usize, length: usize, number: u64) -> &mut Self {
        let text = format!("{number:0width$o}\0", width = length - 1);
        self.put(at, text.as_bytes())
    }

    /// GNU's form of large and negative numbers.
    pub(super) fn base256(&mut self, at: usize, length: usize, number: i64) -> &mut Self {
        let fill = if number < 0 { 0xff } else { 0 };
        self.block[at..at + length].fill(fill);
        let bytes = number.to_be_bytes();
        let from = bytes.len().saturating_sub(length);
        let start = at + length - (bytes.len() - from);
        self.put(start, &bytes[from..]);
        self.block[at] |= 0x80;
        self
    }

    pub(super) fn gnu(&mut self) -> &mut Self {
        self.put(257, b"ustar  \0")
    }

    pub(super) fn v7(&mut self) -> &mut Self {
        self.put(257, &[0; 8])
    }

    pub(super) fn mode(&mut self, mode: u64) -> &mut Self {
        self.octal(100, 8, mode)
    }

    pub(super) fn owner(&mut self, uid: u64, gid: u64) -> &mut Self {
        self.octal(108, 8, uid).octal(116, 8, gid)
    }

    pub(super) fn size(&mut self, bytes: u64) -> &mut Self {
        self.octal(124, 12, bytes)
    }

    pub(super) fn mtime(&mut self, secs: u64) -> &mut Self {
        self.octal(136, 12, secs)
    }

    pub(super) fn target(&mut self, target: &[u8]) -> &mut Self {
        self.put(157, target)
    }

    pub(super) fn device(&mut self, major: u64, minor: u64) -> &mut Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    /// Old GNU's map: parts, whether blocks with more of them follow, and the file's size.
    pub(super) fn sparse(&mut self, parts: &[(u64, u64)], more: bool, size: u64) -> &mut Self {
        for (at, (offset, length)) in parts.iter().enumerate() {
            self.octal(386 + at * 24, 12, *offset).octal(398 + at * 24, 12, *length);
        }
        self.block[482] = u8::from(more);
        self.octal(483, 12, size)
    }

    pub(super) fn bytes(&self, signed: bool) -> [u8; 512] {
        let mut block = self.block;
        block[148..156].fill(b' ');
        let sum: i64 =
            block.iter().map(|b| if signed { i64::from(*b as i8) } else { i64::from(*b) }).sum();
        let text = format!("{sum:06o}\0 ");
        block[148..156].copy_from_slice(text.as_bytes());
        block
    }
}

/// Records of a PAX header.
pub(super) fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (keyword, value) in records {
        let rest = keyword.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        out.extend_from_slice(format!("{length} {keyword}=").as_bytes());
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

impl Archive {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A header as it is, and data padded to blocks.
    pub(super) fn entry(self, header: &Header, data: &[u8]) -> Self {
        let mut archive = self.raw(&header.bytes(false)).raw(data);
        archive.bytes.resize(archive.bytes.len().next_multiple_of(512), 0);
        archive
    }

    /// A file with its content.
    pub(super) fn file(self, name: &str, content: &[u8]) -> Self {
        let mut header = Header::new(name.as_bytes(), b'0');
        self.entry(header.size(content.len() as u64), content)
    }

    pub(super) fn dir(self, name: &str) -> Self {
        self.entry(&Header::new(name.as_bytes(), b'5'), &[])
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(name.as_bytes(), b'1').target(target.as_bytes()), &[])
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(Header::new(name.as_bytes(), b'2').target(target.as_bytes()), &[])
    }

    /// A PAX header, `x` for the next entry or `g` for all that follow.
    pub(super) fn pax(self, flag: u8, pairs: &[(&str, &[u8])]) -> Self {
        let body = records(pairs);
        let mut header = Header::new(b"PaxHeaders/x", flag);
        self.entry(header.size(body.len() as u64), &body)
    }

    /// A GNU long name, `L`, or target, `K`.
    pub(super) fn long(self, flag: u8, name: &[u8]) -> Self {
        let body = [name, b"\0"].concat();
        let mut header = Header::new(b"././@LongLink", flag);
        self.entry(header.gnu().size(body.len() as u64), &body)
    }

    /// The archive so far, without an end.
    pub(super) fn open(self) -> Vec<u8> {
        self.bytes
    }

    /// The archive with its two blocks of zeros.
    pub(super) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}
