//! TOML, as `BurntSushi/toml` reads and writes it, which is what KubeKey has.

use crate::template::{
    Value,
    error::Cause,
    float,
    run::{Run, Text, check_depth},
};

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Value, String> {
    let read: toml::Table =
        text.parse().map_err(|e: toml::de::Error| format!("toml: {}", e.message()))?;
    Ok(value(toml::Value::Table(read)))
}

fn value(read: toml::Value) -> Value {
    match read {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(value) => value.into(),
        toml::Value::Datetime(time) => time.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(value).collect(),
        toml::Value::Table(entries) => {
            entries.into_iter().map(|(key, read)| (key, value(read))).collect()
        }
    }
}

/// Writes one document: tables sorted by name, each two spaces further right than the one it is in.
pub(super) fn write(run: &Run, value: &Value) -> Result<String, Cause> {
    let Value::Map(_) = value else {
        return Err(
            format!("toml: top-level values must be maps, not {}", value.type_name()).into()
        );
    };
    let mut text = Text::new(run);
    table(&mut text, value, &mut Vec::new(), &mut false)?;
    Ok(text.finish())
}

fn is_table_array(value: &Value) -> bool {
    let Value::List(list) = value else { return false };
    !list.is_empty() && list.iter().all(|value| matches!(value, Value::Map(_)))
}

/// Writes what is in a map. `path` are the names of the tables that it is in, and `written` says
/// whether there is text already.
fn table(
    text: &mut Text<'_>,
    map: &Value,
    path: &mut Vec<String>,
    written: &mut bool,
) -> Result<(), Cause> {
    check_depth(path.len())?;
    let run = text.run();
    let Value::Map(map) = map else { return Ok(()) };
    let entries = run.entries(map);
    run.steps(1 + entries.len())?;
    let is_sub = |value: &Value| matches!(value, Value::Map(_)) || is_table_array(value);
    for (key, value) in entries.iter().filter(|(_, value)| !is_sub(value)) {
        if matches!(value, Value::Nil) {
            continue;
        }
        text.repeat("  ", path.len())?;
        text.push(&quoted_key(key))?;
        text.push(" = ")?;
        inline(text, value, path.len())?;
        text.push("\n")?;
        *written = true;
    }
    for (key, value) in entries.iter().filter(|(_, value)| is_sub(value)) {
        path.push(quoted_key(key));
        let indent = path.len() - 1;
        let name = path.join(".");
        match value {
            Value::List(list) => {
                for value in list.iter() {
                    if *written {
                        text.push("\n")?;
                    }
                    text.repeat("  ", indent)?;
                    text.push(&format!("[[{name}]]\n"))?;
                    *written = true;
                    table(text, value, path, written)?;
                }
            }
            value => {
                // Between tables at the top is an empty line.
                if indent == 0 && *written {
                    text.push("\n")?;
                }
                text.repeat("  ", indent)?;
                text.push(&format!("[{name}]\n"))?;
                *written = true;
                table(text, value, path, written)?;
            }
        }
        path.pop();
    }
    Ok(())
}

fn quoted_key(key: &str) -> String {
    let is_bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) { key.to_owned() } else { quoted(key) }
}

fn quoted(content: &str) -> String {
    let mut text = String::from("\"");
    for c in content.chars() {
        match c {
            '"' => text += "\\\"",
            '\\' => text += "\\\\",
            '\n' => text += "\\n",
            '\r' => text += "\\r",
            '\t' => text += "\\t",
            '\u{8}' => text += "\\b",
            '\u{c}' => text += "\\f",
            c if c.is_ascii_control() => text += &format!("\\u{:04x}", c as u32),
            c => text.push(c),
        }
    }
    text + "\""
}

/// Writes a value that stands in a line.
fn inline(text: &mut Text<'_>, value: &Value, depth: usize) -> Result<(), Cause> {
    check_depth(depth)?;
    let run = text.run();
    run.steps(1)?;
    match value {
        Value::Nil => Err("toml: cannot encode array with nil element".into()),
        Value::Bool(value) => text.push(if *value { "true" } else { "false" }),
        Value::Int(number) => text.push(&number.to_string()),
        Value::Float(number) if number.is_nan() => text.push("nan"),
        Value::Float(number) if number.is_infinite() => {
            text.push(if *number > 0.0 { "inf" } else { "-inf" })
        }
        Value::Float(number) => {
            let sign = if number.is_sign_negative() { "-" } else { "" };
            let shown = float::format(number.abs(), 'f', None);
            let point = if shown.contains('.') { "" } else { ".0" };
            text.push(&format!("{sign}{shown}{point}"))
        }
        Value::String(content) => text.push(&quoted(content)),
        Value::Time(time) => text.push(&time.rfc3339()),
        Value::List(list) => {
            text.push("[")?;
            for (index, value) in list.iter().enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                inline(text, value, depth + 1)?;
            }
            text.push("]")
        }
        Value::Map(map) => {
            text.push("{")?;
            let entries = run.entries(map).iter().filter(|(_, value)| !matches!(value, Value::Nil));
            for (index, (key, value)) in entries.enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                text.push(&quoted_key(key))?;
                text.push(" = ")?;
                inline(text, value, depth + 1)?;
            }
            text.push("}")
        }
    }
}
