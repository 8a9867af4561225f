//! sprig's arithmetic, on integers of 64 bits that wrap around as Go's do.

use super::{Call, Function, function};
use crate::template::{Value, error::Cause, literal};

pub(super) const FUNCTIONS: &[Function] = &[
    function("int", "a", |call| Ok(to_int(call.value(0)).into())),
    function("int64", "a", |call| Ok(to_int(call.value(0)).into())),
    function("float64", "a", |call| Ok(to_float(call.value(0)).into())),
    // Go's way to write what is octal on Unix: `toDecimal 777` is 511.
    function("toDecimal", "a", |call| {
        let text = call.text_of(call.value(0))?;
        Ok(parse_int(&text, 8).unwrap_or(0).into())
    }),
    function("atoi", "s", |call| Ok(atoi(&call.text(0)).into())),
    function("add", "a*", |call| Ok(ints(call).fold(0, i64::wrapping_add).into())),
    function("add1", "a", |call| Ok(to_int(call.value(0)).wrapping_add(1).into())),
    function("sub", "aa", |call| {
        Ok(to_int(call.value(0)).wrapping_sub(to_int(call.value(1))).into())
    }),
    function("mul", "aa*", |call| Ok(ints(call).fold(1, i64::wrapping_mul).into())),
    function("div", "aa", |call| {
        let divisor = divisor(call)?;
        Ok(to_int(call.value(0)).wrapping_div(divisor).into())
    }),
    function("mod", "aa", |call| {
        let divisor = divisor(call)?;
        Ok(to_int(call.value(0)).wrapping_rem(divisor).into())
    }),
    function("max", "aa*", |call| Ok(ints(call).max().unwrap_or(0).into())),
    function("biggest", "aa*", |call| Ok(ints(call).max().unwrap_or(0).into())),
    function("min", "aa*", |call| Ok(ints(call).min().unwrap_or(0).into())),
    function("floor", "a", |call| Ok(to_float(call.value(0)).floor().into())),
    function("ceil", "a", |call| Ok(to_float(call.value(0)).ceil().into())),
    function("round", "aif*", |call| {
        let round_on = call.args.get(2).map_or(0.5, to_float);
        let scale = 10f64.powi(i32::try_from(call.int(1).clamp(-400, 400)).unwrap_or(0));
        let scaled = scale * to_float(call.value(0));
        let whole = if scaled.fract() >= round_on { scaled.ceil() } else { scaled.floor() };
        Ok((whole / scale).into())
    }),
    function("until", "i", |call| {
        let count = call.int(0);
        steps(call, 0, count, if count < 0 { -1 } else { 1 })
    }),
    function("untilStep", "iii", |call| steps(call, call.int(0), call.int(1), call.int(2))),
    function("seq", "i*", |call| {
        let (start, step, end) = match call.len() {
            1 => (1, if call.int(0) < 1 { -1 } else { 1 }, call.int(0)),
            2 => (call.int(0), if call.int(1) < call.int(0) { -1 } else { 1 }, call.int(1)),
            3 => (call.int(0), call.int(1), call.int(2)),
            _ => return Ok("".into()),
        };
        if end < start && step > 0 {
            return Ok("".into());
        }
        let beyond = if end < start { end.saturating_sub(1) } else { end.saturating_add(1) };
        let numbers = steps(call, start, beyond, step)?;
        let text = crate::template::print::value(call.run, &numbers)?;
        Ok(text.trim_matches(['[', ']']).into())
    }),
];

fn ints(call: &Call<'_>) -> impl Iterator<Item = i64> {
    call.args.iter().map(to_int)
}

fn divisor(call: &Call<'_>) -> Result<i64, Cause> {
    match to_int(call.value(1)) {
        0 => Err("integer divide by zero".into()),
        divisor => Ok(divisor),
    }
}

/// The integers from `start` to before `stop`.
fn steps(call: &Call<'_>, start: i64, stop: i64, step: i64) -> Result<Value, Cause> {
    let mut numbers = Vec::new();
    let mut number = start;
    while (step > 0 && number < stop) || (step < 0 && number > stop) {
        call.run.steps(1)?;
        numbers.push(Value::Int(number));
        match number.checked_add(step) {
            Some(next) => number = next,
            None => break,
        }
    }
    Ok(numbers.into_iter().collect())
}

/// `cast.ToInt64`: 0 for what is no number.
pub(super) fn to_int(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        Value::Float(number) => *number as i64,
        Value::Bool(value) => i64::from(*value),
        Value::String(text) => {
            // "1.00" is an integer, too.
            let whole = match text.split_once('.') {
                Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => {
                    whole
                }
                _ => text,
            };
            literal::integer(whole).unwrap_or(0)
        }
        Value::Nil | Value::List(_) | Value::Map(_) | Value::Time(_) => 0,
    }
}

/// `cast.ToFloat64`: 0 for what is no number.
pub(super) fn to_float(value: &Value) -> f64 {
    match value {
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::String(text) => literal::decimal_float(text).unwrap_or(0.0),
        Value::Nil | Value::List(_) | Value::Map(_) | Value::Time(_) => 0.0,
    }
}

/// `strconv.Atoi` without its error: 0 for what is no number, the nearest one for what is too large.
fn atoi(text: &str) -> i64 {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
    text.parse().unwrap_or(nearest)
}

/// `strconv.ParseInt` with a base that is said: digits, perhaps after a sign.
pub(super) fn parse_int(text: &str, radix: u32) -> Option<i64> {
    i64::from_str_radix(text, radix).ok()
}
