//! Go's own functions, from `text/template/funcs.go`.

use std::cmp::Ordering;

use super::{Call, Function, function};
use crate::template::{Value, error::Cause, functions::is_empty, print, run::Run, run::Text};

pub(super) const FUNCTIONS: &[Function] = &[
    // The evaluator does these two.
    function("and", "aa*", |_| Ok(Value::Nil)),
    function("or", "aa*", |_| Ok(Value::Nil)),
    function("not", "a", |call| Ok(is_empty(call.run, call.value(0)).into())),
    function("eq", "aa*", |call| {
        let Some((first, others)) = call.args.split_first() else { return Ok(false.into()) };
        if others.is_empty() {
            return Err("missing argument for comparison".into());
        }
        for other in others {
            if equal(call.run, first, other)? {
                return Ok(true.into());
            }
        }
        Ok(false.into())
    }),
    function("ne", "aa", |call| Ok((!equal(call.run, call.value(0), call.value(1))?).into())),
    function("lt", "aa", |call| Ok(less(call)?.into())),
    function("le", "aa", |call| Ok(less_or_equal(call)?.into())),
    function("gt", "aa", |call| Ok((!less_or_equal(call)?).into())),
    function("ge", "aa", |call| Ok((!less(call)?).into())),
    function("len", "a", |call| {
        let len = match call.value(0) {
            Value::String(text) => text.len(),
            Value::List(list) => list.len(),
            Value::Map(_) => call.entries(0).len(),
            Value::Nil => return Err("len of nil pointer".into()),
            other => return Err(format!("len of type {}", other.type_name()).into()),
        };
        Ok((len as i64).into())
    }),
    function("index", "aa*", index),
    function("slice", "aa*", slice),
    function("mustSlice", "aa*", slice),
    function("print", "a*", |call| Ok(print::print(call.run, &call.args)?.into())),
    function("println", "a*", |call| Ok(print::println(call.run, &call.args)?.into())),
    function("printf", "sa*", |call| {
        let values = call.args.get(1..).unwrap_or_default();
        Ok(print::printf(call.run, &call.text(0), values)?.into())
    }),
    function("html", "a*", |call| {
        escape(call, |c| match c {
            '\0' => Some("\u{fffd}".into()),
            '"' => Some("&#34;".into()),
            '\'' => Some("&#39;".into()),
            '&' => Some("&amp;".into()),
            '<' => Some("&lt;".into()),
            '>' => Some("&gt;".into()),
            _ => None,
        })
    }),
    function("js", "a*", |call| {
        escape(call, |c| match c {
            '\\' | '\'' | '"' => Some(format!("\\{c}")),
            '<' | '>' | '&' | '=' | '\0'..' ' => Some(format!("\\u{:04X}", c as u32)),
            c if c.is_ascii() || print::is_printable(c) => None,
            c => Some(format!("\\u{:04X}", c as u32)),
        })
    }),
    function("urlquery", "a*", |call| {
        escape(call, |c| match c {
            ' ' => Some("+".into()),
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '~' => None,
            c => {
                let mut bytes = [0; 4];
                let bytes = c.encode_utf8(&mut bytes).bytes();
                Some(bytes.map(|byte| format!("%{byte:02X}")).collect())
            }
        })
    }),
    function("include", "sa", |call| {
        let (name, dot) = (call.text(0), call.value(1).clone());
        Ok(call.render_defined(&name, dot)?.into())
    }),
    function("tpl", "sa", |call| {
        let (text, dot) = (call.text(0), call.value(1).clone());
        Ok(call.render_text(&text, dot)?.replace("<no value>", "").into())
    }),
];

fn escape(call: &Call<'_>, escaped: fn(char) -> Option<String>) -> Result<Value, Cause> {
    let plain = print::print(call.run, &call.args)?;
    let mut text = Text::new(call.run);
    for c in plain.chars() {
        match escaped(c) {
            Some(escape) => text.push(&escape)?,
            None => text.push(c.encode_utf8(&mut [0; 4]))?,
        }
    }
    Ok(text.finish().into())
}

const INCOMPATIBLE: &str = "incompatible types for comparison";
const INVALID: &str = "invalid type for comparison";

/// Go's `==` of basic kinds; `nil` is equal to `nil` alone.
fn equal(run: &Run, a: &Value, b: &Value) -> Result<bool, Cause> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Int(a), Value::Int(b)) => Ok(a == b),
        (Value::Float(a), Value::Float(b)) => Ok(a == b),
        (Value::String(a), Value::String(b)) => {
            run.work(a.len().min(b.len()))?;
            Ok(a == b)
        }
        (Value::Time(a), Value::Time(b)) => Ok(a == b),
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, _) | (_, Value::Nil) => Ok(false),
        (Value::List(_), Value::List(_)) | (Value::Map(_), Value::Map(_)) => {
            Err(format!("non-comparable type {}", b.type_name()).into())
        }
        (Value::List(_), Value::Map(_)) | (Value::Map(_), Value::List(_)) => {
            Err(format!("non-comparable types {}, {}", a.type_name(), b.type_name()).into())
        }
        _ => Err(INCOMPATIBLE.into()),
    }
}

fn less(call: &Call<'_>) -> Result<bool, Cause> {
    let ordering = match (call.value(0), call.value(1)) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).unwrap_or(Ordering::Greater),
        (Value::String(a), Value::String(b)) => {
            call.run.work(a.len().min(b.len()))?;
            a.cmp(b)
        }
        (Value::Bool(_), Value::Bool(_)) => return Err(INVALID.into()),
        (a, b) => {
            let is_basic = |v: &Value| {
                !matches!(v, Value::Nil | Value::List(_) | Value::Map(_) | Value::Time(_))
            };
            let reason = if is_basic(a) && is_basic(b) { INCOMPATIBLE } else { INVALID };
            return Err(reason.into());
        }
    };
    Ok(ordering == Ordering::Less)
}

fn less_or_equal(call: &Call<'_>) -> Result<bool, Cause> {
    Ok(less(call)? || equal(call.run, call.value(0), call.value(1))?)
}

fn index(call: &mut Call<'_>) -> Result<Value, Cause> {
    let Some((first, indexes)) = call.args.split_first() else { return Ok(Value::Nil) };
    if matches!(first, Value::Nil) {
        return Err("index of untyped nil".into());
    }
    let mut item = first.clone();
    for index in indexes {
        item = match (&item, index) {
            (Value::Nil, _) => return Err("index of nil pointer".into()),
            (Value::List(list), index) => {
                let at = position(index, list.len(), false)?;
                list.get(at).cloned().unwrap_or_default()
            }
            (Value::String(text), index) => {
                let at = position(index, text.len(), false)?;
                i64::from(text.as_bytes().get(at).copied().unwrap_or_default()).into()
            }
            (Value::Map(map), Value::String(key)) => {
                call.run.entries(map).get(key.as_ref()).cloned().unwrap_or_default()
            }
            (Value::Map(_), Value::Nil) => {
                return Err("value is nil; should be of type string".into());
            }
            (Value::Map(_), other) => {
                let message = format!("value has type {}; should be string", other.type_name());
                return Err(message.into());
            }
            (other, _) => {
                return Err(format!("can't index item of type {}", other.type_name()).into());
            }
        };
    }
    Ok(item)
}

/// An index, which may be the length itself where a slice may end.
fn position(index: &Value, len: usize, or_end: bool) -> Result<usize, Cause> {
    let number = match index {
        Value::Int(number) => *number,
        Value::Nil => return Err("cannot index slice/array with nil".into()),
        other => {
            let name = other.type_name();
            return Err(format!("cannot index slice/array with type {name}").into());
        }
    };
    let position = usize::try_from(number).ok();
    let position = position.filter(|position| *position < len || or_end && *position == len);
    position.ok_or_else(|| format!("index out of range: {number}").into())
}

/// sprig's `slice` for lists, which hides Go's; Go's own for strings, which sprig's refuses.
fn slice(call: &mut Call<'_>) -> Result<Value, Cause> {
    if call.len() > 4 {
        return Err(format!("too many slice indexes: {}", call.len() - 1).into());
    }
    let bounds = |len: usize, number: fn(&Value) -> Value| -> Result<(usize, usize), Cause> {
        let at = |index: usize, default: usize| match call.args.get(index) {
            Some(value) => position(&number(value), len, true),
            None => Ok(default),
        };
        let (start, end) = (at(1, 0)?, at(2, len)?);
        if start > end {
            return Err(format!("invalid slice index: {start} > {end}").into());
        }
        Ok((start, end))
    };
    match call.value(0) {
        Value::List(list) if list.is_empty() => Ok(Value::Nil),
        Value::List(list) => {
            let (start, end) = bounds(list.len(), |value| super::math::to_int(value).into())?;
            Ok(list[start..end].iter().cloned().collect())
        }
        Value::String(text) => {
            let (start, end) = bounds(text.len(), Value::clone)?;
            let bytes = text.as_bytes().get(start..end).unwrap_or_default();
            Ok(String::from_utf8_lossy(bytes).as_ref().into())
        }
        other => {
            Err(format!("list should be type of slice or array but {}", super::kind(other)).into())
        }
    }
}
