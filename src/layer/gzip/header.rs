//! The header of a gzip member (RFC 1952, section 2.3).

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

/// Which field comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Fixed(u8),
    ExtraLength(u8),
    Extra(u16),
    Name,
    Comment,
    Checksum(u8),
    Done,
}

/// Reads a header byte by byte. Names may be as long as they like: they are not kept.
pub(super) struct HeaderParser {
    field: Field,
    flags: u8,
    number: u16,
    crc: crc32fast::Hasher,
}

impl HeaderParser {
    pub(super) fn new() -> Self {
        Self { field: Field::Fixed(0), flags: 0, number: 0, crc: crc32fast::Hasher::new() }
    }

    /// Whether nothing has been read yet.
    pub(super) fn is_new(&self) -> bool {
        self.field == Field::Fixed(0)
    }

    /// Takes the next byte; says whether it was the last one.
    pub(super) fn push(&mut self, byte: u8) -> Result<bool, &'static str> {
        if !matches!(self.field, Field::Checksum(_)) {
            self.crc.update(&[byte]);
        }
        match self.field {
            Field::Fixed(at) => {
                match at {
                    0 if byte != 0x1f => return Err("a gzip member does not begin as one"),
                    1 if byte != 0x8b => return Err("a gzip member does not begin as one"),
                    2 if byte != 8 => return Err("a gzip member is not compressed with deflate"),
                    3 if byte & RESERVED != 0 => return Err("a gzip header has unknown flags"),
                    3 => self.flags = byte,
                    _ => {}
                }
                self.field = Field::Fixed(at + 1);
                if at == 9 {
                    self.begin(Field::ExtraLength(0));
                }
            }
            Field::ExtraLength(0) => {
                self.number = u16::from(byte);
                self.field = Field::ExtraLength(1);
            }
            Field::ExtraLength(_) => match self.number | u16::from(byte) << 8 {
                0 => self.begin(Field::Name),
                length => self.field = Field::Extra(length),
            },
            Field::Extra(1) => self.begin(Field::Name),
            Field::Extra(left) => self.field = Field::Extra(left - 1),
            Field::Name if byte == 0 => self.begin(Field::Comment),
            Field::Comment if byte == 0 => self.begin(Field::Checksum(0)),
            Field::Name | Field::Comment | Field::Done => {}
            Field::Checksum(0) => {
                self.number = u16::from(byte);
                self.field = Field::Checksum(1);
            }
            Field::Checksum(_) => {
                let found = self.crc.clone().finalize() as u16;
                if found != self.number | u16::from(byte) << 8 {
                    return Err("the checksum of a gzip header is wrong");
                }
                self.field = Field::Done;
            }
        }
        Ok(self.field == Field::Done)
    }

    /// Goes on with `field`, or with the first one after it that is there.
    fn begin(&mut self, field: Field) {
        let fields = [
            (Field::ExtraLength(0), FEXTRA),
            (Field::Name, FNAME),
            (Field::Comment, FCOMMENT),
            (Field::Checksum(0), FHCRC),
        ];
        self.field = fields
            .into_iter()
            .skip_while(|(f, _)| *f != field)
            .find(|(_, flag)| self.flags & flag != 0)
            .map_or(Field::Done, |(f, _)| f);
    }
}
