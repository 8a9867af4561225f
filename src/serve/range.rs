//! Ranges of bytes: `Range` of who reads (RFC 9110, section 14), and `Content-Range` of who writes (distribution
//! specification, "Pushing a blob in chunks").

use std::ops::Range;

/// More ranges than this in one request are not given one by one.
const MAX_RANGES: usize = 512;

/// What a request for ranges gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Everything: nothing else was asked for, or what was asked for makes no sense and is to be ignored.
    All,
    /// These parts, none of them empty, at least one.
    Parts(Vec<Range<u64>>),
    /// Nothing of it is there.
    Nothing,
}

impl Wanted {
    /// What the value `header` of `Range` wants of `size` bytes.
    pub(super) fn parse(header: &str, size: u64) -> Self {
        let Some((unit, set)) = header.split_once('=') else { return Self::All };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::All;
        }
        let (mut parts, mut total) = (Vec::new(), 0_u64);
        for (number, text) in set.split(',').enumerate() {
            if number >= MAX_RANGES {
                return Self::All;
            }
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            match parse_one(text, size) {
                One::Invalid => return Self::All,
                One::Beyond => {}
                One::Part(part) => {
                    total = total.saturating_add(part.end - part.start);
                    parts.push(part);
                }
            }
        }
        // Parts that overlap so much cost more than everything.
        match parts.len() {
            0 => Self::Nothing,
            1 => Self::Parts(parts),
            _ if total > size => Self::All,
            _ => Self::Parts(parts),
        }
    }
}

enum One {
    /// No range at all.
    Invalid,
    /// None of it is there.
    Beyond,
    Part(Range<u64>),
}

fn parse_one(text: &str, size: u64) -> One {
    let Some((first, last)) = text.split_once('-') else { return One::Invalid };
    let (first, last) = (first.trim(), last.trim());
    match (number(first), number(last)) {
        (Some(first), Some(last)) if last < first => One::Beyond,
        (Some(first), _) if first >= size && (last.is_empty() || number(last).is_some()) => {
            One::Beyond
        }
        (Some(first), Some(last)) => One::Part(first..last.saturating_add(1).min(size)),
        (Some(first), None) if last.is_empty() => One::Part(first..size),
        (None, Some(length)) if first.is_empty() => match length.min(size) {
            0 => One::Beyond,
            length => One::Part(size - length..size),
        },
        _ => One::Invalid,
    }
}

/// A number of digits alone; one that is too large for us is as large as can be.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The bytes that a chunk of an upload has: `a-b`, counted from 0, both inclusive. `bytes a-b/*` and the like are
/// taken, too.
pub(super) fn chunk(header: &str) -> Option<Range<u64>> {
    let text = header.trim();
    let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
    let text = text.split('/').next().unwrap_or_default();
    let (first, last) = text.split_once('-')?;
    let (first, last) = (number(first.trim())?, number(last.trim())?);
    (first <= last && last < u64::MAX).then(|| first..last + 1)
}

/// Calls every parser of this module with `text`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(text: &str) {
    for size in [0, 1, 1000, u64::MAX] {
        if let Wanted::Parts(parts) = Wanted::parse(text, size) {
            assert!(parts.iter().all(|part| part.start < part.end && part.end <= size));
        }
    }
    let _ = chunk(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_readers() {
        let parts = |list: &[(u64, u64)]| {
            Wanted::Parts(list.iter().map(|&(start, end)| start..end).collect())
        };
        for (header, wanted) in [
            ("bytes=0-0", parts(&[(0, 1)])),
            ("bytes=5-", parts(&[(5, 10)])),
            ("bytes=-3", parts(&[(7, 10)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes=2-100", parts(&[(2, 10)])),
            ("Bytes = 1-2 , 4-5", parts(&[(1, 3), (4, 6)])),
            ("bytes=1-2,20-30", parts(&[(1, 3)])),
            ("bytes=1-2,,", parts(&[(1, 3)])),
            ("bytes=9-99999999999999999999999", parts(&[(9, 10)])),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-12", Wanted::Nothing),
            ("bytes=5-0", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=99999999999999999999-", Wanted::Nothing),
            ("bytes=0-,0-", Wanted::All),
            ("items=0-1", Wanted::All),
            ("bytes", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("bytes=1", Wanted::All),
            ("bytes=--1", Wanted::All),
            ("bytes=1-2,x", Wanted::All),
        ] {
            assert_eq!(Wanted::parse(header, 10), wanted, "{header}");
        }
        assert_eq!(Wanted::parse("bytes=0-", 0), Wanted::Nothing);
        let many = format!("bytes={}", "0-0,".repeat(MAX_RANGES + 1));
        assert_eq!(Wanted::parse(&many, 10_000), Wanted::All);
    }

    #[test]
    fn chunks_of_writers() {
        for (header, range) in [
            ("0-9", Some(0..10)),
            ("10-10", Some(10..11)),
            ("bytes 0-9/100", Some(0..10)),
            ("bytes=0-9", Some(0..10)),
            (" 5-6 ", Some(5..7)),
            ("5-4", None),
            ("5", None),
            ("-5", None),
            ("5-", None),
            ("a-b", None),
            ("", None),
            ("0-18446744073709551615", None),
            ("0--1", None),
        ] {
            assert_eq!(chunk(header), range, "{header}");
        }
    }
}
