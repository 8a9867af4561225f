//! Go's layouts: a date and time in the form of the reference time, which is
//! `Mon Jan 2 15:04:05 MST 2006`.

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate};

use super::{Parts, Time};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// How a number is filled up to its width.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    None,
    Zero,
    Space,
}

/// An element of a layout.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Element {
    LongMonth,
    Month,
    NumberOfMonth(Fill),
    LongWeekday,
    Weekday,
    Day(Fill),
    DayOfYear(Fill),
    Hour,
    Hour12(Fill),
    Minute(Fill),
    Second(Fill),
    LongYear,
    Year,
    /// `PM` or `pm`
    HalfOfDay {
        upper: bool,
    },
    Zone,
    Offset {
        z_for_utc: bool,
        colons: bool,
        seconds: bool,
        minutes: bool,
    },
    /// Digits of a second after a point or comma; `exact`: with zeros at the end.
    Fraction {
        separator: char,
        digits: usize,
        exact: bool,
    },
}

/// The elements that have one spelling, the longer of two that begin alike first.
const SPELLINGS: &[(&str, Element)] = {
    use Element::*;
    use Fill::*;
    const fn offset(z_for_utc: bool, colons: bool, seconds: bool, minutes: bool) -> Element {
        Offset { z_for_utc, colons, seconds, minutes }
    }
    &[
        ("January", LongMonth),
        ("Monday", LongWeekday),
        ("MST", Zone),
        ("002", DayOfYear(Zero)),
        ("01", NumberOfMonth(Zero)),
        ("02", Day(Zero)),
        ("03", Hour12(Zero)),
        ("04", Minute(Zero)),
        ("05", Second(Zero)),
        ("06", Year),
        ("15", Hour),
        ("1", NumberOfMonth(None)),
        ("2006", LongYear),
        ("2", Day(None)),
        ("__2", DayOfYear(Space)),
        ("_2", Day(Space)),
        ("3", Hour12(None)),
        ("4", Minute(None)),
        ("5", Second(None)),
        ("PM", HalfOfDay { upper: true }),
        ("pm", HalfOfDay { upper: false }),
        ("-070000", offset(false, false, true, true)),
        ("-07:00:00", offset(false, true, true, true)),
        ("-0700", offset(false, false, false, true)),
        ("-07:00", offset(false, true, false, true)),
        ("-07", offset(false, false, false, false)),
        ("Z070000", offset(true, false, true, true)),
        ("Z07:00:00", offset(true, true, true, true)),
        ("Z0700", offset(true, false, false, true)),
        ("Z07:00", offset(true, true, false, true)),
        ("Z07", offset(true, false, false, false)),
    ]
};

/// The element at the beginning of a layout, and its length in bytes.
fn element(layout: &str) -> Option<(Element, usize)> {
    let starts_lower = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase());
    // An underscore before a year stands for itself.
    if layout.starts_with("_2006") {
        return None;
    }
    if let Some((text, element)) = SPELLINGS.iter().find(|(text, _)| layout.starts_with(text)) {
        return Some((*element, text.len()));
    }
    for (text, element) in [("Jan", Element::Month), ("Mon", Element::Weekday)] {
        if layout.strip_prefix(text).is_some_and(|rest| !starts_lower(rest)) {
            return Some((element, text.len()));
        }
    }
    let separator = layout.chars().next().filter(|c| matches!(c, '.' | ','))?;
    let digit = layout[1..].chars().next().filter(|c| matches!(c, '0' | '9'))?;
    let rest = layout[1..].trim_start_matches(digit);
    let digits = layout.len() - 1 - rest.len();
    let ends = !rest.starts_with(|c: char| c.is_ascii_digit());
    ends.then_some((Element::Fraction { separator, digits, exact: digit == '0' }, 1 + digits))
}

/// The text before the next element, the element, and what follows it.
fn next(layout: &str) -> (&str, Option<Element>, &str) {
    for (at, _) in layout.char_indices() {
        if let Some((element, length)) = element(&layout[at..]) {
            return (&layout[..at], Some(element), &layout[at + length..]);
        }
    }
    (layout, None, "")
}

/// Writes a time in the form of a layout.
pub(super) fn format(time: &Time, layout: &str) -> String {
    let parts = Parts::from(time);
    let mut text = String::new();
    let mut rest = layout;
    loop {
        let (literal, element, after) = next(rest);
        text.push_str(literal);
        let Some(element) = element else { return text };
        rest = after;
        write(&mut text, element, &parts, &time.0.zone);
    }
}

fn write(text: &mut String, element: Element, parts: &Parts, zone: &str) {
    let number = |number: u32, width: usize, fill: Fill| match fill {
        Fill::None => number.to_string(),
        Fill::Zero => format!("{number:0width$}"),
        Fill::Space => format!("{number:width$}"),
    };
    let named = |names: &[&'static str], index: usize| names.get(index).copied().unwrap_or("?");
    let month = named(&MONTHS, parts.month as usize - 1);
    let weekday = named(&WEEKDAYS, parts.weekday);
    let written = match element {
        Element::LongMonth => month.into(),
        Element::Month => month[..3].into(),
        Element::NumberOfMonth(fill) => number(parts.month, 2, fill),
        Element::LongWeekday => weekday.into(),
        Element::Weekday => weekday[..3].into(),
        Element::Day(fill) => number(parts.day, 2, fill),
        Element::DayOfYear(fill) => number(parts.day_of_year, 3, fill),
        Element::Hour => number(parts.hour, 2, Fill::Zero),
        Element::Hour12(fill) => number((parts.hour + 11) % 12 + 1, 2, fill),
        Element::Minute(fill) => number(parts.minute, 2, fill),
        Element::Second(fill) => number(parts.second, 2, fill),
        Element::LongYear if parts.year < 0 => format!("-{:04}", parts.year.unsigned_abs()),
        Element::LongYear => format!("{:04}", parts.year),
        Element::Year => number(parts.year.max(0).unsigned_abs() % 100, 2, Fill::Zero),
        Element::HalfOfDay { upper } => match (parts.hour >= 12, upper) {
            (true, true) => "PM".into(),
            (true, false) => "pm".into(),
            (false, true) => "AM".into(),
            (false, false) => "am".into(),
        },
        Element::Zone if zone.is_empty() => offset(parts.offset, false, false, true),
        Element::Zone => zone.into(),
        Element::Offset { z_for_utc: true, .. } if parts.offset == 0 => "Z".into(),
        Element::Offset { colons, seconds, minutes, .. } => {
            offset(parts.offset, colons, seconds, minutes)
        }
        Element::Fraction { separator, digits, exact } => {
            let mut fraction = format!("{:09}", parts.nanos);
            if exact {
                fraction.extend(std::iter::repeat_n('0', digits.saturating_sub(9)));
            }
            fraction.truncate(digits);
            if !exact {
                fraction.truncate(fraction.trim_end_matches('0').len());
            }
            if fraction.is_empty() { fraction } else { format!("{separator}{fraction}") }
        }
    };
    text.push_str(&written);
}

fn offset(east: i32, colons: bool, seconds: bool, minutes: bool) -> String {
    let size = east.unsigned_abs();
    let colon = if colons { ":" } else { "" };
    let mut text = format!("{}{:02}", if east < 0 { '-' } else { '+' }, size / 3600);
    if minutes {
        text += &format!("{colon}{:02}", size / 60 % 60);
    }
    if seconds {
        text += &format!("{colon}{:02}", size % 60);
    }
    text
}

/// What has been read of a text.
#[derive(Default)]
struct Found {
    year: i32,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    hour: u32,
    minute: u32,
    second: u32,
    nanos: u32,
    /// Whether it was said to be after noon.
    afternoon: Option<bool>,
    utc: bool,
    offset: Option<i32>,
    zone: Option<String>,
}

/// Why an element cannot be read.
enum Unfit {
    /// The text is something else.
    Form,
    /// The part has no such value.
    Range(&'static str),
}

type Read<'t, T> = Result<(T, &'t str), Unfit>;

/// Reads a text that has the form of a layout. What the layout does not name is the first of its
/// kind, and the year 0; without a zone, the time is one of UTC.
pub(super) fn parse(layout: &str, text: &str) -> Result<Time, String> {
    let shown = |text: &str| text.chars().take(60).collect::<String>();
    let about = format!("parsing time {:?} as {:?}", shown(text), shown(layout));
    let cannot = |value: &str, part: &str| {
        format!("{about}: cannot parse {:?} as {:?}", shown(value), shown(part))
    };
    let mut found = Found::default();
    let (mut layout_rest, mut text_rest) = (layout, text);
    loop {
        let (literal, element, after) = next(layout_rest);
        text_rest = skip(text_rest, literal).map_err(|stopped| cannot(stopped, literal))?;
        let Some(element) = element else { break };
        let spelling = &layout_rest[literal.len()..layout_rest.len() - after.len()];
        match read(&mut found, element, text_rest, after) {
            Ok(rest) => text_rest = rest,
            Err(Unfit::Form) => return Err(cannot(text_rest, spelling)),
            Err(Unfit::Range(part)) => return Err(format!("{about}: {part} out of range")),
        }
        layout_rest = after;
    }
    if !text_rest.is_empty() {
        return Err(format!("{about}: extra text: {:?}", shown(text_rest)));
    }
    found.time().map_err(|reason| format!("{about}: {reason}"))
}

/// Passes over what a layout has between elements; spaces stand for any number of them.
fn skip<'t>(mut text: &'t str, literal: &str) -> Result<&'t str, &'t str> {
    let mut literal = literal;
    while let Some(c) = literal.chars().next() {
        if c == ' ' {
            if !text.is_empty() && !text.starts_with(' ') {
                return Err(text);
            }
            (literal, text) = (literal.trim_start_matches(' '), text.trim_start_matches(' '));
        } else {
            text = text.strip_prefix(c).ok_or(text)?;
            literal = &literal[c.len_utf8()..];
        }
    }
    Ok(text)
}

fn read<'t>(
    found: &mut Found,
    element: Element,
    text: &'t str,
    layout_after: &str,
) -> Result<&'t str, Unfit> {
    let below = |number: u32, end: u32, part: &'static str| {
        if number < end { Ok(number) } else { Err(Unfit::Range(part)) }
    };
    Ok(match element {
        Element::LongYear => {
            let (year, rest) = fixed(text, 4)?;
            found.year = year as i32;
            rest
        }
        Element::Year => {
            let (year, rest) = fixed(text, 2)?;
            found.year = year as i32 + if year >= 69 { 1900 } else { 2000 };
            rest
        }
        Element::LongMonth | Element::Month => {
            let (index, rest) = name(text, &MONTHS, element == Element::Month)?;
            found.month = Some(index as u32 + 1);
            rest
        }
        Element::NumberOfMonth(fill) => {
            let (month, rest) = number(text, fill)?;
            if !(1..=12).contains(&month) {
                return Err(Unfit::Range("month"));
            }
            found.month = Some(month);
            rest
        }
        Element::LongWeekday | Element::Weekday => {
            name(text, &WEEKDAYS, element == Element::Weekday)?.1
        }
        Element::Day(fill) => {
            let text =
                if fill == Fill::Space { text.strip_prefix(' ').unwrap_or(text) } else { text };
            let (day, rest) = number(text, fill)?;
            found.day = Some(day);
            rest
        }
        Element::DayOfYear(fill) => {
            let mut text = text;
            if fill == Fill::Space {
                text = text.strip_prefix("  ").or(text.strip_prefix(' ')).unwrap_or(text);
            }
            let digits = text.bytes().take(3).take_while(u8::is_ascii_digit).count();
            if digits == 0 || fill == Fill::Zero && digits < 3 {
                return Err(Unfit::Form);
            }
            let (day, rest) = fixed(text, digits)?;
            found.day_of_year = Some(day);
            rest
        }
        Element::Hour => {
            let (hour, rest) = number(text, Fill::None)?;
            found.hour = below(hour, 24, "hour")?;
            rest
        }
        Element::Hour12(fill) => {
            let (hour, rest) = number(text, fill)?;
            found.hour = below(hour, 13, "hour")?;
            rest
        }
        Element::Minute(fill) => {
            let (minute, rest) = number(text, fill)?;
            found.minute = below(minute, 60, "minute")?;
            rest
        }
        Element::Second(fill) => {
            let (second, rest) = number(text, fill)?;
            found.second = below(second, 60, "second")?;
            // A fraction may follow that the layout does not have.
            match next(layout_after) {
                ("", Some(Element::Fraction { .. }), _) => rest,
                _ => optional_fraction(found, rest),
            }
        }
        Element::HalfOfDay { upper } => {
            let (half, rest) = text.split_at_checked(2).ok_or(Unfit::Form)?;
            found.afternoon = Some(match (half, upper) {
                ("PM", true) | ("pm", false) => true,
                ("AM", true) | ("am", false) => false,
                _ => return Err(Unfit::Form),
            });
            rest
        }
        Element::Zone => {
            let (zone, rest) = zone(text)?;
            match zone {
                "UTC" => found.utc = true,
                zone => found.zone = Some(zone.to_owned()),
            }
            rest
        }
        Element::Offset { z_for_utc, colons, seconds, minutes } => match text.strip_prefix('Z') {
            Some(rest) if z_for_utc => {
                found.utc = true;
                rest
            }
            _ => {
                let (offset, rest) = read_offset(text, colons, seconds, minutes)?;
                found.offset = Some(offset);
                rest
            }
        },
        Element::Fraction { exact: true, digits, .. } => {
            let rest = text.strip_prefix(['.', ',']).ok_or(Unfit::Form)?;
            if rest.bytes().take(digits).take_while(u8::is_ascii_digit).count() < digits {
                return Err(Unfit::Form);
            }
            found.nanos = nanos(&rest[..digits]);
            &rest[digits..]
        }
        Element::Fraction { exact: false, .. } => optional_fraction(found, text),
    })
}

/// A number of one or two digits; of two, where it is filled with zeros.
fn number(text: &str, fill: Fill) -> Read<'_, u32> {
    let digits = text.bytes().take(2).take_while(u8::is_ascii_digit).count();
    match digits {
        2 => fixed(text, 2),
        1 if fill != Fill::Zero => fixed(text, 1),
        _ => Err(Unfit::Form),
    }
}

fn fixed(text: &str, digits: usize) -> Read<'_, u32> {
    let (digits, rest) = text.split_at_checked(digits).ok_or(Unfit::Form)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Unfit::Form);
    }
    Ok((digits.parse().map_err(|_| Unfit::Form)?, rest))
}

/// The index of the name at the beginning, in any case; `short`: of its first three letters.
fn name<'t>(text: &'t str, names: &[&str], short: bool) -> Read<'t, usize> {
    for (index, name) in names.iter().enumerate() {
        let name = if short { &name[..3] } else { name };
        if let Some((start, rest)) = text.split_at_checked(name.len())
            && start.eq_ignore_ascii_case(name)
        {
            return Ok((index, rest));
        }
    }
    Err(Unfit::Form)
}

fn optional_fraction<'t>(found: &mut Found, text: &'t str) -> &'t str {
    let Some(rest) = text.strip_prefix(['.', ',']) else { return text };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return text;
    }
    found.nanos = nanos(&rest[..digits]);
    &rest[digits..]
}

/// The first nine digits of a fraction, as nanoseconds.
fn nanos(digits: &str) -> u32 {
    let digits: String = digits.chars().chain("000000000".chars()).take(9).collect();
    digits.parse().unwrap_or(0)
}

/// An abbreviation of a zone: three or four capitals, `ChST`, `MeST`, `GMT+3` or `+03`.
fn zone(text: &str) -> Read<'_, &str> {
    let split = |length: usize| text.split_at_checked(length).ok_or(Unfit::Form);
    let signed = |text: &str| {
        let digits = text.strip_prefix(['+', '-'])?;
        let count = digits.bytes().take(3).take_while(u8::is_ascii_digit).count();
        let hours: u32 = digits[..count].parse().ok()?;
        (hours < 24).then_some(1 + count)
    };
    if text.starts_with("ChST") || text.starts_with("MeST") {
        return split(4);
    }
    if text.starts_with("UTC") {
        return split(3);
    }
    if let Some(rest) = text.strip_prefix("GMT") {
        return split(3 + signed(rest).unwrap_or(0));
    }
    if let Some(length) = signed(text) {
        return split(length);
    }
    let capitals = text.bytes().take(6).take_while(u8::is_ascii_uppercase).count();
    match capitals {
        3 => split(3),
        4 if text.as_bytes()[3] == b'T' || text.starts_with("WITA") => split(4),
        5 if text.as_bytes()[4] == b'T' => split(5),
        _ => Err(Unfit::Form),
    }
}

/// `+01`, `+0100`, `+01:00` and so on, as seconds east.
fn read_offset(text: &str, colons: bool, seconds: bool, minutes: bool) -> Read<'_, i32> {
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['+', '-']).ok_or(Unfit::Form)?;
    let part = |text, is_there: bool| match is_there {
        true if colons => fixed(str::strip_prefix(text, ':').ok_or(Unfit::Form)?, 2),
        true => fixed(text, 2),
        false => Ok((0, text)),
    };
    let (hours, rest) = fixed(rest, 2)?;
    let (of_hour, rest) = part(rest, minutes)?;
    let (of_minute, rest) = part(rest, seconds)?;
    for (number, most, what) in [
        (hours, 24, "time zone offset hour"),
        (of_hour, 60, "time zone offset minute"),
        (of_minute, 60, "time zone offset second"),
    ] {
        if number > most {
            return Err(Unfit::Range(what));
        }
    }
    let east = (hours * 3600 + of_hour * 60 + of_minute) as i32;
    Ok((if negative { -east } else { east }, rest))
}

impl Found {
    fn time(self) -> Result<Time, &'static str> {
        let hour = match (self.afternoon, self.hour) {
            (Some(true), hour @ ..12) => hour + 12,
            (Some(false), 12) => 0,
            (_, hour) => hour,
        };
        let date = match self.day_of_year {
            Some(day) => {
                let date = NaiveDate::from_yo_opt(self.year, day);
                let date = date.ok_or("day-of-year out of range")?;
                let is_other = self.month.is_some_and(|month| month != date.month())
                    || self.day.is_some_and(|day| day != date.day());
                if is_other {
                    return Err("day-of-year does not match month or day");
                }
                date
            }
            None => {
                let (month, day) = (self.month.unwrap_or(1), self.day.unwrap_or(1));
                NaiveDate::from_ymd_opt(self.year, month, day).ok_or("day out of range")?
            }
        };
        let at = date.and_hms_nano_opt(hour, self.minute, self.second, self.nanos);
        let at = at.ok_or("hour out of range")?;
        // An abbreviation alone says nothing of the offset, except for `GMT-8`.
        let from_zone = self.zone.as_deref().and_then(|zone| zone.strip_prefix("GMT"));
        let hours: i32 = from_zone.and_then(|hours| hours.parse().ok()).unwrap_or(0);
        let east = if self.utc { 0 } else { self.offset.unwrap_or(hours * 3600) };
        let offset = FixedOffset::east_opt(east).ok_or("time zone offset out of range")?;
        let zone = match (self.utc, self.zone) {
            (true, _) => "UTC".into(),
            (false, Some(zone)) => zone,
            (false, None) if east == 0 => "UTC".into(),
            (false, None) => String::new(),
        };
        let at: DateTime<FixedOffset> =
            at.and_local_timezone(offset).single().ok_or("time out of range")?;
        Ok(Time::new(at, zone))
    }
}
