//! Points in time, as `toDate` makes them: Go's `time.Time`, with the layouts and durations of Go's
//! package `time`. The calendar is the crate `chrono`.
//!
//! The zone `Local` is UTC here: a rendering must not depend on the machine.

pub(super) mod duration;
mod layout;

use std::{fmt, sync::Arc};

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, TimeDelta, Timelike};

/// The longest layout, in bytes.
const MAX_LAYOUT_BYTES: usize = 4096;

/// A point in time with nanoseconds, and the zone in which it is shown. Two are equal if they are
/// the same point, whatever the zone. Shown as Go's `Time.String` does.
///
/// A clone costs a reference count, and it is no larger than the other values.
#[derive(Clone, Debug)]
pub struct Time(Arc<Moment>);

#[derive(Debug)]
struct Moment {
    at: DateTime<FixedOffset>,
    /// The zone's abbreviation; empty where only its offset is known.
    zone: Arc<str>,
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.0.at == other.0.at
    }
}

impl Time {
    fn new(at: DateTime<FixedOffset>, zone: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Moment { at, zone: zone.into() }))
    }

    /// A point in UTC, in seconds since 1970; `None` where it is further away than 262,000 years.
    pub(super) fn from_unix(seconds: i64) -> Option<Self> {
        let at = DateTime::from_timestamp(seconds, 0)?.fixed_offset();
        Some(Self::new(at, "UTC"))
    }

    /// Go's zero, which is what `toDate` gives for what is no date.
    pub(super) fn zero() -> Self {
        let first = NaiveDate::from_ymd_opt(1, 1, 1).unwrap_or_default();
        Self::new(first.and_time(chrono::NaiveTime::MIN).and_utc().fixed_offset(), "UTC")
    }

    /// Reads a text that has the form of `layout`.
    pub(super) fn parse(layout: &str, text: &str) -> Result<Self, String> {
        check_layout(layout)?;
        layout::parse(layout, text)
    }

    /// Writes the time in the form of `layout`.
    pub(super) fn format(&self, layout: &str) -> Result<String, String> {
        check_layout(layout)?;
        Ok(layout::format(self, layout))
    }

    /// The form that JSON and YAML have.
    pub(super) fn rfc3339(&self) -> String {
        layout::format(self, "2006-01-02T15:04:05.999999999Z07:00")
    }

    /// The same point, shown in another zone. Only UTC is known.
    pub(super) fn in_zone(&self, name: &str) -> Result<Self, String> {
        match name {
            "" | "UTC" | "Local" | "Etc/UTC" => {
                Ok(Self::new(self.0.at.to_utc().fixed_offset(), "UTC"))
            }
            other => {
                let name: String = other.chars().take(60).collect();
                Err(format!(
                    "time zone {name:?}: there is only \"UTC\" (\"Local\" is the same), so that the \
                     same template gives the same text on every machine"
                ))
            }
        }
    }

    /// The time `nanos` nanoseconds later.
    pub(super) fn plus(&self, nanos: i64) -> Option<Self> {
        let at = self.0.at.checked_add_signed(TimeDelta::nanoseconds(nanos))?;
        Some(Self::new(at, self.0.zone.clone()))
    }

    /// Seconds since 1970.
    pub(super) fn unix(&self) -> i64 {
        self.0.at.timestamp()
    }
}

fn check_layout(layout: &str) -> Result<(), String> {
    if layout.len() > MAX_LAYOUT_BYTES {
        return Err(format!("the layout of a date is longer than {MAX_LAYOUT_BYTES} bytes"));
    }
    Ok(())
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&layout::format(self, "2006-01-02 15:04:05.999999999 -0700 MST"))
    }
}

/// The parts of a time that layouts name.
struct Parts {
    year: i32,
    month: u32,
    day: u32,
    day_of_year: u32,
    weekday: usize,
    hour: u32,
    minute: u32,
    second: u32,
    nanos: u32,
    /// Seconds east of Greenwich
    offset: i32,
}

impl From<&Time> for Parts {
    fn from(time: &Time) -> Self {
        let at = &time.0.at;
        Self {
            year: at.year(),
            month: at.month(),
            day: at.day(),
            day_of_year: at.ordinal(),
            weekday: at.weekday().num_days_from_sunday() as usize,
            hour: at.hour(),
            minute: at.minute(),
            second: at.second(),
            nanos: at.nanosecond() % 1_000_000_000,
            offset: at.offset().local_minus_utc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wednesday, 4 February 2009, 21:00:57.0123456 in a zone eight hours behind UTC.
    fn time() -> Time {
        Time::parse("2006-01-02 15:04:05 -0700", "2009-02-04 21:00:57.0123456 -0800").unwrap()
    }

    /// What Go's documentation and tests of `Time.Format` say.
    #[test]
    fn layouts_are_gos() {
        for (layout, expected) in [
            ("Mon Jan _2 15:04:05 2006", "Wed Feb  4 21:00:57 2009"),
            ("Mon Jan 02 15:04:05 -0700 2006", "Wed Feb 04 21:00:57 -0800 2009"),
            ("02 Jan 06 15:04", "04 Feb 09 21:00"),
            ("Monday, 02-Jan-06 15:04:05", "Wednesday, 04-Feb-09 21:00:57"),
            ("2006-01-02T15:04:05Z07:00", "2009-02-04T21:00:57-08:00"),
            ("2006-01-02T15:04:05.999999999Z07:00", "2009-02-04T21:00:57.0123456-08:00"),
            ("3:04PM", "9:00PM"),
            ("3pm", "9pm"),
            ("06/1/2", "09/2/4"),
            ("Jan _2 15:04:05.000", "Feb  4 21:00:57.012"),
            ("05,000000000", "57,012345600"),
            ("__2|002|January|_2006", " 35|035|February|_2009"),
            ("Januaryx Janx MST", "Februaryx Janx -0800"),
            ("-07 -07:00 -07:00:00 -070000 Z0700", "-08 -08:00 -08:00:00 -080000 -0800"),
            ("day 2", "day 4"),
            ("", ""),
            ("é15", "é21"),
        ] {
            assert_eq!(time().format(layout).unwrap(), expected, "{layout}");
        }
        assert_eq!(Time::zero().to_string(), "0001-01-01 00:00:00 +0000 UTC");
        assert_eq!(Time::from_unix(0).unwrap().rfc3339(), "1970-01-01T00:00:00Z");
        assert!(Time::from_unix(i64::MAX).is_none());
    }

    #[test]
    fn texts_that_have_the_form_of_a_layout() {
        for (layout, text, expected) in [
            ("2006-01-02", "2017-12-31", "2017-12-31T00:00:00Z"),
            ("02 Jan 06 15:04:05 MST", "13 Jun 19 20:39:39 GMT", "2019-06-13T20:39:39Z"),
            ("Mon Jan _2 15:04:05 2006", "Thu Feb  4 21:00:57 2010", "2010-02-04T21:00:57Z"),
            ("January 2 2006 3:04PM", "fEbruary 4 2010 9:05AM", "2010-02-04T09:05:00Z"),
            ("2006-01-02 3pm", "2010-02-04 12am", "2010-02-04T00:00:00Z"),
            ("2006-002", "2020-366", "2020-12-31T00:00:00Z"),
            ("2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05.7Z", "2006-01-02T15:04:05.7Z"),
            ("2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05+05:30", "2006-01-02T15:04:05+05:30"),
            ("15:04:05,000 2006", "01:02:03.004 1999", "1999-01-01T01:02:03.004Z"),
            ("06", "69", "1969-01-01T00:00:00Z"),
            ("06", "68", "2068-01-01T00:00:00Z"),
            ("2006-1-2", "2006-03-4", "2006-03-04T00:00:00Z"),
            ("2006-01-02  15h", "2006-01-02 7h", "2006-01-02T07:00:00Z"),
            ("15:04", "10:11", "0000-01-01T10:11:00Z"),
        ] {
            let found = Time::parse(layout, text).map(|time| time.rfc3339());
            assert_eq!(found.as_deref(), Ok(expected), "{layout}: {text}");
        }
        let gmt = Time::parse("2006 MST", "2006 GMT-8").unwrap();
        assert_eq!(gmt.to_string(), "2006-01-01 00:00:00 -0800 GMT-8");
        for (layout, text, reason) in [
            ("2006-01-02", "2017-02-30", "day out of range"),
            ("2006-01-02", "2017-13-01", "month out of range"),
            ("2006-01-02", "2017-12-31 x", "extra text: \" x\""),
            ("2006-01-02", "17-12-31", "cannot parse \"17-12-31\" as \"2006\""),
            ("2006-01-02", "2017/12/31", "cannot parse \"/12/31\" as \"-\""),
            ("15:04", "24:00", "hour out of range"),
            ("2006-002", "2019-366", "day-of-year out of range"),
            ("2006 002 Jan", "2019 040 Jan", "day-of-year does not match"),
            ("2006 MST", "2006 xyz", "as \"MST\""),
            ("2006", "", "as \"2006\""),
        ] {
            let error = Time::parse(layout, text).unwrap_err();
            assert!(error.contains(reason), "{layout}: {text}: {error}");
        }
    }

    #[test]
    fn zones() {
        let time = time();
        assert_eq!(
            time.in_zone("UTC").unwrap().to_string(),
            "2009-02-05 05:00:57.0123456 +0000 UTC"
        );
        assert_eq!(time.in_zone("Local").unwrap(), time);
        assert!(time.in_zone("Europe/Berlin").unwrap_err().contains("only \"UTC\""));
        assert_eq!(time.plus(-57_012_345_600).unwrap().unix(), 1_233_810_000);
    }
}
