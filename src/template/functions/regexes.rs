//! sprig's functions on regular expressions, in Go's syntax.

use regex::{Regex, RegexBuilder};

use super::{Call, Function, function};
use crate::template::{Value, error::Cause, run::Text};

pub(super) const FUNCTIONS: &[Function] = &[
    function("regexMatch", "ss", is_match),
    function("mustRegexMatch", "ss", is_match),
    function("regexFind", "ss", find),
    function("mustRegexFind", "ss", find),
    function("regexFindAll", "ssi", find_all),
    function("mustRegexFindAll", "ssi", find_all),
    function("regexReplaceAll", "sss", |call| replace_all(call, true)),
    function("mustRegexReplaceAll", "sss", |call| replace_all(call, true)),
    function("regexReplaceAllLiteral", "sss", |call| replace_all(call, false)),
    function("mustRegexReplaceAllLiteral", "sss", |call| replace_all(call, false)),
    function("regexSplit", "ssi", split),
    function("mustRegexSplit", "ssi", split),
    function("regexQuoteMeta", "s", |call| {
        let mut quoted = String::new();
        for c in call.text(0).chars() {
            if "\\.+*?()|[]{}^$".contains(c) {
                quoted.push('\\');
            }
            quoted.push(c);
        }
        Ok(quoted.into())
    }),
];

/// The largest compiled expression, in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

fn compile(call: &Call<'_>) -> Result<Regex, Cause> {
    let pattern = call.text(0);
    // Both take their time: compiling, and searching.
    call.run.steps(100 + pattern.len())?;
    call.run.work(call.text(1).len())?;
    RegexBuilder::new(&translated(&pattern))
        .size_limit(MAX_REGEX_BYTES)
        .dfa_size_limit(MAX_REGEX_BYTES)
        .nest_limit(100)
        .build()
        .map_err(|e| {
            let reason = e.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("error parsing regexp: {reason}: `{pattern}`").into()
        })
}

/// Go's syntax in Rust's: `\d`, `\s`, `\w` and `\b` know ASCII only, `\Q...\E` quotes, and within
/// brackets nothing nests.
fn translated(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut in_class = false;
    let mut class_start = false;
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let at_start = std::mem::take(&mut class_start);
        match c {
            '\\' => match chars.next() {
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('s') => out.push_str("[\\t\\n\\f\\r ]"),
                Some('S') => out.push_str("[^\\t\\n\\f\\r ]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('b') if !in_class => out.push_str("(?-u:\\b)"),
                Some('Q') => {
                    let rest: String = chars.clone().collect();
                    let quoted = &rest[..rest.find("\\E").unwrap_or(rest.len())];
                    out.push_str(&regex::escape(quoted));
                    for _ in quoted.chars() {
                        chars.next();
                    }
                    if chars.next().is_some() {
                        chars.next();
                    }
                }
                Some(other) => {
                    out.extend(['\\', other]);
                    if matches!(other, 'p' | 'P' | 'x') && chars.next_if_eq(&'{').is_some() {
                        out.push('{');
                    }
                }
                None => out.push('\\'),
            },
            '[' if !in_class => {
                in_class = true;
                class_start = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            '[' if chars.peek() == Some(&':') => out.push('['),
            '[' => out.push_str("\\["),
            ']' if in_class && at_start => out.push_str("\\]"),
            // `[[:alpha:]]`: the first one ends the name.
            ']' if in_class && !out.ends_with(':') => {
                in_class = false;
                out.push(']');
            }
            // What is no count is itself.
            '{' if !in_class && !starts_count(chars.clone()) => out.push_str("\\{"),
            '&' | '~' if in_class => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// Whether `3}`, `3,}` or `3,5}` comes.
fn starts_count(rest: impl Iterator<Item = char>) -> bool {
    let count: String = rest.take_while(|c| *c != '}').take(12).collect();
    let (least, most) = count.split_once(',').unwrap_or((&count, ""));
    !least.is_empty() && [least, most].iter().all(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

fn is_match(call: &mut Call<'_>) -> Result<Value, Cause> {
    Ok(compile(call)?.is_match(&call.text(1)).into())
}

fn find(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(1);
    Ok(compile(call)?.find(&text).map_or("", |found| found.as_str()).into())
}

/// How many results are wanted: all, where the number is negative.
fn limit(number: i64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn find_all(call: &mut Call<'_>) -> Result<Value, Cause> {
    let (regex, text) = (compile(call)?, call.text(1));
    let mut found: Vec<Value> = Vec::new();
    for part in regex.find_iter(&text).take(limit(call.int(2))) {
        call.run.steps(1)?;
        found.push(part.as_str().into());
    }
    Ok(found.into_iter().collect())
}

fn replace_all(call: &mut Call<'_>, expand: bool) -> Result<Value, Cause> {
    let (regex, text, replacement) = (compile(call)?, call.text(1), call.text(2));
    let mut replaced = Text::new(call.run);
    let mut at = 0;
    for found in regex.captures_iter(&text) {
        let whole = found.get_match();
        replaced.push(&text[at..whole.start()])?;
        if expand {
            // Each name in the replacement is as long as the text at most.
            let names = replacement.matches('$').count();
            let bound = names.saturating_mul(whole.len()).saturating_add(replacement.len());
            crate::template::run::check_output(bound)?;
            let mut expanded = String::new();
            found.expand(&replacement, &mut expanded);
            replaced.push(&expanded)?;
        } else {
            replaced.push(&replacement)?;
        }
        call.run.steps(1)?;
        at = whole.end();
    }
    replaced.push(&text[at..])?;
    Ok(replaced.finish().into())
}

/// `Regexp.Split`: a match at the very beginning that is empty splits nothing off.
fn split(call: &mut Call<'_>) -> Result<Value, Cause> {
    let (regex, text, parts) = (compile(call)?, call.text(1), limit(call.int(2)));
    if parts == 0 {
        return Ok(Vec::<Value>::new().into_iter().collect());
    }
    if !call.text(0).is_empty() && text.is_empty() {
        return Ok([Value::from("")].into_iter().collect());
    }
    let mut split: Vec<Value> = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for found in regex.find_iter(&text).take(parts) {
        call.run.steps(1)?;
        if split.len() == parts - 1 {
            break;
        }
        end = found.start();
        if found.end() != 0 {
            split.push(text[begin..end].into());
        }
        begin = found.end();
    }
    if end != text.len() {
        split.push(text[begin..].into());
    }
    Ok(split.into_iter().collect())
}
