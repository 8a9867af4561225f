//! YAML as `gopkg.in/yaml.v3` writes it, which is what KubeKey's `toYaml` is.

use serde_saphyr::options;

use crate::template::{
    Value,
    error::Cause,
    float,
    run::{Run, Text, check_depth},
};

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Nil);
    }
    let options = options! { strict_booleans: true };
    let read: serde_json::Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|e| first_line(&e.to_string()).to_owned())?;
    Ok(read.into())
}

fn first_line(message: &str) -> &str {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line)
}

/// Writes one document, without a newline at its end.
pub(super) fn write(run: &Run, value: &Value) -> Result<String, Cause> {
    let mut text = Text::new(run);
    node(&mut text, value, 0, false, INDENT)?;
    Ok(text.finish().trim().to_owned())
}

/// How far what is in a map or list is indented.
const INDENT: usize = 4;

/// Where the content of something at `column` begins: further right, at a multiple.
fn inside(column: usize) -> usize {
    (column + INDENT) / INDENT * INDENT
}

/// Writes a value where the cursor stands; `column` is where its lines begin, and `in_line` says
/// that the first one has begun already. The lines of a literal block begin at `literal`.
fn node(
    text: &mut Text<'_>,
    value: &Value,
    column: usize,
    in_line: bool,
    literal: usize,
) -> Result<(), Cause> {
    check_depth(column / 2)?;
    let run = text.run();
    run.steps(1)?;
    match value {
        Value::List(list) if list.is_empty() => text.push("[]"),
        Value::List(list) => {
            for (index, value) in list.iter().enumerate() {
                if index > 0 || !in_line {
                    start_line(text, column, index == 0)?;
                }
                text.push("- ")?;
                node(text, value, column + 2, true, column + 2)?;
            }
            Ok(())
        }
        Value::Map(map) if run.entries(map).is_empty() => text.push("{}"),
        Value::Map(map) => {
            for (index, (key, value)) in run.entries(map).iter().enumerate() {
                if index > 0 || !in_line {
                    start_line(text, column, index == 0)?;
                }
                string(text, key, None)?;
                text.push(":")?;
                let inner = inside(column);
                match value {
                    Value::List(list) if !list.is_empty() => {
                        node(text, value, inner, false, inner)?;
                    }
                    Value::Map(map) if !run.entries(map).is_empty() => {
                        node(text, value, inner, false, inner)?;
                    }
                    scalar => {
                        text.push(" ")?;
                        node(text, scalar, column, true, inner)?;
                    }
                }
            }
            Ok(())
        }
        Value::Nil => text.push("null"),
        Value::Bool(value) => text.push(if *value { "true" } else { "false" }),
        Value::Int(number) => text.push(&number.to_string()),
        Value::Float(number) if number.is_nan() => text.push(".nan"),
        Value::Float(number) if number.is_infinite() => {
            text.push(if *number > 0.0 { ".inf" } else { "-.inf" })
        }
        Value::Float(number) => {
            let sign = if number.is_sign_negative() { "-" } else { "" };
            text.push(&format!("{sign}{}", float::format(number.abs(), 'g', None)))
        }
        Value::Time(time) => text.push(&time.rfc3339()),
        Value::String(content) => string(text, content, Some(literal)),
    }
}

fn start_line(text: &mut Text<'_>, column: usize, is_first: bool) -> Result<(), Cause> {
    // The very first line of the document is there already.
    if !(is_first && column == 0) {
        text.push("\n")?;
    }
    text.repeat(" ", column)
}

/// Writes a string; as a literal block only where it is told where that would begin.
fn string(text: &mut Text<'_>, content: &str, literal: Option<usize>) -> Result<(), Cause> {
    text.run().work(content.len())?;
    let printable = |c: char| c == '\n' || c == '\t' || !c.is_control() && c != '\u{feff}';
    if !content.chars().all(printable) {
        return double_quoted(text, content);
    }
    let may_be_block = content.contains('\n') && !content.starts_with([' ', '\n', '\t']);
    if let Some(indent) = literal.filter(|_| may_be_block) {
        // A literal block: what ends it says how many newlines are at the end.
        let trailing = content.len() - content.trim_end_matches('\n').len();
        text.push(match trailing {
            0 => "|-",
            1 => "|",
            _ => "|+",
        })?;
        for line in content.strip_suffix('\n').unwrap_or(content).split('\n') {
            text.push("\n")?;
            if !line.is_empty() {
                text.repeat(" ", indent)?;
                text.push(line)?;
            }
        }
        return Ok(());
    }
    if content.contains('\n') || is_ambiguous(content) {
        return double_quoted(text, content);
    }
    if is_plain(content) {
        return text.push(content);
    }
    text.push("'")?;
    text.push(&content.replace('\'', "''"))?;
    text.push("'")
}

fn double_quoted(text: &mut Text<'_>, content: &str) -> Result<(), Cause> {
    text.push("\"")?;
    for c in content.chars() {
        match c {
            '"' => text.push("\\\"")?,
            '\\' => text.push("\\\\")?,
            '\n' => text.push("\\n")?,
            '\t' => text.push("\\t")?,
            '\r' => text.push("\\r")?,
            c if c.is_control() || c == '\u{feff}' => {
                text.push(&format!("\\u{:04x}", c as u32))?;
            }
            c => text.push(c.encode_utf8(&mut [0; 4]))?,
        }
    }
    text.push("\"")
}

/// Whether a reader would take it for something else than a string, in YAML 1.1 or 1.2.
fn is_ambiguous(content: &str) -> bool {
    let lower = content.to_ascii_lowercase();
    const WORDS: [&str; 14] =
        ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", "<<", "="];
    let unsigned = lower.trim_start_matches(['+', '-']);
    let looks_like_a_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && (unsigned.bytes().all(|b| b.is_ascii_digit() || b"_.e+-:".contains(&b))
            || unsigned.starts_with("0x") && unsigned[2..].bytes().all(|b| b.is_ascii_hexdigit())
            || unsigned.starts_with("0o") && unsigned[2..].bytes().all(|b| b.is_ascii_digit())
            || unsigned.starts_with("0b") && unsigned[2..].bytes().all(|b| b.is_ascii_digit()));
    let is_number = looks_like_a_number
        && (crate::template::literal::integer(&lower).is_some()
            || crate::template::literal::decimal_float(&lower).is_some()
            || unsigned.starts_with("0o")
            || is_base_60(unsigned)
            || is_date(&lower));
    WORDS.contains(&lower.as_str()) || unsigned == ".inf" || is_number
}

/// `12:34:56`, a number in YAML 1.1
fn is_base_60(text: &str) -> bool {
    let (first, rest) = text.split_once(':').unwrap_or(("", ""));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    is_digits(first) && rest.split(':').all(|part| is_digits(part) && part.len() <= 2)
}

/// `2001-02-03`
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths.first() == Some(&4)
        && lengths.len() == 3
        && lengths.iter().all(|len| (1..=4).contains(len))
}

/// Whether it can stand without quotes.
fn is_plain(content: &str) -> bool {
    let indicator = content.starts_with(|c: char| "-?:,[]{}#&*!|>'\"%@`".contains(c));
    let dash = content.strip_prefix(['-', '?', ':']);
    let may_start =
        !indicator || dash.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(' '));
    may_start
        && content != "---"
        && content != "..."
        && !content.starts_with("--- ")
        && !content.starts_with([' ', '\t'])
        && !content.ends_with([' ', '\t', ':'])
        && !content.contains(": ")
        && !content.contains(" #")
        && !content.contains('\t')
}
