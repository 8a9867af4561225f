//! sprig's functions on strings. Lengths and positions are in bytes, as in Go.

use super::{Call, Function, function};
use crate::template::{
    Value,
    error::Cause,
    print,
    run::{Text, check_output},
};

pub(super) const FUNCTIONS: &[Function] = &[
    function("trim", "s", |call| Ok(call.text(0).trim().into())),
    function("trimAll", "ss", trim_all),
    function("trimall", "ss", trim_all),
    function("trimPrefix", "ss", |call| {
        let (prefix, text) = (call.text(0), call.text(1));
        Ok(text.strip_prefix(prefix.as_ref()).unwrap_or(&text).into())
    }),
    function("trimSuffix", "ss", |call| {
        let (suffix, text) = (call.text(0), call.text(1));
        Ok(text.strip_suffix(suffix.as_ref()).unwrap_or(&text).into())
    }),
    function("upper", "s", |call| Ok(call.text(0).to_uppercase().into())),
    function("lower", "s", |call| Ok(call.text(0).to_lowercase().into())),
    function("title", "s", |call| Ok(title(&call.text(0)).into())),
    function("untitle", "s", |call| Ok(untitle(&call.text(0)).into())),
    function("nospace", "s", |call| {
        Ok(call.text(0).chars().filter(|c| !c.is_whitespace()).collect::<String>().into())
    }),
    function("contains", "ss", |call| Ok(call.text(1).contains(call.text(0).as_ref()).into())),
    function("hasPrefix", "ss", |call| Ok(call.text(1).starts_with(call.text(0).as_ref()).into())),
    function("hasSuffix", "ss", |call| Ok(call.text(1).ends_with(call.text(0).as_ref()).into())),
    function("replace", "sss", |call| {
        let (old, new, text) = (call.text(0), call.text(1), call.text(2));
        call.run.work(text.len())?;
        let count = text.matches(old.as_ref()).count();
        check_output(text.len().saturating_add(count.saturating_mul(new.len())))?;
        Ok(text.replace(old.as_ref(), &new).into())
    }),
    function("repeat", "is", |call| {
        let mut text = Text::new(call.run);
        text.repeat(&call.text(1), count(call.int(0))?)?;
        Ok(text.finish().into())
    }),
    function("trunc", "is", |call| {
        let (count, text) = (call.int(0), call.text(1));
        let bytes = text.as_bytes();
        let size = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
        Ok(match count {
            0.. if bytes.len() > size => lossy(&bytes[..size]),
            ..0 if bytes.len() > size => lossy(&bytes[bytes.len() - size..]),
            _ => text.as_ref().into(),
        })
    }),
    function("abbrev", "is", |call| {
        let text = call.text(1);
        let width = usize::try_from(call.int(0)).unwrap_or(0);
        if width < 4 || text.len() <= width {
            return Ok(Value::String(text));
        }
        Ok((String::from_utf8_lossy(&text.as_bytes()[..width - 3]) + "...").as_ref().into())
    }),
    function("substr", "iis", |call| {
        let (start, end, text) = (call.int(0), call.int(1), call.text(2));
        let len = text.len() as i64;
        let (start, end) = match (start, end) {
            (..0, end) => (0, end),
            (start, end) if end < 0 || end > len => (start, len),
            bounds => bounds,
        };
        if start > end || end < 0 || end > len {
            return Err(format!("slice bounds out of range [{start}:{end}]").into());
        }
        Ok(lossy(&text.as_bytes()[start as usize..end as usize]))
    }),
    function("indent", "is", |call| Ok(indent(call, "")?.into())),
    function("nindent", "is", |call| Ok(indent(call, "\n")?.into())),
    function("quote", "a*", |call| {
        let mut parts = Vec::new();
        for value in call.args.iter().filter(|value| !matches!(value, Value::Nil)) {
            let text = call.text_of(value)?;
            call.run.work(text.len() * 2)?;
            parts.push(print::quote(&text));
        }
        joined(call, &parts)
    }),
    function("squote", "a*", |call| {
        let mut parts = Vec::new();
        for value in call.args.iter().filter(|value| !matches!(value, Value::Nil)) {
            parts.push(format!("'{}'", call.text_of(value)?));
        }
        joined(call, &parts)
    }),
    function("cat", "a*", |call| {
        let mut parts = Vec::new();
        for value in call.args.iter().filter(|value| !matches!(value, Value::Nil)) {
            parts.push(call.text_of(value)?.to_string());
        }
        joined(call, &parts)
    }),
    function("toString", "a", |call| Ok(Value::String(call.text_of(call.value(0))?))),
    function("split", "ss", |call| {
        Ok(numbered(&split(call, &call.text(1), &call.text(0), usize::MAX)?))
    }),
    function("splitn", "sis", |call| {
        let parts = usize::try_from(call.int(1)).unwrap_or(usize::MAX);
        Ok(numbered(&split(call, &call.text(2), &call.text(0), parts)?))
    }),
    function("splitList", "ss", |call| {
        let parts = split(call, &call.text(1), &call.text(0), usize::MAX)?;
        Ok(parts.into_iter().map(Value::from).collect())
    }),
];

fn lossy(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).as_ref().into()
}

fn trim_all(call: &mut Call<'_>) -> Result<Value, Cause> {
    let (set, text) = (call.text(0), call.text(1));
    call.run.work(text.len().saturating_mul(set.len()) / 8)?;
    Ok(text.trim_matches(|c| set.contains(c)).into())
}

fn count(number: i64) -> Result<usize, Cause> {
    usize::try_from(number).map_err(|_| "strings: negative Repeat count".into())
}

fn joined(call: &Call<'_>, parts: &[String]) -> Result<Value, Cause> {
    let mut text = Text::new(call.run);
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            text.push(" ")?;
        }
        text.push(part)?;
    }
    Ok(text.finish().into())
}

fn indent(call: &Call<'_>, before: &str) -> Result<String, Cause> {
    let spaces = count(call.int(0))?;
    let mut text = Text::new(call.run);
    text.push(before)?;
    for (index, line) in call.text(1).split('\n').enumerate() {
        if index > 0 {
            text.push("\n")?;
        }
        text.repeat(" ", spaces)?;
        text.push(line)?;
    }
    Ok(text.finish())
}

/// `strings.SplitN`: an empty separator separates all characters.
fn split(call: &Call<'_>, text: &str, separator: &str, parts: usize) -> Result<Vec<String>, Cause> {
    call.run.work(text.len())?;
    if parts == 0 {
        return Ok(Vec::new());
    }
    let split: Vec<String> = if separator.is_empty() {
        let ends = text.char_indices().map(|(at, c)| (at, at + c.len_utf8()));
        ends.take(parts)
            .enumerate()
            .map(|(index, (at, end))| {
                text[at..if index + 1 == parts { text.len() } else { end }].to_owned()
            })
            .collect()
    } else {
        text.splitn(parts, separator).map(str::to_owned).collect()
    };
    call.run.work(split.len() * 2 * size_of::<Value>())?;
    Ok(split)
}

/// `_0`, `_1` and so on
fn numbered(parts: &[String]) -> Value {
    let entry = |(index, part): (usize, &String)| (format!("_{index}"), part.as_str().into());
    parts.iter().enumerate().map(entry).collect()
}

/// `strings.Title`: what does not follow a letter, digit or underscore is a beginning.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut before = ' ';
    for c in text.chars() {
        let is_start = match before {
            b if b.is_ascii() => !b.is_ascii_alphanumeric() && b != '_',
            b => b.is_whitespace(),
        };
        if is_start {
            titled.extend(c.to_uppercase());
        } else {
            titled.push(c);
        }
        before = c;
    }
    titled
}

/// `goutils.Uncapitalize`: every word.
fn untitle(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_start = true;
    for c in text.chars() {
        if is_start && !c.is_whitespace() {
            result.extend(c.to_lowercase());
        } else {
            result.push(c);
        }
        is_start = c.is_whitespace();
    }
    result
}
