//! sprig's arithmetic on numbers with a point. Sums and the like are made in decimal, as those of
//! `shopspring/decimal`, so that `addf 0.1 0.2` is `0.3`; the result is a `float64` again.

use super::{Call, Function, function, math::to_float};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("add1f", "a", |call| Decimal::of(call.value(0))?.add(Decimal::ONE).value()),
    function("addf", "a*", |call| folded(call, Decimal::ZERO, 0, Decimal::add)),
    function("subf", "aa*", |call| folded(call, Decimal::of(call.value(0))?, 1, Decimal::subtract)),
    function("mulf", "aa*", |call| folded(call, Decimal::of(call.value(0))?, 1, Decimal::multiply)),
    function("divf", "aa*", |call| {
        if call.args[1..].iter().any(|value| to_float(value) == 0.0) {
            return Err("decimal division by 0".into());
        }
        folded(call, Decimal::of(call.value(0))?, 1, Decimal::divide)
    }),
    function("maxf", "aa*", |call| Ok(extreme(call, |a, b| a > b))),
    function("minf", "aa*", |call| Ok(extreme(call, |a, b| a < b))),
];

fn folded(
    call: &Call<'_>,
    first: Decimal,
    from: usize,
    operation: fn(Decimal, Decimal) -> Decimal,
) -> Result<Value, Cause> {
    let mut result = first;
    for value in call.args.get(from..).unwrap_or_default() {
        result = operation(result, Decimal::of(value)?);
    }
    result.value()
}

/// The number that is before all others; what is no number is.
fn extreme(call: &Call<'_>, is_before: fn(f64, f64) -> bool) -> Value {
    let numbers = call.args.iter().map(to_float);
    let before = |a: f64, b: f64| if b.is_nan() || is_before(b, a) { b } else { a };
    numbers.reduce(|a, b| if a.is_nan() { a } else { before(a, b) }).unwrap_or(0.0).into()
}

/// How many digits after the point a quotient has.
const DIVISION_DIGITS: i32 = 16;

/// `digits * 10^exponent`. What needs more than 38 digits is rounded to the 17 of a `float64`.
#[derive(Clone, Copy)]
struct Decimal {
    digits: i128,
    exponent: i32,
}

impl Decimal {
    const ZERO: Self = Self { digits: 0, exponent: 0 };
    const ONE: Self = Self { digits: 1, exponent: 0 };

    /// The number with the fewest digits that is nearest to this float.
    fn of(value: &Value) -> Result<Self, Cause> {
        let number = to_float(value);
        if !number.is_finite() {
            return Err(format!("Cannot create a Decimal from {number}").into());
        }
        Ok(Self::from_float(number))
    }

    fn from_float(number: f64) -> Self {
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let fraction = mantissa.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let digits = mantissa.replace('.', "").parse().unwrap_or(0);
        let exponent: i32 = exponent.parse().unwrap_or(0);
        if digits == 0 {
            return Self::ZERO;
        }
        Self { digits, exponent: exponent - fraction as i32 }
    }

    fn to_float(self) -> f64 {
        format!("{}e{}", self.digits, self.exponent).parse().unwrap_or(f64::NAN)
    }

    fn value(self) -> Result<Value, Cause> {
        Ok(self.to_float().into())
    }

    /// The digits with another, smaller exponent, if there is room for them.
    fn digits_at(self, exponent: i32) -> Option<i128> {
        let more = u32::try_from(self.exponent - exponent).ok()?;
        if self.digits == 0 {
            return Some(0);
        }
        self.digits.checked_mul(10i128.checked_pow(more)?)
    }

    fn add(self, other: Self) -> Self {
        let exponent = self.exponent.min(other.exponent);
        let digits = || self.digits_at(exponent)?.checked_add(other.digits_at(exponent)?);
        match digits() {
            Some(digits) => Self { digits, exponent },
            None => Self::from_float(self.to_float() + other.to_float()),
        }
    }

    fn subtract(self, other: Self) -> Self {
        self.add(Self { digits: -other.digits, exponent: other.exponent })
    }

    fn multiply(self, other: Self) -> Self {
        match self.digits.checked_mul(other.digits) {
            Some(digits) => Self { digits, exponent: self.exponent + other.exponent },
            None => Self::from_float(self.to_float() * other.to_float()),
        }
    }

    /// Rounded half away from zero.
    fn divide(self, other: Self) -> Self {
        let quotient = || {
            // The dividend with as many digits as the quotient needs.
            let exponent = other.exponent - DIVISION_DIGITS;
            let (dividend, divisor) = match self.exponent >= exponent {
                true => (self.digits_at(exponent)?, other.digits),
                false => {
                    let more = u32::try_from(exponent - self.exponent).ok()?;
                    (self.digits, other.digits.checked_mul(10i128.checked_pow(more)?)?)
                }
            };
            let (whole, rest) = (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?);
            let half = rest.unsigned_abs().checked_mul(2)? >= divisor.unsigned_abs();
            let away = if (dividend < 0) == (divisor < 0) { 1 } else { -1 };
            Some(Self {
                digits: if half { whole.checked_add(away)? } else { whole },
                exponent: -DIVISION_DIGITS,
            })
        };
        quotient().unwrap_or_else(|| Self::from_float(self.to_float() / other.to_float()))
    }
}
