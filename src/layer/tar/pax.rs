//! The records of PAX headers.

use std::collections::{BTreeMap, HashMap};

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::{Time, sparse::Parts};

/// How keywords of extended attributes begin that star and GNU tar write; values are as they are.
const SCHILY: &[u8] = b"SCHILY.xattr.";

/// And those that libarchive writes; values are in base 64.
const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

/// libarchive leaves the padding out, others do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Keyword and value of each record that matters. Those of sparse maps of format 0.0 come several
/// times, so the order counts; otherwise the last one of a keyword does.
#[derive(Clone, Default)]
pub(super) struct Records {
    list: Vec<(Vec<u8>, Vec<u8>)>,
    by_keyword: HashMap<Vec<u8>, usize>,
}

impl Records {
    /// Adds those of a header: `LENGTH KEYWORD=VALUE\n` each, where the length counts all of it.
    pub(super) fn read(&mut self, mut body: &[u8]) -> Result<(), &'static str> {
        while !body.is_empty() {
            let space = body.iter().take(20).position(|b| *b == b' ');
            let space = space.ok_or("a record has no length")?;
            let length: usize = std::str::from_utf8(&body[..space])
                .ok()
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .ok_or("the length of a record is no number")?;
            if length <= space + 1 || length > body.len() {
                return Err("the length of a record is wrong");
            }
            let (record, rest) = body.split_at(length);
            body = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or("a record has no end")?;
            let equals = record.iter().position(|b| *b == b'=').ok_or("a record has no value")?;
            let (keyword, value) = (&record[..equals], &record[equals + 1..]);
            if keyword.is_empty() {
                return Err("a record has no keyword");
            }
            self.set(keyword, value);
        }
        Ok(())
    }

    fn set(&mut self, keyword: &[u8], value: &[u8]) {
        let is_sparse = keyword.starts_with(b"GNU.sparse.");
        let is_xattr = keyword.starts_with(SCHILY) || keyword.starts_with(LIBARCHIVE);
        let is_field =
            matches!(keyword, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime");
        if is_sparse {
            self.list.push((keyword.to_vec(), value.to_vec()));
        } else if is_xattr || is_field {
            match self.by_keyword.get(keyword) {
                Some(at) => self.list[*at].1 = value.to_vec(),
                None => {
                    self.by_keyword.insert(keyword.to_vec(), self.list.len());
                    self.list.push((keyword.to_vec(), value.to_vec()));
                }
            }
        }
    }

    /// Bytes of all keywords and values.
    pub(super) fn bytes(&self) -> usize {
        self.list.iter().map(|(keyword, value)| keyword.len() + value.len()).sum()
    }
}

/// Extended attributes by name, with `None` for a value that is none.
type Xattrs = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The extended attributes that these keywords and values of an entry's records stand for; nothing at
/// all if they have the map of a sparse file.
pub(in crate::layer) fn xattrs_of<'a>(
    records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Option<Xattrs>, &'static str> {
    let (global, mut local) = (Records::default(), Records::default());
    for (keyword, value) in records {
        local.set(keyword, value);
    }
    let attributes = Attributes::new(&global, &local)?;
    Ok((!attributes.is_sparse()).then(|| attributes.xattrs()))
}

/// What global and local records say of an entry.
#[derive(Default)]
pub(super) struct Attributes<'a> {
    path: Option<&'a [u8]>,
    pub(super) target: Option<&'a [u8]>,
    pub(super) size: Option<u64>,
    /// The owner, which may be negative.
    pub(super) uid: Option<i64>,
    /// The group, which may be negative.
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    /// What is said of the entry and cannot be read.
    pub(super) unreadable: Vec<&'static str>,
    xattrs: Vec<(Encoding, &'a [u8], &'a [u8])>,
    sparse: Sparse<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Raw,
    Base64,
}

#[derive(Default)]
struct Sparse<'a> {
    major: Option<&'a [u8]>,
    minor: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
    size: Option<&'a [u8]>,
    map: Option<&'a [u8]>,
    blocks: Option<&'a [u8]>,
    /// Of format 0.0: `GNU.sparse.offset` and `GNU.sparse.numbytes` in turn.
    numbers: Vec<(bool, &'a [u8])>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(global: &'a Records, local: &'a Records) -> Result<Self, &'static str> {
        let mut found = Self::default();
        for (keyword, value) in global.list.iter().chain(&local.list) {
            found.take(keyword, value)?;
        }
        Ok(found)
    }

    fn take(&mut self, keyword: &'a [u8], value: &'a [u8]) -> Result<(), &'static str> {
        // An empty value takes back what a global header says.
        let some = (!value.is_empty()).then_some(value);
        match keyword {
            b"path" => self.path = some,
            b"linkpath" => self.target = some,
            // Without it nobody knows where the next entry is.
            b"size" => {
                let size = |v| signed(v).and_then(|size| u64::try_from(size).ok());
                self.size = some.map(|v| size(v).ok_or("size is no number")).transpose()?;
            }
            b"uid" => self.uid = some.and_then(|v| self.read("owner", signed(v))),
            b"gid" => self.gid = some.and_then(|v| self.read("group", signed(v))),
            b"mtime" => self.mtime = some.and_then(|v| self.read("time", parse_time(v))),
            b"GNU.sparse.major" => self.sparse.major = some,
            b"GNU.sparse.minor" => self.sparse.minor = some,
            b"GNU.sparse.name" => self.sparse.name = some,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = some,
            b"GNU.sparse.map" => self.sparse.map = Some(value),
            b"GNU.sparse.numblocks" => self.sparse.blocks = some,
            b"GNU.sparse.offset" => self.sparse.numbers.push((false, value)),
            b"GNU.sparse.numbytes" => self.sparse.numbers.push((true, value)),
            _ => {
                let (encoding, name) = if let Some(name) = keyword.strip_prefix(SCHILY) {
                    (Encoding::Raw, name)
                } else if let Some(name) = keyword.strip_prefix(LIBARCHIVE) {
                    (Encoding::Base64, name)
                } else {
                    return Ok(());
                };
                self.xattrs.push((encoding, name, value));
            }
        }
        Ok(())
    }

    /// Notes that `field` cannot be read, if it cannot.
    fn read<T>(&mut self, field: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.unreadable.push(field);
        }
        value
    }

    pub(super) fn name(&self) -> Option<&'a [u8]> {
        self.path
    }

    /// The extended attributes. What star's form of a name says counts more than libarchive's: bsdtar
    /// writes both.
    pub(super) fn xattrs(&self) -> Xattrs {
        let of = |wanted| self.xattrs.iter().filter(move |(e, _, _)| *e == wanted);
        let libarchive = of(Encoding::Base64)
            .map(|(_, name, value)| (percent_decode(name), BASE64.decode(value).ok()));
        let schily =
            of(Encoding::Raw).map(|(_, name, value)| (name.to_vec(), Some(value.to_vec())));
        libarchive.chain(schily).collect()
    }

    pub(super) fn is_sparse(&self) -> bool {
        let sparse = &self.sparse;
        self.has_map_in_data()
            || sparse.map.is_some()
            || sparse.blocks.is_some()
            || !sparse.numbers.is_empty()
    }

    /// Whether it is of format 1.0.
    pub(super) fn has_map_in_data(&self) -> bool {
        self.sparse.major == Some(b"1") && self.sparse.minor == Some(b"0")
    }

    pub(super) fn sparse_name(&self) -> Option<&'a [u8]> {
        self.sparse.name
    }

    pub(super) fn sparse_size(&self) -> Result<Option<u64>, &'static str> {
        self.sparse.size.map(|v| number(v, "its size is no number")).transpose()
    }

    /// The map of formats 0.0 and 0.1.
    pub(super) fn sparse_map(&self) -> Result<Parts, &'static str> {
        let mut numbers = Vec::new();
        if let Some(map) = self.sparse.map {
            for text in map.split(|b| *b == b',').filter(|text| !text.is_empty()) {
                numbers.push(number(text, "it is not made of numbers")?);
            }
        } else {
            for (at, (is_length, text)) in self.sparse.numbers.iter().enumerate() {
                if *is_length != (at % 2 == 1) {
                    return Err("an offset or a length is missing");
                }
                numbers.push(number(text, "it is not made of numbers")?);
            }
        }
        let blocks = self.sparse.blocks.map(|v| number(v, "its count is no number")).transpose()?;
        if numbers.len() % 2 != 0 || blocks.is_some_and(|count| count != numbers.len() as u64 / 2) {
            return Err("it is not complete");
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

fn number(text: &[u8], what: &'static str) -> Result<u64, &'static str> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_number);
    text.and_then(|text| text.parse().ok()).ok_or(what)
}

/// A decimal number of 64 bits with an optional sign, as Go's `strconv.ParseInt` takes it.
fn signed(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional sign and fraction. Digits beyond nanoseconds are cut off.
fn parse_time(text: &[u8]) -> Option<Time> {
    let mut parts = text.splitn(2, |b| *b == b'.');
    let secs = signed(parts.next()?)?;
    let mut nanos = 0;
    if let Some(digits) = parts.next() {
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanos = nanos * 10 + digits.get(at).map_or(0, |digit| u32::from(digit - b'0'));
        }
    }
    // The fraction counts away from 0, also that of `-0.5`.
    if text.starts_with(b"-") && nanos > 0 {
        return Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { secs, nanos })
}

/// Names of libarchive's attributes have unusual bytes as `%XX`.
fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = if first == b'%' { tail.get(..2) } else { None };
        let byte = digits.and_then(|digits| {
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok().map(|()| byte[0])
        });
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table: [(&str, Option<(i64, u32)>); 19] = [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1350244992.0239601089", Some((1_350_244_992, 23_960_108))),
            ("1350244992.3", Some((1_350_244_992, 300_000_000))),
            ("1350244992.", Some((1_350_244_992, 0))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.000000001", Some((-1, 999_999_999))),
            ("-0.0", Some((0, 0))),
            ("", None),
            ("1.x", None),
            ("--1", None),
            ("99999999999999999999", None),
            ("+5", Some((5, 0))),
            (".5", None),
            ("1.-5", None),
            ("9223372036854775807.5", Some((i64::MAX, 500_000_000))),
            ("-9223372036854775808", Some((i64::MIN, 0))),
            ("-9223372036854775808.5", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(secs, nanos)| Time { secs, nanos });
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn damaged_records() {
        for body in [
            "x",
            "5",
            "6 a=b",
            "5 a=b\n",
            "6 a=b\n6 a=",
            "0 a=b\n",
            "3 a\n",
            "4 ab\n",
            "5 =bc\n",
            "+6 a=b\n",
            "99999999999999999999 a=b\n",
            "99999 a=b\n",
        ] {
            assert!(Records::default().read(body.as_bytes()).is_err(), "{body:?}");
        }
        assert!(Records::default().read(b"6 a=b\n6 a=\n\n").is_ok());
    }

    #[test]
    fn names_of_attributes() {
        assert_eq!(percent_decode(b"user.a%20b%"), b"user.a b%");
        assert_eq!(percent_decode(b"%zz%4"), b"%zz%4");
    }
}
