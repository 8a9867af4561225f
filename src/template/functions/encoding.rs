//! JSON, YAML, base 64, base 32, and digests.

use base64::{Engine, prelude::BASE64_STANDARD};
use data_encoding::BASE32;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use super::{Call, Function, function, yaml};
use crate::template::{
    Value,
    error::Cause,
    float,
    run::{Text, check_depth},
};

pub(super) const FUNCTIONS: &[Function] = &[
    function("toJson", "a", |call| to_json(call, Style::ESCAPED)),
    function("mustToJson", "a", |call| to_json(call, Style::ESCAPED)),
    function("toRawJson", "a", |call| to_json(call, Style { escape: false, indent: false })),
    function("mustToRawJson", "a", |call| to_json(call, Style { escape: false, indent: false })),
    function("toPrettyJson", "a", |call| to_json(call, Style { escape: true, indent: true })),
    function("mustToPrettyJson", "a", |call| to_json(call, Style { escape: true, indent: true })),
    function("fromJson", "s", |call| Ok(from_json(call).unwrap_or_default())),
    function("mustFromJson", "s", from_json),
    function("toYaml", "a", |call| Ok(yaml::write(call.run, call.value(0))?.into())),
    function("fromYaml", "s", |call| {
        let text = call.text(0);
        call.run.work(text.len().saturating_mul(8))?;
        yaml::read(&text).map_err(Cause::from)
    }),
    function("b64enc", "s", |call| Ok(BASE64_STANDARD.encode(call.text(0).as_bytes()).into())),
    function("b64dec", "s", |call| {
        let bytes = BASE64_STANDARD
            .decode(without_line_ends(&call.text(0)))
            .map_err(|e| format!("illegal base64 data: {e}"))?;
        Ok(String::from_utf8_lossy(&bytes).as_ref().into())
    }),
    function("b32enc", "s", |call| Ok(BASE32.encode(call.text(0).as_bytes()).into())),
    function("b32dec", "s", |call| {
        let bytes = BASE32
            .decode(without_line_ends(&call.text(0)).as_bytes())
            .map_err(|e| format!("illegal base32 data: {e}"))?;
        Ok(String::from_utf8_lossy(&bytes).as_ref().into())
    }),
    function("sha256sum", "s", digest::<Sha256>),
    function("sha1sum", "s", digest::<Sha1>),
    function("sha512sum", "s", digest::<Sha512>),
    function("adler32sum", "s", |call| {
        let text = call.text(0);
        call.run.work(text.len())?;
        let (a, b) = text.bytes().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(byte)) % ADLER_PRIME;
            (a, (b + a) % ADLER_PRIME)
        });
        Ok((b << 16 | a).to_string().into())
    }),
];

/// The largest prime number below 2^16, as in RFC 1950.
const ADLER_PRIME: u32 = 65521;

fn digest<D: Digest>(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(0);
    call.run.work(text.len())?;
    Ok(hex::encode(D::digest(text.as_bytes())).into())
}

/// Go's decoders pass over line ends.
fn without_line_ends(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect()
}

#[derive(Clone, Copy)]
struct Style {
    /// `<`, `>` and `&` as `\u003c` and so on.
    escape: bool,
    /// Two spaces a level.
    indent: bool,
}

impl Style {
    const ESCAPED: Self = Self { escape: true, indent: false };
}

fn to_json(call: &mut Call<'_>, style: Style) -> Result<Value, Cause> {
    let mut text = Text::new(call.run);
    json(&mut text, call.value(0), style, 0)?;
    Ok(text.finish().into())
}

fn json(text: &mut Text<'_>, value: &Value, style: Style, depth: usize) -> Result<(), Cause> {
    check_depth(depth)?;
    let run = text.run();
    run.steps(1)?;
    let newline = |text: &mut Text<'_>, depth: usize| {
        if style.indent {
            text.push("\n")?;
            text.repeat("  ", depth)?;
        }
        Ok::<_, Cause>(())
    };
    match value {
        Value::Nil => text.push("null"),
        Value::Bool(value) => text.push(if *value { "true" } else { "false" }),
        Value::Int(number) => text.push(&number.to_string()),
        Value::Float(number) if !number.is_finite() => {
            Err(format!("json: unsupported value: {number}").into())
        }
        Value::Float(number) => text.push(&float::json(*number)),
        Value::String(content) => string(text, content, style.escape),
        Value::Time(time) => string(text, &time.rfc3339(), style.escape),
        Value::List(list) if list.is_empty() => text.push("[]"),
        Value::List(list) => {
            text.push("[")?;
            for (index, value) in list.iter().enumerate() {
                if index > 0 {
                    text.push(",")?;
                }
                newline(text, depth + 1)?;
                json(text, value, style, depth + 1)?;
            }
            newline(text, depth)?;
            text.push("]")
        }
        Value::Map(map) if run.entries(map).is_empty() => text.push("{}"),
        Value::Map(map) => {
            text.push("{")?;
            for (index, (key, value)) in run.entries(map).iter().enumerate() {
                if index > 0 {
                    text.push(",")?;
                }
                newline(text, depth + 1)?;
                string(text, key, style.escape)?;
                text.push(if style.indent { ": " } else { ":" })?;
                json(text, value, style, depth + 1)?;
            }
            newline(text, depth)?;
            text.push("}")
        }
    }
}

/// A string as `encoding/json` writes it.
fn string(text: &mut Text<'_>, content: &str, escape: bool) -> Result<(), Cause> {
    text.push("\"")?;
    let mut plain = 0;
    for (at, c) in content.char_indices() {
        let escaped = match c {
            '"' => "\\\"".into(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            '\r' => "\\r".into(),
            '\t' => "\\t".into(),
            '\u{8}' => "\\b".into(),
            '\u{c}' => "\\f".into(),
            '\0'..' ' | '\u{2028}' | '\u{2029}' => format!("\\u{:04x}", c as u32),
            '<' | '>' | '&' if escape => format!("\\u{:04x}", c as u32),
            _ => continue,
        };
        text.push(&content[plain..at])?;
        text.push(&escaped)?;
        plain = at + c.len_utf8();
    }
    text.push(&content[plain..])?;
    text.push("\"")
}

/// Every number is a float, as in Go.
fn from_json(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(0);
    call.run.work(text.len().saturating_mul(8))?;
    let read: serde_json::Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    Ok(floats(read))
}

fn floats(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Number(number) => number.as_f64().unwrap_or(f64::NAN).into(),
        serde_json::Value::Array(values) => values.into_iter().map(floats).collect(),
        serde_json::Value::Object(entries) => {
            entries.into_iter().map(|(key, value)| (key, floats(value))).collect()
        }
        other => other.into(),
    }
}
