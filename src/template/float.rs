//! Floating-point numbers as text, as Go's `strconv.FormatFloat` and `encoding/json` have it.

/// A finite, positive or special number; `form` is one of `b e E f g G`. Without a precision: as
/// few digits as say which number it is.
pub(super) fn format(number: f64, form: char, precision: Option<usize>) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return "Inf".into();
    }
    match form {
        'f' => match precision {
            Some(precision) => format!("{number:.precision$}"),
            None => format!("{number}"),
        },
        'e' | 'E' => exponential(number, form, precision),
        'b' => {
            let bits = number.to_bits();
            let (exponent, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
            let mantissa = if exponent == 0 { fraction } else { fraction | (1 << 52) };
            let exponent = exponent.max(1).cast_signed() - 1075;
            format!("{mantissa}p{exponent:+}")
        }
        _ => general(number, form, precision),
    }
}

fn exponential(number: f64, form: char, precision: Option<usize>) -> String {
    let shown = match precision {
        Some(precision) => format!("{number:.precision$e}"),
        None => format!("{number:e}"),
    };
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}{form}{sign}{:02}", exponent.unsigned_abs())
}

/// `%e` for large exponents, `%f` else.
fn general(number: f64, form: char, precision: Option<usize>) -> String {
    let digits = precision.map(|precision| precision.max(1));
    let shown = match digits {
        Some(digits) => format!("{number:.*e}", digits - 1),
        None => format!("{number:e}"),
    };
    let (mantissa, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = match mantissa.contains('.') {
        true => mantissa.trim_end_matches('0').trim_end_matches('.'),
        false => mantissa,
    };
    // As many digits as are asked for; where those are as few as possible, six decide.
    let threshold = digits.map_or(6, |digits| i32::try_from(digits).unwrap_or(i32::MAX));
    if exponent < -4 || exponent >= threshold {
        let sign = if exponent < 0 { '-' } else { '+' };
        let letter = if form == 'G' { 'E' } else { 'e' };
        return format!("{mantissa}{letter}{sign}{:02}", exponent.unsigned_abs());
    }
    let decimals = mantissa.len().saturating_sub(2).cast_signed() - exponent as isize;
    format!("{number:.*}", decimals.max(0).cast_unsigned())
}

/// What `#` asks for: a point always, and zeros that `%g` would leave out.
pub(super) fn with_point(shown: &str, form: char, precision: Option<usize>) -> String {
    let end = shown.find(['e', 'E']).unwrap_or(shown.len());
    let (number, tail) = shown.split_at(end);
    let mut number = number.to_owned();
    let significant = number.replace('.', "");
    let significant = significant.trim_start_matches('0').len();
    let wanted = match form {
        'g' | 'G' => precision.unwrap_or(6),
        _ => 0,
    };
    let mut have = significant;
    if !number.contains('.') {
        if number == "0" {
            have += 1;
        }
        number.push('.');
    }
    number + &"0".repeat(wanted.saturating_sub(have)) + tail
}

/// As `encoding/json` writes it: without an exponent between 1e-6 and 1e21.
pub(super) fn json(number: f64) -> String {
    let magnitude = number.abs();
    let shown = if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let shown = exponential(magnitude, 'e', None);
        // e-09 is e-9 there.
        match shown.split_once("e-0") {
            Some((mantissa, digit)) => format!("{mantissa}e-{digit}"),
            None => shown,
        }
    } else {
        format!("{magnitude}")
    };
    if number.is_sign_negative() { format!("-{shown}") } else { shown }
}
