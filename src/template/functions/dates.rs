//! sprig's functions on dates that are given: in seconds since 1970, or made by `toDate`. What the
//! present time would be needed for is refused.

use super::{Call, Function, function};
use crate::template::{Time, Value, error::Cause, time::duration};

pub(super) const FUNCTIONS: &[Function] = &[
    function("date", "sa", |call| {
        let layout = call.text(0);
        Ok(time(call, 1)?.in_zone("Local")?.format(&layout)?.into())
    }),
    function("dateInZone", "sas", in_zone),
    function("date_in_zone", "sas", in_zone),
    function("htmlDate", "a", |call| {
        Ok(time(call, 0)?.in_zone("Local")?.format(HTML_LAYOUT)?.into())
    }),
    function("htmlDateInZone", "as", |call| {
        Ok(time(call, 0)?.in_zone(&call.text(1))?.format(HTML_LAYOUT)?.into())
    }),
    function("dateModify", "st", |call| modified(call).or_else(|_| Ok(call.value(1).clone()))),
    function("date_modify", "st", |call| modified(call).or_else(|_| Ok(call.value(1).clone()))),
    function("mustDateModify", "st", modified),
    function("must_date_modify", "st", modified),
    function("toDate", "ss", |call| {
        let time = Time::parse(&call.text(0), &call.text(1));
        Ok(Value::Time(time.unwrap_or_else(|_| Time::zero())))
    }),
    function("mustToDate", "ss", |call| {
        Ok(Value::Time(Time::parse(&call.text(0), &call.text(1))?))
    }),
    function("unixEpoch", "t", |call| Ok(time(call, 0)?.unix().to_string().into())),
    function("duration", "a", |call| {
        let seconds = match call.value(0) {
            Value::String(text) => super::math::parse_int(text, 10).unwrap_or(0),
            Value::Int(seconds) => *seconds,
            _ => 0,
        };
        Ok(duration::show(seconds.wrapping_mul(1_000_000_000)).into())
    }),
    function("durationRound", "a", |call| {
        let nanos = match call.value(0) {
            Value::String(text) => duration::parse(text).unwrap_or(0),
            Value::Int(nanos) => *nanos,
            Value::Time(_) => return Err(NO_PRESENT.into()),
            _ => 0,
        };
        Ok(duration::rounded(nanos).into())
    }),
];

const HTML_LAYOUT: &str = "2006-01-02";

const NO_PRESENT: &str = "this would be the time until now, and the same template and variables \
                          always give the same text";

/// The date that an argument is. In Go, what is none is the present time.
fn time(call: &Call<'_>, index: usize) -> Result<Time, Cause> {
    match call.value(index) {
        Value::Time(time) => Ok(time.clone()),
        Value::Int(seconds) => {
            let time = Time::from_unix(*seconds);
            time.ok_or_else(|| format!("{seconds} seconds since 1970 are out of range").into())
        }
        other => Err(format!(
            "a {} is no date; expected seconds since 1970 or what toDate gives (the present time \
             is not offered: the same template and variables always give the same text)",
            other.type_name()
        )
        .into()),
    }
}

fn in_zone(call: &mut Call<'_>) -> Result<Value, Cause> {
    let (layout, zone) = (call.text(0), call.text(2));
    Ok(time(call, 1)?.in_zone(&zone)?.format(&layout)?.into())
}

fn modified(call: &mut Call<'_>) -> Result<Value, Cause> {
    let nanos = duration::parse(&call.text(0))?;
    let later = time(call, 1)?.plus(nanos);
    Ok(Value::Time(later.ok_or("the date is out of range")?))
}
