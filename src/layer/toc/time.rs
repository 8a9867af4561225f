//! Times as Go writes them into JSON.

use chrono::{NaiveDate, NaiveTime};

use crate::layer::Time;

/// Year 1, which Go has for "no time"; in archives that is 1970.
const GO_ZERO: i64 = -62_135_596_800;

/// The time that an RFC 3339 text means, with the years 0 to 9999. Digits beyond nanoseconds are cut
/// off. What is empty means 1970, and so does Go's zero.
pub(super) fn parse(text: &str) -> Option<Time> {
    if text.is_empty() {
        return Some(Time::default());
    }
    let (date, rest) = text.as_bytes().split_at_checked(19)?;
    let number = |range: std::ops::Range<usize>| number(&date[range]);
    let marks = [date[4], date[7], date[10], date[13], date[16]];
    if marks != *b"--T::" {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let day = NaiveDate::from_ymd_opt(
        i32::try_from(year).ok()?,
        u32::try_from(month).ok()?,
        u32::try_from(day).ok()?,
    )?;
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, rest) = match rest.split_first() {
        Some((b'.', rest)) => {
            let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            if digits == 0 {
                return None;
            }
            let digit = |at: usize| rest[..digits].get(at).map_or(0, |b| u32::from(b - b'0'));
            ((0..9).fold(0, |nanos, at| nanos * 10 + digit(at)), &rest[digits..])
        }
        _ => (0, rest),
    };
    let east = match rest {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), hours @ .., b':', tens, ones] if hours.len() == 2 => {
            let (hours, minutes) = (self::number(hours)?, self::number(&[*tens, *ones])?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let of_day = hour * 3600 + minute * 60 + second;
    let secs = day.and_time(NaiveTime::MIN).and_utc().timestamp() + of_day - east;
    if secs == GO_ZERO && nanos == 0 {
        return Some(Time::default());
    }
    Some(Time { secs, nanos })
}

fn number(digits: &[u8]) -> Option<i64> {
    digits
        .iter()
        .try_fold(0, |number, b| b.is_ascii_digit().then(|| number * 10 + i64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        // The seconds are what GNU date says.
        let table: [(&str, Option<(i64, u32)>); 28] = [
            ("", Some((0, 0))),
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            ("2019-08-20T10:30:43Z", Some((1_566_297_043, 0))),
            ("2019-08-20T10:30:43.5Z", Some((1_566_297_043, 500_000_000))),
            ("2019-08-20T10:30:43.0239601089Z", Some((1_566_297_043, 23_960_108))),
            ("2019-08-20T12:30:43+02:00", Some((1_566_297_043, 0))),
            ("2019-08-20T05:00:43.25-05:30", Some((1_566_297_043, 250_000_000))),
            ("2000-02-29T23:59:59Z", Some((951_868_799, 0))),
            ("1900-03-01T00:00:00Z", Some((-2_203_891_200, 0))),
            ("1969-12-31T23:59:59.75Z", Some((-1, 750_000_000))),
            ("2100-12-31T00:00:00Z", Some((4_133_894_400, 0))),
            ("9999-12-31T23:59:59Z", Some((253_402_300_799, 0))),
            ("0000-01-01T00:00:00Z", Some((-62_167_219_200, 0))),
            ("0000-12-31T00:00:00Z", Some((-62_135_683_200, 0))),
            ("0001-01-01T00:00:01Z", Some((-62_135_596_799, 0))),
            ("0001-01-01T00:00:00Z", Some((0, 0))),
            ("2019-02-29T00:00:00Z", None),
            ("2100-02-29T00:00:00Z", None),
            ("2019-13-01T00:00:00Z", None),
            ("2019-00-01T00:00:00Z", None),
            ("2019-01-01T24:00:00Z", None),
            ("2019-01-01T00:00:60Z", None),
            ("2019-01-01T00:00:00", None),
            ("2019-01-01T00:00:00.Z", None),
            ("2019-01-01T00:00:00Z ", None),
            ("2019-01-01T00:00:00+24:00", None),
            ("2019-01-01 00:00:00Z", None),
            ("2019-01-01T00:00:0éZ", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|(secs, nanos)| Time { secs, nanos });
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
