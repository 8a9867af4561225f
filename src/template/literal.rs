//! Go's literals: numbers, characters and quoted strings.

use super::tree::Number;

/// Reads a number as Go does where it does not know the type that is wanted.
pub(super) fn number(text: &str) -> Result<Number, String> {
    let has_point = text.contains(['.', 'e', 'E', 'p', 'P']);
    let unsigned = text.trim_start_matches(['+', '-']);
    let is_hex = unsigned.starts_with("0x") || unsigned.starts_with("0X");
    if let Some(int) = integer(text) {
        let is_float = has_point && !is_hex;
        return Ok(Number { int: Some(int), float: int as f64, is_float });
    }
    let illegal = || format!("illegal number syntax: {text:?}");
    let float = if is_hex { hex_float(text) } else { decimal_float(text) }.ok_or_else(illegal)?;
    if !has_point {
        return Err(format!("integer overflow: {text:?}"));
    }
    let is_whole = float.fract() == 0.0 && float.abs() < 9.2e18;
    Ok(Number { int: is_whole.then_some(float as i64), float, is_float: true })
}

/// `strconv.ParseInt(text, 0, 64)`: with `0x`, `0o`, `0b` and `0` for other bases than 10.
pub(super) fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = sign(text);
    let lower = digits.to_ascii_lowercase();
    let (base, body) = if let Some(body) = lower.strip_prefix("0x") {
        (16, body)
    } else if let Some(body) = lower.strip_prefix("0o") {
        (8, body)
    } else if let Some(body) = lower.strip_prefix("0b") {
        (2, body)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // One underscore may follow the base; else they stand between digits.
    let body = if base == 10 { body } else { body.strip_prefix('_').unwrap_or(body) };
    if body.starts_with(['_', '+', '-']) || body.ends_with('_') || body.contains("__") {
        return None;
    }
    let value = i128::from(u64::from_str_radix(&body.replace('_', ""), base).ok()?);
    i64::try_from(if negative { -value } else { value }).ok()
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// `strconv.ParseFloat(text, 64)` without the hexadecimal ones.
pub(super) fn decimal_float(text: &str) -> Option<f64> {
    let (_, digits) = sign(text);
    let between = |at: usize| {
        let is_digit = |b: Option<&u8>| b.is_some_and(u8::is_ascii_digit);
        is_digit(digits.as_bytes().get(at.wrapping_sub(1)))
            && is_digit(digits.as_bytes().get(at + 1))
    };
    if !digits.match_indices('_').all(|(at, _)| between(at)) {
        return None;
    }
    let is_word = matches!(digits.to_ascii_lowercase().as_str(), "inf" | "infinity" | "nan");
    if !is_word && !digits.bytes().all(|b| b.is_ascii_digit() || b"._+-eE".contains(&b)) {
        return None;
    }
    let value: f64 = text.replace('_', "").parse().ok()?;
    // Go reports what is out of range.
    (is_word || value.is_finite()).then_some(value)
}

fn hex_float(text: &str) -> Option<f64> {
    let (negative, digits) = sign(text);
    let (mantissa, exponent) = digits[2..].split_once(['p', 'P'])?;
    let exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() < 5000)?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let bits = u64::from_str_radix(&format!("{whole}{fraction}"), 16).ok()?;
    let shift = i32::try_from(fraction.len()).ok()?.checked_mul(4)?;
    let value = bits as f64 * 2f64.powi(exponent - shift);
    Some(if negative { -value } else { value })
}

/// What a quoted or raw string says.
pub(super) fn unquote(text: &str) -> Result<String, &'static str> {
    const INVALID: &str = "invalid syntax";
    let quote = text.chars().next().ok_or(INVALID)?;
    let inner = text.get(1..text.len().max(2) - 1).ok_or(INVALID)?;
    if text.len() < 2 || !text.ends_with(quote) {
        return Err(INVALID);
    }
    match quote {
        '`' => Ok(inner.replace('\r', "")),
        '"' | '\'' => {
            let mut bytes = Vec::new();
            let mut rest = inner;
            while !rest.is_empty() {
                rest = unquote_char(rest, quote, &mut bytes).ok_or(INVALID)?;
            }
            Ok(String::from_utf8(bytes)
                .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
        }
        _ => Err(INVALID),
    }
}

/// A character constant such as `'a'` or `'\n'`.
pub(super) fn character(text: &str) -> Result<Number, String> {
    let malformed = || format!("malformed character constant: {text}");
    let said = unquote(text).map_err(|_| malformed())?;
    let mut chars = said.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => {
            let int = i64::from(c as u32);
            Ok(Number { int: Some(int), float: int as f64, is_float: false })
        }
        _ => Err(malformed()),
    }
}

/// Takes one character or escape off `text`, and returns what is left.
fn unquote_char<'t>(text: &'t str, quote: char, bytes: &mut Vec<u8>) -> Option<&'t str> {
    let mut chars = text.chars();
    let first = chars.next()?;
    if first != '\\' {
        bytes.extend(first.encode_utf8(&mut [0; 4]).as_bytes());
        return (first != quote).then_some(chars.as_str());
    }
    let escape = chars.next()?;
    let rest = chars.as_str();
    let digits = |count: usize, base: u32, from: &'t str| {
        let digits = from.get(..count).filter(|d| d.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        Some((u32::from_str_radix(digits, base).ok()?, &from[count..]))
    };
    let simple = match escape {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        c if c == quote => c as u8,
        'x' => {
            let (value, rest) = digits(2, 16, rest)?;
            bytes.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        '0'..='7' => {
            let (value, rest) = digits(3, 8, &text[1..])?;
            bytes.push(u8::try_from(value).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (value, rest) = digits(if escape == 'u' { 4 } else { 8 }, 16, rest)?;
            bytes.extend(char::from_u32(value)?.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => return None,
    };
    bytes.push(simple);
    Some(rest)
}
