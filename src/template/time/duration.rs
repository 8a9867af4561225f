//! Lengths of time, as Go's `time.ParseDuration` and `Duration.String` have them, in nanoseconds.

const SECOND: i128 = 1_000_000_000;

/// Reads `1h15m30.918s`, `-1.5h`, `300ms` or `0`.
pub(in crate::template) fn parse(text: &str) -> Result<i64, String> {
    let shown: String = text.chars().take(60).collect();
    let invalid = || format!("time: invalid duration {shown:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum: i128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        rest = after;
        let nanos: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => SECOND,
            "m" => 60 * SECOND,
            "h" => 3600 * SECOND,
            "" => return Err(format!("time: missing unit in duration {shown:?}")),
            _ => return Err(format!("time: unknown unit in duration {shown:?}")),
        };
        let whole: i128 = match whole {
            "" => 0,
            digits => digits.parse::<i64>().map_err(|_| invalid())?.into(),
        };
        sum += whole * nanos;
        // In floating point, as in Go: a third of an hour is twenty minutes.
        let most = |digits: usize| &fraction[..fraction.len().min(digits)];
        let fraction = if most(19).parse::<i64>().is_ok() { most(19) } else { most(18) };
        let numerator: i64 = fraction.parse().unwrap_or(0);
        let scale = 10f64.powi(fraction.len() as i32);
        sum += (numerator as f64 * (nanos as f64 / scale)) as i128;
        if sum > i128::from(i64::MAX) + 1 {
            return Err(invalid());
        }
    }
    i64::try_from(if negative { -sum } else { sum }).map_err(|_| invalid())
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len()))
}

/// Writes `1h15m30.918s`; below one second `1.5ms`, `1µs`, `1ns`; and `0s`.
pub(in crate::template) fn show(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let size = u128::from(nanos.unsigned_abs());
    let part = |unit: u128, name: &str| {
        let (whole, rest) = (size / unit, size % unit);
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        match digits.trim_end_matches('0') {
            _ if width == 0 => format!("{sign}{whole}{name}"),
            "" => format!("{sign}{whole}{name}"),
            digits => format!("{sign}{whole}.{digits}{name}"),
        }
    };
    match size {
        0 => "0s".into(),
        1..1_000 => part(1, "ns"),
        1_000..1_000_000 => part(1_000, "µs"),
        1_000_000..1_000_000_000 => part(1_000_000, "ms"),
        _ => {
            let seconds = size / 1_000_000_000;
            let (hours, minutes, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            let digits = format!("{:09}", size % 1_000_000_000);
            let digits = digits.trim_end_matches('0');
            let point = if digits.is_empty() { "" } else { "." };
            match (hours, minutes) {
                (0, 0) => format!("{sign}{second}{point}{digits}s"),
                (0, minutes) => format!("{sign}{minutes}m{second}{point}{digits}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{second}{point}{digits}s"),
            }
        }
    }
}

/// The largest unit of which there is more than one, as sprig's `durationRound` has it.
pub(in crate::template) fn rounded(nanos: i64) -> String {
    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 24 * 3600 * SECOND;
    let size = nanos.unsigned_abs();
    let units = [
        (365 * DAY, "y"),
        (30 * DAY, "mo"),
        (DAY, "d"),
        (3600 * SECOND, "h"),
        (60 * SECOND, "m"),
        (SECOND, "s"),
    ];
    let found = units.into_iter().find(|(unit, _)| size > *unit);
    found.map_or_else(|| "0s".into(), |(unit, name)| format!("{}{name}", size / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of Go's documentation, and its tests.
    #[test]
    fn texts_and_lengths() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("5s", 5_000_000_000, "5s"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("-1.5h", -5_400_000_000_000, "-1h30m0s"),
            ("+300ms", 300_000_000, "300ms"),
            ("1.1us", 1_100, "1.1µs"),
            ("2µs", 2_000, "2µs"),
            (".5s", 500_000_000, "500ms"),
            ("1.s", 1_000_000_000, "1s"),
            ("1ns", 1, "1ns"),
            ("3m5s", 185_000_000_000, "3m5s"),
            ("0.3333333333333333333h", 1_200_000_000_000, "20m0s"),
            ("-9223372036854775808ns", i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            if nanos != i64::MIN {
                assert_eq!(parse(text), Ok(nanos), "{text}");
            }
            assert_eq!(show(nanos), shown);
        }
        for text in ["", "-", "s", ".", "1", "1d", "1h 2m", "3000000h", "9223372036854775808ns"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_largest_unit() {
        let hours = |hours: i64| hours * 3_600_000_000_000;
        for (nanos, expected) in [
            (hours(2) + 5, "2h"),
            (hours(24) + 5_000_000_000, "1d"),
            (hours(2400) + 5_000_000_000, "3mo"),
            (hours(45_000), "5y"),
            (-hours(2) - 1, "2h"),
            (61_000_000_000, "1m"),
            (1_000_000_000, "0s"),
            (0, "0s"),
        ] {
            assert_eq!(rounded(nanos), expected);
        }
    }
}
